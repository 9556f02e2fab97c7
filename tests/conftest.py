"""Shared by all tests: where the configs are, the device marker, and small models."""

import gc
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from detectron2_ddetr.backbones import unread

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
DATA = ROOT / "datasets" / "bccd"


def _instructions():
    """The flags that Linux lists of an x86 processor; none elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.M) if cpuinfo.is_file() else None
    return set(found[1].split()) if found else set()


PROCESSOR = _instructions()

needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: needs a GPU")
    torch.set_num_threads(int(os.environ.get("DDETR_TEST_THREADS", torch.get_num_threads())))


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, none is visible"))


def pytest_collection_finish():
    """What is imported by now stays: no collection of garbage need look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def tried_once():
    """
    Which parameters of a backbone are unread is asked once for all that are built alike: asking
    takes twice as long as building it. The answers, which a test may clear.
    """
    found, find = {}, unread.unread_parameters

    def remember(backbone, names, image):
        if type(backbone).__module__.startswith("tests."):  # of which one may do as it likes
            return find(backbone, names, image)
        trained = [name for name, x in backbone.named_parameters() if x.requires_grad]
        key = repr((backbone, list(names), image.shape, trained))
        if key not in found:
            found[key] = find(backbone, names, image)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unread, "unread_parameters", remember)
        yield found


def pytest_report_header():
    from detectron2_ddetr.toolbox import describe_toolbox

    return f"toolbox: {describe_toolbox()}"


def small_cfg(*opts, config="deformable_detr/deformable_detr_R_50_50ep.yaml"):
    """A config whose model is built in a moment: R-50, but thin."""
    from detectron2_ddetr import add_deformable_detr_config
    from detectron2_ddetr.toolbox import get_cfg

    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    cfg.merge_from_file(str(CONFIGS / config))
    node = "MODEL.DETR."
    cfg.merge_from_list(
        # fmt: off
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
         "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
         "MODEL.RESNETS.WIDTH_PER_GROUP", 8,
         node + "HIDDEN_DIM", 32, node + "NHEADS", 4, node + "DIM_FEEDFORWARD", 64,
         node + "ENC_LAYERS", 2, node + "DEC_LAYERS", 2, node + "NUM_QUERIES", 12,
         node + "NUM_CLASSES", 3, node + "DROPOUT", 0.0, *opts]
        # fmt: on
    )
    return cfg


VARIANTS = {
    "single_scale": "deformable_detr/deformable_detr_R_50_single_scale_50ep.yaml",
    "single_scale_dc5": "deformable_detr/deformable_detr_R_50_single_scale_dc5_50ep.yaml",
    "multi_scale": "deformable_detr/deformable_detr_R_50_50ep.yaml",
    "refine": "deformable_detr/deformable_detr_R_50_box_refine_50ep.yaml",
    "two_stage": "deformable_detr/deformable_detr_R_50_two_stage_50ep.yaml",
}
#: Relatives, and Deformable DETR ++ with their switches.
SYSTEMS = {
    "tricks": "h_deformable_detr/deformable_detr_R_50_two_stage_tricks_12ep.yaml",
    "h": "h_deformable_detr/h_deformable_detr_R_50_12ep.yaml",
    "dab": "dab_deformable_detr/dab_deformable_detr_R_50_50ep.yaml",
    "dn": "dn_deformable_detr/dn_deformable_detr_R_50_50ep.yaml",
    "dino": "dino/dino_4scale_R_50_12ep.yaml",
    "detr": "detr/detr_R_50_300ep.yaml",
}
FAMILY = {**VARIANTS, **SYSTEMS}
#: Those whose best tokens become queries: rounding changes their order.
TWO_STAGE = ("two_stage", "tricks", "h", "dino")


def not_ranked(variant, loss):
    """Whether a loss is of no queries that are chosen and ordered by what can be rounded."""
    return variant not in TWO_STAGE or (loss.endswith("_enc") and variant != "dino")


def seeded(model, batch):
    """What a model makes of a batch, with the same random numbers each time."""
    torch.manual_seed(0)
    return model(batch)

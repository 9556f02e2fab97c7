"""Official checkpoints: every key finds its place, and nothing is changed on the way."""

import argparse
import json
import os

import numpy as np
import pytest
import torch

from detectron2_ddetr import convert_official_state_dict, load_config
from detectron2_ddetr.build import build_head
from detectron2_ddetr.checkpoint.checkpointer import check_state_dict
from detectron2_ddetr.checkpoint.coco_classes import COCO_CATEGORY_IDS
from detectron2_ddetr.checkpoint.convert import convert_file
from detectron2_ddetr.checkpoint.doctor import describe, examine
from detectron2_ddetr.checkpoint.files import load_checkpoint_file, model_state_dict
from detectron2_ddetr.errors import InputError
from detectron2_ddetr.toolbox import build_model

from . import golden_cases as golden
from .conftest import CONFIGS, VARIANTS
from .fork_server import python

KEY_COUNTS = {
    "single_scale": 549,
    "single_scale_dc5": 549,
    "multi_scale": 561,
    "refine": 597,
    "two_stage": 630,
}


def official_shapes(variant, num_layers=6, num_queries=300):
    """The released checkpoints' keys and shapes, from the stored ones with two layers."""
    shapes = json.loads((golden.GOLDEN / f"state_dict_{variant}.json").read_text())
    grown = {}
    for key, shape in shapes.items():
        if key == "query_embed.weight":
            shape = [num_queries, shape[1]]
        for old, new in ((2, num_layers), (1, None), (0, None)):
            # Heads 0 and 1 and, two-stage, the encoder's: 2.
            if f"_embed.{old}." in key and old == 2:
                grown[key.replace("_embed.2.", f"_embed.{new}.")] = shape
                break
            if any(f"{part}.{old}." in key for part in ("coder.layers", "_embed")):
                numbers = range(num_layers) if old == 0 else ()
                for i in numbers:
                    new_key = key.replace("coder.layers.0.", f"coder.layers.{i}.")
                    grown[new_key.replace("_embed.0.", f"_embed.{i}.")] = shape
                break
        else:
            grown[key] = shape
    return grown


def official_zeros(variant):
    """A state dict that takes no memory."""
    return {k: torch.zeros(1).expand(shape) for k, shape in official_shapes(variant).items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_key_of_the_released_models_converts(variant):
    """Parity H57: six layers and 300 queries; no key missing, none left over, shapes equal."""
    official = official_zeros(variant)
    assert len(official) == KEY_COUNTS[variant]
    for prefix in ("", "transformer.", "transformer.decoder.layers.3.linear1."):
        for name in ("total_params", "total_ops"):
            official[prefix + name] = torch.zeros(1, dtype=torch.float64)
    official["backbone.0.body.bn1.num_batches_tracked"] = torch.tensor(3)
    converted = convert_official_state_dict(official)
    opts = ["MODEL.DEVICE", "meta", "MODEL.DETR.NUM_CLASSES", 91]
    with torch.device("meta"):
        model = build_model(load_config(str(CONFIGS / VARIANTS[variant]), opts))
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in converted.items()} == expected
    assert len(convert_official_state_dict(official, class_ids=COCO_CATEGORY_IDS)) == len(expected)


def test_coco_category_ids():
    """SPEC 1.24: 80 of 90 ids, as the annotations of COCO have them."""
    assert len(COCO_CATEGORY_IDS) == 80 and COCO_CATEGORY_IDS == sorted(set(COCO_CATEGORY_IDS))
    # person, stop sign, cat, chair, tv, toothbrush with their contiguous classes
    for category_id, contiguous in [(1, 0), (13, 11), (17, 15), (62, 56), (72, 62), (90, 79)]:
        assert COCO_CATEGORY_IDS.index(category_id) == contiguous


@pytest.mark.parametrize("name", ["bbox_embed.1.layers.0.weight", "class_embed.2.bias"])
def test_copies_that_differ_are_refused(name):
    """Parity H58: both names are given."""
    case = golden.load("model_two_stage")
    official = golden.official_state_dict("two_stage", case["config"]["seed"])
    convert_official_state_dict(official)
    copy = f"transformer.decoder.{name}"
    changed = {**official, copy: official[copy] + 1e-6}
    with pytest.raises(ValueError, match="differ") as error:
        convert_official_state_dict(changed)
    assert copy in str(error.value) and f" {name} " in str(error.value)
    orphan = {key: value for key, value in official.items() if key != name}
    with pytest.raises(ValueError, match="missing") as error:
        convert_official_state_dict(orphan)
    assert copy in str(error.value)


def test_unknown_keys_are_named():
    """Also those of the unfinished segmentation option, and of our own checkpoints."""
    official = official_zeros("multi_scale")
    with pytest.raises(ValueError, match="mask_head.lay1.weight"):
        convert_official_state_dict({**official, "mask_head.lay1.weight": torch.zeros(1)})
    for keys in (["detr.class_embed.0.bias"], ["head.class_embed.0.bias"], []):
        with pytest.raises(ValueError, match="not a checkpoint of the official"):
            convert_official_state_dict({key: torch.zeros(1) for key in keys})


@pytest.mark.parametrize("state_dict", [None, ["class_embed.0.bias"], {"class_embed.0.bias": 1}])
def test_what_is_no_state_dict(state_dict):
    with pytest.raises(InputError, match="must be tensors by their names"):
        convert_official_state_dict(state_dict)


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
@torch.no_grad()
def test_80_classes_predict_what_91_do(variant):
    """Parity G55, H61; PEERS 7.4: same proposals, logits of the 80 categories, boxes."""
    case = golden.load(f"model_{variant}")
    official = golden.official_state_dict(variant, case["config"]["seed"])
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(2, c, h, w, generator=generator)
        for c, h, w in ((512, 9, 14), (1024, 5, 7), (2048, 3, 4))
    ]
    mask = torch.zeros(2, 72, 112, dtype=torch.bool)
    mask[0, 60:], mask[1, :, 80:] = True, True
    results = []
    for class_ids, num_classes in ((None, 91), (COCO_CATEGORY_IDS, 80)):
        cfg = golden.config(variant, case)
        cfg.MODEL.DETR.NUM_CLASSES = num_classes
        head = build_head(cfg, [512, 1024, 2048]).eval()
        state = convert_official_state_dict(official, class_ids=class_ids)
        head.load_state_dict(
            {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
        )
        queries = []
        initial = head.transformer.initial_queries

        def record(*arguments, initial=initial, queries=queries):
            queries.append(initial(*arguments))
            return queries[-1]

        head.transformer.initial_queries = record
        results.append((head(maps, mask), queries[0]))
    (full, full_queries), (kept, kept_queries) = results
    columns = [i for i in range(1, 91) if i not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}]
    for a, b in zip([full, *full["aux_outputs"]], [kept, *kept["aux_outputs"]]):
        torch.testing.assert_close(b["pred_logits"], a["pred_logits"][..., columns])
        torch.testing.assert_close(b["pred_boxes"], a["pred_boxes"])
    assert torch.equal(kept_queries.reference_points, full_queries.reference_points)
    if variant == "two_stage":
        a, b = full["enc_outputs"], kept["enc_outputs"]
        torch.testing.assert_close(b["pred_logits"][..., 0], a["pred_logits"][..., 0])
        torch.testing.assert_close(b["pred_boxes"], a["pred_boxes"])
        tokens = [x["pred_logits"][..., 0].topk(100).indices for x in (a, b)]
        assert torch.equal(*tokens)


def test_other_class_subsets_keep_the_objectness_row():
    """Parity G55: rows in the order asked for, and row 0 first in the encoder's head."""
    official = official_zeros("two_stage")
    rows = torch.arange(91.0)
    for key in official:
        if "class_embed" in key and key.endswith("bias"):
            official[key] = rows
    for ids, encoder in (([7, 3], [0, 7]), ([5], [0]), ([4, 0, 2], [0, 4, 2])):
        converted = convert_official_state_dict(official, class_ids=ids)
        assert converted["head.class_embed.0.bias"].tolist() == ids
        assert converted["head.class_embed.5.bias"].tolist() == ids
        assert converted["head.class_embed.6.bias"].tolist() == encoder
        assert converted["head.class_embed.6.weight"].shape == (len(ids), 256)


def test_heads_without_these_rows_are_refused():
    """A model the authors' code trained on 20 classes has no row 90."""
    official = official_zeros("multi_scale")
    for key in official:
        if key.startswith("class_embed"):
            official[key] = official[key][:20]
    assert convert_official_state_dict(official)["head.class_embed.0.bias"].shape == (20,)
    with pytest.raises(ValueError, match="class_embed.0.*20 classes.*90"):
        convert_official_state_dict(official, class_ids=COCO_CATEGORY_IDS)


@pytest.mark.parametrize(
    "class_ids, words",
    [
        ([-1], "from 0, got -1"),
        ([3, -91], "from 0, got -91"),
        ([5, 7, 5], "5 more than once"),
        ([], "empty"),
        ([True, False], "got True"),
        ([1, True], "got True"),
        ([2.0], "got 2.0"),
        ([float("nan")], "got nan"),
        ("12", "got '1'"),
        (["3"], "got '3'"),
        ([None], "got None"),
        ([[1, 2]], "got \\[1, 2\\]"),
        (7, "a list.*got 7"),
        ([91], "91 classes, but row 91"),
    ],
)
@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
def test_class_ids_that_are_no_rows_are_refused(class_ids, words, variant):
    with pytest.raises(InputError, match=words):
        convert_official_state_dict(official_zeros(variant), class_ids=class_ids)


def test_any_kind_of_row_numbers_will_do():
    """Numbers of numpy, and anything that can be iterated."""
    official = official_zeros("refine")
    for ids in (np.array([4, 2]), range(2), (i for i in (7, 3)), {5: "cat", 6: "dog"}):
        converted = convert_official_state_dict(official, class_ids=ids)
        assert converted["head.class_embed.0.bias"].shape == (2,)


def official_file(path, variant):
    """As the authors' main.py saves it."""
    args = argparse.Namespace(lr=2e-4, lr_backbone_names=["backbone.0"], masks=False)
    checkpoint = {"model": official_zeros(variant), "optimizer": {}, "epoch": 49, "args": args}
    checkpoint["model"]["transformer.total_ops"] = torch.zeros(1)
    torch.save(checkpoint, path)


def test_command_line(tmp_path):
    """Parity H60: a file with an argparse.Namespace; the result loads into the shipped config."""
    official_file(tmp_path / "official.pth", "two_stage")
    words = ["-m", "detectron2_ddetr.cli", "convert", "official.pth", "converted.pth"]
    status, report = python(*words, cwd=tmp_path)
    assert status == 0, report
    for words in (
        "official.pth: a checkpoint of the official code",
        "config: deformable_detr_R_50_two_stage_50ep.yaml\n        MODEL.DETR.NUM_CLASSES 91\n",
        "91 rows, COCO's by category id",
        "265 tensors: backbone",
        "1 tensors: leftover of a FLOP counter, dropped",
        "classes: 91 -> 80",
        "saved to converted.pth",
    ):
        assert words in report, report
    assert "Traceback" not in report and "in sys.modules" not in report
    assert sorted(os.listdir(tmp_path)) == ["converted.pth", "official.pth"]
    check_converted(tmp_path / "converted.pth", "two_stage")


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "two_stage"])
def test_converted_files_load_into_the_shipped_configs(tmp_path, variant):
    official_file(tmp_path / "official.pth", variant)
    convert_file(str(tmp_path / "official.pth"), str(tmp_path / "converted.pth"))
    check_converted(tmp_path / "converted.pth", variant)


def check_converted(path, variant):
    """Its tensors are those of the shipped config."""
    opts = ["MODEL.DEVICE", "meta"]
    with torch.device("meta"):
        model = build_model(load_config(str(CONFIGS / VARIANTS[variant]), opts))
    state_dict = model_state_dict(load_checkpoint_file(str(path)), str(path))
    check_state_dict(state_dict, model.state_dict(), str(path), needs_head=True)
    assert "with_box_refine" in torch.load(path, weights_only=True)


def test_91_classes_are_kept_on_request(tmp_path):
    official_file(tmp_path / "official.pth", "refine")
    convert_file(str(tmp_path / "official.pth"), str(tmp_path / "out.pth"), classes="same")
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert written["model"]["head.class_embed.0.bias"].shape == (91,)
    assert written["with_box_refine"] is True


def test_report_counts_add_up(tmp_path):
    """What was read is mapped or dropped."""
    official_file(tmp_path / "official.pth", "refine")
    report = describe(examine(str(tmp_path / "official.pth")))
    counts = [int(line.split()[0]) for line in report.splitlines() if " tensors: " in line]
    assert sum(counts) == 597 + 1 and "deformable_detr_R_50_box_refine_50ep.yaml" in report
    assert f"{597 - 36} tensors, " in report


def test_a_failed_conversion_writes_nothing(tmp_path):
    torch.save({"model": {"nonsense": torch.zeros(1)}}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="nonsense"):
        convert_file(str(tmp_path / "bad.pth"), str(tmp_path / "out.pth"))
    assert os.listdir(tmp_path) == ["bad.pth"]

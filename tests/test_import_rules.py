"""Who may import whom, what registers when, and that every config key is read."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import detectron2_ddetr
from detectron2_ddetr import (
    DETR_CRITERION_REGISTRY,
    DETR_TRANSFORMER_REGISTRY,
    DeformableDETR,
    DeformableDETRDatasetMapper,
    load_config,
)
from detectron2_ddetr.build import build_deformable_transformer, build_set_criterion
from detectron2_ddetr.modeling import (
    DeformableDETRHead,
    DeformableTransformer,
    FeatureProjector,
    HungarianMatcher,
    MSDeformAttn,
    SetCriterion,
    TwoStageDeformableTransformer,
)
from detectron2_ddetr.toolbox import (
    Backbone,
    Boxes,
    ImageList,
    Instances,
    ShapeSpec,
    T,
    build_model,
)

from .conftest import CONFIGS, ROOT, small_cfg
from .test_config import flatten

PACKAGE = Path(detectron2_ddetr.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
NODE = "MODEL.DETR."


def imports(path):
    """(line, absolute dotted name) of every import; relative ones resolved from the repository."""
    found = []
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            found += [(node.lineno, a.value) for a in node.args if isinstance(a, ast.Constant)]
    return found


def names(path, package):
    """What `path` imports from `package`."""
    return [f"{path.name}:{i} {n}" for i, n in imports(path) if f"{n}.".startswith(f"{package}.")]


def run(code, **env):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_waiting_threads_leave_their_core():
    """OpenMP's runtime says what it has read; a policy that the user chose stays."""
    code = "import detectron2_ddetr"
    for chosen, spins in ((None, "'0'"), ("active", "'30000000000'")):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        env |= {"OMP_DISPLAY_ENV": "verbose", **({"OMP_WAIT_POLICY": chosen} if chosen else {})}
        command = [sys.executable, "-W", "ignore", "-c", code]
        said = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True).stderr
        if "GOMP_SPINCOUNT" not in said:
            pytest.skip("PyTorch uses another OpenMP runtime than GNU's")
        assert f"GOMP_SPINCOUNT = {spins}" in said


def test_only_the_toolbox_imports_detectron2_or_the_host():
    for path in [*SOURCES, *ROOT.glob("*.py")]:
        if path != PACKAGE / "toolbox.py":
            assert not names(path, "detectron2"), path
            if path.parent.name != "host":
                assert not names(path, "detectron2_ddetr.host"), path
    assert names(PACKAGE / "toolbox.py", "detectron2")
    assert names(PACKAGE / "toolbox.py", "detectron2_ddetr.host")


def test_modeling_imports_nothing_above_it():
    allowed = {"torch", "torchvision", "scipy", "numpy", *sys.stdlib_module_names}
    for path in (PACKAGE / "modeling").rglob("*.py"):
        for line, name in imports(path):
            inside = name.startswith(("detectron2_ddetr.modeling", "detectron2_ddetr._C"))
            assert inside or name.split(".")[0] in allowed, f"{path.name}:{line} {name}"


#: The rooms from the ground floor up; a room imports from its own floor's rooms and from below,
#: unless a circle would come of it. "" stands for the package itself and its public face.
FLOORS = [
    {"modeling", "host", "errors"},
    {"toolbox"},
    {
        "config",
        "config_rules",
        "query_rules",
        "backbones",
        "stock_trainer",
        "counters",
        "onednn",
        "weight_gradients",
    },
    {"build", "collect_env", "inputs", "measuring", "inference_form"},
    {"data", "checkpoint", "meta_arch", "systems"},
    {"engine", "analysis"},
    {"visualization", "model_zoo", "predictor", "export"},
    {"adapters", "demo"},
    {"plugin", "cli", "commands", "evaluate"},
    {"tools", "train_net"},
]


def room(path):
    """The room that a source file lies in; None for the face of the package."""
    if path.is_relative_to(PACKAGE):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        return None if name == "__init__" else name
    return "tools" if path.parent.name == "tools" else path.stem


def imported_rooms(path):
    """(line, room) of each import of this package, but for what belongs to the package itself."""
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] == PACKAGE.name and len(parts) > 1 and (PACKAGE / parts[1]).exists():
            yield line, parts[1]
        elif parts[0] == PACKAGE.name and len(parts) > 1 and (PACKAGE / f"{parts[1]}.py").exists():
            yield line, parts[1]


def test_no_arrow_runs_up():
    """HOUSE 1: who may import whom; every file lies in a room that has a floor."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for path in [*SOURCES, ROOT / "train_net.py", *(ROOT / "tools").glob("*.py")]:
        here = room(path)
        if here is None:
            continue
        assert here in floor, f"{path} lies in no room"
        for line, there in imported_rooms(path):
            assert floor[there] <= floor[here], f"{path}:{line} imports {there}, which is above"


def test_no_circle():
    """Neither among the rooms nor among the files."""
    graphs = {"rooms": {}, "files": {}}
    for path in SOURCES:
        here = room(path)
        if here is None:
            continue
        graphs["rooms"].setdefault(here, set()).update(r for _, r in imported_rooms(path))
        for _, name in imports(path):
            parts = name.split(".")
            if parts[0] != PACKAGE.name:
                continue
            for depth in (len(parts), len(parts) - 1):  # a module, or a name that is in it
                there = PACKAGE.parent.joinpath(*parts[:depth]).with_suffix(".py")
                if there.exists() and there != path:
                    graphs["files"].setdefault(path, set()).add(there)
    for graph in graphs.values():
        left = {name: used - {name} for name, used in graph.items()}
        while free := [name for name, used in left.items() if not used & set(left)]:
            for name in free:
                del left[name]
        assert not left, f"a circle: {left}"


def test_the_host_imports_nothing_of_the_plugin():
    for path in (PACKAGE / "host").glob("*.py"):
        for line, name in imports(path):
            if name.startswith("detectron2"):
                assert name.startswith("detectron2_ddetr.host"), f"{path.name}:{line} {name}"


def test_no_exception_is_swallowed_wholesale():
    """PEERS 7.10: a bare or general `except` hides the errors of what it surrounds."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[-1], ast.Raise):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in (
                    "everything",
                    "Exception",
                    "BaseException",
                ), f"{path.name}:{node.lineno} catches {caught}"


BLOCK = """
import sys
for name in ("detectron2", "fvcore", "pycocotools", "iopath", "cv2", "yacs"):
    sys.modules[name] = None  # as if it were not installed
"""


def test_modeling_runs_with_pytorch_alone():
    run(
        BLOCK + "import torch\n"
        "from detectron2_ddetr.modeling import *\n"
        "from detectron2_ddetr.modeling import DeformableDETRHead\n"
        "transformer = DeformableTransformer(32, 4, 1, 1, 64, n_levels=1)\n"
        "head = DeformableDETRHead(input_proj=FeatureProjector([5], 32, 1),\n"
        "    transformer=transformer, num_classes=3, num_queries=7)\n"
        "outputs = head([torch.rand(2, 5, 3, 4)], torch.zeros(2, 24, 32, dtype=torch.bool))\n"
        "assert outputs['pred_boxes'].shape == (2, 7, 4)\n"
        "assert 'detectron2_ddetr.toolbox' not in sys.modules\n"
    )


def test_without_fvcore_the_error_names_what_is_missing():
    """HANDBOOK 4.5: any other name of the package raises the error of the missing import."""
    run(
        BLOCK + "import detectron2_ddetr\n"
        "try:\n    detectron2_ddetr.load_config\n"
        "except ImportError as error:\n    name = error.name.split('.')[0]\n"
        "    assert name in ('fvcore', 'iopath'), error\n"
        "else:\n    assert False\n",
        DDETR_TOOLBOX="host",
    )


def test_importing_the_package_registers_everything():
    run(
        "import sys, detectron2_ddetr\n"
        "toolbox = sys.modules['detectron2_ddetr.toolbox']\n"
        "get = toolbox.META_ARCH_REGISTRY.get\n"
        "assert get('DeformableDETR') is detectron2_ddetr.DeformableDETR\n"
        "toolbox.BACKBONE_REGISTRY.get('build_detr_resnet_backbone')\n"
        "assert 'bccd_train' in toolbox.DatasetCatalog.list()\n"
        "if toolbox.TOOLBOX == 'detectron2':\n"
        "    from detectron2.modeling import META_ARCH_REGISTRY as theirs\n"
        "    assert theirs.get('DeformableDETR') is detectron2_ddetr.DeformableDETR\n"
    )


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_build(path):
    """PEERS 7.8: each builds, and but for DETR has a deformable attention per layer."""
    cfg = load_config(str(path), ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    node = cfg.MODEL.DETR
    transformer = model.head.transformer
    for layers, number, points in (
        (transformer.encoder, node.ENC_LAYERS, node.ENC_N_POINTS),
        (transformer.decoder, node.DEC_LAYERS, node.DEC_N_POINTS),
    ):
        attention = [m for m in layers.modules() if isinstance(m, MSDeformAttn)]
        assert len(attention) == (0 if node.TRANSFORMER == "build_dense_transformer" else number)
        samples = 2 * node.NHEADS * node.NUM_FEATURE_LEVELS * points
        assert all(m.sampling_offsets.out_features == samples for m in attention)


def added_keys():
    from detectron2_ddetr import add_deformable_detr_config
    from detectron2_ddetr.toolbox import get_cfg

    before, cfg = flatten(get_cfg()), get_cfg()
    add_deformable_detr_config(cfg)
    return sorted(set(flatten(cfg)) - set(before))


def test_every_config_key_is_read():
    """PEERS 7.8, 7.19: outside config.py, as an attribute of a config node."""
    read = {
        node.attr
        for path in SOURCES
        if path.name != "config.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert [key for key in added_keys() if key.split(".")[-1] not in read] == []


class OtherTransformer(DeformableTransformer):
    """What a user might register."""


@DETR_TRANSFORMER_REGISTRY.register()
def build_other_transformer(cfg):
    transformer = build_deformable_transformer(cfg)
    transformer.__class__ = OtherTransformer
    return transformer


@DETR_CRITERION_REGISTRY.register()
class OtherCriterion(SetCriterion):
    """What a user might register: a class that takes a config."""

    def __init__(self, cfg):
        super().__init__(build_set_criterion(cfg).matcher, loss_ce_weight=7.0)


def test_users_can_register_a_transformer_and_a_criterion():
    opts = [NODE + "TRANSFORMER", "build_other_transformer", NODE + "CRITERION", "OtherCriterion"]
    model = build_model(small_cfg(*opts, "MODEL.BACKBONE.FREEZE_AT", 0))
    assert isinstance(model.head.transformer, OtherTransformer)
    assert isinstance(model.criterion, OtherCriterion)
    assert set(model(batch())) > {"loss_ce", "loss_ce_0"}
    with pytest.raises(KeyError, match="build_nothing"):
        build_model(small_cfg(NODE + "TRANSFORMER", "build_nothing"))


def batch():
    """One image with two objects."""
    instances = Instances((136, 200))
    instances.gt_boxes = Boxes(torch.tensor([[5.0, 10.0, 40.0, 30.0], [50.0, 20.0, 90.0, 60.0]]))
    instances.gt_classes = torch.tensor([2, 0])
    image = torch.randint(256, (3, 136, 200), generator=torch.Generator().manual_seed(1))
    return [{"image": image, "instances": instances}]


def fingerprint(*opts):
    """Shapes of the weights, kinds of the parts, losses, gradient and matching costs of a step."""
    torch.manual_seed(0)
    model = build_model(small_cfg(*opts, "MODEL.BACKBONE.FREEZE_AT", 0))
    for parameter in model.head.parameters():  # zeros would hide what they multiply
        nn.init.normal_(parameter, std=0.1)
    torch.manual_seed(0)
    losses = model(batch())
    sum(losses.values()).backward()
    losses = {k: round(v.item(), 4) for k, v in losses.items()}
    # Of a box head, since a gradient is all that looking forward twice changes.
    gradient = round(model.head.bbox_embed[0].layers[-1].bias.grad.norm().item(), 3)
    logits, boxes = torch.zeros(1, 3), torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.4, 0.5, 0.2, 0.3]])}
    cost = model.criterion.matcher.cost(logits, boxes, target).item()
    kinds = type(model.head.transformer).__name__, type(model.criterion).__name__
    return (
        {k: tuple(v.shape) for k, v in model.state_dict().items()},
        kinds,
        losses,
        (cost, gradient),
    )


CHANGES = {
    # fmt: off
    "TRANSFORMER": "build_other_transformer", "CRITERION": "OtherCriterion",
    "IN_FEATURES": ["res4", "res5"], "NUM_FEATURE_LEVELS": 5, "NUM_CLASSES": 4, "NUM_QUERIES": 11,
    "HIDDEN_DIM": 64, "NHEADS": 2, "ENC_LAYERS": 1, "DEC_LAYERS": 1, "DIM_FEEDFORWARD": 48,
    "DROPOUT": 0.5, "ENC_N_POINTS": 3, "DEC_N_POINTS": 3, "WITH_BOX_REFINE": True,
    "TWO_STAGE": True, "FOCAL_ALPHA": 0.4, "NO_OBJECT_WEIGHT": 0.5,
    "LOSS_CE_WEIGHT": 3.0, "LOSS_BBOX_WEIGHT": 3.0,
    "LOSS_GIOU_WEIGHT": 3.0, "COST_CLASS": 3.0, "COST_BBOX": 3.0, "COST_GIOU": 3.0,
    "MIXED_SELECTION": True, "LOOK_FORWARD_TWICE": True,
    "ONE_TO_MANY.NUM_QUERIES": 7, "ONE_TO_MANY.REPEATS": 2, "ONE_TO_MANY.LOSS_WEIGHT": 0.5,
    "DENOISING.ENABLED": True, "DENOISING.NUM_QUERIES": 6, "DENOISING.NUM_GROUPS": 2,
    "DENOISING.LABEL_NOISE": 1.0, "DENOISING.BOX_NOISE": 0.4, "DENOISING.NEGATIVES": False,
    "DENOISING.CORNER_NOISE": False, "DENOISING.INDICATOR": True,
    # fmt: on
}
REFINED = [NODE + "WITH_BOX_REFINE", True]
TWO_STAGE = [*REFINED, NODE + "TWO_STAGE", True]
DENOISED = [*TWO_STAGE, NODE + "MIXED_SELECTION", True, NODE + "DENOISING.ENABLED", True]
OF_DETR = ["MODEL.META_ARCHITECTURE", "DETR", NODE + "TRANSFORMER", "build_dense_transformer",
           NODE + "CRITERION", "build_softmax_criterion", NODE + "NUM_FEATURE_LEVELS", 1,
           NODE + "IN_FEATURES", ["res5"]]  # fmt: skip
#: What a key needs beside it.
NEEDED = {
    "TWO_STAGE": REFINED,
    "MIXED_SELECTION": TWO_STAGE,
    "LOOK_FORWARD_TWICE": REFINED,
    "NO_OBJECT_WEIGHT": OF_DETR,
    "ONE_TO_MANY.REPEATS": [NODE + "ONE_TO_MANY.NUM_QUERIES", 7],
    "ONE_TO_MANY.LOSS_WEIGHT": [NODE + "ONE_TO_MANY.NUM_QUERIES", 7],
    "DENOISING.ENABLED": TWO_STAGE,
    **{key: DENOISED for key in CHANGES if key.startswith("DENOISING.") and "ENA" not in key},
}
NEEDED["DENOISING.CORNER_NOISE"] = [*DENOISED, NODE + "DENOISING.NEGATIVES", False]


def test_every_model_key_is_tried():
    """But for what must not change any number, as test_activation_checkpointing.py shows."""
    keys = {key.removeprefix(NODE) for key in added_keys() if key.startswith(NODE)}
    assert {key for key in keys if not key.startswith("ACTIVATION_CHECKPOINTING.")} == set(CHANGES)


@pytest.fixture(scope="module")
def default_fingerprint():
    return fingerprint()


@pytest.mark.parametrize("key", CHANGES)
def test_changing_a_key_changes_the_model(key, default_fingerprint):
    """PEERS 7.19."""
    needed = NEEDED.get(key, [])
    before = fingerprint(*needed) if needed else default_fingerprint
    assert before == (fingerprint(*needed) if key == "DROPOUT" else before)  # reproducible
    assert fingerprint(*needed, NODE + key, CHANGES[key]) != before


@pytest.mark.parametrize("term, key", [("ce", "CE"), ("bbox", "BBOX"), ("giou", "GIOU")])
def test_loss_weights_cover_every_layer(term, key):
    """PEERS 7.6: also the auxiliary layers and the encoder, and no other term."""
    opts = [NODE + "WITH_BOX_REFINE", True, NODE + "TWO_STAGE", True]
    default = {"ce": 2.0, "bbox": 5.0, "giou": 2.0}[term]
    _, _, before, _ = fingerprint(*opts)
    _, _, after, _ = fingerprint(*opts, NODE + f"LOSS_{key}_WEIGHT", 3 * default)
    assert {f"loss_{term}{suffix}" for suffix in ("", "_0", "_enc")} < set(before)
    for name, value in before.items():
        factor = 3 if name.startswith(f"loss_{term}") else 1
        assert after[name] == pytest.approx(factor * value, rel=1e-3, abs=3e-4), name


class OneConv(Backbone):
    """Stride 8, built without a config."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, x):
        return {"map": self.conv(x)}

    def output_shape(self):
        return {"map": ShapeSpec(channels=6, stride=8)}


@pytest.mark.parametrize("two_stage", [False, True])
def test_classes_are_built_from_keyword_arguments(two_stage):
    """No class needs a config: LazyConfig and notebooks give arguments."""
    arguments = dict(d_model=32, n_heads=4, num_encoder_layers=1, num_decoder_layers=1, n_levels=2)
    if two_stage:
        transformer = TwoStageDeformableTransformer(num_queries=5, **arguments)
    else:
        transformer = DeformableTransformer(**arguments)
    model = DeformableDETR(
        backbone=OneConv(),
        head=DeformableDETRHead(
            input_proj=FeatureProjector(in_channels=[6], d_model=32, num_levels=2),
            transformer=transformer,
            num_classes=3,
            num_queries=5,
            with_box_refine=two_stage,
        ),
        criterion=SetCriterion(matcher=HungarianMatcher()),
        in_features=["map"],
        pixel_mean=[1.0, 2.0, 3.0],
        pixel_std=[4.0, 5.0, 6.0],
        num_detections=4,
    )
    assert torch.stack(list(model(batch()).values())).isfinite().all()
    assert len(model.eval()(batch())[0]["instances"]) <= 4
    assert isinstance(model.preprocess_image(batch()), ImageList)
    mapper = DeformableDETRDatasetMapper(
        is_train=True, augmentations=[T.RandomFlip()], image_format="RGB"
    )
    assert mapper.is_train

"""The seam: the two branches of the toolbox agree, by name, by signature and by number."""

import ast
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detectron2_ddetr import host
from detectron2_ddetr.host import config as host_config
from detectron2_ddetr.host import data as host_data
from detectron2_ddetr.host import engine, hooks, modeling, solver, structures, transforms

PACKAGE = Path(host.__file__).parents[1]
HOST_LINE_CAP = 1200  # may only shrink
_spec = importlib.util.find_spec("detectron2")
needs_detectron2 = pytest.mark.skipif(
    _spec is None or _spec.origin is None, reason="detectron2 is not installed"
)


def _toolbox_branches() -> list[list[ast.ImportFrom]]:
    tree = ast.parse((PACKAGE / "toolbox.py").read_text())
    branch = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and any(isinstance(n, ast.ImportFrom) for n in node.body)
    )
    return [
        [n for n in body if isinstance(n, ast.ImportFrom)] for body in (branch.body, branch.orelse)
    ]


def _names(imports: list[ast.ImportFrom]) -> list[str]:
    return sorted(alias.asname or alias.name for node in imports for alias in node.names)


def _run(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(PACKAGE.parent), env.pop("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_both_branches_list_the_same_names():
    ours, theirs = (_names(branch) for branch in _toolbox_branches())
    assert ours == theirs
    assert len(ours) == len(set(ours)) > 30


def test_unknown_toolbox_is_an_error(tmp_path):
    result = _run("import detectron2_ddetr.toolbox", tmp_path, DDETR_TOOLBOX="garbage")
    assert result.returncode != 0
    assert "ValueError" in result.stderr and "'garbage'" in result.stderr


def test_a_mere_folder_named_detectron2_does_not_count(tmp_path):
    (tmp_path / "detectron2").mkdir()
    code = (
        "import importlib.util as u; assert u.find_spec('detectron2') is not None;"
        "import detectron2_ddetr.toolbox as t; print(t.TOOLBOX)"
    )
    env = {"DDETR_TOOLBOX": "", "PYTHONPATH": ""}  # without a clone on this process's path
    result = _run(code, tmp_path, **env)
    assert result.returncode == 0, result.stderr
    code = "import importlib.util as u; s = u.find_spec('detectron2'); print(s and s.origin)"
    (tmp_path / "elsewhere").mkdir()
    elsewhere = _run(code, tmp_path / "elsewhere", **env).stdout.strip()
    assert result.stdout.strip() == ("host" if elsewhere == "None" else "detectron2")


def test_host_stays_small():
    lines = {
        p.name: len(p.read_text().splitlines()) for p in sorted((PACKAGE / "host").glob("*.py"))
    }
    assert sum(lines.values()) <= HOST_LINE_CAP, lines


def test_host_imports_nothing_of_the_plugin_or_detectron2():
    for path in (PACKAGE / "host").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{path.name}: {ast.unparse(node)}"
                assert not (node.module or "").startswith("detectron2"), ast.unparse(node)
            elif isinstance(node, ast.Import):
                assert not any(a.name.startswith("detectron2") for a in node.names)


# Parity with detectron2.

# A host parameter may be missing where it is out of scope; these differ on purpose.
DIFFERENT_DEFAULTS = {
    ("CfgNode.merge_from_file", "allow_unsafe"),  # safe unless asked otherwise
    ("configurable", "init_func"),  # without parentheses only
    ("_DatasetCatalog.get", "default"),
}


def _parameters(function) -> dict[str, inspect.Parameter]:
    return {n: p for n, p in inspect.signature(function).parameters.items() if n != "self"}


def _check_signature(name: str, ours, theirs) -> None:
    ours, theirs = _parameters(ours), _parameters(theirs)
    common = [n for n in theirs if n in ours]
    assert list(ours) == common, f"{name}: {list(ours)} is not a subset of {list(theirs)}"
    for parameter in common:
        if (name, parameter) not in DIFFERENT_DEFAULTS:
            assert ours[parameter].default == theirs[parameter].default, f"{name}: {parameter}"
            assert ours[parameter].kind == theirs[parameter].kind, f"{name}: {parameter}"


def _shared() -> list[tuple[str, str, str]]:
    """Name, detectron2's module and the host's module of everything in the toolbox."""
    theirs, ours = (
        {alias.asname or alias.name: (node, alias.name) for node in branch for alias in node.names}
        for branch in _toolbox_branches()
    )
    return [
        (
            name,
            theirs[name][0].module + ":" + theirs[name][1],
            "detectron2_ddetr." + ours[name][0].module + ":" + ours[name][1],
        )
        for name in sorted(theirs)
    ]


def _resolve(path: str):
    module, name = path.split(":")
    module = importlib.import_module(module)
    if not hasattr(module, name):
        return importlib.import_module(f"{module.__name__}.{name}")
    return getattr(module, name)


@needs_detectron2
@pytest.mark.parametrize("name, theirs, ours", _shared())
def test_signatures_are_a_subset(name, theirs, ours):
    theirs, ours = _resolve(theirs), _resolve(ours)
    if inspect.ismodule(ours):
        members = {
            k: v
            for k, v in vars(ours).items()
            if not k.startswith("_") and getattr(v, "__module__", None) == ours.__name__
        }
        pairs = [(k, v, getattr(theirs, k)) for k, v in members.items() if callable(v)]
    elif name == "build_detection_test_loader":  # called with a config only
        pairs = [(name, ours, inspect.getclosurevars(theirs).nonlocals["from_config"])]
    elif callable(ours):
        pairs = [(name, ours, theirs)]
    else:
        assert type(ours).__name__ == type(theirs).__name__
        pairs = [(name, type(ours), type(theirs))]
    for label, our, their in pairs:
        if inspect.isclass(our):
            if "__init__" in vars(our):
                _check_signature(label, our.__init__, their.__init__)
            for method, function in vars(our).items():
                if not method.startswith("_") and callable(getattr(our, method)):
                    _check_signature(
                        f"{label}.{method}", getattr(our, method), getattr(their, method)
                    )
        else:
            _check_signature(label, our, their)


def _flatten(cfg, prefix: str = "") -> dict:
    flat = {}
    for key, value in cfg.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


@needs_detectron2
def test_default_config(tmp_path):
    from detectron2.config import get_cfg

    ours, theirs = _flatten(host_config.get_cfg()), _flatten(get_cfg())
    assert set(ours) <= set(theirs)
    assert {k: (v, type(v)) for k, v in ours.items()} == {
        k: (theirs[k], type(theirs[k])) for k in ours
    }
    path = tmp_path / "host.yaml"
    path.write_text(host_config.get_cfg().dump())
    loaded = get_cfg()
    loaded.merge_from_file(str(path))
    assert _flatten(loaded) == theirs


@needs_detectron2
@pytest.mark.parametrize("sizes", [[(7, 12)], [(7, 12), (10, 5)]])
@pytest.mark.parametrize("divisibility", [0, 4])
def test_image_list(sizes, divisibility):
    from detectron2.structures import ImageList

    images = [torch.rand(3, h, w) for h, w in sizes]
    ours = structures.ImageList.from_tensors(images, divisibility, pad_value=0.5)
    theirs = ImageList.from_tensors(images, divisibility, pad_value=0.5)
    assert torch.equal(ours.tensor, theirs.tensor)
    assert ours.image_sizes == theirs.image_sizes
    with pytest.raises(NotImplementedError, match="detectron2"):
        structures.ImageList.from_tensors(images, padding_constraints={"square_size": 20})


@needs_detectron2
def test_boxes_and_instances():
    import detectron2.structures as d2

    raw = torch.tensor([[1.0, 2.0, 30.0, 9.0], [-4.0, 3.0, 5.5, 40.0], [2.0, 2.0, 2.0, 8.0]])
    results = []
    for module in (structures, d2):
        boxes = module.Boxes(raw.clone())
        nonempty = boxes.nonempty(2.0)
        boxes.clip((10, 20))
        boxes.scale(2.0, 3.0)
        assert [len(box) for box in boxes] == [4, 4, 4]
        parts = [boxes[0], boxes[-2:], boxes[torch.tensor([True, False, True])]]
        instances = module.Instances((10, 20), pred_boxes=boxes, scores=torch.arange(3.0))
        instances.pred_classes = [1, 2, 3]
        some = instances[1:].to("cpu")
        assert len(module.Boxes([])) == 0 and len(instances[-1]) == 1
        results.append(
            [nonempty, some.pred_boxes.tensor, some.scores, some.pred_classes, some.image_size]
            + [part.tensor for part in parts]
            + [list(some.get_fields()), len(some), instances[-1].pred_classes]
        )
    for ours, theirs in zip(*results):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


@needs_detectron2
@pytest.mark.parametrize(
    "box", [[1, 2, 3, 4], (1.1, 2.2, 3.3, 4.4), np.array([[0.1, 2.0, 3.3, 4.0]])]
)
@pytest.mark.parametrize("modes", [(0, 1), (1, 0), (0, 0)])
def test_box_mode(box, modes):
    import detectron2.structures as d2

    ours, theirs = (
        module.BoxMode.convert(box, *map(module.BoxMode, modes)) for module in (structures, d2)
    )
    assert type(ours) is type(theirs) and np.array_equal(np.array(ours), np.array(theirs))
    assert all(mode.value == d2.BoxMode[mode.name].value for mode in structures.BoxMode)


RESNETS = [
    {"DEPTH": 50},
    {"DEPTH": 50, "RES5_DILATION": 2, "STRIDE_IN_1X1": False, "OUT_FEATURES": ["res3", "res5"]},
    {"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "NORM": "BN", "OUT_FEATURES": ["stem", "res4"]},
]


@needs_detectron2
@pytest.mark.parametrize("options", RESNETS)
@pytest.mark.parametrize("freeze_at", [0, 2])
def test_resnet(options, freeze_at):
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    models = []
    for make, build in ((host_config.get_cfg, modeling.build_backbone), (get_cfg, build_backbone)):
        cfg = make()
        cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
        for key, value in options.items():
            cfg.MODEL.RESNETS[key] = value
        torch.manual_seed(0)
        models.append(build(cfg))
    ours, theirs = models
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in ours.state_dict().items()), "another init"
    assert [(n, p.requires_grad) for n, p in ours.named_parameters()] == [
        (n, p.requires_grad) for n, p in theirs.named_parameters()
    ]
    assert {k: vars(v) for k, v in ours.output_shape().items()} == {
        k: vars(v) for k, v in theirs.output_shape().items()
    }
    x = torch.rand(1, 3, 65, 97)
    generator = torch.Generator().manual_seed(1)
    for name, value in state.items():
        if "running" in name or name.endswith(("norm.weight", "norm.bias")):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    ours.load_state_dict(state, strict=False)  # of a frozen norm, num_batches_tracked
    outputs = ours.eval()(x), theirs.eval()(x)
    assert list(outputs[0]) == list(outputs[1])
    for name, feature in outputs[1].items():
        assert torch.equal(outputs[0][name], feature), name


@needs_detectron2
def test_detector_postprocess():
    import detectron2.structures as d2
    from detectron2.modeling import detector_postprocess

    raw = torch.tensor([[1.0, 2.0, 9.0, 7.0], [-3.0, 1.0, 50.0, 60.0], [21.0, 1.0, 30.0, 5.0]])
    results = []
    for module, function in (
        (structures, modeling.detector_postprocess),
        (d2, detector_postprocess),
    ):
        instances = module.Instances((10, 20), pred_boxes=module.Boxes(raw.clone()))
        instances.scores = torch.arange(3.0)
        results.append(function(instances, 30, 47))
    assert results[0].image_size == results[1].image_size
    assert torch.equal(results[0].pred_boxes.tensor, results[1].pred_boxes.tensor)
    assert torch.equal(results[0].scores, results[1].scores)


def _coco_json(path: Path) -> str:
    rng = np.random.default_rng(0)
    images = [
        {"id": i, "file_name": f"{i}.png", "height": 60 + i, "width": 90 + 3 * i}
        for i in (7, 3, 5, 11)
    ]
    annotations = []
    for i in range(24):
        x, y, w, h = (rng.random(4) * [50, 30, 40, 30] + [0, 0, 2, 2]).round(2).tolist()
        annotation = {"id": i + 1, "image_id": (7, 3, 5)[i % 3], "category_id": (1, 4, 9)[i % 3]}
        annotation |= {"bbox": [x, y, w, h], "area": w * h, "iscrowd": int(i % 11 == 10)}
        if i % 4 == 0:
            annotation["segmentation"] = [[x, y, x + w, y, x, y + h], [1.0, 2.0]]
        if i % 8 == 5:
            annotation["segmentation"] = [[x, y, x + w, y]]  # too few points
        if i % 8 == 6:
            annotation["segmentation"] = {"counts": [0, 60 * 90], "size": [60, 90]}
        if i % 8 == 7:
            annotation["segmentation"] = []
        annotations.append(annotation)
    categories = [{"id": i, "name": n} for i, n in ((9, "c"), (1, "a"), (4, "b"))]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return str(path)


@needs_detectron2
def test_coco_json(tmp_path):
    """The host leaves out the masks, but the same annotations."""
    from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
    from detectron2.data.datasets import register_coco_instances

    path, name, results = _coco_json(tmp_path / "a.json"), f"parity_{tmp_path.name}", []
    for register, catalog, metadata, get_dicts in (
        (
            host_data.register_coco_instances,
            host_data.DatasetCatalog,
            host_data.MetadataCatalog,
            host_data.get_detection_dataset_dicts,
        ),
        (register_coco_instances, DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts),
    ):
        register(name, {"extra": 1}, path, "images")
        assert name in catalog.list()
        dicts = get_dicts(name) + get_dicts([name], filter_empty=False)
        for annotation in sum((d["annotations"] for d in dicts), []):
            annotation.pop("segmentation", None)
        results.append([dicts, vars(metadata.get(name))])
        catalog.remove(name)
        metadata.pop(name)
    assert results[0] == results[1] and len(results[0][0]) == 3 + 4


@needs_detectron2
def test_builtin_coco():
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for name in ("coco_2017_train", "coco_2017_val"):
        ours, theirs = host_data.MetadataCatalog.get(name), MetadataCatalog.get(name)
        assert name in DatasetCatalog and name in host_data.DatasetCatalog
        assert vars(ours).items() <= theirs.as_dict().items()


SOLVERS = [
    {"STEPS": (30, 40, 60), "WARMUP_ITERS": 10, "WARMUP_FACTOR": 0.1, "GAMMA": 0.5},
    {"WARMUP_ITERS": 0, "STEPS": (25,)},
    {"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 0.0001, "WARMUP_ITERS": 5},
]


@needs_detectron2
@pytest.mark.parametrize("options", SOLVERS)
@pytest.mark.filterwarnings("ignore")
def test_learning_rates(options):
    from detectron2.config import get_cfg
    from detectron2.solver import build_lr_scheduler

    curves = []
    for make, build in (
        (host_config.get_cfg, solver.build_lr_scheduler),
        (get_cfg, build_lr_scheduler),
    ):
        cfg = make()
        cfg.SOLVER.MAX_ITER = 50
        for key, value in options.items():
            cfg.SOLVER[key] = value
        parameters = [{"params": [torch.zeros(1)], "lr": lr} for lr in (0.1, 0.03)]
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        scheduler, curve = build(cfg, optimizer), []
        for _ in range(49):
            curve.append([group["lr"] for group in optimizer.param_groups])
            scheduler.step()
        curves.append(curve)
    assert curves[0] == curves[1]


@needs_detectron2
def test_parameter_groups():
    from detectron2.solver import get_default_optimizer_params

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 1), torch.nn.GroupNorm(32, 32))
    model.add_module("head", torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)))
    model.head.add_module("tied", model.head[0])
    model[0].bias.requires_grad_(False)
    common = {"base_lr": 1.0, "weight_decay": 0.1}
    cases = [
        common,
        common | {"weight_decay_norm": 0.0},
        common | {"bias_lr_factor": 2.0, "weight_decay_bias": 0.3},
        common | {"lr_factor_func": lambda n: 0.1 if n.startswith("head.0") else 1.0},
    ]
    for kwargs in cases:
        ours = solver.get_default_optimizer_params(model, **kwargs)
        theirs = get_default_optimizer_params(model, **kwargs)
        for group in (*ours, *theirs):
            group["params"] = [id(p) for p in group["params"]]
        assert ours == theirs


@needs_detectron2
def test_transforms():
    from detectron2.data import transforms as d2

    image = (np.random.default_rng(0).random((20, 33, 3)) * 255).astype(np.uint8)
    boxes = np.array([[1.0, 2.0, 20.0, 9.0], [3.5, 4.0, 32.0, 19.0]])
    results = []
    for module in (transforms, d2):

        class Fixed(module.Augmentation):
            def __init__(self, transform):
                self.transform = transform

            def get_transform(self, image):
                return self.transform

        np.random.seed(3)
        augmentations = module.AugmentationList(
            [
                module.RandomFlip(0.9),
                Fixed(module.ResizeTransform(20, 33, 41, 50)),
                Fixed(module.CropTransform(5, 6, 30, 20)),
                module.RandomFlip(0.7, horizontal=False, vertical=True),
            ]
        )
        aug_input = module.AugInput(image.copy())
        tfms = augmentations(aug_input)
        results.append([aug_input.image, tfms.apply_box(boxes), tfms.apply_image(image)])
    for ours, theirs in zip(*results):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@needs_detectron2
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_batch_norm(requires_grad, dtype):
    from detectron2.layers import FrozenBatchNorm2d

    norms = modeling.FrozenBatchNorm2d(4), FrozenBatchNorm2d(4)
    state = {name: torch.rand(4) + 0.5 for name in norms[0].state_dict()}
    x = torch.rand(2, 4, 5, 3, dtype=dtype, requires_grad=requires_grad)
    for norm in norms:
        norm.load_state_dict(state)
    ours, theirs = (norm(x) for norm in norms)
    assert torch.equal(ours, theirs) and ours.dtype == dtype


@needs_detectron2
def test_metrics_file(tmp_path):
    from detectron2.utils import events as d2

    writer = engine.MetricsWriter(str(tmp_path / "ours.json"))
    with d2.EventStorage(3) as theirs:
        engine.EventStorage.current = ours = engine.EventStorage(3)
        their_writer = d2.JSONWriter(str(tmp_path / "theirs.json"))
        for i in range(3, 64):
            for storage in (ours, theirs):
                storage.iter = i
                storage.put_scalar("loss_a", i**0.5)
                if i > 5:
                    storage.put_scalar("time", 1.5 + i % 7)
                storage.put_scalar("lr", 1e-4 * i, smoothing_hint=False)
                if i == 50:
                    storage.put_scalar("bbox/AP", 1, smoothing_hint=False)
            if i % 20 == 19 or i == 63:
                writer.write()
                their_writer.write()
        their_writer.close()
    text = (tmp_path / "theirs.json").read_text()
    assert (tmp_path / "ours.json").read_text() == text and text.count("\n") == 5


@needs_detectron2
def test_scheduler_state_of_a_checkpoint():
    """The state of detectron2's hook can be continued, and the other way round."""
    import detectron2.engine.hooks as d2
    from detectron2.config import get_cfg
    from detectron2.solver import build_lr_scheduler

    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 50, (30,), 3
    builders = (hooks.LRScheduler, solver.build_lr_scheduler), (d2.LRScheduler, build_lr_scheduler)
    states, rates = [], []
    for source, target in (builders, builders[::-1]):
        made = []
        for hook, build in (source, target):
            optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
            hook = hook()
            hook.trainer = SimpleNamespace(scheduler=build(cfg, optimizer), optimizer=optimizer)
            made.append(hook)
        for _ in range(35):
            made[0].trainer.optimizer.step()
            made[0].trainer.scheduler.step()
        states.append(made[0].state_dict())
        made[1].load_state_dict(states[-1])
        made[1].trainer.optimizer.step()
        made[1].trainer.scheduler.step()
        rates.append(made[1].trainer.optimizer.param_groups[0]["lr"])
    assert states[0] == states[1] and rates[0] == rates[1] == pytest.approx(0.01)


@needs_detectron2
def test_parser():
    from detectron2.engine import default_argument_parser

    argv = ["--config-file", "a.yaml", "--num-gpus", "2", "--resume", "SOLVER.MAX_ITER", "3"]
    ours, theirs = (
        vars(parser().parse_args(argv))
        for parser in (engine.default_argument_parser, default_argument_parser)
    )
    assert ours == theirs

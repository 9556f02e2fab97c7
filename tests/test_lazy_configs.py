"""Each LazyConfig is the YAML config of its name: the model, its training, its data."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from detectron2_ddetr import DeformableDETRDatasetMapper, build_optimizer, load_config
from detectron2_ddetr.engine.evaluator import build_evaluator
from detectron2_ddetr.toolbox import TOOLBOX, DatasetCatalog, build_lr_scheduler, build_model

from .conftest import CONFIGS, VARIANTS
from .test_gradients import BATCHES

pytestmark = pytest.mark.skipif(TOOLBOX != "detectron2", reason="LazyConfig is detectron2's")
OTHERS = ("deformable_detr/deformable_detr_R_50_dcnv2_50ep.yaml", "quick_start.yaml")
PAIRS = {Path(name).stem: name for name in (*VARIANTS.values(), *OTHERS)}


def load(name):
    from detectron2.config import LazyConfig

    return LazyConfig.load(str(CONFIGS / "lazy" / f"{name}.py"))


def make(config):
    from detectron2.config import instantiate

    return instantiate(config)


def seeded(build, config):
    torch.manual_seed(0)
    return build(config)


@pytest.fixture(params=PAIRS, scope="module")
def pair(request):
    """The YAML config and the LazyConfig, each with a model of the same seed."""
    path, cfg = str(CONFIGS / PAIRS[request.param]), load(request.param)
    models = [
        seeded(build_model, load_config(path, ["MODEL.DEVICE", "cpu"])),
        seeded(make, cfg.model),
    ]
    return SimpleNamespace(yaml=load_config(path), lazy=cfg, models=models)


def test_every_config_has_its_pair():
    assert set(PAIRS) == {path.stem for path in (CONFIGS / "lazy").glob("*.py")}
    assert {*PAIRS.values()} == {
        path.relative_to(CONFIGS).as_posix()
        for path in CONFIGS.rglob("*.yaml")
        if not path.name.startswith("Base")
    }


def plain(value):
    """Numbers and words as they are, lists of whatever kind as lists, of all else the class."""
    if isinstance(value, (str, int, float, type(None), torch.dtype)):
        return value
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items()}
    if isinstance(value, Sequence):  # omegaconf's too
        return [plain(x) for x in value]
    return type(value)


#: What every module has, and what torch keeps of a padding that is not of zeros.
COMMON = {*vars(nn.Module()), "_reversed_padding_repeated_twice"}


def settings(thing):
    """What an object was made with."""
    return {name: plain(value) for name, value in vars(thing).items() if name not in COMMON}


def test_models_are_equal(pair):
    """Names, shapes and first values of the weights, what is frozen, and every setting."""
    yaml, lazy = pair.models
    states = yaml.state_dict(), lazy.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(map(torch.equal, states[0].values(), states[1].values()))
    frozen = [[n for n, p in m.named_parameters() if not p.requires_grad] for m in pair.models]
    assert frozen[0] == frozen[1]
    assert repr(yaml) == repr(lazy)
    assert torch.equal(yaml.pixel_mean, lazy.pixel_mean)
    assert torch.equal(yaml.pixel_std, lazy.pixel_std)
    for ours, theirs in zip(yaml.modules(), lazy.modules(), strict=True):
        assert settings(ours) == settings(theirs), type(ours)


def optimizers(pair):
    pair.lazy.optimizer.params.model = pair.models[1]
    return build_optimizer(pair.yaml, pair.models[0]), make(pair.lazy.optimizer)


def test_optimizers_are_equal(pair):
    """Class, clip, rates, weight decay, and which parameters are in which group."""
    yaml, lazy = optimizers(pair)
    assert type(yaml) is type(lazy) and yaml.max_norm == lazy.max_norm == 0.1
    groups = [[{**g, "params": len(g["params"])} for g in o.param_groups] for o in (yaml, lazy)]
    assert groups[0] == groups[1] and "param_names" in groups[0][0]
    factors = sorted({g["lr"] / pair.yaml.SOLVER.BASE_LR for g in lazy.param_groups})
    assert factors == pytest.approx([0.1, 1])
    assert {g["weight_decay"] for g in lazy.param_groups} == {1e-4}


@torch.no_grad()
def test_losses_and_detections_are_equal(pair):
    for model in pair.models:
        torch.manual_seed(1)
        for parameter in model.head.bbox_embed.parameters():  # zeros would hide what comes before
            nn.init.normal_(parameter, std=0.1)
    losses, detections = [], []
    for model in pair.models:
        torch.manual_seed(2)  # of dropout
        losses.append(model.train()(BATCHES["boxes"]()))
        detections += model.eval()(BATCHES["boxes"]()[:1])
    assert losses[0] == losses[1] and len(losses[0]) >= 9
    ours, theirs = (x["instances"] for x in detections)
    assert torch.equal(ours.scores, theirs.scores) and len(ours) > 0
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)


def rates(scheduler, optimizer, iterations):
    found = []
    for iteration in iterations:
        scheduler.last_epoch = iteration - 1
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", PAIRS)
def test_learning_rates_are_equal(name):
    """Warm-up, the drop after 40 epochs to the iteration, and the end."""
    from detectron2.solver import LRMultiplier

    cfg, lazy = load_config(str(CONFIGS / PAIRS[name])), load(name)
    iterations = [0, 1, 25, 49, 50, 51, 300, 599]
    if cfg.SOLVER.STEPS:
        iterations += [147_838, 147_839, 147_840, 147_841, 184_799]
    found = []
    for build in (
        lambda optimizer: build_lr_scheduler(cfg, optimizer),
        lambda optimizer: LRMultiplier(
            optimizer, make(lazy.lr_multiplier), max_iter=lazy.train.max_iter
        ),
    ):
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=cfg.SOLVER.BASE_LR)
        found.append(rates(build(optimizer), optimizer, iterations))
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    assert len(set(found[0])) >= (2 if cfg.SOLVER.STEPS else 8)


@pytest.mark.parametrize("name", PAIRS)
def test_data_and_evaluation_are_equal(name):
    cfg, lazy = load_config(str(CONFIGS / PAIRS[name])), load(name)
    train, test = lazy.dataloader.train, lazy.dataloader.test
    assert (train.dataset.names,) == cfg.DATASETS.TRAIN
    assert (test.dataset.names,) == cfg.DATASETS.TEST
    assert train.dataset.filter_empty is cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert test.dataset.filter_empty is False
    assert train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert train.aspect_ratio_grouping is cfg.DATALOADER.ASPECT_RATIO_GROUPING
    assert train.num_workers == test.num_workers == cfg.DATALOADER.NUM_WORKERS

    cfg.defrost()
    cfg.DATASETS.TEST = (test.dataset.names,) = ("bccd_val",)  # which is here
    ours, theirs = build_evaluator(cfg, "bccd_val"), make(lazy.dataloader.evaluator)
    assert type(ours) is type(theirs) and settings(ours) == settings(theirs)


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_mappers_are_equal(name, is_train):
    """On images of 640x480, flipped, cropped or neither."""
    cfg, lazy = load_config(str(CONFIGS / PAIRS[name])), load(name)
    ours = DeformableDETRDatasetMapper(cfg, is_train=is_train)
    theirs = make((lazy.dataloader.train if is_train else lazy.dataloader.test).mapper)
    assert theirs.num_classes in (None, ours.num_classes) and bool(theirs.num_classes) == is_train
    sizes = set()
    for position, record in enumerate(DatasetCatalog.get("bccd_train")[:8]):
        a, b = (mapper({**record, "draw": (0, position)}) for mapper in (ours, theirs))
        assert torch.equal(a["image"], b["image"]) and set(a) == set(b)
        sizes.add(tuple(a["image"].shape))
        if is_train:
            a, b = a["instances"], b["instances"]
            assert torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor)
            assert torch.equal(a.gt_classes, b.gt_classes)
    assert len(sizes) > 1 or name == "quick_start" or not is_train


@pytest.mark.parametrize("name", PAIRS)
def test_runs_are_equal(name):
    cfg, train = load_config(str(CONFIGS / PAIRS[name])), load(name).train
    assert train.max_iter == cfg.SOLVER.MAX_ITER
    assert train.eval_period == cfg.TEST.EVAL_PERIOD
    assert train.checkpointer == {"period": cfg.SOLVER.CHECKPOINT_PERIOD, "max_to_keep": None}
    assert train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert train.device == cfg.MODEL.DEVICE
    assert train.output_dir == cfg.OUTPUT_DIR
    assert train.seed == cfg.SEED
    assert train.amp.enabled is cfg.SOLVER.AMP.ENABLED


def test_what_stands_in_several_places_is_said_once(tmp_path):
    """Overrides as on the command line; a run's config.yaml is the same config."""
    from detectron2.config import LazyConfig

    overrides = ["model.head.num_queries=7", "model.head.num_classes=5", "model.num_detections=9"]
    overrides += ["model.head.transformer.d_model=64", "model.head.transformer.n_levels=5"]
    overrides += ["model.backbone.stem.norm=GN", "train.output_dir=out", "optimizer.lr=0.5"]
    overrides += ["dataloader.test.dataset.names=bccd_val"]
    cfg = LazyConfig.apply_overrides(load("deformable_detr_R_50_two_stage_50ep"), overrides)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    for config in (cfg, LazyConfig.load(str(tmp_path / "config.yaml"))):
        with torch.device("meta"):
            model = make(config.model)
        assert model.head.transformer.num_queries == 7 and len(model.head.input_proj) == 5
        assert model.head.input_proj[4][0].out_channels == 64
        norms = {type(m) for m in model.backbone.modules() if "Norm" in type(m).__name__}
        assert norms == {nn.GroupNorm}
        assert config.dataloader.train.mapper.num_classes == 5
        evaluator = make(config.dataloader.evaluator)
        assert (evaluator.name, evaluator.output_dir) == ("bccd_val", "out")
        assert evaluator.max_dets_per_image == 9
        config.optimizer.params.model = model
        assert {g["lr"] for g in make(config.optimizer).param_groups} == {0.5, 0.05}

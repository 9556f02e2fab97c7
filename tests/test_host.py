"""The embedded host against closed forms, on images that are not square."""

import json
import logging
import os
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2_ddetr.host import (
    comm,
    data,
    engine,
    evaluation,
    hooks,
    logger,
    modeling,
    structures,
    transforms,
)
from detectron2_ddetr.host.checkpoint import DetectionCheckpointer
from detectron2_ddetr.host.config import CfgNode, configurable, get_cfg


def test_config_is_strict_and_safe(tmp_path):
    cfg = get_cfg()
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 7, STEPS: [3, 5]}\n")
    (tmp_path / "a.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 8}\n")
    cfg.merge_from_file(str(tmp_path / "a.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (8, (3, 5))
    assert get_cfg().SOLVER.MAX_ITER == 40000
    (tmp_path / "b.yaml").write_text("SOLVER: {NO_SUCH_KEY: 8}\n")
    with pytest.raises(KeyError, match="NO_SUCH_KEY"):
        cfg.merge_from_file(str(tmp_path / "b.yaml"))
    (tmp_path / "c.yaml").write_text("OUTPUT_DIR: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(Exception, match="could not determine a constructor"):
        cfg.merge_from_file(str(tmp_path / "c.yaml"))


OUT_OF_SCOPE = {"MODEL.MASK_ON": True, "VERSION": 1, "SOLVER.WARMUP_METHOD": "constant"}


@pytest.mark.parametrize("key, value", OUT_OF_SCOPE.items())
def test_what_is_out_of_scope_raises(key, value):
    cfg = get_cfg()
    cfg.merge_from_list([key, value])
    with pytest.raises(NotImplementedError, match=f"{key} {value} needs detectron2"):
        modeling.build_model(cfg)


class _Configurable:
    @configurable
    def __init__(self, a, b=2, *, c=3):
        self.values = (a, b, c)

    @classmethod
    def from_config(cls, cfg, scale=1):
        return {"a": cfg.A * scale, "c": 5}


def test_configurable():
    cfg = CfgNode({"A": 10})
    assert _Configurable(1).values == (1, 2, 3)
    assert _Configurable(cfg).values == _Configurable(cfg=cfg).values == (10, 2, 5)
    assert _Configurable(cfg, scale=2, b=7).values == (20, 7, 5)


def test_clip_is_height_first():
    boxes = structures.Boxes(torch.tensor([[-1.0, -2.0, 100.0, 100.0]]))
    boxes.clip((10, 30))
    assert boxes.tensor.tolist() == [[0, 0, 30, 10]]
    boxes.scale(2, 0.5)
    assert boxes.tensor.tolist() == [[0, 0, 60, 5]]


def test_image_list_pads_right_and_bottom():
    images = structures.ImageList.from_tensors([torch.ones(1, 3, 5), torch.ones(1, 4, 2)], 2)
    assert images.tensor.shape == (2, 1, 4, 6) and images.image_sizes == [(3, 5), (4, 2)]
    assert images.tensor[0].sum() == 15


def test_instances_are_checked():
    instances = structures.Instances((3, 5), scores=torch.zeros(2))
    with pytest.raises(AssertionError, match=r"labels: length 3, not \{2\}"):
        instances.labels = [1, 2, 3]
    with pytest.raises(AttributeError, match="labels"):
        instances.labels
    with pytest.raises(IndexError):
        instances[2]


def test_postprocess_scales_width_by_width():
    instances = structures.Instances((10, 20), scores=torch.ones(2))
    instances.pred_boxes = structures.Boxes([[2.0, 1.0, 30.0, 5.0], [25.0, 1.0, 30.0, 5.0]])
    out = modeling.detector_postprocess(instances, 100, 60)
    assert out.pred_boxes.tensor.tolist() == [[6, 10, 60, 50]] and out.image_size == (100, 60)


def test_frozen_norm_is_the_affine_map():
    norm = modeling.FrozenBatchNorm2d(2)
    norm.weight.copy_(torch.tensor([2.0, 3.0]))
    norm.bias.copy_(torch.tensor([1.0, -1.0]))
    norm.running_mean.copy_(torch.tensor([0.5, 0.25]))
    norm.running_var.copy_(torch.tensor([4.0, 9.0]) - norm.eps)
    expected = torch.tensor([1.5, -0.25]).view(1, 2, 1, 1).expand(1, 2, 3, 5)
    for requires_grad in (False, True):
        x = torch.ones(1, 2, 3, 5, requires_grad=requires_grad)
        torch.testing.assert_close(norm(x), expected)
    assert not list(norm.parameters())


def test_resnet_strides():
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    backbone = modeling.build_backbone(cfg)
    shapes = {k: (v.channels, v.stride) for k, v in backbone.output_shape().items()}
    assert shapes == {"res3": (512, 8), "res4": (1024, 16), "res5": (2048, 32)}
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape[-2:]) for f in features.values()] == [(8, 12), (4, 6), (2, 3)]
    trainable = {n.split(".")[0] for n, p in backbone.named_parameters() if p.requires_grad}
    assert trainable == {"res3", "res4", "res5"}


def test_resize_and_flip_boxes():
    boxes = np.array([[2.0, 1.0, 6.0, 5.0]])
    resize, flip = transforms.ResizeTransform(10, 20, 30, 40), transforms.HFlipTransform(40)
    np.testing.assert_allclose(resize.apply_box(boxes), [[4, 3, 12, 15]])
    both = transforms.TransformList([resize, flip])
    np.testing.assert_allclose(both.apply_box(boxes), [[28, 3, 36, 15]])
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, 10:] = 90
    assert resize.apply_image(image).shape == (30, 40, 3)
    assert resize.apply_image(image)[:, 25:].min() == 90


def test_catalogs():
    assert {"coco_2017_train", "coco_2017_val"} <= set(data.DatasetCatalog.list())
    metadata = data.MetadataCatalog.get("coco_2017_val")
    assert metadata.json_file.endswith("coco/annotations/instances_val2017.json")
    with pytest.raises(AssertionError, match="cannot be changed"):
        metadata.set(image_root="elsewhere")
    with pytest.raises(AssertionError, match="already registered"):
        data.register_coco_instances("coco_2017_val", {}, "a.json", "images")


def test_items_are_fresh_copies():
    dataset = data.DatasetFromList([{"a": [1]}])
    dataset[0]["a"].append(2)
    assert dataset[0] == {"a": [1]}


def _identity(item: dict) -> dict:
    return item


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_loads_everything_once(monkeypatch, world):
    monkeypatch.setitem(data.DatasetCatalog.data, "seven", lambda: [{"x": x} for x in range(7)])
    cfg, seen = get_cfg(), []
    cfg.DATALOADER.NUM_WORKERS = 0
    monkeypatch.setattr(comm, "get_world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        batches = list(data.build_detection_test_loader(cfg, "seven", mapper=_identity))
        assert all(len(batch) == 1 for batch in batches) and 0 <= len(batches) - 7 // world <= 1
        seen += [item["x"] for batch in batches for item in batch]
    assert sorted(seen) == list(range(7))


def test_metrics_file(tmp_path):
    path = tmp_path / "metrics.json"
    engine.EventStorage.current = storage = engine.EventStorage()
    writer = engine.MetricsWriter(str(path))
    for storage.iter, value in enumerate((1.0, 9.0, 2.0, 4.0)):
        storage.put_scalar("loss", value)
        storage.put_scalar("time", 2.0)
        storage.put_scalar("lr", value, smoothing_hint=False)
    writer.write()
    writer.write()
    storage.iter = 10
    storage.put_scalar("bbox/AP", 5, smoothing_hint=False)
    writer.write()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"iteration": 3, "loss": 3.0, "lr": 4.0, "time": 2.0},
        {"iteration": 10, "bbox/AP": 5.0},
    ]


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, batch):
        return {"loss_a": (self.weight * sum(batch)).sum() ** 2, "loss_b": self.weight.sum()}


class _Trainer(engine.DefaultTrainer):
    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.max_iter = cfg, cfg.SOLVER.MAX_ITER
        model = _Model()
        if comm.get_world_size() > 1:
            model = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=cfg.SOLVER.BASE_LR, momentum=0.9)
        self._trainer = engine.SimpleTrainer(model, [[0.1, 0.2]] * 100, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        added = [hooks.IterationTimer(), hooks.LRScheduler()]
        added.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        added.append(hooks.EvalHook(3, lambda: {"val": {"bbox": {"AP": 12.5}}}))
        if comm.is_main_process():
            added.append(hooks.PeriodicWriter(self.build_writers(), period=2))
        self.register_hooks(added)

    def run_step(self):
        self._trainer.iter = self.iter
        self._trainer.run_step()


def _config(output_dir, max_iter: int = 6):
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR, cfg.SEED = "cpu", str(output_dir), 3
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = max_iter, 2
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 2, (4,)
    return cfg


class _Stop(engine.HookBase):
    def after_step(self):
        if self.trainer.iter == 3:
            raise KeyboardInterrupt


def test_training_resumes_exactly(tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = _Trainer(_config(tmp_path / "whole"))
    whole.resume_or_load(resume=True)
    whole.train()
    rows = [json.loads(r) for r in (tmp_path / "whole/metrics.json").read_text().splitlines()]
    assert rows[-1] == {"iteration": 6, "val/bbox/AP": 12.5}
    assert {"lr", "loss_a", "loss_b", "total_loss", "time", "data_time"} <= set().union(*rows)
    names = {"model_0000001.pth", "model_0000003.pth", "model_0000005.pth", "model_final.pth"}
    assert names <= set(os.listdir(tmp_path / "whole"))

    first = _Trainer(_config(tmp_path / "parts"))
    first.register_hooks([_Stop()])
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert first.iter == 3
    second = _Trainer(_config(tmp_path / "parts"))
    second.resume_or_load(resume=True)
    assert second.start_iter == 4
    second.train()
    assert torch.equal(second.model.weight, whole.model.weight)
    assert second.scheduler.last_epoch == whole.scheduler.last_epoch == 6


def test_hooks_run_after_an_error(tmp_path):
    seen = []

    class Record(engine.HookBase):
        def after_train(self):
            seen.append((self.trainer.iter, self.trainer.max_iter))

    trainer = _Trainer(_config(tmp_path))
    trainer._trainer.data_loader = [[0.1], ["no number"]]
    trainer.register_hooks([Record()])
    with pytest.raises(TypeError):
        trainer.train()
    assert seen == [(1, 6)]


def test_checkpointer(tmp_path, monkeypatch):
    model, other = _Model(), _Model()
    other.weight.data.zero_()
    DetectionCheckpointer(model, str(tmp_path)).save("a")
    DetectionCheckpointer(other).load(str(tmp_path / "a.pth"))
    assert torch.equal(other.weight, model.weight)
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    DetectionCheckpointer(model, str(tmp_path)).save("b")
    assert not (tmp_path / "b.pth").exists()


class _Count(evaluation.DatasetEvaluator):
    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += [(i["x"], o) for i, o in zip(inputs, outputs)]

    def evaluate(self):
        return {"bbox": {"AP": float(sum(o for _, o in self.seen)), "AP-x": 3.0}}


class _Twice(nn.Module):
    def forward(self, inputs: list[dict]) -> list[float]:
        assert not self.training and not torch.is_grad_enabled()
        return [2 * image["x"] for image in inputs]


def test_inference_and_expected_results(monkeypatch, caplog):
    for name in ("one", "two"):
        monkeypatch.setitem(data.DatasetCatalog.data, name, lambda: [{"x": 1}, {"x": 4}])
    cfg, model = get_cfg(), _Twice()

    class Test(engine.DefaultTrainer):
        build_evaluator = staticmethod(lambda cfg, name: _Count())
        build_test_loader = staticmethod(lambda cfg, name: [data.DatasetCatalog.get(name)])

    cfg.DATASETS.TEST = ("one",)
    with caplog.at_level(logging.INFO, logger="detectron2"):
        results = Test.test(cfg, model)
    assert results == {"bbox": {"AP": 10.0, "AP-x": 3.0}}
    assert model.training and "Inference done 1/1" in caplog.text
    assert "copypaste: AP\n" in caplog.text and "copypaste: 10.0000\n" in caplog.text
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 10.1, 0.2]]
    assert evaluation.verify_results(cfg, results)
    for metric in ("AP", "APl"):
        cfg.TEST.EXPECTED_RESULTS = [["bbox", metric, 9.0, 0.1]]
        with pytest.raises(SystemExit):
            evaluation.verify_results(cfg, results)
    cfg.DATASETS.TEST = ("one", "two")
    assert set(Test.test(cfg, model)) == {"one", "two"}


def _distributed(output_dir: str) -> None:
    rank = comm.get_rank()
    gathered, seeds = comm.all_gather(rank), comm.all_gather(comm.shared_random_seed())
    trainer = _Trainer(_config(output_dir, max_iter=2))
    trainer.train()
    weights = comm.all_gather(trainer.model.module.weight.tolist())
    result = [gathered, len(set(seeds)), comm.get_local_rank(), weights[0] == weights[1]]
    with open(f"{output_dir}/rank{rank}.json", "w") as f:
        json.dump(result, f)


def test_two_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engine.launch(_distributed, 2, dist_url="auto", args=(str(tmp_path),))
    results = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1)]
    assert results == [[[0, 1], 1, 0, True], [[0, 1], 1, 1, True]]


@pytest.fixture
def clean_loggers():
    yield
    logger.setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "detectron2_ddetr_test"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


def test_setup_writes_config_and_log(tmp_path, capsys, clean_loggers):
    args = engine.default_argument_parser().parse_args([])
    engine.default_setup(_config(tmp_path), args)
    engine.default_setup(_config(tmp_path), args)  # must not add handlers
    assert torch.initial_seed() == 3
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    assert cfg == _config(tmp_path)
    logger.setup_logger(str(tmp_path), name="detectron2_ddetr_test").warning("once")
    for handler in logging.getLogger("detectron2").handlers:
        handler.flush()
    log = (tmp_path / "log.txt").read_text()
    assert log.count("World size: 1") == 2 and log.count("WARNING: once") == 1

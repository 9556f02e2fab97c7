"""Training with the embedded host: what it writes, resumes, evaluates, and in two processes."""

import json
import logging
import os
import weakref

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2_ddetr.host import comm, data, engine, evaluation, hooks, logger
from detectron2_ddetr.host.checkpoint import DetectionCheckpointer
from detectron2_ddetr.host.config import get_cfg

from .fork_server import fork_ranks


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
    fork_ranks(monkeypatch)
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

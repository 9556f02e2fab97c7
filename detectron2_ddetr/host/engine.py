"""A training: arguments, setup, processes, the loop and its hooks' base class."""

import argparse
import gc
import json
import logging
import os
import random
import sys
import time
import weakref
from collections import defaultdict, deque
from datetime import timedelta
from typing import Any, Callable, Iterable

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn, optim

from . import comm
from .config import CfgNode
from .evaluation import inference_on_dataset, verify_results
from .logger import setup_logger
from .modeling import build_model
from .solver import build_lr_scheduler

logger = logging.getLogger("detectron2.engine")


def default_argument_parser() -> argparse.ArgumentParser:
    """Return the parser of ``train_net.py``."""
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="path to config file")
    add("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR")
    add("--eval-only", action="store_true", help="perform evaluation only")
    add("--num-gpus", type=int, default=1, help="number of gpus *per machine*")
    add("--num-machines", type=int, default=1, help="total number of machines")
    add("--machine-rank", type=int, default=0, help="the rank of this machine")
    # The port depends on the user only, so that an orphan process is noticed.
    port = 2**15 + 2**14 + hash(os.getuid() if sys.platform != "win32" else 1) % 2**14
    add("--dist-url", default=f"tcp://127.0.0.1:{port}", help="where the processes meet")
    add("opts", default=None, nargs=argparse.REMAINDER, help="pairs of PATH.KEY VALUE")
    return parser


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Make the output directory, set up loggers, save the config, seed."""
    rank = comm.get_rank()
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    setup_logger(cfg.OUTPUT_DIR, rank, name="fvcore")
    setup_logger(cfg.OUTPUT_DIR, rank)
    logger.info(f"Rank {rank} of {comm.get_world_size()}, torch {torch.__version__}")
    logger.info(f"Command line arguments: {args}")
    if comm.is_main_process():
        logger.info(f"Running with full config:\n{cfg.dump()}")
        with open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "w") as f:
            f.write(cfg.dump())
    seed = int.from_bytes(os.urandom(4), "big") if cfg.SEED < 0 else cfg.SEED + rank
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only


def launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
) -> None:
    """Call ``main_func(*args)`` here, or in one process per GPU; on CPU they talk through gloo."""
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    first_rank = machine_rank * num_gpus_per_machine
    worker_args = (main_func, world_size, num_gpus_per_machine, first_rank, dist_url, args)
    mp.start_processes(_worker, worker_args, nprocs=num_gpus_per_machine)


def _worker(local_rank, main_func, world_size, local_size, first_rank, url, args) -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(local_rank)
    dist.init_process_group(backend, url, world_size=world_size, rank=first_rank + local_rank)
    comm.create_local_process_group(local_size)
    comm.synchronize()
    main_func(*args)
    gc.collect()  # a trainer that outlives its group makes gloo abort at exit
    dist.destroy_process_group()


_STORAGES: list["EventStorage"] = []


class EventStorage:
    """Histories of named scalars, used as a context."""

    def __init__(self, start_iter: int = 0):
        self.iter = start_iter
        self._history: dict[str, deque] = defaultdict(lambda: deque(maxlen=20))
        self._smoothing_hints: dict[str, bool] = {}

    def put_scalar(self, name: str, value: float, smoothing_hint: bool = True) -> None:
        """Record a scalar; `smoothing_hint` tells writers whether it is noisy."""
        self._history[name].append((float(value), self.iter))
        self._smoothing_hints[name] = smoothing_hint

    def put_scalars(self, *, smoothing_hint: bool = True, **kwargs: float) -> None:
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint)

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Return the newest (value, iteration) of each scalar; of the noisy ones, the median."""
        latest = {}
        for name, history in self._history.items():
            value, newest = history[-1]
            if self._smoothing_hints[name]:
                value = float(np.median([v for v, i in history if i > newest - window_size]))
            latest[name] = (value, newest)
        return latest

    def __enter__(self) -> "EventStorage":
        _STORAGES.append(self)
        return self

    def __exit__(self, *exc) -> None:
        _STORAGES.remove(self)


class MetricsWriter:
    """Logs the losses, and appends one json object per iteration to a file."""

    def __init__(self, json_file: str, max_iter: int):
        self._file, self._max_iter, self._last_write = open(json_file, "a"), max_iter, -1

    def write(self) -> None:
        storage, rows = _STORAGES[-1], defaultdict(dict)
        latest = storage.latest_with_smoothing_hint()
        if storage.iter < self._max_iter:  # else training is over, but results may be new
            self._log(storage.iter, {name: value for name, (value, _) in latest.items()})
        for name, (value, itr) in latest.items():
            if itr > self._last_write:
                rows[itr] |= {name: value, "iteration": itr}
        self._last_write = max(rows, default=self._last_write)
        for row in rows.values():
            self._file.write(json.dumps(row, sort_keys=True) + "\n")
        self._file.flush()

    def _log(self, iter: int, latest: dict[str, float]) -> None:
        left = timedelta(seconds=int(latest.get("time", 0) * (self._max_iter - iter - 1)))
        shown = [k for k in latest if "loss" in k or k in ("time", "data_time", "lr")]
        line = "  ".join(f"{name}: {latest[name]:.4g}" for name in shown)
        memory = torch.cuda.max_memory_allocated() // 2**20  # 0 without a GPU
        logger.info(f"eta: {left}  iter: {iter}  {line}  max_mem: {memory}M")

    def close(self) -> None:
        self._file.close()


class HookBase:
    """Something to do around the steps of a trainer, which is found at `self.trainer`."""

    trainer: "TrainerBase" = None

    def before_train(self) -> None: ...
    def after_train(self) -> None: ...
    def before_step(self) -> None: ...
    def after_step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}


class TrainerBase:
    """Runs `run_step` from `start_iter` to `max_iter` with hooks around it."""

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = self.start_iter = 0

    def register_hooks(self, hooks: list[HookBase]) -> None:
        for hook in hooks:
            hook.trainer = weakref.proxy(self)
        self._hooks.extend(hooks)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Train; the hooks' `after_train` runs even after an error, with `iter` < `max_iter`."""
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self._call_hooks("before_train")
                for self.iter in range(start_iter, max_iter):
                    self._call_hooks("before_step")
                    self.run_step()
                    self._call_hooks("after_step")
                self.iter += 1
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self._call_hooks("after_train")

    def _call_hooks(self, method: str) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            getattr(hook, method)()

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration and the states of hooks that have one, by class name."""
        states = {type(h).__qualname__: h.state_dict() for h in self._hooks}
        return {"iteration": self.iter, "hooks": {k: v for k, v in states.items() if v}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iter = state_dict["iteration"]
        hooks = {type(h).__qualname__: h for h in self._hooks}
        for name, state in state_dict["hooks"].items():
            hooks[name].load_state_dict(state)


class SimpleTrainer(TrainerBase):
    """One model, one optimizer and one endless loader; the model returns a dict of losses."""

    _mixed_precision = False

    def __init__(self, model: nn.Module, data_loader: Iterable, optimizer: optim.Optimizer):
        super().__init__()
        self.model, self.data_loader, self.optimizer = model.train(), data_loader, optimizer
        self.grad_scaler = torch.amp.GradScaler("cuda", enabled=self._mixed_precision)
        self._batches = None

    def run_step(self) -> None:
        """Draw a batch, compute losses and gradients, write metrics, update."""
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        start = time.perf_counter()
        self._batches = self._batches or iter(self.data_loader)
        data = next(self._batches)
        data_time = time.perf_counter() - start
        with torch.amp.autocast("cuda", torch.float16, enabled=self._mixed_precision):
            loss_dict = self.model(data)
            losses = sum(loss_dict.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        self._write_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Replace the loader by what `data_loader_builder` returns."""
        self.data_loader = self._batches = None
        self.data_loader = data_loader_builder()

    def _write_metrics(self, loss_dict: dict, data_time: float, prefix="", iter=None) -> None:
        """Record the mean losses and the longest `data_time` of all ranks."""
        metrics = {name: loss.item() for name, loss in loss_dict.items()}
        gathered = comm.all_gather(metrics | {"data_time": data_time})
        if comm.is_main_process():
            storage = _STORAGES[-1]
            storage.put_scalar("data_time", max(m.pop("data_time") for m in gathered))
            metrics = {k: np.mean([m[k] for m in gathered]) for k in metrics}
            storage.put_scalar(f"{prefix}total_loss", sum(metrics.values()))
            storage.put_scalars(**metrics)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict() | {"optimizer": self.optimizer.state_dict()}
        scaler = {"grad_scaler": self.grad_scaler.state_dict()} if self._mixed_precision else {}
        return state | scaler

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if self._mixed_precision:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


class AMPTrainer(SimpleTrainer):
    """A :class:`SimpleTrainer` in mixed precision on CUDA."""

    _mixed_precision = True


class DefaultTrainer(TrainerBase):
    """Steps with `_trainer`; subclasses make that, `cfg`, `scheduler` and `checkpointer`."""

    model = property(lambda self: self._trainer.model)
    data_loader = property(lambda self: self._trainer.data_loader)
    optimizer = property(lambda self: self._trainer.optimizer)

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint if asked and possible, else load ``MODEL.WEIGHTS``."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1

    def build_writers(self) -> list[MetricsWriter]:
        return [MetricsWriter(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"), self.max_iter)]

    def train(self) -> dict | None:
        """Train, and return the verified results if ``TEST.EXPECTED_RESULTS`` is set."""
        super().train(self.start_iter, self.max_iter)
        if not self.cfg.TEST.EXPECTED_RESULTS or not comm.is_main_process():
            return None
        verify_results(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logger.info(f"Model:\n{model}")
        return model

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: optim.Optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """Evaluate on each of ``DATASETS.TEST``; with one dataset, return its results alone."""
        results = {}
        for name in cfg.DATASETS.TEST:
            data_loader = cls.build_test_loader(cfg, name)  # this sets the metadata
            results[name] = inference_on_dataset(model, data_loader, cls.build_evaluator(cfg, name))
        return results[name] if len(results) == 1 else results

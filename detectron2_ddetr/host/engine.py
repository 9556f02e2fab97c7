"""A training: arguments, setup, processes, the loop and the steps."""

import argparse
import gc
import json
import logging
import os
import random
import time
import weakref
from collections import defaultdict, deque
from typing import Any, Iterable

import numpy as np
import torch
import torch.distributed as dist
from torch import nn, optim
from torch.distributed.elastic.utils.distributed import get_free_port

from . import comm
from .config import CfgNode
from .evaluation import inference_on_dataset, verify_results
from .logger import setup_logger
from .modeling import build_model
from .solver import build_lr_scheduler

logger = logging.getLogger("detectron2.engine")


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of ``train_net.py``."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(epilog=epilog, formatter_class=raw)
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="path to config file")
    add("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR")
    add("--eval-only", action="store_true", help="perform evaluation only")
    add("--num-gpus", type=int, default=1, help="number of gpus *per machine*")
    add("--num-machines", type=int, default=1, help="total number of machines")
    add("--machine-rank", type=int, default=0, help="the rank of this machine")
    # The port depends on the user only, so that an orphan process is noticed.
    port = 2**15 + 2**14 + hash(os.getuid()) % 2**14
    add("--dist-url", default=f"tcp://127.0.0.1:{port}", help="where the processes meet, or auto")
    add("opts", default=None, nargs=argparse.REMAINDER, help="pairs of PATH.KEY VALUE")
    return parser


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Make the output directory, set up loggers, save the config, seed."""
    rank = comm.get_rank()
    for name in ("fvcore", "detectron2"):
        setup_logger(cfg.OUTPUT_DIR, rank, name=name)
    logger.info(f"Rank: {rank}. World size: {comm.get_world_size()}. Arguments: {args}")
    if comm.is_main_process():
        with open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "w") as f:
            f.write(cfg.dump())
    seed = int.from_bytes(os.urandom(4), "big") if cfg.SEED < 0 else cfg.SEED + rank
    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(seed)


def launch(main_func, num_gpus_per_machine, num_machines=1, machine_rank=0, dist_url=None, args=()):
    """Call ``main_func(*args)`` here, or in one process per GPU; on CPU they talk through gloo."""
    if num_machines * num_gpus_per_machine == 1:
        return main_func(*args)
    url = f"tcp://127.0.0.1:{get_free_port()}" if dist_url == "auto" else dist_url
    worker_args = (main_func, num_gpus_per_machine, num_machines, machine_rank, url, args)
    torch.multiprocessing.start_processes(_worker, worker_args, nprocs=num_gpus_per_machine)


def _worker(local_rank, main_func, num_local, num_machines, machine_rank, url, args) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    world_size, rank = num_local * num_machines, num_local * machine_rank + local_rank
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    os.environ["LOCAL_RANK"] = str(local_rank)
    dist.init_process_group(backend, url, world_size=world_size, rank=rank)
    main_func(*args)
    comm._cpu_group.cache_clear()
    gc.collect()  # what outlives its group makes gloo abort at exit
    dist.destroy_process_group()


class EventStorage:
    """The last 20 values of each scalar, or only the last one of those that have no noise."""

    def __init__(self, start_iter: int = 0):
        self.iter = start_iter
        self._windows: dict[str, deque] = {}

    def put_scalar(self, name: str, value: float, smoothing_hint: bool = True) -> None:
        window = self._windows.setdefault(name, deque(maxlen=20 if smoothing_hint else 1))
        window.append((float(value), self.iter))

    def latest_with_smoothing_hint(self) -> dict[str, tuple[float, int]]:
        """Return the median and the newest iteration of each scalar."""
        windows = self._windows.items()
        return {k: (float(np.median([v for v, _ in w])), w[-1][1]) for k, w in windows}


class MetricsWriter:
    """Appends one json object per iteration to a file."""

    def __init__(self, json_file: str):
        self._json_file, self._last_write = json_file, -1

    def write(self) -> None:
        rows = defaultdict(dict)
        for name, (value, newest) in EventStorage.current.latest_with_smoothing_hint().items():
            if newest > self._last_write:
                rows[newest] |= {name: value, "iteration": newest}
        with open(self._json_file, "a") as f:
            f.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows.values())
        self._last_write = max(rows, default=self._last_write)


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
    """Has hooks and knows its iteration."""

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = self.start_iter = 0

    def register_hooks(self, hooks: list[HookBase]) -> None:
        for hook in hooks:
            hook.trainer = weakref.proxy(self)
        self._hooks.extend(hooks)


class SimpleTrainer(TrainerBase):
    """One model, one optimizer and one endless loader; the model returns a dict of losses."""

    def __init__(self, model: nn.Module, data_loader: Iterable, optimizer: optim.Optimizer):
        super().__init__()
        self.model, self.data_loader, self.optimizer = model.train(), data_loader, optimizer
        self._batches = None

    def run_step(self) -> None:
        """Draw a batch, compute losses and gradients, write metrics, update."""
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        start = time.perf_counter()
        self._batches = self._batches or iter(self.data_loader)
        data = next(self._batches)
        data_time = time.perf_counter() - start
        loss_dict = self.model(data)
        losses = sum(loss_dict.values())
        self.optimizer.zero_grad()
        losses.backward()
        self._write_metrics(loss_dict, data_time)
        self.optimizer.step()

    def _write_metrics(self, loss_dict: dict, data_time: float, prefix="", iter=None) -> None:
        """Record the mean losses and the longest `data_time` of all ranks."""
        metrics = {name: loss.item() for name, loss in loss_dict.items()}
        gathered = comm.all_gather((metrics, data_time))
        metrics = {name: np.mean([m[name] for m, _ in gathered]) for name in metrics}
        for name, value in {f"{prefix}total_loss": sum(metrics.values()), **metrics}.items():
            EventStorage.current.put_scalar(name, value)
        EventStorage.current.put_scalar("data_time", max(seconds for _, seconds in gathered))

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iter, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iter = state_dict["iteration"]
        self.optimizer.load_state_dict(state_dict["optimizer"])


class DefaultTrainer(TrainerBase):
    """Steps with `_trainer`; subclasses make that, `cfg`, `max_iter`, `checkpointer`, ..."""

    model = property(lambda self: self._trainer.model)
    data_loader = property(lambda self: self._trainer.data_loader)
    optimizer = property(lambda self: self._trainer.optimizer)
    build_model = staticmethod(build_model)
    build_lr_scheduler = staticmethod(build_lr_scheduler)

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint if asked and possible, else load ``MODEL.WEIGHTS``."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1

    def build_writers(self) -> list[MetricsWriter]:
        return [MetricsWriter(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"))]

    def train(self) -> dict | None:
        """Train; the hooks' `after_train` runs even after an error, with `iter` < `max_iter`."""
        logger.info(f"Starting training from iteration {self.start_iter}")
        self.storage = EventStorage.current = EventStorage(self.start_iter)
        try:
            self._call_hooks("before_train")
            for self.iter in range(self.start_iter, self.max_iter):
                self._call_hooks("before_step")
                self.run_step()
                self._call_hooks("after_step")
            self.iter += 1
        except Exception:
            logger.exception("Exception during training:")
            raise
        finally:
            self._call_hooks("after_train")
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results

    def _call_hooks(self, method: str) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            getattr(hook, method)()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of `_trainer` and, by class name, of the hooks that have one."""
        states = {type(hook).__qualname__: hook.state_dict() for hook in self._hooks}
        states = {name: state for name, state in states.items() if state}
        return {"iteration": self.iter, "hooks": states, "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iter = state_dict["iteration"]
        self._trainer.load_state_dict(state_dict["_trainer"])
        for hook in self._hooks:
            if type(hook).__qualname__ in state_dict["hooks"]:
                hook.load_state_dict(state_dict["hooks"][type(hook).__qualname__])

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """Evaluate on each of ``DATASETS.TEST``; with one dataset, return its results alone."""
        results = {}
        for name in cfg.DATASETS.TEST:
            data_loader = cls.build_test_loader(cfg, name)  # this sets the metadata
            results[name] = inference_on_dataset(model, data_loader, cls.build_evaluator(cfg, name))
            for metrics in results[name].values():
                main = {k: v for k, v in metrics.items() if "-" not in k}
                logger.info("copypaste: " + ",".join(main))
                logger.info("copypaste: " + ",".join(f"{value:.4f}" for value in main.values()))
        return results[name] if len(results) == 1 else results

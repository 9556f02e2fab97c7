"""A default training: arguments, setup, processes, trainer."""

import argparse
import gc
import logging
import os
import socket
import sys
import weakref
from collections import OrderedDict
from datetime import timedelta
from typing import Any, Callable, Iterable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel

from . import comm, hooks
from .checkpoint import DetectionCheckpointer
from .config import CfgNode
from .data import build_detection_test_loader, build_detection_train_loader
from .env import seed_all_rng
from .evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from .events import CommonMetricPrinter, EventWriter, JSONWriter
from .file_io import PathManager
from .logger import setup_logger
from .modeling import build_model
from .solver import build_lr_scheduler
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

logger = logging.getLogger("detectron2.engine.defaults")
DEFAULT_TIMEOUT = timedelta(minutes=30)


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of ``train_net.py``."""
    parser = argparse.ArgumentParser(
        epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    rank, output_dir = comm.get_rank(), cfg.OUTPUT_DIR
    if comm.is_main_process() and output_dir:
        PathManager.mkdirs(output_dir)
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    setup_logger(output_dir, distributed_rank=rank)
    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    logger.info(f"Environment info: torch {torch.__version__}, CUDA {torch.version.cuda}")
    logger.info(f"Command line arguments: {args}")
    if comm.is_main_process() and output_dir:
        logger.info(f"Running with full config:\n{cfg.dump()}")
        path = os.path.join(output_dir, "config.yaml")
        with PathManager.open(path, "w") as f:
            f.write(cfg.dump())
        logger.info(f"Full config saved to {path}")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION != "" and torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
        torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"


def launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Call ``main_func(*args)`` here, or in one process per GPU; on CPU they talk through gloo."""
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    if dist_url == "auto":
        assert num_machines == 1, "dist_url=auto not supported in multi-machine jobs."
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            dist_url = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
    first_rank = machine_rank * num_gpus_per_machine
    worker_args = (main_func, world_size, num_gpus_per_machine, first_rank, dist_url, args, timeout)
    mp.start_processes(_worker, worker_args, nprocs=num_gpus_per_machine)


def _worker(local_rank, main_func, world_size, local_size, first_rank, url, args, timeout) -> None:
    backend, rank = "nccl" if torch.cuda.is_available() else "gloo", first_rank + local_rank
    dist.init_process_group(
        backend, init_method=url, world_size=world_size, rank=rank, timeout=timeout
    )
    comm.create_local_process_group(local_size)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    comm.synchronize()
    main_func(*args)
    gc.collect()  # a trainer that outlives its group makes gloo abort at exit
    comm._destroy_process_groups()


def create_ddp_model(model: nn.Module, **kwargs) -> nn.Module:
    """Wrap `model` if there are several processes."""
    if comm.get_world_size() == 1:
        return model
    if next(model.parameters()).is_cuda:
        kwargs.setdefault("device_ids", [comm.get_local_rank()])
    return DistributedDataParallel(model, **kwargs)


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Return the writers for the log and for ``metrics.json``."""
    PathManager.mkdirs(output_dir)
    return [CommonMetricPrinter(max_iter), JSONWriter(os.path.join(output_dir, "metrics.json"))]


class DefaultTrainer(TrainerBase):
    """Model, optimizer, loader, schedule, checkpoints and evaluation as the config says."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        if cfg.SOLVER.REFERENCE_WORLD_SIZE not in (0, comm.get_world_size()):
            raise NotImplementedError("scaling to another REFERENCE_WORLD_SIZE needs detectron2")
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise NotImplementedError("TEST.PRECISE_BN needs detectron2")
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        trainer = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint if asked and possible, else load ``MODEL.WEIGHTS``."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1

    def build_hooks(self) -> list[HookBase]:
        """Return the hooks in their order: checkpoints before evaluation, writers last."""
        cfg, main = self.cfg, comm.is_main_process()

        def test_and_save_results():
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        ret = [hooks.IterationTimer(), hooks.LRScheduler()]
        if main:
            ret.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        ret.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, test_and_save_results))
        if main:
            ret.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return ret

    def build_writers(self) -> list[EventWriter]:
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> dict | None:
        """Train, and return the verified results if ``TEST.EXPECTED_RESULTS`` is set."""
        super().train(self.start_iter, self.max_iter)
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results
        return None

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logger.info(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> optim.Optimizer:
        raise NotImplementedError("override build_optimizer(); a default one needs detectron2")

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: optim.Optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        raise NotImplementedError("override build_evaluator() to evaluate during training")

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> dict:
        """Evaluate on each of ``DATASETS.TEST``; with one dataset, its results alone."""
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        names = cfg.DATASETS.TEST
        assert evaluators is None or len(evaluators) == len(names), f"{evaluators} for {names}"
        results = OrderedDict()
        for i, name in enumerate(names):
            data_loader = cls.build_test_loader(cfg, name)
            try:
                evaluator = evaluators[i] if evaluators else cls.build_evaluator(cfg, name)
            except NotImplementedError:
                logger.warning("No evaluator found: override build_evaluator()")
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, data_loader, evaluator)
            if comm.is_main_process():
                logger.info(f"Evaluation results for {name} in csv format:")
                print_csv_format(results[name])
        return list(results.values())[0] if len(results) == 1 else results


def _forward(name: str) -> property:
    def get(self):
        return getattr(self._trainer, name)

    def set(self, value):
        setattr(self._trainer, name, value)

    return property(get, set)


for _name in ("model", "data_loader", "optimizer"):
    setattr(DefaultTrainer, _name, _forward(_name))

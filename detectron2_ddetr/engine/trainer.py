"""The trainer: detectron2's, made safe against interruption and resumable to the bit."""

import random
import weakref

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.frozen import check_frozen_layers
from ..data.class_names import class_names
from ..data.dataset_mapper import DeformableDETRDatasetMapper
from ..data.packing import require_open_files
from ..data.train_loader import build_train_loader
from ..toolbox import (
    CfgNode,
    DatasetEvaluator,
    DefaultTrainer,
    HookBase,
    TrainerBase,
    build_detection_test_loader,
    comm,
    hooks,
)
from .evaluator import build_evaluator, finite_results
from .interruption import InterruptionGuard
from .optimizer import build_optimizer
from .train_step import FiniteAMPTrainer, FiniteSimpleTrainer, LastBatch


class StepSeed(HookBase):
    """
    Makes every random number of a step a function of (seed, iteration, process).

    To resume, nothing but the seed has to be known then.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self) -> None:
        entropy = (self.seed, self.trainer.iter, comm.get_rank())
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.seed = state_dict["seed"]


class Diagnostics(HookBase):
    """Logs what the criterion observed, such as `class_error`, beside the losses."""

    def after_step(self) -> None:
        model = self.trainer.model
        model = model.module if isinstance(model, DistributedDataParallel) else model
        for name, value in model.criterion.diagnostics.items():
            self.trainer.storage.put_scalar(name, value.item())


class Trainer(DefaultTrainer):
    """
    :class:`DefaultTrainer` with the mapper, optimiser and evaluator of this package.

    It also trains on several CPUs, keeps its checkpoints loadable whatever stops it, names the
    images of a batch whose loss is not finite, and continues a run as if it had not stopped.
    """

    def __init__(self, cfg: CfgNode):
        # Not DefaultTrainer's constructor: it pins each process to a GPU, and its checkpointer
        # runs code from the files it reads.
        TrainerBase.__init__(self)
        self.cfg = cfg
        self.max_iter = cfg.SOLVER.MAX_ITER
        #: The last iteration whose update is complete.
        self.completed_iter = -1
        self.step_seed = StepSeed(cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        if comm.get_world_size() > 1:
            device_ids = [comm.get_local_rank()] if model.device.type == "cuda" else None
            model = DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
        step = FiniteAMPTrainer if cfg.SOLVER.AMP.ENABLED else FiniteSimpleTrainer
        self._trainer = step(model, LastBatch(self._train_loader), optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model, cfg.OUTPUT_DIR, class_names=class_names(cfg), trainer=weakref.proxy(self)
        )
        self.guard = InterruptionGuard(self.checkpointer, optimizer)
        self.register_hooks(self.build_hooks())

    def _train_loader(self) -> DataLoader:
        return self.build_train_loader(
            self.cfg, seed=self.step_seed.seed, start_iter=self.completed_iter + 1
        )

    def build_hooks(self) -> list[HookBase]:
        """The default hooks, in the default order, and the ones of this module."""

        def evaluate() -> dict:
            self._last_eval_results = self.test(self.cfg, self.model)
            return finite_results(self._last_eval_results)

        period = self.cfg.SOLVER.CHECKPOINT_PERIOD
        main = comm.is_main_process()
        return [
            self.step_seed,
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self.guard,
            *([hooks.PeriodicCheckpointer(self.checkpointer, period)] if main else []),
            Diagnostics(),
            hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, evaluate),
            *([hooks.PeriodicWriter(self.build_writers(), period=20)] if main else []),
        ]

    def resume_or_load(self, resume: bool = True) -> None:
        """
        Continue from the last checkpoint in OUTPUT_DIR, if `resume` and there is one; otherwise
        start with the weights of MODEL.WEIGHTS.
        """
        super().resume_or_load(resume)
        self.completed_iter = self.start_iter - 1

    def train(self) -> dict | None:
        # The model checks it as well, but only when there is a first checkpoint to resume from.
        check_frozen_layers(self.model)
        return super().train()

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        try:
            self._trainer.run_step()
        except FloatingPointError as error:
            self.guard.update_skipped()
            raise FloatingPointError(
                f"iteration {self.iter} is not finite; the state before it is saved in "
                f"{self.cfg.OUTPUT_DIR}\n{error}\n"
                "Look at the annotations of these images, or lower SOLVER.BASE_LR"
            ) from error

    def state_dict(self) -> dict:
        state = super().state_dict()
        state["iteration"] = self.completed_iter
        return state

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, seed: int = 0, start_iter: int = 0) -> DataLoader:
        return build_train_loader(cfg, seed=seed, start_iter=start_iter)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        require_open_files(cfg.DATALOADER.NUM_WORKERS)
        mapper = DeformableDETRDatasetMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

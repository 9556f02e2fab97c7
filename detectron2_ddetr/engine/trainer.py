"""The trainer: detectron2's, made safe against interruption and resumable to the bit."""

import logging
import os
import random
import warnings
import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..build import registered
from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.frozen import check_frozen_layers
from ..config_rules import check_trainer_config, schedule_note
from ..data.class_names import class_names
from ..data.class_table import category_ids
from ..data.packing import require_open_files
from ..data.train_loader import build_train_loader
from ..errors import InputError, NonFiniteError
from ..meta_arch import SetDetector
from ..toolbox import (
    META_ARCH_REGISTRY,
    CfgNode,
    DatasetEvaluator,
    DefaultTrainer,
    HookBase,
    TrainerBase,
    build_detection_test_loader,
    comm,
    hooks,
    verify_results,
)
from .box_metrics import summary_lines
from .console import Progress
from .early_stop import EarlyStop, StoppedEarly
from .evaluator import build_evaluator, finite_results
from .history import Evaluation, MissedEvaluation, Recorder, continue_history, usable_writers
from .interruption import InterruptionGuard
from .kept_checkpoints import BestCheckpoint, KeepNewest
from .optimizer import build_optimizer
from .resume import continue_rates, fit_state, found_by_all, learning_rate
from .run_folder import check_run_folder, checkpoint_before, locked
from .test_time_augmentation import for_testing, mapper_for_testing
from .train_step import LastBatch, NonFiniteStepError, TrainStep
from .weight_average import TRAINED, WeightAverage

logger = logging.getLogger(__name__)


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
        for name, value in self.trainer._trainer.detector.criterion.diagnostics.items():
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
        check_trainer_config(cfg)
        self.cfg = cfg
        self.max_iter = cfg.SOLVER.MAX_ITER
        #: The last iteration whose update is complete.
        self.completed_iter = -1
        # Images that were trained on before `start_iter`, whatever the batch size was then.
        self._images_before = 0
        self._resumed = False
        self.step_seed = StepSeed(cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        if comm.get_world_size() > 1:
            device_ids = [comm.get_local_rank()] if model.device.type == "cuda" else None
            with warnings.catch_warnings():
                # Of PyTorch 2.14, for a name that the versions before it do not know.
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
                model = DistributedDataParallel(
                    model, device_ids=device_ids, broadcast_buffers=False
                )
        # The model lowers its precision itself; float16 has a small range, for which losses are
        # scaled.
        scaled = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.PRECISION == "float16"
        loader = LastBatch(self._train_loader)
        self._trainer = TrainStep(
            model,
            loader,
            optimizer,
            parts=cfg.SOLVER.ACCUMULATION_STEPS,
            scale_losses=scaled,
            find_nonfinite=cfg.SOLVER.FIND_NONFINITE,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        if not cfg.DATASETS.TRAIN:
            raise InputError("DATASETS.TRAIN is empty; name at least one registered data set")
        names = class_names(cfg)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            class_names=names,
            category_ids=names and category_ids(cfg.DATASETS.TRAIN[0]),
            trainer=weakref.proxy(self),
        )
        self.average = None
        if decay := cfg.SOLVER.EMA_DECAY:
            self.average = WeightAverage(self._trainer.detector, decay)
        self.best = None
        if cfg.DATASETS.TEST:
            self.best = BestCheckpoint(self.checkpointer, cfg.DATASETS.TEST[0], decay)
        self.guard = InterruptionGuard(self.checkpointer, optimizer, loader)
        #: Called with this trainer, on the main process, after each evaluation.
        self.after_evaluation: list[Callable[[TrainerBase], None]] = []
        self.register_hooks(self.build_hooks())

    def _train_loader(self) -> DataLoader:
        return self.build_train_loader(
            self.cfg, seed=self.step_seed.seed, first_image=self._images_before
        )

    def build_hooks(self) -> list[HookBase]:
        """The default hooks, in the default order, and the ones of this module."""

        def evaluate() -> dict:
            model = self.model if self.average is None else self.average.model
            self._last_eval_results = self.test(self.cfg, model)
            results = finite_results(self._last_eval_results)
            for line in summary_lines(results, self.cfg.DATASETS.TEST):
                logger.info(f"iteration {self.iter}, {line}")
            if self.best is not None:
                self.best.update(results)
            if self.cfg.DATASETS.TEST and comm.is_main_process():
                for function in self.after_evaluation:
                    function(self)
            return results

        evaluation = Evaluation(self.cfg.TEST.EVAL_PERIOD, evaluate)
        solver, folder, main = self.cfg.SOLVER, self.cfg.OUTPUT_DIR, comm.is_main_process()
        period, keep = solver.CHECKPOINT_PERIOD, solver.CHECKPOINTS_TO_KEEP
        patience, eval_period = solver.EARLY_STOP_PATIENCE, self.cfg.TEST.EVAL_PERIOD
        self._recorders = [Recorder(self.build_writers(), 20, eval_period)] if main else []
        self._missed = MissedEvaluation(evaluation, *self._recorders)
        return [
            self.step_seed,
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            *([self.average] if self.average is not None else []),
            self.guard,
            *([hooks.PeriodicCheckpointer(self.checkpointer, period)] if main else []),
            *([KeepNewest(folder, period, keep)] if main and keep else []),
            *([self.best] if self.best is not None else []),
            Diagnostics(),
            *([Progress()] if main else []),
            evaluation,
            *self._recorders,
            self._missed,
            # After the writer, so that the last evaluation is written.
            *([EarlyStop(self.best, patience, eval_period)] if patience else []),
        ]

    def build_writers(self) -> list:
        """
        detectron2's, without that of the terminal, which :class:`Progress` is; that of tensorboard
        only where it is installed, which is said.
        """
        return usable_writers(super().build_writers())

    def put_image(self, name: str, picture: np.ndarray) -> None:
        """Shows an (H, W, 3) uint8 RGB picture in TensorBoard, where it is installed."""
        for recorder in self._recorders:
            recorder.put_image(name, picture)

    def resume_or_load(self, resume: bool = True) -> None:
        """
        Continue from the last checkpoint in OUTPUT_DIR, if `resume` and there is one; otherwise
        start with the weights of MODEL.WEIGHTS.

        The config decides about all that it names, and each key that differs from the training
        before is logged. What has grown (weights, moments, seed, place in the data) goes on.

        Raises:
            InputError: also when the config trains other layers than the checkpoint did.
        """
        self._resumed = resume and found_by_all(self.checkpointer)
        if resume and not self._resumed:
            logger.warning(
                f"--resume: {self.cfg.OUTPUT_DIR} has no checkpoint, so the training begins now, "
                f"from {self.cfg.MODEL.WEIGHTS or 'random weights'}"
            )
        if self._resumed and self.best is not None:
            self.best.resume()
        super().resume_or_load(resume)
        self.completed_iter = self.start_iter - 1
        if self._resumed:
            rows, path = [], os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")
            if comm.is_main_process():
                rows = continue_history(path, self.completed_iter)
            self._missed.resume(rows, self.completed_iter)

    def train(self) -> dict | None:
        """
        Raises:
            InputError: if OUTPUT_DIR holds another training, or frozen layers are random.
        """
        # The model checks it as well, but only when there is a first checkpoint to resume from.
        check_frozen_layers(self.model)
        if note := schedule_note(self.cfg):
            logger.warning(note)
        if not comm.is_main_process():
            return self._train()
        os.makedirs(self.cfg.OUTPUT_DIR, exist_ok=True)
        check_run_folder(self.cfg.OUTPUT_DIR, self._resumed)
        with locked(self.cfg.OUTPUT_DIR):
            return self._train()

    def _train(self) -> dict | None:
        try:
            return super().train()
        except StoppedEarly as stop:
            logger.info(str(stop))
            if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
                verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results

    def update(self, batch: list[dict]) -> None:
        """
        One update on a given batch, outside a training: nothing is recorded.

        Raises:
            NonFiniteError: with its cause and a remedy.
        """
        try:
            self._trainer.update(batch, check=lambda losses: None)
        except NonFiniteStepError as error:
            advice = error.remedy or "Look at MODEL.WEIGHTS, or lower SOLVER.BASE_LR"
            raise NonFiniteError(f"an update is not finite\n{error}\n{advice}") from error

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        try:
            self._trainer.run_step()
        except NonFiniteStepError as error:
            self.guard.update_skipped()
            raise NonFiniteError(
                f"iteration {self.iter} is not finite; the state before it is saved in "
                f"{self.cfg.OUTPUT_DIR}\n{error}\n{error.remedy or self._advice()}"
            ) from error

    def _advice(self) -> str:
        """What to do about weights that are not finite, or with which an iteration is not."""
        if self.iter == 0:
            return "Nothing has been trained yet: look at MODEL.WEIGHTS"
        if self.iter != self.start_iter:
            return "--resume with a lower SOLVER.BASE_LR"
        earlier = checkpoint_before(self.cfg.OUTPUT_DIR, self.completed_iter)
        return (
            "It is the first iteration after --resume, so the weights were ruined before it. Write "
            f"{earlier} into {os.path.join(self.cfg.OUTPUT_DIR, 'last_checkpoint')} to go back to "
            "that checkpoint, and --resume with a lower SOLVER.BASE_LR"
        )

    def state_dict(self) -> dict:
        state = super().state_dict()
        done = self.completed_iter + 1 - self.start_iter
        return state | {
            "iteration": self.completed_iter,
            "images": self._images_before + done * self.cfg.SOLVER.IMS_PER_BATCH,
            "config": self.cfg.dump(),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        state, differences = fit_state(state_dict, self.cfg, self.optimizer, self.scheduler)
        if self.average is None and (averaged := state["hooks"].pop("WeightAverage", None)):
            # The checkpoint's model is an average, which is not wanted any more.
            self._trainer.detector.load_state_dict(averaged[TRAINED])
        super().load_state_dict(state)
        self._images_before = state["images"]
        if differences:
            continue_rates(self.scheduler, learning_rate(state_dict["_trainer"]["optimizer"]))

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        name = cfg.MODEL.META_ARCHITECTURE
        system = registered(META_ARCH_REGISTRY, "MODEL.META_ARCHITECTURE", name)
        if not issubclass(system, SetDetector):
            raise InputError(
                f"MODEL.META_ARCHITECTURE {name} is not of the family, so detectron2's own trainer "
                "is the one for it; this one is for DeformableDETR and its like"
            )
        return super().build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, seed: int = 0, first_image: int = 0) -> DataLoader:
        return build_train_loader(cfg, seed=seed, first_image=first_image)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        require_open_files(cfg.DATALOADER.NUM_WORKERS)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper_for_testing(cfg))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, *evaluators) -> dict:
        """As detectron2's, of the form that :func:`for_testing` gives the model."""
        return super().test(cfg, for_testing(cfg, model), *evaluators)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

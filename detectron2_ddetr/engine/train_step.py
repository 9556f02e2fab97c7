"""One training step: losses and gradients of a batch, in parts if need be, checked, one update."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError
from ..meta_arch import SetDetector
from ..toolbox import SimpleTrainer, comm
from .blame import cause
from .nonfinite import Hunt
from .optimizer import NonFiniteGradientError


class NonFiniteStepError(FloatingPointError):
    """
    A loss or the gradient of a step is not finite; nothing was updated.

    Attributes:
        remedy: None where the weights are ruined or too large: it depends on the steps before.
    """

    def __init__(self, message: str, remedy: str | None):
        super().__init__(message)
        self.remedy = remedy


class LastBatch:
    """
    A loader that remembers the batch it gave last, so that an error can name its images.

    It is made when it is first iterated, since only then is the first iteration known.
    """

    def __init__(self, build_loader: Callable[[], Iterable[list[dict]]]):
        self.build_loader = build_loader
        self.batch: list[dict] = []
        #: A batch is being waited for: nothing of the iteration has begun.
        self.waiting = False

    def __iter__(self) -> Iterator[list[dict]]:
        self.waiting = True
        for self.batch in self.build_loader():
            self.waiting = False
            yield self.batch
            self.waiting = True


def file_names(batch: list[dict]) -> str:
    return ", ".join(image["file_name"] for image in batch)


class TrainStep(SimpleTrainer):
    """
    detectron2's step, with gradient accumulation, and stopped on all processes, before the update,
    when a loss or gradient is not finite on any of them. Then the step is taken once more, on the
    same images and random numbers, under the eyes of a :class:`Hunt`.

    detectron2's own check of losses names no image, runs on one process only and may be skipped
    between logged iterations.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: LastBatch,
        optimizer: torch.optim.Optimizer,
        *,
        parts: int = 1,
        scale_losses: bool = False,
        find_nonfinite: bool = False,
    ):
        """
        Args:
            parts: how many passes, one after the other, the batch of a process is divided into.
                Losses and gradients are those of the whole batch, except for what in the model
                depends on the images a pass has together: training BatchNorm, and padding.
            scale_losses: for float16, whose range is small.
            find_nonfinite: hunt in every step as it happens, for what a second look does not see.
        """
        super().__init__(model, data_loader, optimizer)
        self.parts = parts
        self.find_nonfinite = find_nonfinite
        self.grad_scaler = torch.amp.GradScaler("cuda", enabled=scale_losses)
        self._batches: Iterator[list[dict]] | None = None

    def run_step(self) -> None:
        """
        Raises:
            NonFiniteStepError: names the processes and images, and the cause; nothing was updated.
            InputError: when BatchNorm gets one value.
        """
        start = time.perf_counter()
        self._batches = self._batches or iter(self.data_loader)
        batch = next(self._batches)
        data_time = time.perf_counter() - start
        self.update(batch, lambda losses: self._write_metrics(losses, data_time))

    def update(self, batch: list[dict], check: Callable[[dict[str, Tensor]], None]) -> None:
        """
        Trains on a batch.

        Args:
            check: gets the losses before anything is updated; a FloatingPointError of it is raised
                on all processes.

        Raises:
            NonFiniteStepError, InputError: see :meth:`run_step`.
        """
        restore_random_numbers = _random_state(self.detector.device)
        hunt = Hunt(self.detector) if self.find_nonfinite else None
        try:
            self._update(batch, check, hunt)
        except FloatingPointError as error:
            if hunt is None:
                hunt = Hunt(self.detector)
                restore_random_numbers()
                self.optimizer.zero_grad()
                self._backward(batch, hunt)
            raise self._explained(error, hunt) from error

    def _update(
        self,
        batch: list[dict],
        check: Callable[[dict[str, Tensor]], None],
        hunt: Hunt | None,
    ) -> None:
        self.optimizer.zero_grad()
        try:
            losses = self._backward(batch, hunt)
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):
                raise
            raise InputError(
                f"BatchNorm cannot be trained on one value, of {file_names(batch)} alone in a "
                "pass: raise SOLVER.IMS_PER_BATCH or INPUT.MIN_SIZE_TRAIN, lower "
                "SOLVER.ACCUMULATION_STEPS, or set MODEL.RESNETS.NORM FrozenBN"
            ) from error
        check(losses)
        try:
            self.grad_scaler.step(self.optimizer)
        except NonFiniteGradientError as error:
            raise FloatingPointError(
                f"{error}; images of this process: {file_names(batch)}"
            ) from error
        self.grad_scaler.update()

    def _backward(self, batch: list[dict], hunt: Hunt | None) -> dict[str, Tensor]:
        """Adds the gradients of a batch, and returns its losses."""
        distributed = isinstance(self.model, DistributedDataParallel)
        criterion = self.detector.criterion
        criterion.batch_boxes = [len(image["instances"]) for image in batch]
        losses: dict[str, Tensor] = {}
        try:
            for i in range(self.parts):
                part = batch[i * len(batch) // self.parts : (i + 1) * len(batch) // self.parts]
                # The processes exchange their gradients once, in the last pass.
                waits = distributed and i + 1 < self.parts
                with self.model.no_sync() if waits else contextlib.nullcontext():
                    of_part = hunt.losses(self.model, part) if hunt else self.model(part)
                    self.grad_scaler.scale(sum(of_part.values())).backward()
                for name, loss in of_part.items():
                    losses[name] = losses.get(name, 0) + loss.detach()
        finally:
            criterion.batch_boxes = None
        return losses

    def _explained(self, error: FloatingPointError, hunt: Hunt) -> NonFiniteStepError:
        """The error with the causes that the processes have found; the first has the remedy."""
        ranks = enumerate(comm.all_gather(cause(hunt, self.detector)))
        causes = [(rank, found) for rank, found in ranks if found is not None]
        if causes:
            said = [f"process {rank}: {found.text}" for rank, found in causes]
            return NonFiniteStepError("\n".join([str(error), *said]), causes[0][1].remedy)
        return NonFiniteStepError(
            f"{error}\nbut every number was finite when the same step was taken once more",
            "--resume with SOLVER.FIND_NONFINITE True, which looks at each step as it happens",
        )

    @property
    def detector(self) -> SetDetector:
        """That is trained, also where several processes train it."""
        model = self.model
        return model.module if isinstance(model, DistributedDataParallel) else model

    def state_dict(self) -> dict:
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if scaler := state_dict.get("grad_scaler"):  # else the training had none so far
            self.grad_scaler.load_state_dict(scaler)

    def _write_metrics(
        self,
        loss_dict: dict[str, Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        losses = {name: loss.item() for name, loss in loss_dict.items()}
        ranks = comm.all_gather((losses, file_names(self.data_loader.batch)))
        faults = [
            f"losses of process {rank}: "
            + ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
            + f"; its images: {files}"
            for rank, (terms, files) in enumerate(ranks)
            if not np.isfinite(sum(terms.values()))
        ]
        if faults:
            raise FloatingPointError("\n".join(faults))
        super()._write_metrics(loss_dict, data_time, prefix, iter)


def _random_state(device: torch.device) -> Callable[[], None]:
    """A function that puts PyTorch's random numbers back to where they are now."""
    on_cpu = torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        torch.set_rng_state(on_cpu)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, device)

    return restore

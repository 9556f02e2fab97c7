"""The training loop and its hooks' base class."""

import logging
import time
import weakref
from typing import Any, Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn, optim

from . import comm
from .events import EventStorage, get_event_storage

logger = logging.getLogger("detectron2.engine.train_loop")


class HookBase:
    """Something to do around the steps of a trainer, which is found at `self.trainer`."""

    trainer: "TrainerBase" = None

    def before_train(self) -> None: ...

    def after_train(self) -> None: ...

    def before_step(self) -> None: ...

    def after_backward(self) -> None: ...

    def after_step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}


class TrainerBase:
    """Runs `run_step` from `start_iter` to `max_iter` with hooks around it."""

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = self.start_iter = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        hooks = [hook for hook in hooks if hook is not None]
        for hook in hooks:
            assert isinstance(hook, HookBase), type(hook)
            hook.trainer = weakref.proxy(self)
        self._hooks.extend(hooks)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Train; the hooks' `after_train` runs even after an error, with `iter` < `max_iter`."""
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter += 1
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def _call_hooks(self, method: str) -> None:
        for hook in self._hooks:
            getattr(hook, method)()

    def before_train(self) -> None:
        self._call_hooks("before_train")

    def after_train(self) -> None:
        self.storage.iter = self.iter
        self._call_hooks("after_train")

    def before_step(self) -> None:
        self.storage.iter = self.iter
        self._call_hooks("before_step")

    def after_backward(self) -> None:
        self._call_hooks("after_backward")

    def after_step(self) -> None:
        self._call_hooks("after_step")

    def run_step(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration and the states of hooks that have one, by class name."""
        states = {type(h).__qualname__: h.state_dict() for h in reversed(self._hooks)}
        states = {name: state for name, state in states.items() if state}
        return {"iteration": self.iter, **({"hooks": states} if states else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iter = state_dict["iteration"]
        hooks = {type(h).__qualname__: h for h in reversed(self._hooks)}
        for name, state in state_dict.get("hooks", {}).items():
            if name in hooks:
                hooks[name].load_state_dict(state)
            else:
                logger.warning(f"Cannot find the hook '{name}', its state_dict is ignored.")


class SimpleTrainer(TrainerBase):
    """One model, one optimizer and one endless loader; the model returns a dict of losses."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
    ):
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj = None
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward

    def run_step(self) -> None:
        """Draw a batch, compute losses and gradients, write metrics, update."""
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict, losses = self._losses(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self._backward(losses)
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self._optimizer_step()

    def _losses(self, data: Any) -> tuple[dict[str, Tensor], Tensor]:
        losses = self.model(data)
        if isinstance(losses, Tensor):
            return {"total_loss": losses}, losses
        return losses, sum(losses.values())

    def _backward(self, losses: Tensor) -> None:
        losses.backward()

    def _optimizer_step(self) -> None:
        self.optimizer.step()

    @property
    def _data_loader_iter(self):
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Replace the loader by what `data_loader_builder` returns."""
        del self.data_loader
        self.data_loader = data_loader_builder()
        self._data_loader_iter_obj = None

    def _write_metrics(
        self,
        loss_dict: Mapping[str, Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        iter = self.iter if iter is None else iter
        if (iter + 1) % self.gather_metric_period == 0:
            SimpleTrainer.write_metrics(loss_dict, data_time, iter, prefix)

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, Tensor], data_time: float, cur_iter: int, prefix: str = ""
    ) -> None:
        """Record the mean losses and the largest `data_time` over the ranks; stop at NaN."""
        metrics = {k: v.detach().cpu().item() for k, v in loss_dict.items()}
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        gathered = comm.gather({**metrics, "data_time": data_time})
        if not comm.is_main_process():
            return
        longest = np.max([m.pop("data_time") for m in gathered])
        storage.put_scalar("data_time", longest, cur_iter=cur_iter)
        metrics = {k: np.mean([m[k] for m in gathered]) for k in gathered[0]}
        total = sum(metrics.values())
        if not np.isfinite(total):
            raise FloatingPointError(
                f"Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {metrics}"
            )
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(metrics) > 1:
            storage.put_scalars(cur_iter=cur_iter, **metrics)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """A :class:`SimpleTrainer` in mixed precision on CUDA."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
    ):
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward
        )
        self.grad_scaler = grad_scaler or torch.amp.GradScaler("cuda")
        self.precision = precision

    def run_step(self) -> None:
        assert torch.cuda.is_available(), "[AMPTrainer] CUDA is required for AMP training!"
        super().run_step()

    def _losses(self, data: Any) -> tuple[dict[str, Tensor], Tensor]:
        with torch.amp.autocast("cuda", dtype=self.precision):
            return super()._losses(data)

    def _backward(self, losses: Tensor) -> None:
        self.grad_scaler.scale(losses).backward()

    def _optimizer_step(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])

"""Where in a step the first number arises that is not finite; :mod:`.blame` says of what."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node


@dataclasses.dataclass
class Fault:
    """
    The first that was not finite.

    Attributes:
        module: that computed it.
        backward: whether it is a gradient.
        what: that it did, in words.
        kind: "NaN" or "inf".
        dtype: of what is not finite.
        given: the largest magnitude of what it was computed from.
        part: the images of the pass.
        first_image: the number in the batch of the first of them.
        images: numbers, in `part`, of the images that it is of; empty as long as not known.
    """

    module: nn.Module
    backward: bool
    what: str
    kind: str
    dtype: torch.dtype
    given: float
    part: list[dict]
    first_image: int
    images: list[int] = dataclasses.field(default_factory=list)


class Hunt:
    """
    Watches one step for the first number that is not finite, in the order of computation.

    In the forward pass hooks look at what goes into each module and what comes out: the first that
    is not finite was made by the module that returns it, or by the code of the one that hands it
    to another. In the backward pass each operation of the graph has a hook, and is known by the
    module in which it was done. Hooks look and change nothing; a process that has found something
    goes on, because others may wait for it.

    An infinite number may be meant, as in a mask: where the losses are finite, it is forgotten.

    Attributes:
        fault: None as long as there is none.
        largest_gradient: of the parameters, as long as all are finite: magnitude and name.
    """

    def __init__(self, model: nn.Module):
        """
        Args:
            model: that is trained, not wrapped.
        """
        self.fault: Fault | None = None
        self.largest_gradient = (0.0, "")
        self._names = {module: name for name, module in model.named_modules()}
        self._parameters = {parameter: name for name, parameter in model.named_parameters()}
        self._part: list[dict] = []
        self._first_image = 0
        # The modules that are being computed, outermost first, and what they were given.
        self._calls: list[tuple[nn.Module, Any]] = []
        self._known: set[Node] = set()

    def losses(
        self, forward: Callable[[list[dict]], dict[str, Tensor]], part: list[dict]
    ) -> dict[str, Tensor]:
        """
        `forward(part)`, watched, as its backward pass will be.

        Args:
            forward: the model, or what wraps it.
            part: the next images of the batch.
        """
        self._first_image += len(self._part)
        self._part, earlier, hooks = part, self.fault, []
        try:
            for module in self._names:
                hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                hooks.append(module.register_forward_hook(self._leave, with_kwargs=True))
            losses = forward(part)
        finally:
            # Before the backward pass, which computes checkpointed activations once more.
            for hook in hooks:
                hook.remove()
            self._calls.clear()
            self._known.clear()
        if self.fault is not None and self.fault.kind == "inf" and finite(losses):
            self.fault = earlier
        return losses

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs = (args, kwargs)
        if self._calls:
            caller, given = self._calls[-1]
            self._follow(inputs, caller)
            what = f"computes, for {self._names[module]}, the first that is not finite"
            self._look(inputs, caller, what, given)
        self._calls.append((module, inputs))

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self._calls.pop()
        for name, value in output.items() if isinstance(output, Mapping) else [("", output)]:
            self._follow(value, module, name)
        self._look(output, module, "computes the first that is not finite", (args, kwargs))

    # For :func:`.is_watched`: a step is computed as without a hunt.
    _enter.only_looks = _leave.only_looks = True

    def _look(self, value: Any, module: nn.Module, what: str, given: Any) -> None:
        if (self.fault is not None and self.fault.images) or finite(value):
            return
        if self.fault is None:
            self._found(value, module, False, what, given)
        self._find_images(floats(value))

    def _follow(self, value: Any, module: nn.Module, name: str = "") -> None:
        """What of the graph of `value` is new was computed in `module`, for its output `name`."""
        nodes = [tensor.grad_fn for tensor in floats(value)]
        while nodes:
            node = nodes.pop()
            # Not at the leaves, which outlive the step.
            if node is None or node in self._known or hasattr(node, "variable"):
                continue
            self._known.add(node)
            sources = [source for source, _ in node.next_functions]
            nodes += sources
            weights = [self._parameters.get(getattr(s, "variable", None)) for s in sources]
            hook = functools.partial(self._on_gradient, module, name, node.name(), weights)
            node.register_hook(hook)

    def _on_gradient(
        self,
        module: nn.Module,
        name: str,
        operation: str,
        weights: list[str | None],
        computed: tuple[Tensor | None, ...],
        given: tuple[Tensor | None, ...],
    ) -> None:
        """
        Args:
            name: of the output of `module` that `operation` was done for, where it has names.
            weights: names of the parameters that `computed` are the gradients of, where they are.
        """
        sound = finite(given)
        if self.fault is None and sound and finite(computed):
            for weight, gradient in zip(weights, computed):
                if weight is not None and gradient is not None:
                    of_weight = (largest(gradient), weight)
                    self.largest_gradient = max(self.largest_gradient, of_weight)
            return
        if self.fault is None and sound:
            bad = [w for w, g in zip(weights, computed) if w is not None and not finite(g)]
            of = f" of {', '.join(bad)}" if bad else f" of {name}" if name else ""
            what = f"computes the first gradient{of} that is not finite ({operation})"
            self._found(computed, module, True, what, given)
        elif self.fault is None:
            what = f"gets the first gradient, a sum, that is not finite ({operation})"
            self._found(given, module, True, what, ())
        if not self.fault.images and self.fault.part is self._part:
            self._find_images(floats([g for w, g in zip(weights, computed) if w is None]))

    def _found(self, value: Any, module: nn.Module, backward: bool, what: str, given: Any) -> None:
        bad = next(tensor for tensor in floats(value) if not finite(tensor))
        kind = "NaN" if bad.isnan().any() else "inf"
        place = (self._part, self._first_image)
        self.fault = Fault(module, backward, what, kind, bad.dtype, largest(given), *place)

    def _find_images(self, tensors: Iterable[Tensor]) -> None:
        """Those that are not finite in the first tensor that is not, and is of (N, ..., ...)."""
        for tensor in tensors:
            if tensor.dim() > 2 and len(tensor) == len(self._part) and not finite(tensor):
                affected = ~tensor.detach().flatten(1).isfinite().all(1)
                self.fault.images = affected.nonzero()[:, 0].tolist()
                return


def floats(value: Any) -> Iterator[Tensor]:
    """The tensors of floating point in a nested value."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from floats(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from floats(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from floats(getattr(value, field.name))


def finite(value: Any) -> bool:
    return all(bool(tensor.detach().isfinite().all()) for tensor in floats(value))


def largest(value: Any) -> float:
    """The largest finite magnitude in a nested value; 0 if it has none."""
    magnitudes = (tensor.detach().abs() for tensor in floats(value))
    finite_ones = (m[m.isfinite()] for m in magnitudes)
    return max((m.max().item() for m in finite_ones if m.numel()), default=0.0)

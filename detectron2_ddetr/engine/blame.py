"""What is to blame for a number that is not finite, and what to do about it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..inputs import describe
from ..meta_arch import SetDetector
from ..modeling.targets import target_fault
from .nonfinite import Fault, Hunt, finite, largest

#: 255 is white; beyond what 16 bits can hold an image has no pixels.
_MOST_PIXEL = 2**16


@dataclass
class Cause:
    """
    Attributes:
        text: where, and what is to blame.
        remedy: None where the weights are ruined or too large: it depends on the steps before.
    """

    text: str
    remedy: str | None


def cause(hunt: Hunt, model: SetDetector) -> Cause | None:
    """
    Args:
        hunt: of a step that was not finite.
        model: that it was of; nothing of it has been updated since.

    Returns:
        None if this process had nothing that is not finite.
    """
    if hunt.fault is not None:
        return _Case(hunt.fault, model).cause()
    number, name = hunt.largest_gradient
    numbers = sum(parameter.numel() for parameter in model.parameters())
    if number**2 * numbers < torch.finfo(torch.float32).max:
        return None
    return Cause(
        "all gradients are finite, but their norm is not. To blame is an overflow: the largest "
        f"number of them is {number:.3g}, of {name}; {_largest_of(model)}",
        None,
    )


class _Case:
    """A fault, and the model that had it."""

    def __init__(self, fault: Fault, model: SetDetector):
        self.fault, self.model = fault, model
        self.module_names = {module: name for name, module in model.named_modules()}
        self.name = self.module_names[fault.module] or "the model itself"
        # Where targets are read.
        self.in_losses = fault.module is model or fault.module in set(model.criterion.modules())

    def cause(self) -> Cause:
        fault = self.fault
        blamed = (
            self._input()
            or self._weight()
            or (self.in_losses and self._box())
            or self._overflow()
            or (self.in_losses and self._box_without_area())
            or self._undefined()
        )
        where = f"{self.name} ({type(fault.module).__name__}) {fault.what}: {fault.kind}"
        if len(fault.images) == len(fault.part) > 1:
            where += ", in every image"
        elif fault.images:
            where += f", in {', '.join(map(self._image, fault.images))}"
        return Cause(f"{where}. To blame is {blamed.text}", blamed.remedy)

    def _image(self, number: int) -> str:
        return describe(self.fault.first_image + number, self.fault.part[number])

    def _input(self) -> Cause | None:
        for number, sample in enumerate(self.fault.part):
            said, most = "", largest(sample["image"])
            if not finite(sample["image"]):
                said = "NaN or infinite pixels"
            elif most > _MOST_PIXEL:
                said = f"pixels of up to {most:.3g}, where 255 is white"
            if said:
                return Cause(
                    f"the input: {self._image(number)} has {said}",
                    "Correct or remove this image, or what the mapper does to it",
                )
        return None

    def _weight(self) -> Cause | None:
        """
        One that the module reads, or hands to those inside it; for a gradient, any: what it has
        spoilt may have been left out of the losses.
        """
        ruined = []
        for module in (self.model if self.fault.backward else self.fault.module).modules():
            tensors: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
            # A BatchNorm that is trained does not read its statistics, but writes what it sees.
            if not (module.training and isinstance(module, _BatchNorm)):
                tensors |= module.named_buffers(recurse=False)
            prefix = f"{self.module_names[module]}." if self.module_names[module] else ""
            ruined += [prefix + name for name, tensor in tensors.items() if not finite(tensor)]
        if not ruined:
            return None
        more = f" and {len(ruined) - 3} more" if len(ruined) > 3 else ""
        return Cause(
            f"a weight that was not finite before this step: {', '.join(ruined[:3])}{more}", None
        )

    def _box(self) -> Cause | None:
        """One that is not finite, or not of its image."""
        for number, target in enumerate(self._targets()):
            any_class = {"labels": target["labels"] * 0, "boxes": target["boxes"]}
            if said := target_fault(any_class, num_classes=1):
                return self._target(number, said)
        return None

    def _box_without_area(self) -> Cause | None:
        for number, target in enumerate(self._targets()):
            empty = (target["boxes"][:, 2:] <= 0).any(1)
            if empty.any():
                index = int(empty.int().argmax())
                boxes = self.fault.part[number]["instances"].gt_boxes.tensor
                numbers = [round(x, 4) for x in boxes[index].tolist()]
                said = f"box {index} is {numbers}, (x0, y0, x1, y1) in pixels, without area"
                return self._target(number, said)
        return None

    def _targets(self) -> list[dict[str, Tensor]]:
        """On the CPU, where numbers can be looked at."""
        return self.model.prepare_targets([x["instances"].to("cpu") for x in self.fault.part])

    def _target(self, number: int, said: str) -> Cause:
        return Cause(
            f"a target: {self._image(number)}: {said}",
            "Correct or remove this annotation, or what the mapper does to it",
        )

    def _overflow(self) -> Cause | None:
        """Where a product may be too large, or a square."""
        largest_weight, _ = _largest_weight(self.fault.module)
        if max(self.fault.given, largest_weight) ** 2 < torch.finfo(self.fault.dtype).max:
            return None
        remedy = None
        if self.fault.dtype == torch.float16:
            remedy = "SOLVER.AMP.PRECISION bfloat16 has the range of float32"
        return Cause(f"an overflow: {self._numbers()}", remedy)

    def _undefined(self) -> Cause:
        if self.fault.backward:
            said = "a derivative that is not finite, as that of a root or a norm at 0"
        elif self.fault.kind == "inf":
            said = "an overflow, as of exp, or a division by zero"
        else:
            said = "arithmetic without a result, such as 0 / 0 or the root of a negative number"
        return Cause(
            f"{said}: {self._numbers()}",
            f"Correct {type(self.fault.module).__name__}, such as by an epsilon or a clamp, for "
            "numbers like these",
        )

    def _numbers(self) -> str:
        dtype = str(self.fault.dtype).removeprefix("torch.")
        own, _ = _largest_weight(self.fault.module)
        return (
            f"in {dtype}, of finite numbers of at most {self.fault.given:.3g} and weights of at "
            f"most {own:.3g}; {_largest_of(self.model)}"
        )


def _largest_of(model: nn.Module) -> str:
    number, name = _largest_weight(model)
    return f"the largest weight of the model is {number:.3g}, in {name}"


def _largest_weight(module: nn.Module) -> tuple[float, str]:
    """Its magnitude, and its name in the module."""
    return max(((largest(p), name) for name, p in module.named_parameters()), default=(0.0, ""))

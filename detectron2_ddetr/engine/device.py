"""Whether the device that a config asks for is here, and can compute as the config says."""

import logging

import torch

from ..errors import InputError
from ..toolbox import CfgNode

logger = logging.getLogger(__name__)


def check_device(cfg: CfgNode, num_gpus: int = 1) -> None:
    """
    Args:
        num_gpus: how many processes are to have a GPU each.

    Raises:
        InputError: when MODEL.DEVICE is none that is here, or a GPU and there are not that many.
    """
    try:
        kind = torch.device(cfg.MODEL.DEVICE).type
    except RuntimeError as error:
        raise InputError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE!r} is no device: set cuda, or cpu"
        ) from error
    if kind == "cpu":
        return
    if kind != "cuda":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None or accelerator.type != kind:
            raise InputError(
                f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, which PyTorch cannot compute on here: add "
                "MODEL.DEVICE cpu"
            )
        return
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else ", and this PyTorch is built without CUDA"
        raise InputError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but PyTorch finds no GPU with a working "
            f"driver here{built}: add MODEL.DEVICE cpu, or mend the driver"
        )
    if num_gpus > torch.cuda.device_count():
        raise InputError(
            f"--num-gpus {num_gpus}, but there are {torch.cuda.device_count()}: give fewer, or "
            "add MODEL.DEVICE cpu"
        )


def warn_of_slow_precision(cfg: CfgNode) -> None:
    """Says where mixed precision is slower than none."""
    on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    if cfg.SOLVER.AMP.ENABLED and on_cpu and not has_bfloat16():
        logger.warning(
            "SOLVER.AMP.ENABLED: PyTorch has no fast way to compute in bfloat16 on this "
            "processor, and it will take many times as long as float32: add SOLVER.AMP.ENABLED "
            "False"
        )


def has_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 in oneDNN, as x86 does from AVX-512 on."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()

"""Communication between processes; every function also works without any."""

import functools
import os
from typing import Any

import numpy as np
import torch.distributed as dist


def get_world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def get_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    return get_rank() == 0


def get_local_rank() -> int:
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0  # set by launchers


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Nothing to do: LOCAL_RANK says all that is asked."""


@functools.lru_cache()
def _cpu_group():
    return dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else dist.group.WORLD


def all_gather(data: Any) -> list:
    """Return what each rank passed; anything that can be pickled."""
    if get_world_size() == 1:
        return [data]
    output = [None] * get_world_size()
    dist.all_gather_object(output, data, group=_cpu_group())
    return output


def shared_random_seed() -> int:
    """Return a random number that all ranks share. All must call it together."""
    return all_gather(np.random.randint(2**31))[0]

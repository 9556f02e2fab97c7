"""Communication between processes; every function also works without any."""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_LOCAL_GROUP = None


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    return dist.get_world_size() if _initialized() else 1


def get_rank() -> int:
    return dist.get_rank() if _initialized() else 0


@functools.lru_cache()
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Make the group of this machine's processes. All processes must call it together."""
    global _LOCAL_GROUP
    assert _LOCAL_GROUP is None and get_world_size() % num_workers_per_machine == 0
    for start in range(0, get_world_size(), num_workers_per_machine):
        ranks = list(range(start, start + num_workers_per_machine))
        group = dist.new_group(ranks)
        if get_rank() in ranks:
            _LOCAL_GROUP = group


def get_local_rank() -> int:
    if not _initialized():
        return 0
    assert _LOCAL_GROUP is not None, "start processes with launch(), or create_local_process_group"
    return dist.get_rank(group=_LOCAL_GROUP)


def is_main_process() -> bool:
    return get_rank() == 0


def synchronize() -> None:
    """Wait until all processes have come here."""
    if get_world_size() > 1:
        nccl = dist.get_backend() == dist.Backend.NCCL
        dist.barrier(device_ids=[torch.cuda.current_device()] if nccl else None)


@functools.lru_cache()
def _cpu_group():
    return dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else dist.group.WORLD


def _destroy_process_groups() -> None:
    """Forget and destroy all groups; for :func:`launch`."""
    global _LOCAL_GROUP
    _LOCAL_GROUP = None
    _cpu_group.cache_clear()
    dist.destroy_process_group()


def all_gather(data: Any, group=None) -> list:
    """Return what each rank passed; anything that can be pickled."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    output = [None] * dist.get_world_size(group)
    dist.all_gather_object(output, data, group=group)
    return output


def gather(data: Any, dst: int = 0, group=None) -> list:
    """Like :func:`all_gather`, but ranks other than `dst` get an empty list."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    is_dst = dist.get_rank(group=group) == dst
    output = [None] * dist.get_world_size(group) if is_dst else None
    dist.gather_object(data, output, dst=dst, group=group)
    return output or []


def shared_random_seed() -> int:
    """Return a random number that all ranks share. All must call it together."""
    return all_gather(np.random.randint(2**31))[0]

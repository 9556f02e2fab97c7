"""Processes: those that torchrun has started, or as many as --num-gpus says."""

import argparse
import gc
import os
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from ..errors import InputError
from ..toolbox import comm, launch

#: How launchers that are not torchrun tell the number of processes they have started, and which
#: of them this is. A batch script of Slurm is told the number of tasks too, but is one process.
_OTHER_LAUNCHERS = (
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("srun", "SLURM_NTASKS", "SLURM_PROCID"),
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpirun", "PMI_SIZE", "PMI_RANK"),
)


def run_in_processes(function: Callable, args: argparse.Namespace) -> None:
    """
    Calls `function(args)` in every process of a training or an evaluation.

    Under torchrun this is one of them, and `args.num_gpus` becomes how many there are on this
    machine. Otherwise they are started here: `args.num_gpus` on each of `args.num_machines`.

    Raises:
        InputError: when both are to start processes, or a launcher whose processes would not find
            each other has started several.
    """
    if not int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _refuse_other_launchers(os.environ)
        launch(
            function,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
        return
    if args.num_gpus > 1 or args.num_machines > 1:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, so torchrun has started the processes: "
            "leave --num-gpus and --num-machines out"
        )
    missing = [x for x in ("RANK", "MASTER_ADDR", "MASTER_PORT") if x not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: start the processes with torchrun, "
            "or unset WORLD_SIZE and give --num-gpus"
        )
    args.num_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        comm.create_local_process_group(args.num_gpus)
        function(args)
    finally:
        gc.collect()  # what outlives its group makes gloo abort at exit
        dist.destroy_process_group()


def _refuse_other_launchers(environment: Mapping[str, str]) -> None:
    for launcher, size, rank in _OTHER_LAUNCHERS:
        alone = size == "SLURM_NTASKS" and environment.get(rank, "0") == "0"
        if int(environment.get(size) or 1) > 1 and not alone:
            raise InputError(
                f"{launcher} has started {environment[size]} processes ({size}), each of which "
                "would train by itself: start one process on each machine, and let it start the "
                "others with --num-gpus, or start torchrun"
            )

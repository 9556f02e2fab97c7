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
        InputError: when both are to start processes, when a launcher whose processes would not find
            each other has started several, or for numbers that cannot be.
    """
    if args.num_gpus < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise InputError(
            f"--num-gpus {args.num_gpus}, --num-machines {args.num_machines} and --machine-rank "
            f"{args.machine_rank}: the first two must be at least 1, and the machines are numbered "
            "from 0 on"
        )
    several = args.num_gpus * args.num_machines > 1
    world_size = int(os.environ.get("WORLD_SIZE") or 1)
    # Clusters set WORLD_SIZE for whoever starts the processes; LOCAL_RANK is set by who has.
    if world_size == 1 or (several and "LOCAL_RANK" not in os.environ):
        _refuse_other_launchers(os.environ, args.num_machines)
        launch(
            _on_its_cores,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(function, args),
        )
        return
    if several:
        raise InputError(
            f"torchrun has started {world_size} processes (WORLD_SIZE): leave --num-gpus and "
            "--num-machines out"
        )
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise InputError(
            f"WORLD_SIZE is {world_size}, but {', '.join(missing)} not set: start the processes "
            "with torchrun, or with --num-gpus, or unset WORLD_SIZE"
        )
    args.num_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        comm.create_local_process_group(args.num_gpus)
        function(args)
    finally:
        gc.collect()  # what outlives its group makes gloo abort at exit
        dist.destroy_process_group()


def _on_its_cores(function: Callable, args: argparse.Namespace) -> None:
    """
    Calls `function(args)` with the threads that are left for each of the processes of a machine.

    Otherwise each would start as many as there are cores, and they would wait for each other.
    torchrun sets OMP_NUM_THREADS for the same reason; so may the user.
    """
    if args.num_gpus > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // args.num_gpus))
    function(args)


def _refuse_other_launchers(environment: Mapping[str, str], num_machines: int) -> None:
    """One process for each of the machines that the command line names is what is expected."""
    for launcher, size, rank in _OTHER_LAUNCHERS:
        alone = size == "SLURM_NTASKS" and environment.get(rank, "0") == "0"
        if int(environment.get(size) or 1) > num_machines and not alone:
            raise InputError(
                f"{launcher} has started {environment[size]} processes ({size}), each of which "
                "would train by itself: start one process on each machine, and let it start the "
                "others with --num-gpus, or start torchrun"
            )

"""
Commands and functions in processes of their own, forked from one that has already imported what
they import.

Importing takes longer than most of what the tests ask of them.
"""

import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["pytest", "detectron2_ddetr.cli", "detectron2_ddetr.engine.trainer"]
)


def two_processes(function, *args):
    """`function(rank, *args)` in each, which can be imported; an error of one is raised here."""
    start = torch.multiprocessing.start_processes
    start(function, args, nprocs=2, start_method="forkserver")


def fork_ranks(monkeypatch):
    """What starts the processes of a training forks them."""
    start = torch.multiprocessing.start_processes
    forks = functools.partial(start, start_method="forkserver")
    monkeypatch.setattr(torch.multiprocessing, "start_processes", forks)


def python(*words, cwd=None, timeout=300):
    """
    What `OMP_NUM_THREADS=1 python *words` does, in the environment of this process.

    Args:
        words: a script, `-m` and a module or `-c` and code, and their arguments.
        cwd: folder; default: the one of this process.
        timeout: seconds.

    Returns:
        exit status, or less than zero for a signal; and all that was printed.

    Raises:
        subprocess.TimeoutExpired: it has been killed.
    """
    words = list(map(str, words))
    with tempfile.NamedTemporaryFile() as log:
        process = CONTEXT.Process(
            target=_run, args=(words, os.fspath(cwd or os.getcwd()), dict(os.environ), log.name)
        )
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout)
        return process.exitcode, log.read().decode()


def _run(words, cwd, environment, log):
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.chdir(cwd)
    torch.set_num_threads(1)
    os.environ.clear()  # of the server, which may be older
    os.environ.update(environment, OMP_NUM_THREADS="1")
    multiprocessing.set_start_method(None, force=True)  # workers start as Python starts them
    # The processes of a training, which would import once more.
    start = torch.multiprocessing.start_processes
    torch.multiprocessing.start_processes = functools.partial(start, start_method="fork")
    option, *rest = words if words[0] in ("-m", "-c") else (None, *words)
    sys.argv = rest
    if option == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv = [option, *rest[1:]]
        sys.path.insert(0, "")
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(rest[0]))
        runpy.run_path(rest[0], run_name="__main__")

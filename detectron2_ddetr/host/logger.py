"""Logging to stdout and to a file."""

import functools
import logging
import os
import sys


@functools.lru_cache()  # a second call with the same arguments must not add handlers
def setup_logger(output=None, distributed_rank=0, *, name="detectron2", abbrev_name=None):
    """Log to stdout on rank 0 and to `output`/log.txt on all ranks, as `abbrev_name`."""
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    handlers = [logging.StreamHandler(sys.stdout)] if distributed_rank == 0 else []
    if output is not None:
        os.makedirs(output, exist_ok=True)
        suffix = f".rank{distributed_rank}" if distributed_rank > 0 else ""
        handlers.append(logging.FileHandler(os.path.join(output, f"log.txt{suffix}")))
    line = f"[%(asctime)s {abbrev_name or name}.%(module)s] %(levelname)s: %(message)s"
    for handler in handlers:
        handler.setFormatter(logging.Formatter(line, datefmt="%m/%d %H:%M:%S"))
        logger.addHandler(handler)
    return logger

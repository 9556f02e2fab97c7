"""Random seeds."""

import logging
import os
import random
from datetime import datetime

import numpy as np
import torch


def seed_all_rng(seed: int | None = None) -> None:
    """Seed torch, numpy and python, with a strong random seed by default."""
    if seed is None:
        now = int(datetime.now().strftime("%S%f"))
        seed = os.getpid() + now + int.from_bytes(os.urandom(2), "big")
        logging.getLogger("detectron2.utils.env").info(f"Using a generated random seed {seed}")
    np.random.seed(seed)
    torch.manual_seed(seed)
    random.seed(seed)
    torch.cuda.manual_seed_all(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)

"""
A training that goes on with another config: what is taken from the config, and what is not.

The config owns every number that a user can set, and the checkpoint what has grown: weights,
moments of the optimiser, the place in the data. No difference is passed over without a word.
"""

import logging
import os
import warnings
from typing import Any

import torch
import yaml

from ..checkpoint.checkpointer import Checkpointer
from ..config import ONLY_OF_DETECTRON2, leaves
from ..errors import InputError
from ..toolbox import CfgNode, comm

logger = logging.getLogger(__name__)

#: Keys that the state of a training outweighs, and by what.
_NO_EFFECT = {
    "SEED": "the order of the images and all random numbers go on as they began",
    "MODEL.WEIGHTS": "the weights are those of the checkpoint",
}
#: Where a run lies is no part of what it is.
_NOT_COMPARED = ("OUTPUT_DIR", "VERSION")

Differences = dict[str, tuple[Any, Any]]


def fit_state(
    saved: dict[str, Any],
    cfg: CfgNode,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> tuple[dict[str, Any], Differences]:
    """
    Args:
        saved: the state of a trainer, as a checkpoint has it.
        cfg, optimizer, scheduler: of the trainer that is to load it.

    Returns:
        A state with what the config owns taken from there, and how the two configs differ, each
        key of which is logged.

    Raises:
        InputError: when the optimiser does not train the same parameters, or more iterations are
            done than the config has.
    """
    if (done := saved["iteration"] + 1) > cfg.SOLVER.MAX_ITER:
        raise InputError(
            f"the training in {cfg.OUTPUT_DIR!r} has done {done} iterations, and SOLVER.MAX_ITER "
            f"is {cfg.SOLVER.MAX_ITER}: to continue it, set that to more; `ddetr eval` evaluates it"
        )
    if "config" not in saved:
        logger.warning(
            "the checkpoint does not say with which config it was trained; learning rates and "
            "weight decay are those in it"
        )
        images = done * cfg.SOLVER.IMS_PER_BATCH
        return saved | {"images": images}, {}
    differences = config_differences(saved["config"], cfg)
    for key, (old, new) in differences.items():
        effect = f"no effect: {_NO_EFFECT[key]}" if key in _NO_EFFECT else "from now on"
        logger.warning(f"resumed with another {key}: {old!r} before, {new!r} now; {effect}")
    step, hooks = dict(saved["_trainer"]), dict(saved["hooks"])
    if all("param_names" in group for group in step["optimizer"]["param_groups"]):
        step["optimizer"] = fit_optimizer_state(step["optimizer"], optimizer, differences)
        hooks["LRScheduler"] = {**hooks["LRScheduler"], "base_lrs": scheduler.base_lrs}
    return saved | {"_trainer": step, "hooks": hooks}, differences


def found_by_all(checkpointer: Checkpointer) -> bool:
    """
    Whether there is a checkpoint to resume from; the processes of a training, of which each looks
    into the folder of its machine, must find the same.

    Raises:
        InputError: if they do not.
    """
    found = comm.all_gather(os.path.basename(checkpointer.get_checkpoint_file()))
    if len(set(found)) > 1:
        said = (f"process {rank}: {name or 'none'}" for rank, name in enumerate(found))
        raise InputError(
            f"--resume: the last checkpoint in OUTPUT_DIR {checkpointer.save_dir!r} is not the "
            f"same for all processes ({', '.join(said)}): each machine needs the folder of the "
            "run, a shared one or a copy"
        )
    return bool(found[0])


def config_differences(before: str, cfg: CfgNode) -> Differences:
    """
    Args:
        before: `cfg.dump()` of the training that is continued.

    Returns:
        For each key that differs its value then and now; None for one that did or does not exist.
        What only detectron2 has is nothing to a training that goes on with it, or without it.
    """
    old, new = (dict(leaves(yaml.safe_load(text))) for text in (before, cfg.dump()))
    foreign = {key for key in old.keys() ^ new.keys() if key.startswith(ONLY_OF_DETECTRON2)}
    keys = [key for key in {**new, **old} if key not in _NOT_COMPARED and key not in foreign]
    return {k: (old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)}


def fit_optimizer_state(
    saved: dict[str, Any], optimizer: torch.optim.Optimizer, differences: Differences
) -> dict[str, Any]:
    """
    The saved state, with the moments of each parameter by its name and the groups of `optimizer`,
    so that rates, factors and weight decay are those of the config.

    Args:
        saved: `optimizer.state_dict()` of the training that is continued, with names.
        differences: named where the two do not train the same parameters.

    Raises:
        InputError: if they do not.
    """
    ours = optimizer.state_dict()
    index_then, index_now = _indices(saved), _indices(ours)
    if index_then.keys() != index_now.keys():
        lost, added = index_then.keys() - index_now.keys(), index_now.keys() - index_then.keys()
        parts = [
            f"{len(names)} {what}, the first {min(names)}"
            for names, what in (
                (lost, "were trained and are not now"),
                (added, "are trained that were not"),
            )
            if names
        ]
        changed = [f"{k} ({old!r} -> {new!r})" for k, (old, new) in differences.items()]
        raise InputError(
            f"this training cannot be resumed: of its parameters {'; '.join(parts)}. The config "
            f"differs in {', '.join(changed) or 'nothing'}. Set back what decides which layers "
            "are trained (as MODEL.BACKBONE.FREEZE_AT does), or begin a new training in another "
            "OUTPUT_DIR with MODEL.WEIGHTS set to the checkpoint"
        )
    state = {index_now[name]: saved["state"][i] for name, i in index_then.items()
             if i in saved["state"]}  # fmt: skip
    if not differences:
        for ours_group, saved_group in zip(ours["param_groups"], saved["param_groups"]):
            ours_group["lr"] = saved_group["lr"]
    return {"state": state, "param_groups": ours["param_groups"]}


def _indices(state: dict[str, Any]) -> dict[str, int]:
    """The number of each parameter in the state of an optimiser, by name."""
    groups = state["param_groups"]
    return {n: i for g in groups for n, i in zip(g["param_names"], g["params"])}


def continue_rates(
    scheduler: torch.optim.lr_scheduler.LRScheduler, rate_of_checkpoint: float
) -> None:
    """
    Sets the rates that the schedule of the config has for the next iteration.

    Args:
        scheduler: at that iteration, with the base rates of the config.
        rate_of_checkpoint: what the training would have gone on with; a jump is logged.
    """
    with warnings.catch_warnings():
        # Schedules in closed form, as all of detectron2's are, may be asked between two steps.
        warnings.filterwarnings("ignore", message=".*get_last_lr")
        rates = scheduler.get_lr()
    for group, rate in zip(scheduler.optimizer.param_groups, rates):
        group["lr"] = rate
    rate = learning_rate(scheduler.optimizer.state_dict())
    if rate != rate_of_checkpoint:
        logger.warning(
            f"the learning rate jumps from {rate_of_checkpoint:.4g} to {rate:.4g}, which is where "
            f"the schedule of this config is at iteration {scheduler.last_epoch}"
        )


def learning_rate(state: dict[str, Any]) -> float:
    """Of an optimiser's state, the rate of the largest group, which is logged as "lr"."""
    return max(state["param_groups"], key=lambda group: len(group["params"]))["lr"]

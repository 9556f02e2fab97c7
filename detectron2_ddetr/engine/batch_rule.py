"""What becomes of a recipe with another batch than it was made for."""

from ..errors import InputError
from ..toolbox import CfgNode


def apply_batch_rule(cfg: CfgNode) -> tuple[CfgNode, str]:
    """
    Fits a recipe, whose numbers are for SOLVER.REFERENCE_BATCH images an update, to
    SOLVER.IMS_PER_BATCH = B, as SOLVER.BATCH_RULE says:

    * "keep": rates and schedule stay.
    * "scale": rates times B / reference, and all numbers of iterations divided by that, so that as
      many images are seen (linear scaling, https://arxiv.org/abs/1706.02677, Sec. 2.1).
    * "accumulate": an update is of the reference batch, in passes of B images.

    Returns:
        The config, of which IMS_PER_BATCH is the reference now, and what was decided, in a line;
        "" where there is nothing to decide.

    Raises:
        InputError: when the reference is no multiple of a batch to accumulate.
    """
    solver = cfg.SOLVER
    batch, reference = solver.IMS_PER_BATCH, solver.REFERENCE_BATCH
    if not reference or batch == reference:
        return cfg, ""
    cfg = cfg.clone()
    cfg.defrost()
    solver = cfg.SOLVER
    said = f"the recipe is for a batch of {reference}, this one is of {batch}: "
    if solver.BATCH_RULE == "keep":
        said += (
            f"rates and schedule stay, so {batch / reference:.3g} times the images of the recipe "
            "are seen; SOLVER.BATCH_RULE scale or accumulate fits them"
        )
    elif solver.BATCH_RULE == "scale":
        _scale(cfg, batch / reference)
        said += (
            f"BASE_LR is {solver.BASE_LR:.4g} and MAX_ITER {solver.MAX_ITER} now, and all other "
            "numbers of iterations follow (SOLVER.BATCH_RULE scale)"
        )
    else:
        if reference % batch:
            raise InputError(
                f"SOLVER.BATCH_RULE is 'accumulate', but SOLVER.REFERENCE_BATCH ({reference}) is "
                f"no multiple of SOLVER.IMS_PER_BATCH ({batch}): set a batch that divides it"
            )
        solver.IMS_PER_BATCH = reference
        solver.ACCUMULATION_STEPS *= reference // batch
        said += (
            f"an update is of {reference} in {solver.ACCUMULATION_STEPS} passes "
            "(SOLVER.BATCH_RULE accumulate)"
        )
    # The numbers are for this batch now, also for who begins with the config of this run.
    solver.REFERENCE_BATCH = solver.IMS_PER_BATCH
    cfg.freeze()
    return cfg, said


def _scale(cfg: CfgNode, factor: float) -> None:
    solver = cfg.SOLVER
    solver.BASE_LR *= factor
    solver.BASE_LR_END *= factor

    def fitted(iterations: int) -> int:
        return max(1, round(iterations / factor)) if iterations > 0 else iterations

    solver.MAX_ITER = fitted(solver.MAX_ITER)
    solver.STEPS = type(solver.STEPS)(fitted(step) for step in solver.STEPS)
    solver.WARMUP_ITERS = fitted(solver.WARMUP_ITERS)
    solver.CHECKPOINT_PERIOD = fitted(solver.CHECKPOINT_PERIOD)
    cfg.TEST.EVAL_PERIOD = fitted(cfg.TEST.EVAL_PERIOD)

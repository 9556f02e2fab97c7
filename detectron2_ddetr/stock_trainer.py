"""detectron2's own trainer is told that its optimiser is another one than our configs mean."""

import inspect
import traceback

from .errors import InputError
from .toolbox import TOOLBOX, CfgNode, DefaultTrainer


def refuse_stock_optimizer(cfg: CfgNode) -> None:
    """
    To be called where a model is built from a config.

    detectron2's `build_optimizer` makes SGD, whatever the config says, and stops with a mere "not a
    valid GradientClipType" where gradients are to be clipped over the whole model. It has no
    registry in which to enter another, and a model does not learn what will train it: so the
    trainer is looked for among those who called.

    Raises:
        InputError: when that is a `DefaultTrainer` whose `build_optimizer` is detectron2's, and
            which would stop so.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if TOOLBOX != "detectron2" or not clip.ENABLED or clip.CLIP_TYPE != "full_model":
        return  # the host's makes no optimiser of its own
    stock = vars(DefaultTrainer)["build_optimizer"]
    for frame, _ in traceback.walk_stack(None):
        if frame.f_code is not DefaultTrainer.__init__.__code__:
            continue
        trainer = type(frame.f_locals["self"])
        if inspect.getattr_static(trainer, "build_optimizer") is stock:
            raise InputError(
                f"{trainer.__name__} would train with detectron2's own optimiser, which is SGD and "
                "knows no SOLVER.CLIP_GRADIENTS.CLIP_TYPE 'full_model'; the config means AdamW and "
                "one clip for the whole model. Use detectron2_ddetr.Trainer(cfg), or let the "
                "trainer's build_optimizer(cls, cfg, model) return "
                "detectron2_ddetr.build_optimizer(cfg, model): the README has such a project"
            )

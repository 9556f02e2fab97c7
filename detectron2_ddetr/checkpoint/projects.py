"""The projects whose checkpoints of Deformable DETR are known, and which of them a file is of."""

from .class_rows import num_class_rows
from .coco_classes import coco_class_names
from .detrex import DETREX
from .official import AUTHORS
from .project import Project, StateDict
from .renaming import Renaming
from .transformers import TRANSFORMERS
from .transformers_detr import TRANSFORMERS_DETR

HERE = Project(
    key="ddetr",
    name="a checkpoint of this package",
    names=Renaming([("backbone.", "backbone."), ("head.", "head.")]),
    mark="head.class_embed.0.bias",
    decoder="",
    has_all_copies=False,
    leftovers=(),
    anchors=None,
    mixed_selection=True,
)

#: Those whose weights have other names than here. detrex's also have marks of the authors'.
OTHERS = (DETREX, *AUTHORS, TRANSFORMERS, TRANSFORMERS_DETR)
PROJECTS = {project.key: project for project in (HERE, *OTHERS)}


def recognised(state_dict: StateDict) -> tuple[Project | None, StateDict]:
    """
    Whose weights these are; all names may begin with the same words, such as "module.".

    Returns:
        The project and the weights without such words; (None, what was given) if it is none.
    """
    found = state_dict
    while found:
        if project := next((p for p in PROJECTS.values() if p.recognises(found)), None):
            return project, found
        found = without_shared_beginning(found)
    return None, state_dict


def without_shared_beginning(state_dict: StateDict) -> StateDict:
    """The same under names without their first word, if that is the same in all; else {}."""
    words = {key.partition(".")[0] for key in state_dict}
    if len(words) != 1 or not all("." in key for key in state_dict):
        return {}
    return {key.partition(".")[2]: value for key, value in state_dict.items()}


def class_names_by_rows(name: str, state_dict: StateDict) -> list[str] | None:
    """
    The classes of weights that do not name them.

    Args:
        name: what the weights are called.
        state_dict: the same under the names here.

    Returns:
        COCO's by row, "" for a row that no class has, where the number of rows is that of COCO in
        the project that is called so; else None.
    """
    rows = num_class_rows(state_dict)
    if rows is None or name not in {project.name for project in OTHERS}:
        return None
    return coco_class_names(rows)

"""Whether the images that a json names are there, and if not, why."""

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from urllib.parse import unquote

from ..errors import MissingFileError
from .findings import Findings, shown

#: (what a file name seems to be, the name that was meant, the remedy)
_GUESSES: list[tuple[str, Callable[[str], str], str]] = [
    (
        "has backslashes, as on Windows",
        lambda name: name.replace("\\", "/"),
        r"with '/' for each '\' it is found: replace them in the json",
    ),
    (
        "has codes such as %20, as in an address",
        lambda name: unquote(name).replace("\\", "/"),
        "with the codes resolved it is found: write it so in the json",
    ),
    (
        "is spelled in another Unicode form than the file",
        lambda name: unicodedata.normalize("NFC", name),
        "in the form NFC it is found: write it so in the json",
    ),
    (
        "is spelled in another Unicode form than the file",
        lambda name: unicodedata.normalize("NFD", name),
        "in the form NFD it is found: write it so in the json",
    ),
    (
        "has folders that are not there",
        lambda name: re.split(r"[\\/]", unquote(name))[-1],
        "without them it is found: leave them out in the json",
    ),
]


def check_image_files(
    ids: Sequence[object], names: Sequence[object], image_root: str, findings: Findings
) -> None:
    """
    Files that are missing become problems; names that are no strings are passed over.

    Args:
        ids, names: id and file_name of each image.
        image_root: the folder that the names are relative to.

    Raises:
        MissingFileError: if that folder is not there.
    """
    for identity, name in zip(ids, names):
        if not isinstance(name, str) or os.path.isfile(os.path.join(image_root, name)):
            continue
        if image_root and not os.path.isdir(image_root):
            raise MissingFileError(
                f"{findings.json_file}: the folder of its images, {image_root}, does not exist; "
                "correct the image root"
            )
        kind, text = _diagnosis(name, image_root)
        findings.problem(kind, f"image {shown(identity)} ({name})", text)


def _diagnosis(name: str, image_root: str) -> tuple[str, str]:
    """(kind, problem with its remedy) of a file that is missing."""
    where = image_root or "the current folder"
    for what, guess, remedy in _GUESSES:
        meant = guess(name)
        if meant != name and os.path.isfile(os.path.join(image_root, meant)):
            return what, f"no such file in {where}: file_name {what}; {remedy}"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        what = "is an address (URL)"
        remedy = "download the images and write the names of the files"
    elif "\\" in name:
        what = "has backslashes, as on Windows"
        remedy = "use '/' between folders, relative to the image root"
    else:
        what = "missing"
        remedy = "correct the image root or file_name, or restore the image"
        return what, f"no such file in {where}; {remedy}"
    return what, f"no such file in {where}: file_name {what}; {remedy}"

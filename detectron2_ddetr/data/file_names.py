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
        "has backslashes, as on Windows, and folders that are not there",
        lambda name: name.rpartition("\\")[2],
        "without them it is found: leave them out in the json",
    ),
    (
        "has folders that are not there",
        lambda name: re.split(r"[\\/]", unquote(name))[-1],
        "without them it is found: leave them out in the json",
    ),
]


class _Folders:
    """The files of folders, each of which is listed once."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, str]] = {}

    def near(self, path: str) -> tuple[str, str, str] | None:
        """(difference, name, remedy) of a file beside `path`, which is missing, that may be it."""
        folder, name = os.path.split(path)
        folder = folder or "."
        if folder not in self._listed:
            readable = os.path.isdir(folder) and os.access(folder, os.R_OK)
            files = sorted(os.listdir(folder)) if readable else []
            self._listed[folder] = {os.path.splitext(file)[0] + ".": file for file in files} | {
                file.casefold(): file for file in files
            }
        found = self._listed[folder]
        if name.casefold() in found:
            return "with other capitals", found[name.casefold()], "write it so in the json"
        stem = os.path.splitext(name)[0] + "."
        if stem in found:
            return "with another ending", found[stem], "write the names of the files in the json"
        return None


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
    folders = _Folders()
    for identity, name in zip(ids, names):
        if not isinstance(name, str) or os.path.isfile(os.path.join(image_root, name)):
            continue
        if image_root and not os.path.isdir(image_root):
            raise MissingFileError(
                f"{findings.json_file}: the folder of its images, {image_root}, does not exist; "
                "correct the image root"
            )
        kind, text = _diagnosis(name, image_root, folders)
        findings.problem(kind, f"image {shown(identity)} ({name})", text)


def _diagnosis(name: str, image_root: str, folders: _Folders) -> tuple[str, str]:
    """(kind, problem with its remedy) of a file that is missing."""
    where = image_root or "the current folder"
    for what, guess, remedy in _GUESSES:
        meant = guess(name)
        if meant != name and os.path.isfile(os.path.join(image_root, meant)):
            return what, f"no such file in {where}: file_name {what}; {remedy}"
    near = folders.near(os.path.join(image_root, name))
    if near is not None:
        difference, file, remedy = near
        return difference, f"no such file in {where}, but there is {file}, {difference}; {remedy}"
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

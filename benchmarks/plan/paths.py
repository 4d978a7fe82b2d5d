"""Where the paths in a grid or recipe start.

A relative path starts at the folder of the file that it is written in: `modules`, `recipe`, a dataset's
`root` and `split`, a backbone's `weights`. So a grid means the same from every working directory. The files
of a dataset (`train`, `test`, `images` and the like) start at its root. Options of the command line start at
the working directory, as everywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.data.splits.lists import is_file as is_list
from methods.backbones.spec import looks_like_file
from methods.errors import UserError

AT_ROOT = ("train", "test", "images", "train_images", "test_images", "train_list", "test_list")
"""Fields of a dataset that start at its root."""


def of_dataset(table: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """A dataset's table with ${NAME} and ~ replaced in its paths, and with absolute `root` and `split`.

    Args:
        table: the dataset's table.
        folder: of the file that it is written in.
        where: the dataset, for messages.

    Raises:
        UserError: a variable that is not set.
    """
    found = _expanded(table, ("root", "split", *AT_ROOT), where)
    for name in ("root", "split"):
        value = found.get(name)
        if isinstance(value, str) and value and (name == "root" or is_list(value)):
            found[name] = beside(value, folder)
    return found


def of_backbone(table: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """A backbone's table with the absolute path of its weights; a pretrained tag stays what it is.

    Raises:
        UserError: a variable that is not set.
    """
    found = _expanded(table, ("weights",), where)
    weights = found.get("weights")
    if isinstance(weights, str) and weights:
        # Only models of open_clip have tags.
        tag = str(found.get("name", "")).startswith("open_clip/") and not looks_like_file(weights)
        if not tag or (folder / weights).is_file():
            found["weights"] = beside(weights, folder)
    return found


def of_recipe(name: str, folder: Path) -> str:
    """A recipe's name, or the absolute path of its file."""
    return beside(expand(name, "recipe"), folder) if name.endswith(".toml") else name


def beside(text: str, folder: Path) -> str:
    """A path that is written in a file of a folder, absolute.

    Raises:
        UserError: it has a line break or another control character.
    """
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise UserError(f"{folder!s}: the path {text!r} has a line break or another control character")
    return os.path.abspath(folder / text)


def expand(text: str, where: str) -> str:
    """Replace ${NAME} by the environment variable NAME and ~ by the home folder.

    Raises:
        UserError: the variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise UserError(f"{where}: {text!r} needs the environment variable {match[1]}: set it")
        return found

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", value, text))


def _expanded(table: Mapping[str, Any], names: tuple[str, ...], where: str) -> dict[str, Any]:
    return {
        name: expand(value, where) if name in names and isinstance(value, str) else value
        for name, value in table.items()
    }

"""A launch's own copies of what it runs: the grid's file, its recipe, and the users' modules.

    <folder>/COPIES.json    what is copied from where, with hashes
    <folder>/<grid>.toml    the grid's file, under its own name
    <folder>/recipe.toml    its recipe
    <folder>/0/, 1/, ...    users' modules, a folder for each folder that they import from

`benchmarks.plan.copying` makes such a folder, and its copy of the grid is what the processes of a launch
load. `benchmarks.plan.grid.load` finds COPIES.json beside it. The grid is then read as if it lay where it
was copied from: relative paths of data, weights and lists start there. The recipe and the modules are
the copies, and so is whatever the modules import: a name that belongs to a copied file is found there
first, whenever it is imported. What is edited or removed meanwhile changes nothing.

Beside a copied module lie the other files of its folder, for modules that read some by a path relative to
their own (``Path(__file__).with_name("prior.npy")``):

- a file of at most `SMALL` bytes that a source names in a string is a copy too, with a hash;
- anything else but Python's files is a link to the original, like the data of a grid, and is not owned. Of a
  folder with more than `MANY` entries only those are linked that a source names.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from methods.errors import UserError

NAME = "COPIES.json"
RECIPE = "recipe.toml"
FORMAT = 1
SMALL = 64 << 20
"""Bytes; a larger file that a module names is linked."""
MANY = 1000
"""Entries of a module's folder; of a fuller one only those are linked that a source names."""


@dataclass(frozen=True)
class Copies:
    """The copies of a launch; see the module's docstring.

    Attributes:
        folder: where they lie.
        values: what COPIES.json says, besides its format:
            ``grid`` and ``recipe``: file name, original (absolute path) and sha256;
            ``modules``: the copy of each file that the grid names, by the original's path;
            ``files``: original and sha256 of each source, by the copy's path;
            ``data``: the same of files that sources name;
            ``tops``: the folder in which each importable name is found.
            Paths of copies are relative to the folder.
    """

    folder: Path
    values: Mapping[str, Any]

    @classmethod
    def beside(cls, grid: Path) -> Copies | None:
        """The copies to which a grid's file belongs; None for a file that is no copy.

        Raises:
            UserError: they are damaged, or a newer version made them.
        """
        file = grid.resolve().parent / NAME
        try:
            values = json.loads(file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file} is damaged ({error}); launch the grid again") from None
        known = values.get("format") if isinstance(values, dict) else None
        if isinstance(known, int) and known > FORMAT:
            raise UserError(f"{file} was made by a newer version (format {known}); update the code")
        if known != FORMAT or values.get("grid", {}).get("file") != grid.name:
            raise UserError(f"{file} is not of {grid.name}; launch the grid again")
        return cls(file.parent, values)

    def original(self, what: str) -> Path:
        """Where the "grid" or the "recipe" was copied from."""
        return Path(self.values[what]["original"])

    def read(self, what: str) -> bytes:
        """The bytes of the "grid" or the "recipe".

        Raises:
            UserError: the copy is damaged.
        """
        entry = self.values[what]
        return self._checked(entry["file"], entry)

    def _checked(self, name: str, entry: Mapping[str, str]) -> bytes:
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"{self.folder / name}: {error.strerror}; launch the grid again") from None
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise UserError(
                f"{self.folder / name}, a launch's copy of {entry['original']}, was changed: launch again"
            )
        return content

    def use(self) -> None:
        """Have this process import the copies from now on, in the place of those used before.

        Raises:
            UserError: one is damaged.
        """
        global _used
        if _used is not None and _used.folder == self.folder:
            return
        for part in ("files", "data"):
            for name, entry in self.values[part].items():
                self._checked(name, entry)
        stop_using()
        _used = self
        sys.meta_path.insert(0, self._finder)
        importlib.invalidate_caches()

    @cached_property
    def _finder(self) -> _Finder:
        return _Finder({top: str(self.folder / place) for top, place in self.values["tops"].items()})

    def provenance(self) -> dict[str, Any]:
        """What a result says of grid, recipe and the data files of modules: names and hashes, JSON values."""
        found = {
            what: {"file": self.original(what).name, "sha256": self.values[what]["sha256"]}
            for what in ("grid", "recipe")
        }
        # Folders are numbered by their paths, which say nothing about a number.
        data = sorted(
            [name.partition("/")[2], entry["sha256"]] for name, entry in self.values["data"].items()
        )
        return {**found, **({"module_data": data} if data else {})}

    def edited(self) -> list[str]:
        """Names of the originals that are gone, or not what was copied any more."""
        entries = [self.values["grid"], self.values["recipe"]]
        entries += [entry for part in ("files", "data") for entry in self.values[part].values()]
        found = []
        for entry in entries:
            path = Path(entry["original"])
            try:
                same = hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
            except OSError:
                same = False
            if not same:
                found.append(path.name)
        return sorted(set(found))

    def as_written(self, text: str) -> str:
        """A text, such as a traceback, with the paths of the originals for those of the copies."""
        for name, entry in self.values["files"].items():
            text = text.replace(str(self.folder / name), entry["original"])
        return text


_used: Copies | None = None


def used() -> Copies | None:
    """The copies that this process uses; None where it reads the originals."""
    return _used


def stop_using() -> None:
    """Import originals again; what is imported stays."""
    global _used
    if _used is not None:
        sys.meta_path.remove(_used._finder)
    _used = None


def place(original: Path) -> Path:
    """Where a module's file is read: its copy, or the file itself where no copies are used.

    Raises:
        UserError: copies are used, and it is not among them.
    """
    if _used is None:
        return original
    if original.is_relative_to(_used.folder):
        return original
    copy = _used.values["modules"].get(str(original))
    if copy is None:
        raise UserError(f"{original} is not among the copies of the launch in {_used.folder}: launch again")
    return _used.folder / copy


def spec_of(top: str) -> ModuleSpec | None:
    """The spec of a copied module by its top-level name, imported or not; None for what is not copied."""
    return None if _used is None else _used._finder.find_spec(top, None)


class _Finder(MetaPathFinder):
    """Finds the copied modules before anything else.

    Args:
        tops: the folder of each top-level name.
    """

    def __init__(self, tops: Mapping[str, str]) -> None:
        self.tops = tops

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a copied module; modules below it are found by its own path."""
        if path is not None or fullname not in self.tops:
            return None
        return PathFinder.find_spec(fullname, [self.tops[fullname]], target)

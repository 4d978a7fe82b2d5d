"""Which figures of a folder are up to date: what each was made of, by SHA-256."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.files import atomic_write_bytes, atomic_write_json

if TYPE_CHECKING:
    import pandas as pd

FILE = "figures.json"
SOURCE = Path(__file__).with_name("plots.py")
PACKAGES = ("matplotlib", "seaborn", "pandas", "numpy")
"""Packages that decide about a figure's bytes."""


class Drawn:
    """The record of a folder's figures.

    A record that is absent, truncated or of another form counts as empty: the figures are then drawn
    again. Of two calls at once the later one's record stays, and each figure is written atomically.

    Args:
        directory: the folder.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._changed = False
        try:
            found = json.loads((directory / FILE).read_bytes())
            self._figures = {str(name): [str(made), str(file)] for name, (made, file) in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self._figures = {}

    def inputs(self, name: str, style: dict[str, Any], frame: pd.DataFrame, *texts: str) -> str:
        """SHA-256 of everything that a figure is made of.

        Args:
            name: the figure's.
            style: colours and markers of the methods.
            frame: the numbers; their order counts.
            texts: titles and the like.
        """
        rows = [list(frame.columns), frame.to_numpy(dtype=object).tolist()]
        # `repr` of a float is its shortest exact text, and NaN has one too.
        return hashlib.sha256(repr([self._tools, name, style, rows, texts]).encode()).hexdigest()

    def holds(self, path: Path, inputs: str) -> bool:
        """Whether a file is the figure of some inputs, as it was written."""
        try:
            return self._figures.get(path.name) == [inputs, hashlib.sha256(path.read_bytes()).hexdigest()]
        except OSError:
            return False

    def write(self, path: Path, inputs: str, content: bytes) -> None:
        """Write a figure."""
        atomic_write_bytes(path, content)
        self._figures[path.name] = [inputs, hashlib.sha256(content).hexdigest()]
        self._changed = True

    def save(self) -> None:
        """Write the record, if a figure was drawn."""
        if self._changed:
            here = {name: entry for name, entry in self._figures.items() if (self.directory / name).is_file()}
            atomic_write_json(self.directory / FILE, here)

    @cached_property
    def _tools(self) -> list[str]:
        """The code that draws, and the versions of its packages."""
        versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
        return [hashlib.sha256(SOURCE.read_bytes()).hexdigest(), *versions]

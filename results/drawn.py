"""Figures as files: their bytes, and which of a folder are up to date by what each was made of (SHA-256)."""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Callable
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.files import atomic_write_bytes, atomic_write_json

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FILE = "figures.json"
FORMATS = ("png", "pdf", "svg")
_HERE = Path(__file__).parent
SOURCES = [
    *(_HERE / name for name in ("plots.py", "text.py", "tables.py", "columns.py", "evaluated.py")),
    *sorted((_HERE / "drawing").glob("*.py")),
]
"""Code that decides about a figure's bytes."""
PACKAGES = ("matplotlib", "seaborn", "pandas", "numpy")
"""Packages that decide about a figure's bytes."""
_NO_GLYPH = re.compile(r"Glyph (\d+) .*missing from")


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
        return [*(hashlib.sha256(path.read_bytes()).hexdigest() for path in SOURCES), *versions]


def rendered(draw: Callable[[], Figure], kind: str, report: Callable[[str], None]) -> bytes:
    """Bytes of a figure without dates and versions in them.

    Args:
        draw: makes the figure, which is closed afterwards.
        kind: "png", "pdf" or "svg".
        report: gets a line that names the letters for which the font has no shape.
    """
    import matplotlib.pyplot as plt

    metadata = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        "svg": {"Date": None, "Creator": None},
    }[kind]
    buffer = io.BytesIO()
    before = set(plt.get_fignums())
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            draw().savefig(buffer, format=kind, metadata=metadata)
    finally:
        for number in set(plt.get_fignums()) - before:  # one that failed half way too
            plt.close(number)
    absent: list[str] = []
    for warning in caught:
        found = _NO_GLYPH.match(str(warning.message))
        if found:
            absent.append(chr(int(found[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if absent:
        report(f"the font has no shape for {' '.join(dict.fromkeys(absent))}; boxes stand for them")
    return buffer.getvalue()

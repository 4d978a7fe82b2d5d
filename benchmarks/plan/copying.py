"""Copies what a launch runs: what is edited later changes nothing. See `benchmarks.plan.copies`."""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.plan.copies import FORMAT, MANY, NAME, RECIPE, SMALL, place
from benchmarks.plan.grid import Grid
from benchmarks.plan.identity import digest
from benchmarks.plan.jobs import Job
from benchmarks.plan.user_code import SourceFile, Sources, imported_with, is_users, module_of, sources
from methods.errors import UserError
from results.files import atomic_write_json, whole_folder


def copy_grid(grid: Grid, jobs: Sequence[Job], folder: Path) -> Path:
    """Copy the grid's file, its recipe and the users' modules, as the plan was made from them.

    Copies are named by what they are of, so that launches of the same files share one. A copy appears
    whole or not at all.

    Args:
        grid: the grid.
        jobs: its runs, or those of them that are launched.
        folder: where copies lie; nodes have to see it.

    Returns:
        The copy of the grid's file.

    Raises:
        UserError: a file changed since the plan was made.
        OSError: a copy cannot be written.
    """
    made = _Collection(grid, jobs)
    for job in jobs:
        made.check(job)
    values = made.values()
    home = folder / digest(values)[:16]
    if not (home / NAME).is_file():
        with whole_folder(home, NAME) as temporary:
            made.write(temporary)
            atomic_write_json(temporary / NAME, values)
    return home / values["grid"]["file"]


@dataclass
class _Home:
    """A folder that modules are imported from, and what is copied from it.

    Attributes:
        sources: by name relative to the folder.
        data: contents of the files that they name, by name.
        named: the other entries that they name.
    """

    sources: dict[str, SourceFile] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)


class _Collection:
    """Everything that is copied, read once.

    Args:
        grid: whose files; each is the plan's, byte for byte.
        jobs: runs whose warm-ups' methods are copied, besides the methods of the grid.

    Raises:
        UserError: a module changed since it was imported.
    """

    def __init__(self, grid: Grid, jobs: Sequence[Job]) -> None:
        self.grid = grid
        self.homes: dict[Path, _Home] = {}
        self.modules: dict[str, tuple[Path, str]] = {}
        self.tops: dict[str, Path] = {}
        self.hashes: dict[str, dict[str, str]] = {}
        for name, original in grid.modules:
            if is_users(sys.modules[name]):
                self._add(name, f"{grid.path.name}: modules", original)
        warmups = [stage.key["method"] for job in jobs for stage in job.stages if "method" in stage.key]
        for method in dict.fromkeys([*grid.methods, *warmups]):
            module = module_of(method)
            if module is not None and module.__name__ not in self.hashes and is_users(module):
                self._add(module.__name__, f"method {method!r}", None)

    def _add(self, name: str, who: str, original: Path | None) -> None:
        module = sys.modules[name]
        found = sources(module, who)
        self.hashes[name] = found.hashes()
        before = imported_with(name)
        if before is not None and before != self.hashes[name]:
            raise UserError(f"{who}: {_changed(before, self.hashes[name])}")
        for file in found.files:
            self.homes.setdefault(file.home, _Home()).sources[file.place] = file
        for top, home in found.tops.items():
            self.tops.setdefault(top, home)
        if original is not None:
            (main,) = (file for file in found.files if file.path == place(original))
            self.modules[str(original)] = main.home, main.place
        self._add_data(found)

    def _add_data(self, found: Sources) -> None:
        """The files that sources name by a path relative to their own folder."""
        for file in found.files:
            home = self.homes[file.home]
            for text in _texts(file.content):
                path = Path(os.path.normpath(file.path.parent / text))
                with suppress(OSError, ValueError):  # a text that is no path
                    if not path.is_relative_to(file.home) or path.suffix in (".py", ".pyc"):
                        continue
                    short = path.relative_to(file.home).as_posix()
                    if path.is_file() and path.stat().st_size <= SMALL:
                        home.data[short] = path.read_bytes()
                    elif path.exists() and path != file.path.parent:
                        home.named.add(short)

    def check(self, job: Job) -> None:
        """Compare with the code that is in a run's identity.

        Raises:
            UserError: a file changed since.
        """
        if job.code is None:
            return
        module = module_of(job.spec.method)
        now = self.hashes.get(module.__name__) if module is not None else None
        if now is not None and now != job.code.files:
            raise UserError(f"method {job.spec.method!r}: {_changed(job.code.files, now)}")

    def _numbers(self) -> dict[Path, str]:
        return {home: str(number) for number, home in enumerate(sorted(self.homes))}

    def values(self) -> dict[str, Any]:
        """The content of COPIES.json."""
        numbers = self._numbers()
        grid, recipe = self.grid.files
        return {
            "format": FORMAT,
            "grid": _entry(self.grid.path.name, *grid),
            "recipe": _entry(RECIPE, *recipe),
            "modules": {
                original: f"{numbers[home]}/{short}" for original, (home, short) in self.modules.items()
            },
            "files": {
                f"{numbers[home]}/{short}": {"original": str(file.path), "sha256": file.sha256}
                for home, each in self.homes.items()
                for short, file in each.sources.items()
            },
            "data": {
                f"{numbers[home]}/{short}": {
                    "original": str(home / short),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
                for home, each in self.homes.items()
                for short, content in each.data.items()
            },
            "tops": {top: numbers[home] for top, home in self.tops.items() if home in numbers},
        }

    def write(self, folder: Path) -> None:
        """Write all copies and links into a new folder."""
        grid, recipe = self.grid.files
        _write(folder / self.grid.path.name, grid[1])
        _write(folder / RECIPE, recipe[1])
        for home, number in self._numbers().items():
            each = self.homes[home]
            for short, file in each.sources.items():
                _write(folder / number / short, file.content)
            for short, content in each.data.items():
                _write(folder / number / short, content)
            beside = {above for short in (*each.sources, *each.data) for above in Path(short).parents}
            for below in sorted(beside):
                _link(_entries(home / below), home / below, folder / number / below)
            for short in sorted(each.named):
                parent = os.path.dirname(short)
                if (folder / number / parent).is_dir():
                    _link([os.path.basename(short)], home / parent, folder / number / parent)


def _changed(before: dict[str, str], now: dict[str, str]) -> str:
    """What differs between the hashes of a module's files, for a message."""
    names = sorted({name for name, _ in before.items() ^ now.items()})
    return f"{', '.join(names)} changed since the plan was made; start it again"


def _entry(file: str, original: Path, content: bytes) -> dict[str, str]:
    return {"file": file, "original": str(original), "sha256": hashlib.sha256(content).hexdigest()}


def _texts(content: bytes) -> set[str]:
    """The strings of a source that may be the relative path of a file."""
    texts = {
        node.value
        for node in ast.walk(ast.parse(content))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {text for text in texts if 0 < len(text) < 256 and "\n" not in text and not os.path.isabs(text)}


def _entries(folder: Path) -> list[str]:
    """What lies in a folder and is not Python's; nothing for a folder of very many files."""
    found: list[str] = []
    for entry in os.scandir(folder):
        if len(found) >= MANY:
            return []
        if not entry.name.endswith((".py", ".pyc")) and entry.name not in ("__pycache__", ".git"):
            found.append(entry.name)
    return sorted(found)


def _link(names: Iterable[str], source: Path, target: Path) -> None:
    """Links to entries of a folder, but for those that were copied."""
    for name in names:
        if not (target / name).exists() and not (target / name).is_symlink():
            (target / name).symlink_to(source / name)


def _write(path: Path, content: bytes) -> None:
    """Write a file that nobody edits by mistake."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o444)

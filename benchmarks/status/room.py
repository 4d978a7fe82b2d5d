"""What takes room on the disk beside results, and deleting it; a run's result, predictions and rows stay."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.status.overview import overview
from benchmarks.workspace import Workspace
from results import weights
from results.damage import refused
from results.files import folders
from results.merge import CHECKPOINTS, STAGE
from results.store import RunStore
from slurm.launches import Launches

KINDS = {
    "caches": "resized images of datasets; made again from the pictures when they are needed",
    "stages": "features and warm-ups that runs share; computed again when they are needed",
    "checkpoints": "of runs and stages that were stopped or failed; they begin anew",
    "snapshots": "code and grids that were copied for SLURM jobs",
    "weights": "that finished runs kept, for `predict` and `export`; only training again brings them back",
}
"""What can be deleted, and what that costs."""
KEPT_OF_STAGES = ("lease.", "spec.json")
"""Beginnings of names in the directory of a stage that stay: who worked on it must never be numbered anew."""


@dataclass(frozen=True)
class Item:
    """Something that can be deleted.

    Attributes:
        kind: one of `KINDS`.
        name: kind and place, as the command line takes it.
        paths: the files and folders, in the order in which they are deleted.
        size: bytes on the disk.
        held: why it must stay now; "" if it may go.
    """

    kind: str
    name: str
    paths: tuple[Path, ...]
    size: int
    held: str = ""


def items(workspace: Workspace, remarks: list[str]) -> list[Item]:
    """All that takes room, by kind, the largest first.

    What runs, and what waiting jobs need, is held. Unfinished caches are not listed: they are continued.

    Args:
        workspace: data, caches and runs.
        remarks: gets a line on each folder that cannot be listed.
    """
    store, stages = workspace.store, RunStore(workspace.stages)
    view = overview(workspace.runs)
    busy = len(view.of("running", "queued", "submitted")) + len(view.stages)
    needed = f"{busy} runs or stages are running or wait in a queue, and may need it" if busy else ""
    found: list[Item] = []

    def add(kind: str, place: Path, root: Path, paths: Iterable[Path], held: str = "") -> None:
        chosen = tuple(paths)
        size = sum(map(room, chosen))
        if chosen:
            found.append(Item(kind, f"{kind}/{place.relative_to(root).as_posix()}", chosen, size, held))

    for folder in _folders(workspace.cache, remarks):
        if (folder / "meta.json").is_file():
            add("caches", folder, workspace.cache, [folder], needed)
    for folder in _folders(workspace.stages, remarks):
        state = stages.state(folder).kind
        held = "it is being computed" if state == "running" else ""
        if (folder / STAGE).exists():
            add("stages", folder, workspace.stages, _stage_files(folder), held or needed)
        else:
            add("checkpoints", folder, workspace.runs, _present(folder / CHECKPOINTS), held)
    for run in store.scan():
        held = "it is running" if store.state(run).kind == "running" else ""
        add("checkpoints", run, store.root, _present(run / CHECKPOINTS), held)
        add("weights", run, store.root, _present(run / weights.NAME), held)
    remarks += store.hidden.values()
    copies = Launches(workspace.runs).root.parent
    for parent in ("code", "grids"):
        for folder in _folders(copies / parent, remarks):
            add("snapshots", folder, copies, [folder], needed)
    order = list(KINDS)
    return sorted(found, key=lambda item: (order.index(item.kind), -item.size, item.name))


def delete(item: Item) -> str:
    """Delete an item; returns why it could not be done, or ""."""
    for path in item.paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            return refused(error.filename or path, error)
    return ""


def room(path: Path) -> int:
    """Bytes that a file or folder takes on the disk; what cannot be read counts nothing."""
    total = _blocks(path.lstat) if not path.is_dir() or path.is_symlink() else 0
    for parent, _, files in os.walk(path) if not path.is_symlink() else ():
        total += sum(_blocks(Path(parent, name).lstat) for name in files)
    return total


def _blocks(status: Callable[[], os.stat_result]) -> int:
    try:
        return status().st_blocks * 512
    except OSError:
        return 0


def _folders(parent: Path, remarks: list[str]) -> Iterator[Path]:
    try:
        yield from map(Path, sorted(folders(parent)))
    except OSError as error:
        remarks.append(refused(parent, error))


def _present(path: Path) -> list[Path]:
    return [path] if path.exists() else []


def _stage_files(folder: Path) -> list[Path]:
    """The record first: without it the stage is not finished, whatever else is still there."""
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(KEPT_OF_STAGES)]
    return sorted(files, key=lambda path: path.name != STAGE)

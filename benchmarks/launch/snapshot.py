"""Copies the code for jobs that wait in a queue, so that they execute the code that was planned."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.provenance import CODE_FILE, code_state
from benchmarks.workspace import REPOSITORY
from methods.errors import UserError
from results.files import atomic_write_json, whole_folder

COPIES = "grids"
"""Folder beside those of the code: what launches copy of grids, recipes and users' modules."""


def snapshot(folder: Path) -> Path:
    """Copy this working copy, uncommitted changes and new files included.

    Copies are named by commit and changes, so that launches of the same code share one. A copy
    appears whole or not at all.

    Args:
        folder: where copies lie; nodes have to see it.

    Returns:
        The copy; or the code's own folder, where the code is no checkout (installed, or itself a copy).

    Raises:
        UserError: git cannot list the files, or a file changes while it is copied.
    """
    state = code_state()
    if state["commit"] is None or not (REPOSITORY / ".git").exists():
        return REPOSITORY
    name = state["commit"][:12] + (f"-{state['dirty']}" if state["dirty"] else "")
    place = folder / name
    if (place / CODE_FILE).is_file():
        return place
    with whole_folder(place, CODE_FILE) as temporary:
        for file in _files():
            target = temporary / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / file, target, follow_symlinks=True)
        code_state.cache_clear()
        if code_state() != state:
            raise UserError("the code changed while it was copied for the jobs; try again")
        atomic_write_json(temporary / CODE_FILE, state)
    return place


def _files() -> list[str]:
    """Tracked files and new ones that git does not ignore; deleted ones are left out."""
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"git ls-files: {done.stderr.decode(errors='replace').strip()}")
    names = (os.fsdecode(name) for name in done.stdout.split(b"\0") if name)
    return [name for name in names if (REPOSITORY / name).is_file()]

"""Commands that stand in for SLURM's: shell scripts in a folder that alone is on the PATH."""

from __future__ import annotations

import os
from pathlib import Path


class Fakes:
    """A folder of commands; every call's arguments are noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, body: str = "") -> None:
        """A command with a shell body; its arguments go to a file first."""
        path = self.folder / name
        noted = self.folder / f"{name}.calls"
        path.write_text(f'#!/bin/bash\nPATH=/usr/bin:/bin\necho "$@" >> {noted}\n{body}\n')
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        """The arguments of each call so far."""
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def use(self, monkeypatch) -> None:
        """Let nothing else be found, and no variables of a surrounding job be seen."""
        monkeypatch.setenv("PATH", str(self.folder))
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_"))]:
            monkeypatch.delenv(name)

"""The command line on a cluster, and what a grid left in its folder of runs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np

from tests.conftest import CommandLine

PROFILE = """
gpus = 1
cpus = 1
minutes = 30
signal_seconds = 20
bundle_minutes = {minutes}
partition = "low"
"""


class OnCluster(CommandLine):
    """The command line on the login node of a cluster, with a profile of its own."""

    def __init__(self, folder: Path, slurm, grid: Path, minutes: int = 1, more: str = "") -> None:
        super().__init__(folder)
        self.slurm, self.grid = slurm, grid
        self.profile = folder / "profile.toml"
        self.profile.write_text(PROFILE.format(minutes=minutes) + more)

    def launch(self, *words: str, code: int = 0, verb: str = "run") -> tuple[str, str]:
        """Call a verb that launches; its output."""
        return self.call(
            verb,
            "--grid",
            str(self.grid),
            "--launcher",
            "slurm",
            "--profile",
            str(self.profile),
            *words,
            code=code,
        )

    def call(self, *words: str, code: int = 0) -> tuple[str, str]:
        done = subprocess.run(
            self.arguments(*words),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.slurm.env, "OMP_NUM_THREADS": "1"},
            timeout=500,
            check=False,
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout, done.stderr

    def queue(self) -> list[list[str]]:
        out = self.slurm.run("squeue", "-h", "-r", "-o", "%i %T %N %j")
        return [line.split() for line in out.splitlines() if "ssmll" in line]

    def predictions(self) -> dict[str, bytes]:
        return predictions(self.runs)


def predictions(runs: Path) -> dict[str, bytes]:
    """Scores of every finished run, by its directory's name."""
    return {
        f"{path.parent.parent.name}/{path.parent.name}": np.load(path)["scores"].tobytes()
        for path in (runs / "store").glob("*/*/*/predictions.npz")
        if (path.parent / "result.json").exists()
    }


def table_of(runs: Path, grid: Path) -> str:
    """All of the table but the hash of the result files, which hold times."""
    folder = runs / "tables" / grid.stem
    text = "".join((folder / f"mAP-last.{kind}").read_text() for kind in ("md", "tex", "csv"))
    return re.sub(r"sha256:[0-9a-f]+", "sha256", text)


def results(runs: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in (runs / "store").glob("*/*/*/result.json")]


def attempts(runs: Path) -> dict[str, int]:
    """How often each run was begun."""
    return {place.name: len(list(place.glob("lease.*"))) for place in (runs / "store").glob("*/*/*")}


def calm_run(folder: Path, grid: Path) -> Path:
    """The folder of runs of an undisturbed execution without a cluster."""
    command = CommandLine(folder)
    command("--grid", str(grid), "--workers", "1", "--no-plots")
    return command.runs


def wait_for_training(slurm, command: OnCluster, count: int) -> list[Path]:
    """Until some runs have finished an epoch; the directories of such runs."""

    def begun() -> list[Path]:
        return [path.parent for path in (command.runs / "store").glob("*/*/*/epochs.jsonl")]

    slurm.wait(lambda: len(begun()) >= count, "runs in training", 180)
    return begun()

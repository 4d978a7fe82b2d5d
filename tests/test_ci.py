"""`.ci/without-slurm` hides Slurm's commands, and nothing else, from the tests of a machine without Slurm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.conftest import ROOT


def tool(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def hidden(command: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
    return subprocess.run(
        [ROOT / ".ci" / "without-slurm", "sh", "-c", command],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_slurm_is_hidden_and_its_neighbours_are_not(tmp_path):
    first, second = tmp_path / "a folder", tmp_path / "second"
    for name in ("srun", "sbatch", "scontrol", "sacctmgr", "slurmctld", "munged"):
        tool(first, name, "echo slurm")
    for name in ("sort of", "slow", "screen2", "sbatchless"):
        tool(first, name, f"echo this is '{name}'")
    tool(second, "squeue", "echo slurm")
    tool(second, "slow", "echo the wrong one")
    names = "srun sbatch scontrol sacctmgr slurmctld munged squeue"
    seen = hidden(f"for name in {names}; do command -v $name; done", first, second)
    assert seen.stdout == ""
    seen = hidden("'sort of'; slow; sbatchless; command -v ls; command -v sort", first, second)
    assert seen.stdout.splitlines()[:3] == ["this is sort of", "this is slow", "this is sbatchless"]
    assert len(seen.stdout.splitlines()) == 5


def test_the_exit_code_is_the_command_s_and_the_links_are_removed(tmp_path):
    tool(tmp_path / "bin", "srun", "")
    seen = hidden('echo "$PATH"; exit 7', tmp_path / "bin")
    assert seen.returncode == 7
    links = Path(seen.stdout.split(os.pathsep)[0])
    assert links.name == "1"
    assert not links.parent.exists()

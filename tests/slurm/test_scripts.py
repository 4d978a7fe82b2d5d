"""The shell scripts: clean, and clear about how they are called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(ROOT.glob("slurm/*.sbatch")) + sorted(ROOT.glob("slurm/cluster/*"))


@pytest.mark.slurm
def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(
            ["apt-get", "install", "--yes", "-qq", "shellcheck"],
            check=False,
            capture_output=True,
            timeout=300,
        )
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    assert len(SCRIPTS) >= 5
    done = subprocess.run(
        ["shellcheck", "-x", *SCRIPTS], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "script", [path for path in SCRIPTS if path.suffix == ".sbatch"], ids=lambda path: path.stem
)
def test_called_without_what_it_needs_a_script_says_how(script: Path):
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch")
    assert len(done.stderr.splitlines()) == 1

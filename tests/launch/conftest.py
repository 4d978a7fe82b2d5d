"""What a process makes of variables that launchers leave in its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping

from tests.conftest import ROOT

SCRIPT = (
    "from benchmarks.training.group import Group; from benchmarks.training.strategy import make; "
    "print(make('ddp', 'fp32', Group.join()).accelerator.num_processes)"
)


def assert_one_process(removed: Iterable[str], left: Mapping[str, str]) -> None:
    """Check that a process on its own is a group of one, for accelerate too.

    Args:
        removed: variables that its environment has not.
        left: variables that its environment has, as some launcher left them.
    """
    unwanted = set(removed)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={**{name: value for name, value in os.environ.items() if name not in unwanted}, **left},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr

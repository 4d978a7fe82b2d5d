"""A short chaos: the long one is `python -m benchmarks.checks.chaos --kills 100 --json`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def chaos(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.checks.chaos", "--json", *words],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=580,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_nothing_is_lost_when_processes_are_killed_at_random(processes):
    done = chaos("--kills", "5", "--seeds", "1", "--processes", processes, "--seed", "11")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == sum(report["by"].values()) == 5
    assert report["lost"] == report["torn"] == report["differing"] == report["failed"] == 0
    assert report["runs"] == 4 * report["stores"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_nothing_is_lost_when_processes_sleep_for_longer_than_their_leases(processes):
    words = ("--kills", "2", "--stops", "4", "--seeds", "1", "--processes", processes, "--seed", "12")
    done = chaos(*words)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["kills"], report["stops"]) == (2, 4)
    assert report["lost"] == report["torn"] == report["differing"] == report["failed"] == 0


@pytest.mark.slow
def test_what_chaos_looks_for_is_found(tmp_path):
    """Results that are gone, changed, torn or of other numbers are each reported."""
    import random

    from benchmarks.checks.chaos import Chaos, Witness

    made = Chaos(tmp_path, processes=1, seeds=1, pace=1e9, draw=random.Random(0))
    made.disturb(0, 0)
    assert not made.seen.problems
    witness = Witness(tmp_path / "rough-0")
    witness.look()
    gone, torn, other, again = witness.results
    (gone / "result.json").unlink()
    result = torn / "result.json"
    result.write_bytes(result.read_bytes()[:-40])
    (other / "predictions.npz").write_bytes((other / "predictions.npz").read_bytes() + b" ")
    (again / "result.json").write_text((again / "result.json").read_text() + "\n")
    witness.failures.add(again / "failure.json")
    made.check(witness)
    seen = made.seen
    assert seen.lost == 4  # gone (as seen and as unfinished), and two written again
    assert (seen.torn, seen.differing, seen.failed) == (1, 1, 1)

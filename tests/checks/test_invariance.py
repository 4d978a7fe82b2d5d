"""`python -m benchmarks.checks.invariance`: what depends on the number of processes is found."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.checks.invariance import main
from results.errors import StoreError
from tests.conftest import ROOT

# Methods as a user writes them. A threshold is taken from the images of one process.
THEIRS = '''
from methods.fixmatch import FixMatch
from methods.registry import register
from methods.thresholds import fixed_pseudo_labels


@register
class Raises(FixMatch):
    """Fails in its first step."""

    name = "raises"

    def training_step(self, batch):
        raise ValueError("a number that is none")


@register
class LocalThreshold(FixMatch):
    """FixMatch with a threshold from its share of the batch."""

    name = "local_threshold"

    def pseudo_labels(self, batch):
        probabilities = self.weak_probabilities(batch)
        return fixed_pseudo_labels(probabilities, float(probabilities.mean()), 0.0)
'''


def invariance(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.checks.invariance", *words],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=580,
        check=False,
    )


@pytest.fixture
def theirs(tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text(THEIRS)
    return str(path)


@pytest.mark.slow
def test_a_run_that_fails_is_said(theirs):
    done = invariance("--modules", theirs, "--methods", "raises", "--seeds", "1")
    assert done.returncode == 2
    assert "ValueError: a number that is none" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("fp64 with --processes 1: the grid ended with")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_method_that_depends_on_its_process_is_found(theirs):
    done = invariance(
        "--modules", theirs, "--methods", "fixmatch", "local_threshold", "--seeds", "1", "--json"
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["broken"] == 1
    rows = {(row["method"], row["precision"]): row for row in report["rows"]}
    assert len(rows) == 4
    sound, faulty = rows["fixmatch", "fp64"], rows["local_threshold", "fp64"]
    assert sound["worst"] < 1e-6 < 1e-3 < faulty["worst"]
    assert (sound["pseudo"], faulty["pseudo"]) == (0, 1)
    assert (sound["parted"], faulty["parted"]) == (0, 1)
    assert "local_threshold depends on the number of processes" in done.stderr


def test_runs_that_one_store_lacks_are_one_line(capsys, monkeypatch):
    """The code was edited between the two executions, so that the same grid has other runs."""

    def edited(*arguments):
        raise StoreError("fp64-2/store/fixmatch: no result.json, the run is not started")

    monkeypatch.setattr("benchmarks.checks.invariance.examine", edited)
    assert main(["--methods", "fixmatch"]) == 2
    assert capsys.readouterr().err == "fp64-2/store/fixmatch: no result.json, the run is not started\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "fixmtach"), "no trained method 'fixmtach'; did you mean 'fixmatch'?"),
        (("--methods", "zero_shot"), "no trained method 'zero_shot'"),
        (("--modules", "none.py"), "--modules: cannot import 'none.py': FileNotFoundError"),
        (("--processes", "1"), "would be compared with itself"),
    ],
)
def test_what_cannot_be_examined_is_refused(capsys, words, message):
    assert main(words) == 2
    assert message in capsys.readouterr().err

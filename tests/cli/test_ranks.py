"""`tables --ranks`: what it prints, writes and refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.run import main
from tests.results.conftest import FakeRuns


@pytest.fixture
def runs(tmp_path: Path) -> FakeRuns:
    return FakeRuns(tmp_path / "runs" / "store")


def fill(runs: FakeRuns, seeds: range) -> None:
    rng = np.random.default_rng(0)
    for seed in seeds:
        for label, value in (("csaa", 70.0), ("cap", 60.0), ("fixmatch", 59.8)):
            runs.add(label, value + rng.normal(0, 0.5), seed=seed)


def tables(tmp_path: Path, *more: str) -> int:
    return main(["tables", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), *more])


def test_views_are_printed_and_written_and_vanish_with_too_few_units(
    runs: FakeRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(runs, range(1, 5))
    assert tables(tmp_path, "--ranks") == 0
    out = capsys.readouterr().out
    assert "Ranks: not given, because they need 6 (dataset, seed) units and two methods; all tested" in out
    fill(runs, range(5, 8))
    assert tables(tmp_path, "--ranks", "--rope", "0.3") == 0
    out, err = capsys.readouterr()
    assert "probabilities that csaa, neither or the method is better by more than 0.3 points" in out
    assert err == ""
    names = {path.name for path in (tmp_path / "out").iterdir() if "ranks" in path.name}
    assert {"mAP-last-ranks.csv", "mAP-last-ranks.png", "mAP-last-ranks.pdf"} <= names
    (run,) = runs.store.find(runs.wanted[0]["run_id"])
    (run / "result.json").unlink()
    for item in runs.wanted[1:6]:
        (run,) = runs.store.find(item["run_id"])
        (run / "result.json").unlink()
    assert tables(tmp_path, "--ranks") == 0
    assert not list((tmp_path / "out").glob("*ranks*"))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--rope", "1"], "--rope says what --ranks counts as equivalent; add --ranks"),
        (["--ranks", "--superseded"], "leave one of --ranks and --superseded out"),
        (["--ranks", "--rope", "0"], "'0' is no number of points above 0 and below 100"),
        (["--ranks", "--rope", "much"], "'much' is no number of points"),
        (["--ranks", "--diff", "a", "b"], "leave --ranks out"),
    ],
)
def test_what_contradicts_is_refused_in_one_line(
    options: list[str], line: str, runs: FakeRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tables", "--runs", str(tmp_path / "runs"), *options]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert len(err.splitlines()) == 1

"""`perf store`: what it counts is what the store holds, and one run that is executed twice is noticed."""

from __future__ import annotations

import json

import pytest

from benchmarks.perf import store
from benchmarks.workspace import Workspace
from methods.errors import UserError


def test_each_run_is_executed_once_and_the_figures_belong_together():
    found = store.measure(24, 4, 0.02)
    assert (found["twice"], found["lost"]) == (0, 0)
    assert found["claims"] == pytest.approx(24 / found["wall"])
    assert found["claims"] <= found["most"] == 4 / 0.02
    assert 0 < found["finding"] < 1
    assert 0 < found["storing"] < 1
    text = store.table({**found, "status": {500: 1.0}})
    assert "24 runs of 0.02 s, 4 processes" in text
    assert "status         1.00 s for 500 runs" in text


def test_runs_that_two_processes_executed_and_runs_that_nobody_did_are_counted(monkeypatch):
    def unheld(folder, runs, workers, sleep):
        for number in range(workers):
            store.work(folder, number, 1, runs - 1, sleep)  # the last run is forgotten
            done = Workspace(folder, folder / "runs").store
            for path in done.scan():
                (path / "result.json").unlink()  # as if no lease and no result had kept the second one off
                (path / "lease.000001").unlink()

    monkeypatch.setattr(store, "_here", unheld)
    found = store.measure(3, 2, 0.01)
    assert found["twice"] == 2
    assert found["lost"] == 3


def test_a_process_that_ends_badly_is_an_error(monkeypatch):
    monkeypatch.setattr(store, "_here", lambda folder, *rest: (folder / "out" / "0.json").write_text("{}"))
    with pytest.raises(UserError, match="1 of 2 processes left no figures"):
        store.measure(3, 2, 0.01)


def test_without_slurm_it_says_how_to_get_one(monkeypatch, tmp_path, capsys):
    from benchmarks.perf.__main__ import main

    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["store", "--slurm"]) == 2
    told = capsys.readouterr().err
    assert "slurm/cluster/up --nodes 10" in told
    assert told.count("\n") == 1


def test_the_output_is_one_line_of_json(monkeypatch, capsys):
    from benchmarks.perf.__main__ import main

    assert main(["store", "--runs", "4", "--workers", "2", "--sleep", "0.01", "--no-status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 4

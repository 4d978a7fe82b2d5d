"""Folders that are moved or removed while runs are executed."""

from __future__ import annotations

import json
import re
import shutil
import time
from types import SimpleNamespace

import pytest

from benchmarks.launch.execution import Execution
from benchmarks.launch.failures import failure
from benchmarks.launch.local import Local
from benchmarks.launch.tasks import Options
from benchmarks.run import main
from benchmarks.training.group import Group
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results.errors import StoreError
from results.store import RunStore
from tests.conftest import CommandLine, grid_text
from tests.slurm.on_cluster import predictions


def test_a_claim_does_not_make_a_folder_of_runs_that_was_moved(tmp_path):
    runs = tmp_path / "runs"
    execution = Execution(
        Workspace(tmp_path, runs),
        SimpleNamespace(group=Group(), accelerator=SimpleNamespace(device="cpu")),
        Options(),
    )
    runs.rename(tmp_path / "moved")
    task = SimpleNamespace(directory=runs / "store" / "a", title="a", is_done=lambda: False)
    with pytest.raises(UserError, match="was moved or removed while runs were executed") as raised:
        execution._claim(task, 0)
    assert str(runs) in str(raised.value)
    assert not runs.exists()


@pytest.mark.parametrize("kind", [UserError, StoreError])
def test_an_error_for_users_is_recorded_without_a_traceback(kind):
    def recorded(error: Exception) -> dict:
        with pytest.raises(type(error)) as raised:
            raise error
        return failure(raised.value, "x")

    record = recorded(kind("the cache is gone; run again"))
    assert (record["message"], record["traceback"]) == ("the cache is gone; run again", "")
    assert "test_folders_gone" in recorded(ValueError("bad"))["traceback"]


@pytest.mark.slow
def test_a_run_goes_on_where_its_folder_was_moved_to(tmp_path, voc_root):
    grid = tmp_path / "grid.toml"
    grid.write_text(grid_text(voc_root, '["supervised"]', labelled_epochs=20).replace("[1]", "[1, 2]"))
    calm, command = CommandLine(tmp_path / "calm"), CommandLine(tmp_path)
    calm.folder.mkdir()
    words = ["--grid", str(grid), "--checkpoint-seconds", "0", "--no-plots", "--workers", "1"]
    calm(*words)
    process = command.start(*words)
    while not list(command.runs.glob("store/*/*/*/checkpoints/*/COMPLETE.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    moved = tmp_path / "moved"
    command.runs.rename(moved)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2, out + err
    assert "given up, its folder was moved or removed: supervised" in out + err
    assert "Traceback" not in out + err
    assert not command.runs.exists(), "nothing was made at the place that was left"
    moved.rename(command.runs)
    command(*words)
    assert predictions(command.runs) == predictions(calm.runs)
    for run in RunStore(command.runs / "store").scan():
        rows = [json.loads(line)["epoch"] for line in (run / "epochs.jsonl").read_text().splitlines()]
        assert rows == sorted(set(rows))


@pytest.mark.slow
def test_runs_whose_data_is_gone_when_a_worker_starts_fail_by_name_and_others_go_on(
    tmp_path, voc_root, monkeypatch, capfd
):
    other = tmp_path / "other"
    shutil.copytree(voc_root, other)
    text = grid_text(voc_root, '["zero_shot"]')
    line = next(line for line in text.splitlines() if line.startswith("datasets"))
    (first,) = re.findall(r"\{.*\}", line)
    second = first.replace(str(voc_root), str(other)).replace('"tiny"', '"gone"')
    grid = tmp_path / "grid.toml"
    grid.write_text(text.replace(line, f"datasets = [{first}, {second}]"))
    execute = Local.execute

    def removed(self, *rest):
        shutil.rmtree(other)
        execute(self, *rest)

    monkeypatch.setattr(Local, "execute", removed)
    runs = tmp_path / "runs"
    words = ["--grid", str(grid), "--data", str(tmp_path / "data"), "--runs", str(runs), "--no-plots"]
    assert main([*words, "--workers", "2"]) == 1
    told = capfd.readouterr()
    assert "Traceback" not in told.out + told.err
    store = RunStore(runs / "store")
    states = {run.parent.parent.name: store.state(run) for run in store.scan()}
    assert {name: state.kind for name, state in states.items()} == {"tiny": "done", "gone": "failed"}
    assert str(other) in states["gone"].detail
    failed = [line for line in told.err.splitlines() if line.startswith("failed: zero_shot · gone")]
    assert failed
    assert main(["status", "--runs", str(runs)]) == 1
    assert "1 done, 1 failed" in capfd.readouterr().out
    # It is tried again, and done, when the data is back.
    shutil.copytree(voc_root, other)
    monkeypatch.undo()
    assert main(words) == 0

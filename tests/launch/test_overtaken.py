"""A process that is stopped for longer than its lease, and goes on when another has taken its run over."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from results.errors import StoreError
from results.lease import LEASE_SECONDS, seconds_to_live
from results.store import RunStore
from tests.conftest import CommandLine, grid_text
from tests.test_end_to_end import wait_for


def everyone(pid: int) -> list[int]:
    """A launcher and the processes below it."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_who_was_stopped_for_longer_than_the_lease_gives_the_run_up(
    tmp_path, voc_root, monkeypatch, processes
):
    monkeypatch.setenv(LEASE_SECONDS, "2")
    grid = tmp_path / "grid.toml"
    grid.write_text(grid_text(voc_root, '["supervised"]', labelled_epochs=30))
    words = ["--grid", str(grid), "--checkpoint-seconds", "0", "--no-plots", "--workers", "1"]
    words += ["--processes", processes]
    calm, rough = CommandLine(tmp_path / "calm"), CommandLine(tmp_path / "rough")
    for command in (calm, rough):
        command.folder.mkdir()
    calm(*words)
    store = RunStore(rough.runs / "store")

    def saved(generation: int):
        pattern = f"*/supervised/*/checkpoints/*.{generation:06d}/COMPLETE.json"
        return lambda: list(store.root.glob(pattern))

    sleeper = rough.start(*words)
    wait_for(saved(1), sleeper)
    stopped = everyone(sleeper.pid)
    send(stopped, signal.SIGSTOP)
    time.sleep(2.5)
    holder = rough.start(*words)
    wait_for(saved(2), holder)
    send(stopped, signal.SIGCONT)
    (out, err), (_, second) = sleeper.communicate(timeout=300), holder.communicate(timeout=300)
    assert (sleeper.returncode, holder.returncode) == (0, 0), (err, second)
    assert "given up, another process took it over: supervised" in out + err
    (run,) = store.scan()
    (expected,) = RunStore(calm.runs / "store").scan()
    assert (run / "predictions.npz").read_bytes() == (expected / "predictions.npz").read_bytes()
    assert [row["epoch"] for row in store.epochs(run)] == list(range(1, 31))
    names = {path.name for path in run.iterdir()}
    assert not any(name.startswith("failure") for name in names)
    assert not names & {"checkpoints", "progress.json"}
    assert sum(name.startswith("lease") for name in names) == 2


@pytest.mark.slow
def test_a_process_that_was_stopped_and_not_overtaken_goes_on(tmp_path, voc_root, monkeypatch):
    monkeypatch.setenv(LEASE_SECONDS, "1")
    grid = tmp_path / "grid.toml"
    grid.write_text(grid_text(voc_root, '["supervised"]', labelled_epochs=10))
    command = CommandLine(tmp_path)
    process = command.start("--grid", str(grid), "--checkpoint-seconds", "0", "--no-plots", "--workers", "1")
    wait_for(lambda: list(command.runs.glob("store/*/*/*/checkpoints/*/COMPLETE.json")), process)
    stopped = everyone(process.pid)
    send(stopped, signal.SIGSTOP)
    time.sleep(2)
    send(stopped, signal.SIGCONT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (run,) = RunStore(command.runs / "store").scan()
    assert len(list(run.glob("lease.*"))) == 1


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan", "inf"])
def test_a_lease_needs_seconds(monkeypatch, text):
    monkeypatch.setenv(LEASE_SECONDS, text)
    with pytest.raises(StoreError, match=f"{LEASE_SECONDS}='{text}': it must be a number of seconds"):
        seconds_to_live()


def test_the_usual_time_to_live_is_a_minute(monkeypatch):
    monkeypatch.delenv(LEASE_SECONDS, raising=False)
    assert seconds_to_live() == 60.0

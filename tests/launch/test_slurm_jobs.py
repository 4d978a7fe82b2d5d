"""Waiting for jobs: what is said of those that never start, die at their start, or cannot be asked about."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks.launch import slurm_jobs as module
from benchmarks.launch.slurm import SlurmOptions
from benchmarks.plan.grid import load
from benchmarks.plan.jobs import uncached
from benchmarks.workspace import Workspace
from slurm import client
from slurm.client import Queued
from slurm.launches import Launches
from slurm.profile import Profile
from tests.conftest import ROOT, grid_text

RUNS = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """Three runs in two jobs, none of which has begun; what squeue and sacct say can be set."""
    workspace = Workspace(tmp_path / "data", tmp_path / "runs")
    plan = {
        "job_name": "ssmll-x",
        "titles": dict.fromkeys(RUNS, "t"),
        "bundles": [{"run_ids": list(RUNS[:2])}, {"run_ids": [RUNS[2]]}],
    }
    launch = Launches(workspace.runs).create("x", plan)
    launch.record({0: "7_0", 1: "7_1"})
    launch.log_folder.mkdir()
    answers: list[object] = []
    how: dict[str, str] = {}
    said: list[str] = []
    runs = [SimpleNamespace(spec=SimpleNamespace(run_id=run)) for run in RUNS]

    def queue(names, patience=None):
        answer = answers.pop(0) if answers else {}
        if isinstance(answer, Exception):
            raise answer
        return {entry.job: entry for entry in answer}

    monkeypatch.setattr(client, "queue", queue)
    monkeypatch.setattr(client, "ended", lambda jobs, patience=None: how)
    monkeypatch.setattr(module, "states", lambda jobs, workspace: {"not started": list(jobs)})
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    return SimpleNamespace(
        launch=launch,
        answers=answers,
        how=how,
        said=said,
        go=lambda: module.wait(SimpleNamespace(jobs=runs), workspace, said.append),
        workspace=workspace,
    )


def test_jobs_that_die_at_their_start_are_said_with_the_last_lines_of_a_log(waiting):
    waiting.launch.log("7_0").write_text("loading\nslurmstepd: error: execve(): python: No such file\n")
    waiting.launch.log("7_1").write_text("module: command not found\n")
    waiting.how |= {"7_0": "FAILED", "7_1": "OUT_OF_MEMORY"}
    waiting.go()
    first, second = waiting.said[1:]
    assert first.startswith("2 runs were never begun: job 7_0 is over (FAILED): loading | slurmstepd: error")
    assert "execve(): python: No such file" in first
    assert str(waiting.launch.log("7_0")) in first
    assert "1 runs were never begun: job 7_1 is over (OUT_OF_MEMORY (killed by the memory limit" in second
    assert "module: command not found" in second


def test_a_job_without_a_log_is_said_too(waiting):
    waiting.go()
    assert "no log was written; is --runs on a file system that nodes share?" in waiting.said[1]


def test_what_does_not_start_by_itself_is_said_once(waiting):
    held = Queued("7_0", "PENDING", "BadConstraints", "0:00", "")
    waiting.answers += [[held], [held], [Queued("7_1", "PENDING", "Priority", "0:00", "")]]
    waiting.go()
    told = [line for line in waiting.said if "do not start" in line]
    assert len(told) == 1
    assert "1 jobs (7_0) do not start: BadConstraints (no node" in told[0]


def test_a_controller_that_is_away_ends_no_wait(waiting):
    waiting.answers += [client.SlurmError("away"), client.SlurmError("away")]
    waiting.go()
    assert waiting.answers == []


def test_a_job_that_prepares_is_waited_for_though_squeue_fails(waiting, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "snapshot", lambda folder: folder)
    monkeypatch.setattr(module, "submit", lambda *a, **k: [(0, "9")])
    queued = Queued("9", "PENDING", "ReqNodeNotAvail", "0:00", "")
    running = Queued("9", "RUNNING", "None", "0:01", "n1")
    waiting.answers += [[queued], client.SlurmError("squeue failed: Socket timed out"), [running], []]
    log = module.run_job(SlurmOptions(Profile()), waiting.workspace, "prepare", ["-V"], waiting.said.append)
    assert log.name == "9_0_log.out"
    assert any("ReqNodeNotAvail (nodes that it needs are down" in line for line in waiting.said)
    assert any("Socket timed out; job 9 goes on, and is waited for" in line for line in waiting.said)
    assert "job 9 running n1" in waiting.said[-1]


def test_the_command_of_the_job_that_prepares_does_prepare(tmp_path, voc_root, monkeypatch):
    """The job's command is executed here; where it leaves images uncached, `prepare` raises.

    The grid is broken while the job waits: it reads the launch's copy.
    """
    path = tmp_path / "grid.toml"
    path.write_text(grid_text(voc_root, '["zero_shot"]'))
    workspace = Workspace(tmp_path / "data", tmp_path / "runs")

    def run_job(options, place, name, command, report):
        grid.path.write_text("broken [\n")
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        return tmp_path / "log"

    monkeypatch.setattr(module, "run_job", run_job)
    grid = load(str(path))
    assert uncached(grid, workspace)
    module.prepare(SimpleNamespace(profile=SimpleNamespace(cpus=1)), grid, workspace, lambda line: None)
    assert not uncached(grid, workspace)

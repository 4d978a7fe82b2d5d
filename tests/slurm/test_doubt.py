"""On a real Slurm: answers that come too late, names that it would cut, what a site's environment says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.slurm.on_cluster import PROFILE, OnCluster, results, wait_for_training

pytestmark = pytest.mark.slurm

HOLD = "\n[extra]\nhold = true\n"
CHOSEN = ("--methods", "zero_shot", "linear_probe", "--no-plots")


@pytest.fixture
def ready(slurm, tmp_path, small, calm):
    """The command line in a folder of its own, with data that is cached, and a profile with more to it."""

    def make(more: str = "", grid: Path = small) -> OnCluster:
        command = OnCluster(tmp_path, slurm, grid, minutes=1, more=more)
        if not command.data.exists():
            shutil.copytree(calm.parent / "data", command.data)
        return command

    return make


def in_front(slurm, monkeypatch, folder: Path, name: str, body: str) -> None:
    """A command that is found before Slurm's own; $n is the number of its calls before."""
    folder.mkdir(exist_ok=True)
    count, real = folder / f"{name}.count", shutil.which(name)
    counted = f"n=$(cat {count} 2>/dev/null || echo 0); echo $((n + 1)) > {count}"
    (folder / name).write_text(f'#!/bin/bash\n{counted}\nreal={real}\n{body}\nexec $real "$@"\n')
    (folder / name).chmod(0o755)
    monkeypatch.setitem(slurm.env, "PATH", f"{folder}:{os.environ['PATH']}")


TIMED_OUT = "Socket timed out on send/recv operation"


def numbers(command: OnCluster) -> set[str]:
    return {line[0].partition("_")[0] for line in command.queue()}


def test_an_array_that_was_accepted_too_late_is_taken_over(slurm, tmp_path, ready, monkeypatch):
    command = ready(HOLD)
    body = f'[ $n = 1 ] && {{ $real "$@" >/dev/null; echo "sbatch: error: {TIMED_OUT}" >&2; exit 1; }}'
    in_front(slurm, monkeypatch, tmp_path / "bin", "sbatch", body)
    _, told = command.launch("--yes", *CHOSEN)
    assert "is taken over" in told
    before = numbers(command)
    _, told = command.launch("--yes", *CHOSEN)
    assert "nothing to submit" in told
    assert numbers(command) == before
    command.call("cancel", "--yes")
    slurm.wait(lambda: not command.queue(), "all jobs are known and cancelled")


def test_a_stage_that_is_queued_is_not_submitted_again(slurm, tmp_path, ready, monkeypatch):
    """The runs' array is refused after the stages were accepted: the next call waits for their job."""
    command = ready(HOLD)
    body = '[ $n = 1 ] && { echo "sbatch: error: Invalid qos specification" >&2; exit 1; }'
    in_front(slurm, monkeypatch, tmp_path / "bin", "sbatch", body)
    _, error = command.launch("--yes", *CHOSEN, code=2)
    assert "1 jobs submitted before go on" in error
    (stage,) = numbers(command)
    _, told = command.launch("--yes", *CHOSEN)
    assert "1 shared stages are being made by jobs that are queued" in told
    (job,) = numbers(command) - {stage}
    assert f"afterany:{stage}" in slurm.run("scontrol", "show", "job", job)


def test_squeue_may_fail_while_a_grid_is_submitted_and_waited_for(slurm, tmp_path, ready, monkeypatch):
    command = ready()
    in_front(
        slurm,
        monkeypatch,
        tmp_path / "bin",
        "squeue",
        f'[ $((n % 2)) = 0 ] && {{ echo "{TIMED_OUT}" >&2; exit 1; }}',
    )
    command.launch("--yes", "--wait", *CHOSEN, "--seeds", "1")
    assert len(results(command.runs)) == 2


def test_a_grid_with_a_comma_in_its_name_is_found_in_the_queue(slurm, tmp_path, ready, small):
    grid = tmp_path / "zs, v2 100%j.toml"
    grid.write_text(small.read_text())
    command = ready(HOLD, grid)
    command.launch("--yes", *CHOSEN)
    before = numbers(command)
    _, told = command.launch("--yes", *CHOSEN)
    assert "nothing to submit" in told
    assert numbers(command) == before
    assert "4 queued" in command.call("status")[0]


def test_the_site_s_variables_are_taken_or_refused(slurm, tmp_path, ready, monkeypatch):
    command = ready(HOLD)
    command.profile.write_text(PROFILE.format(minutes=1).replace('partition = "low"', "") + HOLD)
    monkeypatch.setitem(slurm.env, "SBATCH_PARTITION", "high")
    monkeypatch.setitem(slurm.env, "SBATCH_TIMELIMIT", "5")
    _, error = command.launch("--yes", *CHOSEN, code=2)
    assert "SBATCH_TIMELIMIT=5" in error
    assert not command.queue()
    monkeypatch.delitem(slurm.env, "SBATCH_TIMELIMIT")
    _, told = command.launch("--yes", *CHOSEN)
    assert "SBATCH_PARTITION=high of the environment: taken for the profile's partition" in told
    assert set(slurm.run("squeue", "-h", "-o", "%P").split()) == {"high"}


@pytest.mark.parametrize("export", ["NONE", pytest.param("PATH,HOME", marks=pytest.mark.slow)])
def test_jobs_work_with_the_environment_that_the_profile_exports(ready, export):
    command = ready(f'\n[extra]\nexport = "{export}"\n')
    command.launch("--yes", "--wait", "--methods", "zero_shot", "--seeds", "1", "--no-plots")
    assert len(results(command.runs)) == 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('setup = ["module load nosuch || exit 3"]\n', "module: command not found"),
        ('python = "/no/python"\n', "/no/python"),
    ],
)
def test_a_job_that_dies_at_its_start_is_said_with_its_log(ready, more, words):
    command = ready(more)
    _, told = command.launch("--yes", "--wait", "--methods", "zero_shot", "--no-plots", code=1)
    (line,) = [line for line in told.splitlines() if "never begun" in line]
    assert line.startswith("2 runs were never begun: job ")
    assert words in line
    assert "_log.out" in line
    assert words in command.call("status")[0]


@pytest.mark.slow
def test_a_job_that_is_suspended_has_its_word(slurm, ready, long):
    command = ready(grid=long)
    command.launch("--yes", "--no-plots")
    wait_for_training(slurm, command, 1)
    for line in command.queue():
        slurm.attempt("scontrol", "suspend", line[0])
    slurm.wait(lambda: "SUSPENDED" in {line[1] for line in command.queue()}, "a suspended job")
    # Its heart stands still, so after a while nobody holds the run; the queue knows why.
    slurm.wait(lambda: "SUSPENDED (stopped by SLURM" in command.call("status")[0], "the word", 120)

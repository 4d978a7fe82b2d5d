"""The throwaway cluster behaves as a cluster does: arrays, preemption, node loss, accounting."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

CLUSTER = Path(__file__).resolve().parents[2] / "slurm" / "cluster"

pytestmark = pytest.mark.slurm

# Says when it starts and for which time, tells of USR2, and ends by itself when it is a restart.
SCRIPT = """#!/bin/bash
trap 'echo USR2' USR2
echo "start ${SLURM_RESTART_COUNT:-0}"
[[ -n ${SLURM_RESTART_COUNT:-} ]] && exit
for _ in {1..600}; do sleep 0.2 & wait; done
"""


def submit(slurm, folder: Path, *options: str) -> str:
    script = folder / "job.sh"
    script.write_text(SCRIPT)
    return slurm.run(
        "sbatch", "--parsable", "--open-mode=append", f"--output={folder}/out", *options, script
    ).strip()


def test_four_idle_nodes_with_two_gpus_each(slurm):
    lines = slurm.run("sinfo", "-h", "-N", "-p", "low", "-o", "%N %T %G").splitlines()
    assert lines == [f"n{i} idle gpu:2" for i in range(1, 5)]


def test_array_completes(slurm, tmp_path):
    number = slurm.run(
        "sbatch",
        "--parsable",
        "--array=0-5",
        "--gpus-per-node=1",
        f"--output={tmp_path}/%a",
        "--wrap",
        "echo gpus $SLURM_GPUS_PER_NODE",
    ).strip()
    slurm.wait(lambda: not slurm.run("squeue", "-h", "-j", number), "the array's end", 30)
    assert slurm.run("scontrol", "show", "job", number).count("JobState=COMPLETED") == 6
    assert [(tmp_path / str(i)).read_text() for i in range(6)] == ["gpus 1\n"] * 6


@pytest.mark.slow
def test_preempted_job_is_told_and_requeued(slurm, tmp_path):
    low = submit(slurm, tmp_path, "--nodes=4", "--exclusive", "--signal=B:USR2@60", "--time=30")
    slurm.wait((tmp_path / "out").exists, "the job's start")
    high = slurm.run(
        "sbatch",
        "--parsable",
        "--partition=high",
        "--nodes=4",
        "--exclusive",
        "--output=/dev/null",
        "--wrap",
        "sleep 1",
    ).strip()
    slurm.wait(lambda: "USR2" in (tmp_path / "out").read_text(), "USR2", 15)
    # It ignores the signal, so that it holds its nodes for the time of grace.
    assert slurm.job(low)["JobState"] == "RUNNING"
    slurm.wait(lambda: slurm.job(high)["JobState"] == "COMPLETED", "the job on high")
    slurm.wait(lambda: slurm.job(low)["JobState"] == "COMPLETED", "the restart's end", 90)
    assert slurm.job(low)["Restarts"] == "1"
    assert (tmp_path / "out").read_text().split("\n")[-2] == "start 1"


@pytest.mark.slow
def test_job_of_a_lost_node_is_requeued(slurm, tmp_path):
    number = submit(slurm, tmp_path, "--nodes=1")
    slurm.wait((tmp_path / "out").exists, "the job's start")
    name = slurm.job(number)["NodeList"]
    slurm.node("kill", name)
    state = ["sinfo", "-h", "-p", "low", "-n", name, "-o", "%T"]
    slurm.wait(lambda: slurm.run(*state).strip() == "down*", f"{name} down", 40)
    slurm.wait(lambda: slurm.job(number)["JobState"] == "COMPLETED", "the restart's end", 90)
    job = slurm.job(number)
    assert job["Restarts"] == "1"
    assert job["NodeList"] != name
    slurm.node("start", name)
    slurm.wait(lambda: slurm.run(*state).strip() == "idle", f"{name} idle")


def test_accounting(slurm, tmp_path):
    number = submit(slurm, tmp_path, "--time=1")
    slurm.run("scancel", number)
    sacct = ["sacct", "-n", "-X", "-P", "-o", "State,Account", "-j", number]
    refused = slurm.attempt("sbatch", "-A", "nosuch", "--output=/dev/null", "--wrap", "true")
    if slurm.accounting:
        slurm.wait(lambda: slurm.run(*sacct).startswith("CANCELLED"), "the state in sacct", 30)
        assert slurm.run(*sacct).strip().endswith("|lab")
        assert refused.returncode != 0
        assert "Invalid account" in refused.stderr
    else:
        assert slurm.attempt(*sacct).returncode != 0
        assert "accounting storage is disabled" in slurm.attempt(*sacct).stderr
        assert refused.returncode == 0


def test_up_twice_gives_the_same_line_at_once(slurm):
    words = [str(CLUSTER / "up"), "--folder", str(slurm.folder)]
    words += [] if slurm.accounting else ["--no-accounting"]
    start = time.monotonic()
    assert slurm.run(*words) == slurm.line == f"export SLURM_CONF={slurm.folder}/slurm.conf\n"
    assert time.monotonic() - start < 5
    other = slurm.attempt(*words, "--nodes", "3")
    assert other.returncode == 2
    assert "other options" in other.stderr
    assert other.stdout == ""


def test_a_folder_of_others_is_left_alone(tmp_path):
    if os.geteuid():
        pytest.skip("needs root, as the scripts do: try a debian:12 container")
    (tmp_path / "mine").write_text("x")
    folder = "/tmp/ssmll-slurm-others"
    Path(folder).unlink(missing_ok=True)
    Path(folder).symlink_to(tmp_path)
    try:
        for name in ("up", "down"):
            words = [str(CLUSTER / name), "--folder", folder]
            done = subprocess.run(words, capture_output=True, text=True)
            assert done.returncode == 2
            assert len(done.stderr.splitlines()) == 1
    finally:
        Path(folder).unlink()
    assert (tmp_path / "mine").read_text() == "x"

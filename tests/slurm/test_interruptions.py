"""Grids on a real Slurm whose jobs end early: preempted, lost with a node, cancelled."""

from __future__ import annotations

import json

import pytest

from tests.slurm.on_cluster import (
    OnCluster,
    attempts,
    predictions,
    table_of,
    wait_for_training,
)

pytestmark = pytest.mark.slurm


def test_preempted_array_elements_are_requeued_and_go_on(slurm, tmp_path, long, calm_long):
    command = OnCluster(tmp_path, slurm, long)
    command.launch("--yes", "--checkpoint-seconds", "3600")
    runs = wait_for_training(slurm, command, 2)
    assert all("_" in job for job, *_ in command.queue())
    nodes = slurm.run("sinfo", "-h", "-p", "high", "-o", "%D").strip()
    slurm.run(
        "sbatch", "-p", "high", "--exclusive", f"--nodes={nodes}", "--wrap", "sleep 10", "-o", "/dev/null"
    )
    slurm.wait(lambda: [entry[1] for entry in command.queue()] == ["PENDING"] * 2, "requeues", 90)
    # Checkpoints are an hour apart: these were made because of the signal.
    assert all(list((run / "checkpoints").glob("*/COMPLETE.json")) for run in runs)
    out, _ = command.call("status", "--grid", str(long))
    assert "2 preempted" in out
    slurm.wait(lambda: not command.queue(), "the end of the runs", 240)
    assert command.predictions() == predictions(calm_long)
    assert list(attempts(command.runs).values()) == [2, 2]
    for run in runs:
        rows = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == list(range(1, 31))


def test_lost_jobs_and_nodes_end_in_a_complete_table(slurm, tmp_path, small, calm):
    command = OnCluster(tmp_path, slurm, small)
    command.launch("--yes")

    def working() -> dict[str, str]:
        return {
            job: node
            for job, state, *node, name in command.queue()
            if state == "RUNNING" and node
            for node in node
        }

    slurm.wait(lambda: len(set(working().values())) >= 3, "jobs on three nodes", 180)
    (job, first), *others = working().items()
    slurm.run("scancel", job)
    second, third = list(dict.fromkeys(node for _, node in others if node != first))[:2]
    slurm.run("scontrol", "update", f"node={second}", "state=down", "reason=test")
    slurm.node("kill", third)
    slurm.wait(lambda: second not in working().values(), "the end of a node's jobs")
    slurm.attempt("scontrol", "update", f"node={second}", "state=resume")  # it may be back already
    slurm.node("start", third)
    slurm.wait(lambda: not command.queue(), "the end of the jobs", 400)
    command.launch("--yes", "--wait", "--no-plots")
    assert table_of(command.runs, small) == table_of(calm, small)
    assert command.predictions() == predictions(calm)


def test_cancel_ends_a_grid_and_the_next_call_goes_on(slurm, tmp_path, long, calm_long):
    command = OnCluster(tmp_path, slurm, long)
    command.launch("--yes", "--checkpoint-seconds", "3600", "--seeds", "1")
    (run,) = wait_for_training(slurm, command, 1)
    out, _ = command.call("cancel", "--yes")
    assert "cancelled 1 jobs" in out
    slurm.wait(lambda: not command.queue(), "the end of the job")
    assert not (run / "result.json").exists()
    out, _ = command.call("status", "--grid", str(long), "--seeds", "1")
    assert "1 dead" in out
    command.launch("--yes", "--wait", "--no-plots", "--seeds", "1")
    expected = predictions(calm_long)
    ((name, scores),) = command.predictions().items()
    assert expected[name] == scores
    assert attempts(command.runs) == {run.name: 2}

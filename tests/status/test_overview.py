"""Where runs stand: the store, launches and commands of a made-up SLURM, put together."""

from __future__ import annotations

import hashlib
import os
import re
import socket

import pytest

from benchmarks.status.overview import QueueCache, overview
from benchmarks.status.progress_file import ProgressFile
from benchmarks.status.view import plain
from results.store import RunStore
from tests.status.conftest import section


def test_every_state(folder):
    ids = {
        "done": folder.add(1, "done"),
        "running": folder.add(2, "running"),
        "preempted": folder.add(3, "dead"),
        "queued": folder.add(4, "not started"),
        "dead": folder.add(5, "dead"),
        "failed": folder.add(6, "failed"),
        "not started": folder.add(7, "not started"),
    }
    bundles = [
        [ids[kind]] for kind in ("done", "running", "preempted", "queued", "dead", "failed", "not started")
    ]
    folder.launch(*bundles)
    folder.answers(
        squeue="7_1|RUNNING||1:00|n1\n7_2|PENDING|BeginTime|0:00|\n7_3|PENDING|Resources|0:00|\n",
        sacct="7_4|NODE_FAIL\n7_6|CANCELLED by 12\n",
    )
    assert folder.kinds() == {run_id[:16]: kind for kind, run_id in ids.items()}
    text = plain(overview(folder.runs))
    first = text.splitlines()[0]
    assert first == (
        f"{folder.runs}: 7 runs (1 done, 1 running, 1 preempted, 1 queued, 1 dead, 1 failed, 1 not started)"
    )
    assert f"process {os.getpid()} on {socket.gethostname()}" in section(text, "running (1)")
    assert re.search(r"heartbeat \d+ s ago", section(text, "running (1)"))
    assert "begun 1 time; job 7_2: BeginTime" in section(text, "preempted (1)")
    assert section(text, "queued (1)") == "queued (1) in 1 job: Resources 1"
    assert "job 7_4 ended: NODE_FAIL" in section(text, "dead (1)")
    assert "1 x ValueError: bad #" in section(text, "failed (1)")
    assert "before they began (1): CANCELLED 1" in section(text, "submitted, but")


def test_without_accounting_a_dead_run_says_what_is_known(folder):
    folder.launch([folder.add(1, "dead")])
    folder.answers(squeue="")
    text = plain(overview(folder.runs))
    assert "stopped before its end; the next attempt continues it" in text
    assert "job 7_0 is no longer queued" in text


def test_a_local_store_needs_no_slurm(folder):
    folder.add(1, "dead")
    folder.add(2, "done")
    view = overview(folder.runs)
    assert (view.counts(), view.remarks) == ({"done": 1, "dead": 1}, [])
    title = next(run.title for run in view.runs if run.kind == "dead")
    assert title == f"CSAA · toy p=0.05 seed=1 [{hashlib.sha256(b'1').hexdigest()[:8]}]"
    assert overview(folder.runs / "absent").counts() == {}


@pytest.mark.parametrize(
    ("more", "subset"),
    [
        ({"split_seed": 3}, "p=0.05 seed=3"),
        ({"split_seed": 1}, "p=0.05 split=1 seed=3"),
        ({"split_seed": 3, "budget": "100 images", "ratio": 0.02}, "100 images seed=3"),
        ({"split_seed": 1, "budget": "4 per class"}, "4 per class split=1 seed=3"),
    ],
)
def test_a_run_outside_a_plan_says_its_budget_and_its_split(folder, more, subset):
    """As the title that a plan gives it; `spec.json` is what `RunSpec.record` says."""
    run_id = folder.add(3, "failed", more)
    (run,) = overview(folder.runs).runs
    assert run.title == f"CSAA · toy {subset} [{run_id[:8]}]"


def test_a_store_that_may_only_be_read_says_whose_clock_tells(folder, monkeypatch):
    def refused(directory):
        raise PermissionError(13, "Permission denied", str(directory))

    folder.add(1, "running")
    assert overview(folder.runs).remarks == []
    monkeypatch.setattr("results.store.filesystem_now", refused)
    view = overview(folder.runs)
    assert view.counts() == {"running": 1}
    (remark,) = view.remarks
    assert remark.startswith(f"{folder.runs / 'store'} cannot be written to")
    assert remark.endswith("is told by this machine's clock")


def test_a_copied_folder_says_that_the_queue_is_unknown(folder):
    launch = folder.launch(
        [folder.add(1, "dead"), folder.add(2, "not started")],
        [folder.add(3, "done"), folder.add(4, "failed")],
    )
    old = launch.folder.with_name("20200101-000000-toy-abcd")
    launch.folder.rename(old)
    view = overview(folder.runs)
    assert view.counts() == {"done": 1, "submitted": 2, "failed": 1}
    assert view.remarks == ["no squeue here: which submitted runs still wait is not known"]
    told = section(plain(view), "submitted and not done (2)")
    assert told.endswith("2 by launch 20200101-000000-toy-abcd, at 2020-01-01 00:00 UTC; 1 begun")


def test_a_queue_that_does_not_answer_is_a_remark(folder):
    folder.launch([folder.add(1, "not started")])
    folder.answers(squeue="!slurm_load_jobs error: Unable to contact slurm controller")
    view = overview(folder.runs)
    assert view.counts() == {"submitted": 1}
    (remark,) = view.remarks
    assert remark.startswith("the queue is not known: squeue failed: slurm_load_jobs")


def test_the_newest_launch_counts_and_a_damaged_one_is_named(folder):
    run_id = folder.add(1, "dead")
    first = folder.launch([run_id], first=7)
    first.folder.rename(first.folder.with_name("20200101-000000-toy-0000"))
    folder.launch([run_id], first=8)
    damaged = folder.launch(["0" * 64], first=9)
    (damaged.folder / "plan.json").write_text("{")
    folder.answers(squeue="7_0|PENDING|Held|0:00|\n", sacct="8_0|TIMEOUT\n")
    view = overview(folder.runs)
    assert [(run.kind, run.job) for run in view.runs] == [("preempted", "7_0")]
    assert "is damaged" in view.remarks[0]
    folder.answers(squeue="", sacct="8_0|TIMEOUT\n")
    assert [(run.kind, run.job, run.why) for run in overview(folder.runs).runs] == [
        ("dead", "8_0", "TIMEOUT")
    ]


def test_the_queue_is_asked_once_in_a_while(folder, monkeypatch):
    folder.launch([folder.add(1, "not started")])
    folder.answers(squeue="7_0|PENDING|Held|0:00|\n")
    cluster = QueueCache()
    assert overview(folder.runs, cluster=cluster).counts() == {"queued": 1}
    folder.answers(squeue="!down")
    assert overview(folder.runs, cluster=cluster).counts() == {"queued": 1}
    monkeypatch.setattr("benchmarks.status.overview.QUEUE_SECONDS", 0.0)
    assert overview(folder.runs, cluster=cluster).counts() == {"submitted": 1}


def test_a_stage_that_is_computed_is_shown(folder):
    stages = RunStore(folder.runs / "stages")
    place = folder.runs / "stages" / "warmup-0123456789abcdef"
    lease = stages.claim(place, {"stage": "warmup"})
    assert lease is not None
    with lease:
        ProgressFile(place, "warmup for toy", epochs=2)(0, 0, 5, 0.0)
        view = overview(folder.runs)
        assert "warmup for toy  epoch 1/2 step 0/5" in section(plain(view), "stages")
        (place / "stage.json").write_text("{}")
        assert overview(folder.runs).stages == []


def test_a_damaged_failure_hides_no_other_run(folder):
    directory = folder.place(folder.add(1, "failed"))
    folder.add(2, "done")
    (directory / "failure.json").write_text("{")
    view = overview(folder.runs)
    assert view.counts() == {"done": 1, "failed": 1}
    assert "StoreError" in plain(view)


def test_a_run_that_is_begun_and_lost_again_and_again_is_told(folder):
    run_id = folder.add(1, "dead")
    spec = {"dataset": {"alias": "toy"}, "method": "csaa", "label": "CSAA", "ratio": 0.05, "seed": 1}
    folder.launch([run_id])
    folder.answers(squeue="7_0|PENDING|launch failed requeued held|0:00|\n", sacct="")
    assert "again and again" not in plain(overview(folder.runs))
    for _ in range(4):
        folder.store.claim(folder.place(run_id), spec).release()
    text = section(plain(overview(folder.runs)), "preempted (1)")
    assert "begun 5 times, again and again: look into its log" in text
    assert "launch failed requeued held (its start failed: `scontrol release`" in text


@pytest.mark.parametrize(
    ("state", "reason", "word"),
    [
        (
            "PENDING",
            "ReqNodeNotAvail",
            "ReqNodeNotAvail 1 (nodes that it needs are down, drained or reserved)",
        ),
        ("PENDING", "BadConstraints", "BadConstraints 1 (no node can offer what it asks for"),
        ("PENDING", "QOSMinGRES", "QOSMinGRES 1 (it asks for less than the QOS requires"),
        ("CONFIGURING", "None", "CONFIGURING 1 (its nodes are being started)"),
        ("SUSPENDED", "None", "SUSPENDED 1 (stopped by SLURM"),
    ],
)
def test_what_a_queued_job_waits_for_has_its_word(folder, state, reason, word):
    folder.launch([folder.add(1, "not started")])
    folder.answers(squeue=f"7_0|{state}|{reason}|0:00|\n", sacct="")
    assert word in section(plain(overview(folder.runs)), "queued (1)")


def test_a_job_that_died_at_its_start_shows_the_end_of_its_log(folder):
    launch = folder.launch([folder.add(1, "not started")])
    launch.log_folder.mkdir()
    launch.log("7_0").write_text("slurmstepd: error: Detected 1 oom_kill event\n")
    folder.answers(squeue="", sacct="7_0|OUT_OF_MEMORY\n")
    text = section(plain(overview(folder.runs)), "submitted, but")
    assert "before they began (1): OUT_OF_MEMORY 1 (killed by the memory limit: raise memory_gb" in text
    assert "| slurmstepd: error: Detected 1 oom_kill event" in plain(overview(folder.runs))


def test_a_submission_that_broke_off_is_a_remark(folder):
    launch = folder.launch([folder.add(1, "not started")])
    folder.answers(squeue="", sacct="")
    assert overview(folder.runs).remarks == []
    launch.intend("ssmll:1", [1])
    (remark,) = overview(folder.runs).remarks
    assert launch.folder.name in remark
    assert "the next `run` or `cancel` settles it" in remark

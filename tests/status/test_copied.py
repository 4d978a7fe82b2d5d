"""A folder of runs that was copied while its jobs wait and work, or moved: jobs are those of the original."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from benchmarks.run import main
from benchmarks.status.overview import overview
from results.files import filesystem_now
from results.store import RunStore
from slurm.launches import Launches, assigned, withdraw

QUEUE = "7_0|PENDING|Priority|0:00|\n7_1|RUNNING|None|0:10|n1\n"


@pytest.fixture
def submitted(folder):
    """A run that waits, one that a job has begun, one that is done; jobs 7_0 and 7_1 are in the queue."""
    launch = folder.launch([folder.add(1, "not started")], [folder.add(2, "running"), folder.add(3, "done")])
    path = launch.folder / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "runs": str(folder.runs)}))
    launch.intend("ssmll:aa", [5])
    folder.answers(squeue=QUEUE, scancel="", sacct="")
    return folder


def test_a_copy_does_not_count_the_jobs_of_its_original_and_touches_nothing_there(
    submitted, tmp_path, capsys
):
    copy = tmp_path / "copy"
    shutil.copytree(submitted.runs, copy)  # new times, as `cp -r` gives
    assert overview(submitted.runs).counts() == {"done": 1, "running": 1, "queued": 1}
    (lease,) = [path for path in copy.rglob("lease.000001") if not (path.parent / "result.json").exists()]
    # Of the one that is held there no heartbeat comes here; after its time it is dead, and may be continued.
    then = filesystem_now(copy) - 100
    os.utime(lease, (then, then))
    view = overview(copy)
    assert view.counts() == {"done": 1, "dead": 1, "not started": 1}
    assert view.remarks == [
        f"2 jobs in the queue work in {submitted.runs}, of which this folder is a copy: none counts here"
    ]
    launches = list(Launches(copy))
    assert assigned(launches, {"7_0": object(), "7_1": object()}) == {}, "so that `run` submits them here"
    said: list[str] = []
    withdraw(launches, said.append)
    assert said == []
    assert launches[0].unsettled() == ["ssmll:aa"]
    before = {path: path.read_bytes() for path in submitted.runs.rglob("*") if path.is_file()}
    store = RunStore(copy / "store")
    spec = json.loads((lease.parent / "spec.json").read_text())
    taken = store.claim(lease.parent, spec)
    assert taken is not None
    assert taken.generation == 2
    taken.release()
    assert main(["cancel", "--yes", "--runs", str(copy)]) == 0
    told = capsys.readouterr().out
    assert f"jobs that work in {submitted.runs} are left" in told
    assert "no jobs to cancel" in told
    assert {path: path.read_bytes() for path in submitted.runs.rglob("*") if path.is_file()} == before


def test_a_moved_folder_goes_on_and_says_that_its_queued_jobs_will_not_find_it(submitted, tmp_path):
    for lease in submitted.held:
        lease.release()
    moved = tmp_path / "moved"
    os.rename(submitted.runs, moved)
    view = overview(moved)
    assert view.counts() == {"done": 1, "preempted": 1, "queued": 1}
    (remark, _) = view.remarks
    assert remark.startswith(f"2 jobs in the queue were submitted for {submitted.runs}, which is not here")
    assert not submitted.runs.exists()
    # Seen under another name, it is neither.
    (tmp_path / "link").symlink_to(moved)
    submitted.runs.symlink_to(moved)
    assert not any("in the queue" in remark for remark in overview(tmp_path / "link").remarks)

"""Submissions that seem to have failed, with scripts in the place of SLURM's commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from slurm import client, sbatch
from slurm.launches import LATE_SECONDS, Launch, Launches, withdraw
from slurm.profile import Profile
from slurm.submit import Array, submit
from slurm.task import JobCommand
from tests.slurm.fakes import Fakes

# squeue's answer is a file: `%F|%T|%k`, one line for each job that sbatch has accepted.
SQUEUE = 'echo "$@" | grep -q "%k" && cat {queue} 2>/dev/null; true'
ACCEPT = (
    'mark=$(grep -o "ssmll:[0-9a-f]*" "${{@: -1}}"); n=$(cat {count} 2>/dev/null || echo 40); '
    'echo $((n + 1)) > {count}; echo "$((n + 1))|PENDING|$mark" >> {queue}; '
)
TIMED_OUT = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv" >&2; exit 1'


class Cluster(Fakes):
    """Commands that accept jobs into a file."""

    def __init__(self, folder) -> None:
        super().__init__(folder)
        self.queue, self.count = folder / "queue", folder / "count"
        self.add("squeue", SQUEUE.format(queue=self.queue))
        self.add("scancel")
        self.add("srun")

    def sbatch(self, body: str, accepts: bool = True) -> None:
        accept = ACCEPT.format(queue=self.queue, count=self.count) if accepts else ""
        self.add("sbatch", accept + body)


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Cluster:
    made = Cluster(tmp_path / "bin")
    made.use(monkeypatch)
    monkeypatch.setattr(client, "PATIENCE", 0.0)
    monkeypatch.setattr(sbatch, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(sbatch, "POLL_SECONDS", 0.1)
    return made


def send(tmp_path, count: int, size: int = 10, **told) -> list[tuple[int, str]]:
    work = [JobCommand(("true",)) for _ in range(count)]
    array = Array(tuple(range(count)))
    return submit(array, tmp_path / "jobs", "ssmll-x", Profile(gpus=0), work, tmp_path, size, **told)


@pytest.mark.parametrize("count", [1, 3])
def test_a_submission_that_timed_out_and_was_accepted_is_taken_over(cluster, tmp_path, count):
    cluster.sbatch(TIMED_OUT)
    said: list[str] = []
    jobs = send(tmp_path, count, say=said.append)
    numbers = ["41"] if count == 1 else [f"41_{k}" for k in range(count)]
    assert jobs == list(enumerate(numbers))
    assert len(cluster.calls("sbatch")) == 1, "nothing is submitted twice"
    assert "Socket timed out" in said[0]
    assert "41 is taken over" in said[0]
    for number in numbers:  # what the job is to do lies where the job looks for it
        assert (tmp_path / "jobs" / f"{number}_submitted.pkl").exists()


@pytest.mark.parametrize(
    "body",
    [
        "exec sleep 30",  # it hangs
        "kill -9 $$",
        "echo accepted",  # no number
        'echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1',
    ],
)
def test_whatever_sbatch_leaves_open_is_settled(cluster, tmp_path, monkeypatch, body):
    monkeypatch.setattr(client, "SECONDS", 1.0)
    cluster.sbatch(body)
    assert send(tmp_path, 2) == [(0, "41_0"), (1, "41_1")]


def test_of_two_jobs_of_one_submission_one_stays(cluster, tmp_path):
    accept = ACCEPT.format(queue=cluster.queue, count=cluster.count)
    cluster.sbatch(accept + TIMED_OUT)
    assert send(tmp_path, 1) == [(0, "41")]
    assert cluster.calls("scancel") == ["42"]


def test_a_part_that_fails_leaves_the_parts_before_it(cluster, tmp_path):
    cluster.sbatch('[ $n = 40 ] && echo "Submitted batch job $((n + 1))" && exit 0; ' + TIMED_OUT)
    assert [job for _, job in send(tmp_path, 3, size=2)] == ["41_0", "41_1", "42"]


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ("Invalid qos specification", "qos"),
        ("Requested node configuration is not available", "gpus, cpus or memory_gb"),
    ],
)
def test_a_refusal_is_a_refusal(cluster, tmp_path, said, field):
    """Slurm 22.05 keeps a record of a job for which no node has enough, and squeue shows it as FAILED."""
    body = f'echo "sbatch: error: Batch job submission failed: {said}" >&2; exit 1'
    cluster.sbatch(body.replace("echo", f"sed -i s/PENDING/FAILED/ {cluster.queue}; echo"))
    with pytest.raises(client.SlurmError, match=f"profile: {field}") as caught:
        send(tmp_path, 2)
    assert not isinstance(caught.value, sbatch.Unsettled)


@pytest.mark.parametrize(
    ("squeue", "words"),
    [("true", "squeue shows no such job"), ("echo 'Unable to contact' >&2; exit 1", "is not known")],
)
def test_what_cannot_be_told_is_said(cluster, tmp_path, squeue, words):
    cluster.sbatch(TIMED_OUT, accepts=False)
    cluster.add("squeue", squeue)
    with pytest.raises(sbatch.Unsettled, match=words):
        send(tmp_path, 2)


def test_a_users_own_comment_stays(cluster, tmp_path):
    cluster.sbatch('echo "Submitted batch job $((n + 1))"')
    profile = Profile(gpus=0, extra={"comment": "project 7"})
    submit(Array((0,)), tmp_path / "jobs", "x", profile, [JobCommand(("true",))], tmp_path, 1)
    script = (tmp_path / "jobs" / "41_submission.sh").read_text()
    assert "#SBATCH --comment='project 7 ssmll:" in script


def plan() -> dict:
    return {"job_name": "ssmll-x", "bundles": [{"run_ids": ["a"]}, {"run_ids": ["b"]}]}


def test_a_launch_knows_what_it_began_to_submit(tmp_path):
    made = Launches(tmp_path).create("x", plan())
    made.intend("ssmll:1", [0])
    made.intend("ssmll:2", [1])
    assert set(made.unsettled()) == {"ssmll:1", "ssmll:2"}
    made.record({0: "7"})
    assert set(made.unsettled()) == {"ssmll:2"}
    made.settle("ssmll:2")
    assert made.unsettled() == []
    assert made.jobs() == {0: "7"}
    with open(made.folder / "jobs.jsonl", "a") as file:
        file.write('[1]\n{"jobs":3}\n{"mark":"ssmll:3"\n')
    assert (made.jobs(), made.unsettled()) == ({0: "7"}, [])


def test_jobs_of_a_call_that_was_killed_are_cancelled_by_the_next(cluster, tmp_path):
    """Killed between sbatch and the record: submitit has not stored what the job is to do."""
    script = f"""
import os
from pathlib import Path
from slurm import submit, sbatch
from slurm.launches import Launches
from slurm.profile import Profile
from slurm.task import JobCommand
made = Launches(Path({str(tmp_path)!r})).create("x", {plan()!r})
before, sbatch.submitted = sbatch.submitted, lambda *a: (before(*a), os.kill(os.getpid(), 9))
submit.submit(submit.Array((0, 1)), made.log_folder, "x", Profile(gpus=0), [JobCommand(("true",))] * 2,
              Path("/"), 9, before=made.intend)
"""
    cluster.sbatch('echo "Submitted batch job $((n + 1))"')
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -9
    [made] = Launches(tmp_path)
    assert made.jobs() == {}
    said: list[str] = []
    withdraw([made], said.append)
    assert cluster.calls("scancel") == ["41"]
    assert "broke off while it submitted 41: cancelled" in said[0]
    withdraw([made], said.append)
    assert len(said) == 1


def test_what_is_over_or_never_came_is_not_cancelled(cluster, tmp_path):
    made = Launches(tmp_path).create("x", plan())
    made.intend("ssmll:aa", [0])
    made.intend("ssmll:bb", [1])
    cluster.queue.write_text("50|COMPLETED|ssmll:aa\n51|PENDING|ssmll:bbb\n")
    withdraw([made], print)
    assert cluster.calls("scancel") == []
    assert set(made.unsettled()) == {"ssmll:bb"}, "it may still come"
    made.intend("ssmll:cc", [2])
    path = made.folder / "jobs.jsonl"
    text = path.read_text().splitlines()
    # What the submitting machine took for the time says nothing; the file's own time does.
    path.write_text("".join(json.dumps({**json.loads(line), "time": 0.0}) + "\n" for line in text))
    withdraw([Launch(made.folder)], print)
    assert set(made.unsettled()) == {"ssmll:bb", "ssmll:cc"}
    old = path.stat().st_mtime - 2 * LATE_SECONDS
    os.utime(path, (old, old))
    withdraw([Launch(made.folder)], print)
    assert made.unsettled() == [], "what did not come within an hour"

"""What a task does, with small programs as its command."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from slurm import submit, task
from tests.slurm.fakes import Fakes

# Notes each signal and each start, and ends like a trainer: with 75 after a signal.
CHILD = """
import os, signal, sys, time
note = open({note!r}, "a")
got = []
def on(number, frame):
    got.append(number)
    print(signal.Signals(number).name, file=note, flush=True)
signal.signal(signal.SIGUSR2, on)
signal.signal(signal.SIGTERM, on)
print("started", file=note, flush=True)
end = time.monotonic() + 60
# "Saving" lasts until the test has sent all of its signals: a second one would be seen.
while not (got and os.path.exists({note!r} + ".sent")) and time.monotonic() < end:
    time.sleep(0.02)
sys.exit(75 if got else 0)
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch) -> Fakes:
    made = Fakes(tmp_path / "bin")
    made.use(monkeypatch)
    made.add("scontrol")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    return made


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    """The long sleeps, which are left out."""
    real, found = time.sleep, []
    monkeypatch.setattr(task.time, "sleep", lambda s: found.append(s) if s > 30 else real(s))
    return found


def child(tmp_path: Path) -> tuple[list[str], Path]:
    note = tmp_path / "note"
    return [sys.executable, "-c", CHILD.format(note=str(note))], note


def lines(note: Path) -> list[str]:
    return note.read_text().splitlines() if note.exists() else []


def wait_until(note: Path, line: str) -> None:
    """Until the command has noted a line."""
    end = time.monotonic() + 60
    while line not in lines(note) and time.monotonic() < end:
        time.sleep(0.02)


def send(note: Path, *numbers: signal.Signals) -> threading.Thread:
    """Signal this process, which is the task, as soon as the command has started."""

    def work() -> None:
        wait_until(note, "started")
        for number in numbers:
            os.kill(os.getpid(), number)
            wait_until(note, numbers[0].name)  # each comes after the first was passed on
        note.with_name(f"{note.name}.sent").touch()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def stopped(tmp_path: Path, *numbers: signal.Signals, most: int = 50) -> list[str]:
    """Run the child, send signals; what it noted. The task always ends with an error then."""
    command, note = child(tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)]
    thread = send(note, *numbers)
    with pytest.raises(RuntimeError, match="exit code 75"):
        task.run(command, max_requeues=most, restarts=2)
    thread.join()
    after = [signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)]
    assert after == before, "the handlers are put back"
    return lines(note)


def test_a_warning_is_passed_on_once_and_the_job_requeued(fakes, slept, tmp_path):
    assert stopped(tmp_path, signal.SIGUSR2, signal.SIGUSR2) == ["started", "SIGUSR2"]
    assert fakes.calls("scontrol") == ["requeue 41"]
    assert slept == [60]


def test_an_element_of_an_array_is_requeued_by_its_number(fakes, slept, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_PROCID", "0")
    stopped(tmp_path, signal.SIGUSR2)
    assert fakes.calls("scontrol") == ["requeue 40_3"]


def test_other_ranks_wait(fakes, slept, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    stopped(tmp_path, signal.SIGUSR2)
    assert fakes.calls("scontrol") == []
    assert slept == [60], "an end of this task would count for the job before it is requeued"


def test_scancel_does_not_requeue(fakes, slept, tmp_path):
    assert stopped(tmp_path, signal.SIGTERM) == ["started", "SIGTERM"]
    assert fakes.calls("scontrol") == []
    assert slept == []


def test_the_end_of_the_grace_time_changes_nothing(fakes, slept, tmp_path):
    assert stopped(tmp_path, signal.SIGUSR2, signal.SIGTERM) == ["started", "SIGUSR2"]
    assert fakes.calls("scontrol") == ["requeue 41"]


def test_not_more_often_than_allowed(fakes, slept, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    stopped(tmp_path, signal.SIGUSR2, most=3)
    assert fakes.calls("scontrol") == []
    assert "requeued 3 times already (max_requeues)" in capfd.readouterr().out


def test_a_requeue_that_is_refused_is_told(fakes, slept, tmp_path, capfd):
    fakes.add("scontrol", 'echo "slurm_requeue error: Requested operation disabled" >&2; exit 1')
    stopped(tmp_path, signal.SIGUSR2)
    assert "Requested operation disabled; the next `run` goes on" in capfd.readouterr().out
    assert slept == []


def counting(tmp_path: Path, body: str) -> tuple[list[str], Path]:
    """A command that notes the start, and then does something."""
    note = tmp_path / "starts"
    text = f"import os, signal, sys; open({str(note)!r}, 'a').write('x\\n'); {body}"
    return [sys.executable, "-c", text], note


@pytest.mark.parametrize(
    ("body", "starts"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 3),
        ("sys.exit(76)", 3),
        ("sys.exit(77)", 3),
        ("sys.exit(1)", 1),
        ("sys.exit(75)", 1),
    ],
)
def test_what_is_started_again(fakes, tmp_path, body, starts):
    command, note = counting(tmp_path, body)
    with pytest.raises(RuntimeError, match="exit code"):
        task.run(command, max_requeues=5, restarts=2)
    assert len(lines(note)) == starts
    assert fakes.calls("scontrol") == [], "nobody asked it to stop: nothing is requeued"


def test_a_lost_command_that_works_the_second_time(fakes, tmp_path):
    note = tmp_path / "starts"
    body = f"open({str(note)!r}).read().count('x') < 2 and os.kill(os.getpid(), signal.SIGKILL)"
    command, note = counting(tmp_path, body)
    assert task.run(command, max_requeues=5, restarts=1) == 0
    assert len(lines(note)) == 2


def test_one_task_has_no_ranks(fakes, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert "RANK" not in task.environment()


def test_two_tasks_on_two_nodes(fakes, monkeypatch):
    fakes.add(
        "scontrol",
        """case "$2" in
hostnames) echo n1; echo n2 ;;
node) echo "NodeName=$3 NodeAddr=10.0.0.1 NodeHostName=other Comment=a=b" ;;
esac""",
    )
    # What srun sets in the second of two tasks; the job has more nodes than the step.
    for name, value in {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "4",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_NNODES": "4",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_JOB_NODELIST": "n[0-3]",
    }.items():
        monkeypatch.setenv(name, value)
    found = task.environment()
    assert {k: found[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")} == {
        "RANK": "1",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
    }
    assert found["MASTER_ADDR"] == "10.0.0.1"
    assert fakes.calls("scontrol") == ["show hostnames n[1-2]", "show node n1 --oneliner"]
    # Each start, and each run after a requeue, meets elsewhere.
    again = task.environment(1)["MASTER_PORT"]
    assert again != found["MASTER_PORT"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert task.environment()["MASTER_PORT"] == again


def test_ports_can_be_used():
    assert all(20000 <= task.port(job, 3) < 60000 for job in (1, 41, 5714, 67_108_863))


def test_a_job_that_was_queued_under_the_class_s_former_name_still_loads():
    """The bytes are those that `slurm.task.Bundle` was pickled to before it became JobCommand."""
    queued = (
        b"\x80\x02cslurm.task\nBundle\nq\x00)\x81q\x01}q\x02(X\x07\x00\x00\x00commandq\x03(X\x06\x00\x00\x00"
        b"pythonq\x04X\x02\x00\x00\x00-mq\x05X\x11\x00\x00\x00benchmarks.workerq\x06X\t\x00\x00\x00plan.json"
        b"q\x07X\x01\x00\x00\x000q\x08tq\tX\x0c\x00\x00\x00max_requeuesq\nK\x07X\x08\x00\x00\x00restartsq\x0b"
        b"K\x03ub."
    )
    command = ("python", "-m", "benchmarks.worker", "plan.json", "0")
    assert pickle.loads(queued) == task.JobCommand(command, max_requeues=7, restarts=3)
    # submitit pickles the function that it calls by reference, too.
    assert pickle.loads(b"\x80\x02cslurm.submit\n_call\nq\x00.") is submit._call

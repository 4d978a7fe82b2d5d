"""SLURM's commands and their answers, with scripts in their place."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from slurm import client
from slurm.client import Queued, SlurmError
from tests.slurm.fakes import Fakes


@pytest.fixture
def fakes(tmp_path, monkeypatch) -> Fakes:
    made = Fakes(tmp_path / "bin")
    made.use(monkeypatch)
    return made


def test_queue_is_parsed(fakes):
    fakes.add(
        "squeue",
        """cat <<'END'
12_0|RUNNING|None|1-02:03:04|n[1-2]
12_1|PENDING|Nodes required for job are DOWN, DRAINED or reserved|0:00|
13|COMPLETING|None|5:00|n3

slurm is busy
END""",
    )
    found = client.queue(["b", "a", "b"])
    assert set(found) == {"12_0", "12_1", "13"}
    assert found["12_0"] == Queued("12_0", "RUNNING", "None", "1-02:03:04", "n[1-2]")
    assert found["12_1"].waits
    assert found["12_1"].reason.startswith("Nodes required")
    assert not found["12_0"].waits
    [call] = fakes.calls("squeue")
    assert "--name=a,b" in call
    assert "--array" in call, "elements of a pending array come one by one"


def test_nothing_is_asked_about_nothing(fakes):
    assert client.queue([]) == {}
    assert client.ended([]) == {}


def test_a_users_own_variables_hide_no_jobs(fakes, monkeypatch):
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    fakes.add("squeue", 'echo "1|${SQUEUE_STATES:-PENDING}|x|0:00|"')
    assert client.queue(["a"])["1"].state == "PENDING"


def test_ended_is_parsed(fakes):
    fakes.add("sacct", 'echo "1_0|COMPLETED"; echo; echo "1_1|CANCELLED by 1000"; echo "2|TIMEOUT"')
    assert client.ended(["1_0", "1_1", "2"]) == {
        "1_0": "COMPLETED",
        "1_1": "CANCELLED",
        "2": "TIMEOUT",
    }


def test_many_jobs_are_asked_for_in_parts(fakes):
    fakes.add("sacct")
    client.ended(str(k) for k in range(1001))
    assert len(fakes.calls("sacct")) == 3


def test_without_accounting_nothing_is_known(fakes):
    assert client.ended(["1"]) == {}, "no sacct at all"
    fakes.add("sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    assert client.ended(["1"]) == {}


def test_settings(fakes):
    fakes.add(
        "scontrol",
        """cat <<'END'
Configuration data as of 2026-01-01T00:00:00
MaxArraySize            = 1001
SchedulerParameters     = bf_interval=2,bf_continue
END""",
    )
    assert client.setting("MaxArraySize") == "1001"
    assert client.setting("SchedulerParameters") == "bf_interval=2,bf_continue"
    assert client.setting("MaxArray", "7") == "7"


def test_absent_commands(fakes):
    assert not client.available()
    with pytest.raises(SlurmError, match=r"not on the PATH \(sbatch, squeue.*login node"):
        client.require()
    with pytest.raises(SlurmError, match="throwaway cluster"):
        client.call("squeue")
    for name in client.COMMANDS:
        fakes.add(name)
    client.require()
    assert client.available()
    with pytest.raises(SlurmError, match="sacctmgr is not on the PATH"):
        client.call("sacctmgr")


def test_a_command_that_hangs(fakes, monkeypatch):
    monkeypatch.setattr(client, "SECONDS", 0.3)
    fakes.add("squeue", "exec sleep 20")
    start = time.monotonic()
    with pytest.raises(SlurmError, match=r"did not answer within 0\.3 s"):
        client.queue(["a"])
    assert time.monotonic() - start < 15  # not the 20 s that the command takes


def test_a_refusal_names_the_field(fakes):
    fakes.add(
        "sbatch",
        'echo "sbatch: error: invalid partition specified: x" >&2\n'
        'echo "sbatch: error: Batch job submission failed: Invalid partition name" >&2\n'
        "exit 1",
    )
    with pytest.raises(SlurmError) as caught:
        client.call("sbatch", "script")
    assert str(caught.value) == (
        "sbatch refused: invalid partition specified: x (profile: partition; `sinfo -s` lists the partitions)"
    )


# What Slurm 22.05 said on a cluster of its own, or its source has.
@pytest.mark.parametrize(
    ("said", "field"),
    [
        ("Invalid account or account/partition combination specified", "account"),
        ("Invalid qos specification", "qos"),
        ("QOSMaxSubmitJobPerUserLimit", "bundle_minutes"),
        ("AssocMaxSubmitJobLimit", "bundle_minutes"),
        ("Invalid job array specification", "array_size"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "minutes"),
        ("Invalid generic resource (gres) specification", "gpus"),
        ("Invalid feature specification", "constraint"),
        ("Invalid node name specified", "exclude"),
        ("Requested reservation is invalid", "reservation"),
        ("Requested node configuration is not available", "gpus, cpus or memory_gb"),
        (
            "Memory specification can not be satisfied\nsbatch: error: Batch job submission failed: "
            "Requested node configuration is not available",
            "memory_gb",
        ),
    ],
)
def test_hints(said, field):
    told = client.explained("sbatch", f"sbatch: error: {said}\n")
    assert told.startswith(f"sbatch refused: {said.splitlines()[0]} (profile: {field}; ")


def test_words_without_a_hint():
    assert client.explained("sbatch", "") == "sbatch failed: without a word"
    assert client.explained("squeue", "squeue: error: Transaction in progress") == (
        "squeue failed: Transaction in progress"
    )
    assert "unrecognized option '--x'" in client.explained(
        "sbatch", "sbatch: unrecognized option '--x'\nTry more"
    )


def test_outside_a_job(monkeypatch):
    kept = {"SLURM_CONF": "/etc/x", "SLURM_CLUSTERS": "a", "SLURM_JWT": "t", "OTHER": "1"}
    dropped = (
        "SLURM_JOB_ID",
        "SBATCH_PARTITION",
        "SRUN_CPUS_PER_TASK",
        "SUBMITIT_EXECUTOR",
        "SLURMD_NODENAME",
        "SQUEUE_USERS",
    )
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    for name in dropped:
        monkeypatch.setenv(name, "1")
    found = client.outside()
    assert kept.items() <= found.items()
    assert not set(dropped) & set(found)
    assert os.environ["SLURM_JOB_ID"] == "1", "the process itself keeps its variables"


BUSY = 'echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2; exit 1'


def failing(fakes, name: str, times: int, answer: str, error: str = BUSY) -> None:
    """A command that fails some times, and then answers."""
    count = fakes.folder / f"{name}.count"
    fakes.add(
        name,
        f"n=$(cat {count} 2>/dev/null || echo 0); echo $((n + 1)) > {count}\n"
        f"if [ $n -lt {times} ]; then {error}; fi\n{answer}",
    )


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    """Pauses, which only move the clock."""
    found: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(found), sleep=found.append)
    monkeypatch.setattr(client, "time", clock)
    return found


@pytest.mark.parametrize(
    ("command", "ask", "answer"),
    [
        ("squeue", lambda: client.queue(["a"]), 'echo "1|PENDING|x|0:00|"'),
        ("squeue", lambda: client.marked(["ssmll:1"])["ssmll:1"], 'echo "1|PENDING|ssmll:1"'),
        ("sacct", lambda: client.ended(["1"]), 'echo "1|FAILED"'),
        ("scontrol", lambda: client.setting("MaxArraySize"), "echo MaxArraySize = 7"),
        ("sinfo", lambda: client.call("sinfo", "-s"), "echo low"),
    ],
)
def test_a_question_is_asked_again(fakes, slept, command, ask, answer):
    failing(fakes, command, 3, answer)
    assert ask()
    assert slept == [1.0, 2.0, 4.0]


def test_patience_has_an_end_and_says_it(fakes, slept):
    failing(fakes, "squeue", 99, "")
    with pytest.raises(SlurmError, match=r"Socket timed out.*; asked \d+ times in \d+ s"):
        client.queue(["a"])
    assert client.PATIENCE - 15 <= sum(slept) <= client.PATIENCE
    slept.clear()
    with pytest.raises(SlurmError):
        client.queue(["a"], client.BRIEF)
    assert sum(slept) <= client.BRIEF, "who looks at a status does not wait long"


@pytest.mark.parametrize("said", ["Invalid job id specified", "Access/permission denied"])
def test_a_refusal_is_not_asked_again(fakes, slept, said):
    failing(fakes, "scontrol", 9, "", f'echo "{said}" >&2; exit 1')
    with pytest.raises(SlurmError, match=said):
        client.call("scontrol", "show", "job", "1")
    assert slept == []


def test_what_changes_something_is_called_once_unless_it_may_be_repeated(fakes, slept):
    failing(fakes, "sbatch", 1, "echo Submitted batch job 1")
    with pytest.raises(SlurmError) as caught:
        client.call("sbatch", "script")
    assert caught.value.doubtful
    failing(fakes, "scancel", 2, "")
    client.cancel(["1"])
    assert fakes.calls("scancel") == ["1"] * 3


def test_a_job_of_a_busy_cluster_gets_back_into_the_queue(fakes, slept):
    failing(fakes, "scontrol", 2, "")
    client.insist("scontrol", "requeue", "7")
    assert fakes.calls("scontrol") == ["requeue 7"] * 3


def test_names_of_earlier_launches_that_squeue_would_cut(fakes):
    fakes.add(
        "squeue",
        'case "$*" in *--name=*) echo "9|PENDING|cut|0:00|" ;; '
        '*%j) echo "1|PENDING|x|0:00||ssmll-a, b"; echo "2|RUNNING|None|0:10|n1|ssmll-a" ;; esac',
    )
    assert set(client.queue(["ssmll-a, b"])) == {"1"}
    assert set(client.queue(["ssmll-a, b", "ssmll-a"])) == {"1", "2"}


def test_how_a_job_ended_without_accounting(fakes):
    fakes.add("sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    fakes.add("squeue", 'echo "7_0|OUT_OF_MEMORY"; echo "7_1|COMPLETED"')
    assert client.ended(["7_0", "7_1"]) == {"7_0": "OUT_OF_MEMORY", "7_1": "COMPLETED"}

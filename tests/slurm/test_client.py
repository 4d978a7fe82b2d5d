"""SLURM's commands and their answers, with scripts in their place."""

from __future__ import annotations

import os
import time

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

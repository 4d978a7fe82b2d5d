"""The doctor: what it finds from the login node, with commands that stand in for SLURM's."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.doctor import Finding, examine, minutes_of, table
from slurm.profile import Profile
from tests.slurm.fakes import Fakes
from tests.slurm.site import PACKAGES


def look(tmp_path: Path, profile: Profile | None = None) -> dict[str, Finding]:
    """Findings from the login node by what they are about."""
    told: list[str] = []
    found = examine(profile or Profile(), tmp_path, PACKAGES, submit=False, report=told.append)
    return {finding.what: finding for finding in found}


def test_nothing_to_say_about_a_good_cluster(site, tmp_path):
    found = look(tmp_path, Profile(account="lab", qos="long", partition="gpu"))
    assert {finding.state for finding in found.values()} == {"ok"}
    assert set(found) == {
        "commands",
        "controller",
        "accounting",
        "arrays",
        "partition",
        "account and qos",
        "preemption",
        "preemption signal",
        "requeue",
        "KillWait",
        "GPUs",
        "sbatch --test-only",
    }
    assert found["commands"].found == "slurm 22.05.8"
    assert not any(finding.advice for finding in found.values())


def test_no_commands_at_all(tmp_path, monkeypatch):
    Fakes(tmp_path / "bin").use(monkeypatch)
    found = look(tmp_path)
    assert list(found) == ["commands"]
    assert found["commands"].state == "problem"
    assert "login node" in found["commands"].advice


def test_one_absent_command_stops_nothing(site, tmp_path):
    (site.folder / "srun").unlink()
    found = look(tmp_path)
    assert found["commands"].found == "not on the PATH: srun"
    assert found["sbatch --test-only"].state == "ok"


@pytest.mark.parametrize(
    "body",
    ["echo 'Slurmctld(primary) at head is DOWN'", "echo 'Unable to contact slurm' >&2; exit 1"],
)
def test_the_controller_does_not_answer(site, tmp_path, body):
    site.add("scontrol", body)
    found = look(tmp_path)
    assert list(found) == ["commands", "controller"], "others would wait for it, too"
    assert found["controller"].state == "problem"


def test_a_backup_controller_will_do(site, tmp_path):
    path = site.folder / "scontrol"
    both = 'head is DOWN"; echo "Slurmctld(backup) at b is UP'
    path.write_text(path.read_text().replace("head is UP", both))
    assert look(tmp_path)["controller"].state == "ok"


# What is changed at the site, the profile, and which finding then says what.
CASES = [
    ({"AccountingStorageType": "accounting_storage/none"}, {}, "accounting", "warning", "store"),
    ({"AccountingStorageType": "(null)"}, {}, "accounting", "warning", "not set"),
    ({"MaxArraySize": "100"}, {}, "arrays", "ok", "cut into arrays of 100"),
    ({"MaxArraySize": "0"}, {}, "arrays", "problem", "no arrays"),
    ({"MaxArraySize": "many"}, {}, "arrays", "warning", "cannot be told"),
    ({}, {"partition": "gpus"}, "partition", "problem", "did you mean 'gpu'"),
    ({}, {"partition": "off", "minutes": 20}, "partition", "problem", "off is DOWN"),
    ({}, {"partition": "short"}, "partition", "problem", "minutes = 30 or less"),
    ({}, {"partition": "short", "minutes": 30}, "partition", "ok", "asked for: 30 min"),
    ({"partitions": ""}, {}, "partition", "problem", "no default partition"),
    (
        {"partitions": "PartitionName=p Default=YES State=UP MaxTime=soon"},
        {},
        "partition",
        "warning",
        "cannot be told",
    ),
    (
        {"partitions": "PartitionName=p Default=YES State=UP MaxTime=UNLIMITED"},
        {"minutes": 9999},
        "partition",
        "ok",
        "UNLIMITED",
    ),
    ({}, {"account": "labb"}, "account and qos", "problem", "did you mean 'lab'"),
    ({}, {"account": "other", "qos": "long"}, "account and qos", "problem", "qos 'long' is none"),
    ({}, {"qos": "long"}, "account and qos", "ok", "qos long"),
    ({"AccountingStorageEnforce": "none"}, {"account": "x"}, "account and qos", "warning", "none"),
    (
        {"AccountingStorageType": "accounting_storage/none"},
        {"account": "lab"},
        "account and qos",
        "warning",
        "without accounting",
    ),
    ({"PreemptType": "preempt/none"}, {}, "preemption", "ok", "not preempted"),
    ({}, {"partition": "off"}, "preemption", "ok", "not preempted"),
    ({}, {"partition": "short", "minutes": 30}, "preemption", "warning", "do not come back"),
    ({}, {"partition": "short", "minutes": 30}, "preemption signal", "ok", "GraceTime 0 s"),
    (
        {
            "PreemptType": "preempt/qos",
            "partitions": "PartitionName=p Default=YES State=UP",
            "PreemptMode": "SUSPEND,GANG",
        },
        {},
        "preemption",
        "warning",
        "suspended job loses",
    ),
    (
        {"PreemptParameters": "(null)"},
        {},
        "preemption signal",
        "warning",
        "SIGTERM and lose at most checkpoint_seconds of work, but one that ends",
    ),
    (
        {"PreemptParameters": "(null)"},
        {"partition": "short"},
        "preemption signal",
        "warning",
        "are requeued by SLURM and lose at most checkpoint_seconds",
    ),
    (
        {"PreemptParameters": "(null)", "PreemptType": "preempt/qos"},
        {"partition": "short"},
        "preemption signal",
        "warning",
        "the next `run` goes on with it",
    ),
    (
        {"PreemptParameters": "", "SlurmctldParameters": "a,preempt_send_user_signal"},
        {},
        "preemption signal",
        "ok",
        "GraceTime 30 s",
    ),
    ({"JobRequeue": "0"}, {}, "requeue", "ok", "asks with --requeue"),
    ({"KillWait": "2 sec"}, {}, "KillWait", "warning", "2 sec"),
    ({"GresTypes": "(null)"}, {}, "GPUs", "problem", "gpus = 0"),
    ({"GresTypes": "(null)"}, {"gpus": 0}, "GPUs", "ok", "none asked for"),
    ({"SelectType": "select/linear"}, {}, "GPUs", "problem", 'gpu_flag = "gres"'),
    ({"SelectType": "select/linear"}, {"gpu_flag": "gres"}, "GPUs", "ok", "GresTypes=gpu"),
]


@pytest.mark.parametrize(("changes", "asked", "what", "state", "words"), CASES)
def test_findings(site, tmp_path, changes, asked, what, state, words):
    site.configure(**changes)
    found = look(tmp_path, Profile(**asked))[what]
    assert found.state == state
    assert words in f"{found.found} → {found.advice}"


def test_accounting_that_does_not_answer(site, tmp_path):
    site.add("sacct", "echo 'sacct: error: Connection refused' >&2; exit 1")
    found = look(tmp_path)["accounting"]
    assert found.state == "warning"
    assert "Connection refused" in found.found


def test_associations_that_cannot_be_told(site, tmp_path):
    site.add("sacctmgr")
    assert look(tmp_path, Profile(account="lab"))["account and qos"].state == "warning"
    site.add("sacctmgr", "echo 'error: down' >&2; exit 1")
    found = look(tmp_path, Profile(account="lab"))
    assert found["account and qos"].state == "warning"
    assert found["GPUs"].state == "ok", "the next checks go on"


def test_flags_are_tried_and_a_refusal_is_explained(site, tmp_path):
    asked = Profile(
        partition="gpu",
        gpus=2,
        gpu_type="a100",
        constraint="x|y",
        setup=("a",),
        signal_seconds=99,
        extra={"mail-type": "END"},
    )
    look(tmp_path, asked)
    words = site.calls("sbatch")[-1].split()
    assert words[0] == "--test-only"
    assert {
        "--partition=gpu",
        "--gpus-per-node=a100:2",
        "--constraint=x|y",
        "--requeue",
        "--nodes=1",
        "--signal=USR2@99",
        "--time=240",
        "--ntasks-per-node=1",
        "--mail-type=END",
        "--wrap=true",
        "--cpus-per-task=4",
    } == set(words[1:])
    site.add("sbatch", "echo 'allocation failure: Invalid qos specification' >&2; exit 1")
    found = {f.what: f for f in examine(asked, tmp_path, PACKAGES, report=lambda line: None)}
    assert found["sbatch --test-only"].state == "problem"
    assert "(profile: qos;" in found["sbatch --test-only"].found
    assert "shared folder" not in found, "no job is submitted that would be refused"


def test_no_job_waits_for_a_partition_that_is_down(site, tmp_path):
    told: list[str] = []
    found = examine(Profile(partition="off"), tmp_path, PACKAGES, report=told.append)
    assert found[-1].what == "sbatch --test-only"
    assert found[-1].state == "ok"
    assert told[-1] == "no job is submitted before this is solved: partition"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("30:00", 30),
        ("00:30:00", 30),
        ("1-00:00:00", 1440),
        ("7-12", 10800),
        ("2-01:30", 2970),
        ("45", 45),
        ("00:00:30", 0.5),
        ("UNLIMITED", None),
        ("INFINITE", None),
    ],
)
def test_time_limits(text, minutes):
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "1-"])
def test_what_is_no_time_limit(text):
    with pytest.raises(ValueError, match=r"time limit|invalid literal"):
        minutes_of(text)


def test_table_is_aligned():
    text = table(
        [
            Finding("commands", "ok", "slurm 22.05"),
            Finding("GPUs on a node", "problem", "word " * 30, "do this"),
        ]
    )
    lines = text.splitlines()
    assert lines[0] == "ok       commands        slurm 22.05"
    assert lines[1].startswith("problem  GPUs on a node  word word")
    assert lines[2].startswith(" " * 25 + "word")
    assert lines[-1] == " " * 25 + "→ do this"
    assert max(map(len, lines)) <= 100
    assert table([]) == ""

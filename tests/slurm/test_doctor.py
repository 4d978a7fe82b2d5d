"""The doctor: each finding with commands that stand in for SLURM's, and all of it on a real one."""

from __future__ import annotations

import dataclasses
import platform
import time
from pathlib import Path

import pytest

from slurm import doctor
from slurm import node_check as probe
from slurm.doctor import Finding, examine, minutes_of, table
from slurm.profile import Profile
from tests.slurm.fakes import Fakes

CONFIG = {
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "AccountingStorageEnforce": "associations,limits",
    "GresTypes": "gpu",
    "JobRequeue": "1",
    "KillWait": "30 sec",
    "MaxArraySize": "1001",
    "PreemptMode": "REQUEUE",
    "PreemptParameters": "send_user_signal",
    "PreemptType": "preempt/partition_prio",
    "SelectType": "select/cons_tres",
}
PARTITIONS = (
    "PartitionName=gpu Default=YES GraceTime=30 MaxTime=1-00:00:00 PreemptMode=REQUEUE State=UP "
    "TotalNodes=4\n"
    "PartitionName=off Default=NO GraceTime=0 MaxTime=00:30:00 PreemptMode=OFF State=DOWN "
    "TotalNodes=1\n"
    "PartitionName=short Default=NO GraceTime=0 MaxTime=30:00 PreemptMode=CANCEL State=UP\n"
)
PACKAGES = {"python": platform.python_version(), "submitit": "0", "absent-package": "1"}


class Site(Fakes):
    """A cluster that has everything."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for name in ("squeue", "scancel", "srun", "sinfo", "sacct"):
            self.add(name)
        self.add("sbatch", '[[ "$1" == --version ]] && echo "slurm 22.05.8"; exit 0')
        self.add("sacctmgr", "echo 'lab|normal,long'; echo 'other|normal'")
        self.configure()

    def configure(self, partitions: str = PARTITIONS, **changes: str) -> None:
        """Another answer of scontrol."""
        (self.folder / "config").write_text(
            "".join(f"{key:<24}= {value}\n" for key, value in (CONFIG | changes).items())
        )
        (self.folder / "partitions").write_text(partitions)
        self.add(
            "scontrol",
            f"""case "$1 $2" in
"ping ") echo "Slurmctld(primary) at head is UP" ;;
"show config") cat {self.folder}/config ;;
"show partition") cat {self.folder}/partitions ;;
esac""",
        )


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    made = Site(tmp_path / "bin")
    made.use(monkeypatch)
    return made


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


# From a node. The stand-in for sbatch starts the script that submitit wrote, as a node would.
def working(site: Site, before: str = "") -> None:
    site.add(
        "sbatch",
        f"""case "$1" in --version|--test-only) exit 0 ;; esac
echo "Submitted batch job 7"
(
  {before}
  export SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
  export SLURM_NNODES=1 SLURM_JOB_NODELIST=n1
  log=$(sed -n 's/^#SBATCH --output=//p' "$1" | sed s/%j/7/)
  cp "$1" {site.folder}/script
  bash "$1" >> "$log" 2>&1
  touch {site.folder}/ended
) > /dev/null 2>&1 < /dev/null &""",
    )
    site.add("squeue", f"[[ -e {site.folder}/ended ]] || echo '7|RUNNING|None|0:01|n1'")


def submitted(tmp_path: Path, asked: Profile) -> tuple[dict[str, Finding], list[str]]:
    told: list[str] = []
    versions = {"python": platform.python_version(), "numpy": probe.metadata.version("numpy")}
    found = probe.from_node(asked, tmp_path / "shared", versions, told.append)
    return {finding.what: finding for finding in found}, told


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(probe, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(probe, "APPEAR_SECONDS", 0.5)


NO_SRUN = Profile(gpus=0, use_srun=False)


def test_a_job_answers(site, quick, tmp_path):
    working(site)
    found, told = submitted(tmp_path, NO_SRUN)
    assert set(found) == {
        "shared folder",
        "free space",
        "/dev/shm",
        "clock",
        "environment",
        "open files",
    }
    assert found["shared folder"].state == "ok"
    assert found["environment"].state == "ok"
    assert found["clock"].state == "ok"
    assert any("job 7 works on n1" in line for line in told)
    assert list((tmp_path / "shared").iterdir()) == [], "nothing is left behind"
    assert "#SBATCH --time=20" in (site.folder / "script").read_text(), "short jobs start sooner"
    assert site.calls("scancel") == []


def test_a_job_that_fails_shows_its_log(site, quick, tmp_path):
    working(site)
    site.add("sacct", "echo '7|FAILED'")
    asked = dataclasses.replace(NO_SRUN, setup=("echo 'module: error: no cuda'; exit 1",))
    found, _ = submitted(tmp_path, asked)
    assert found["a job"].state == "problem"
    assert "(FAILED): module: error: no cuda" in found["a job"].found
    assert str(tmp_path / "shared") in found["a job"].advice, "the log is kept"


def test_a_job_that_fails_without_a_word(site, quick, tmp_path):
    working(site)
    found, _ = submitted(tmp_path, dataclasses.replace(NO_SRUN, setup=("exit 1",)))
    assert found["a job"].found == "job 7 ended without an answer: its log is empty"


def test_a_folder_that_nodes_do_not_have(site, quick, tmp_path):
    working(site, before=f"touch {site.folder}/ended; exit")
    found, _ = submitted(tmp_path, NO_SRUN)
    assert found["shared folder"].state == "problem"
    assert "login and compute nodes share" in found["shared folder"].advice


def test_a_folder_that_cannot_be_written(site, tmp_path):
    (tmp_path / "shared").write_text("a file")
    found, _ = submitted(tmp_path, NO_SRUN)
    assert found["shared folder"].state == "problem"
    assert "--runs" in found["shared folder"].advice


def test_a_job_that_does_not_start_is_cancelled(site, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "START_SECONDS", 0.3)
    site.add("sbatch", 'echo "Submitted batch job 7"')
    site.add("squeue", "echo '7|PENDING|Priority|0:00|'")
    found, told = submitted(tmp_path, NO_SRUN)
    assert found["a job"].state == "warning"
    assert "did not start within 0 s (Priority)" in found["a job"].found
    assert "try again" in found["a job"].advice
    assert sum("waits in the queue (Priority)" in line for line in told) == 1
    [call] = site.calls("scancel")
    assert call.startswith("--name=ssmll-doctor-")


def test_an_interruption_leaves_no_job(site, quick, tmp_path, monkeypatch):
    site.add("sbatch", 'echo "Submitted batch job 7"')
    site.add("squeue", "echo '7|PENDING|Priority|0:00|'")

    def stop(line: str) -> None:
        if "waits" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe.from_node(NO_SRUN, tmp_path / "shared", {}, stop)
    assert len(site.calls("scancel")) == 1


ANSWER = {
    "hostname": "n1",
    "executable": "/opt/python",
    "cuda_visible_devices": "0,1",
    "nvidia_smi": "/usr/bin/nvidia-smi",
    "token": "t",
    "unwritable": "",
    "hard_links": True,
    "clock_seconds": 0.1,
    "gpu_names": ["A100", "A100"],
    "gpu_error": "",
    "nofile": 4096,
    "free_bytes": 10**12,
    "shm_bytes": 10**11,
    "packages": {"python": "3.11.2", "torch": "2.5"},
}


@pytest.mark.parametrize(
    ("changes", "what", "state", "words"),
    [
        ({}, "GPUs on a node", "ok", "torch sees 2 of 2 on n1 (A100)"),
        ({"gpu_names": ["A100"]}, "GPUs on a node", "problem", "gpu_type"),
        (
            {
                "gpu_names": [],
                "gpu_error": "RuntimeError: old driver",
                "nvidia_smi": None,
                "cuda_visible_devices": None,
            },
            "GPUs on a node",
            "problem",
            "CUDA_VISIBLE_DEVICES=not set, no nvidia-smi, RuntimeError: old driver",
        ),
        ({"token": "old"}, "shared folder", "problem", "not the same there"),
        ({"unwritable": "/x: Read-only file system"}, "shared folder", "problem", "Read-only"),
        ({"hard_links": False}, "shared folder", "ok", "leases fall back to O_EXCL"),
        ({"clock_seconds": -7.04}, "clock", "warning", "-7.0 s"),
        (
            {"packages": {"python": "3.9.1", "torch": None}},
            "environment",
            "problem",
            "python 3.9.1 (here 3.11.2), torch is absent (here 2.5)",
        ),
        ({"free_bytes": 10**9}, "free space", "warning", "1.0 GB"),
        ({"free_bytes": None}, "free space", "warning", "cannot be told"),
        ({"shm_bytes": 64 * 10**6}, "/dev/shm", "warning", "0.1 GB"),
        ({"nofile": 256}, "open files", "warning", "at most 256"),
        ({"nofile": -1}, "open files", "ok", "no limit"),
    ],
)
def test_what_a_node_saw(changes, what, state, words):
    here = {"python": "3.11.2", "torch": "2.5"}
    found = probe.compare(ANSWER | changes, "t", Profile(gpus=2), here)
    [finding] = [finding for finding in found if finding.what == what]
    assert finding.state == state
    assert words in f"{finding.found} → {finding.advice}"
    assert all(other.state == "ok" for other in found if other.what != what)


@pytest.mark.slurm
def test_a_real_cluster(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
    versions = {"python": platform.python_version(), "numpy": probe.metadata.version("numpy")}
    shared = slurm.folder.parent / f"{slurm.folder.name}-doctor"
    told: list[str] = []
    start = time.monotonic()
    try:
        found = examine(Profile(gpus=1, cpus=1, minutes=30), shared, versions, report=told.append)
    finally:
        for folder in (shared / "doctor", shared):
            if folder.is_dir():
                folder.rmdir()  # fails where something was left behind
    state = {finding.what: finding for finding in found}
    notes = table(found)
    # GPUs are only counted there: no device stands behind them.
    assert [f.what for f in found if f.state == "problem"] == ["GPUs on a node"], notes
    assert "torch sees 0 of 1" in state["GPUs on a node"].found
    assert state["accounting"].state == ("ok" if slurm.accounting else "warning"), notes
    assert state["preemption signal"].state == "ok", notes
    assert state["environment"].state == "ok", notes
    assert state["sbatch --test-only"].state == "ok", notes
    assert any("answered from" in line for line in told)
    assert time.monotonic() - start < 120
    too_long = doctor.examine(
        Profile(gpus=0, minutes=3000, account="no"), shared, {}, submit=False, report=told.append
    )
    problems = {f.what for f in too_long if f.state == "problem"}
    assert "partition" in problems
    assert ("account and qos" in problems) == slurm.accounting

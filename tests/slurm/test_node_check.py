"""The doctor's job: what a node answers, with commands that stand in for SLURM's and on a real one."""

from __future__ import annotations

import dataclasses
import platform
import time
from pathlib import Path

import pytest

from slurm import doctor, node_check
from slurm.doctor import Finding, examine, table
from slurm.profile import Profile
from tests.slurm.site import Site


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
    versions = {"python": platform.python_version(), "numpy": node_check.metadata.version("numpy")}
    found = node_check.from_node(asked, tmp_path / "shared", versions, told.append)
    return {finding.what: finding for finding in found}, told


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(node_check, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(node_check, "APPEAR_SECONDS", 0.5)


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
    monkeypatch.setattr(node_check, "START_SECONDS", 0.3)
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
        node_check.from_node(NO_SRUN, tmp_path / "shared", {}, stop)
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
    found = node_check.compare(ANSWER | changes, "t", Profile(gpus=2), here)
    [finding] = [finding for finding in found if finding.what == what]
    assert finding.state == state
    assert words in f"{finding.found} → {finding.advice}"
    assert all(other.state == "ok" for other in found if other.what != what)


@pytest.mark.slurm
def test_a_real_cluster(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
    versions = {"python": platform.python_version(), "numpy": node_check.metadata.version("numpy")}
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

"""Folders of runs with names that submitit, SLURM, shells and globs would read as something else."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from methods.errors import UserError
from slurm import entry
from slurm.launches import Launches
from slurm.profile import Profile
from slurm.submit import Array, submit
from slurm.task import JobCommand
from tests.conftest import ROOT
from tests.slurm.fakes import Fakes
from tests.slurm.on_cluster import OnCluster, attempts

ODD = [
    "100% a%j%A_%a-%t %%j",
    'it\'s "quoted" $HOME `id` [x]*? # ünï',
    "-x --output=%j",
    'no percent, but it\'s "quoted" [x]*',
]
# Stands in for srun, which replaces some `%` of a log's name twice: it takes names without any in the folder.
SRUN = r"""
out=
while [ $# -gt 0 ]; do
  case $1 in --output) out=$2; shift 2 ;; -*) shift ;; *) break ;; esac
done
case ${out%/*} in *%*) echo "Slurmd could not connect IO" >&2; exit 1 ;; esac
out=${out//%A/41}; out=${out//%a/$SLURM_ARRAY_TASK_ID}; out=${out//%t/0}
if [ -n "$out" ]; then "$@" >> "$out" 2>&1; else "$@"; fi
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch) -> Fakes:
    made = Fakes(tmp_path / "bin")
    made.add("sbatch", 'cp "${@: -1}" ' + f'{tmp_path}/script; echo "Submitted batch job 41"')
    made.add("srun", SRUN)
    made.use(monkeypatch)
    return made


@pytest.mark.parametrize("name", ODD)
def test_jobs_work_in_a_folder_of_any_name_and_their_logs_are_found(fakes, tmp_path, name):
    folder, left = tmp_path / name, tmp_path / "left"
    launch = Launches(folder).create("x", {"job_name": "x", "bundles": []})
    code = f"import os, pathlib; pathlib.Path({str(left)!r} + os.environ['SLURM_ARRAY_TASK_ID']).write_text("
    work = [JobCommand((sys.executable, "-c", f"{code}{text!r}); print('hello', {text!r})")) for text in "ab"]
    done = submit(Array((3, 4)), launch.log_folder, "x", Profile(), work, ROOT, 100)
    assert done == [(3, "41_0"), (4, "41_1")]
    script = (tmp_path / "script").read_text()
    (output,) = re.findall(r"^#SBATCH --output=(.*)$", script, re.M)
    assert shlex.split(output) == [str(launch.log_folder).replace("%", "%%") + "/%A_%a_0_log.out"]
    for task in "01":
        job = {"SLURM_JOB_ID": f"5{task}", "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": task}
        more = {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
        subprocess.run(
            ["/bin/bash", tmp_path / "script"],
            env={**os.environ, **job, **more, "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "n"},
            check=True,
        )
    assert [(tmp_path / f"left{task}").read_text() for task in "01"] == ["a", "b"]
    for number, job in done:
        assert f"hello {'ab'[number - 3]}" in launch.log(job).read_text()
    # Nothing appeared beside the folder, under a name that was made of the pattern.
    assert {path.name for path in tmp_path.iterdir()} == {"bin", name, "left0", "left1", "script"}


@pytest.mark.parametrize("name", ["back\\slash", "two\nlines"])
def test_a_folder_that_slurm_cannot_write_logs_into_is_refused_before_anything(fakes, tmp_path, name):
    with pytest.raises(UserError, match="SLURM cannot write logs") as raised:
        submit(Array((0,)), tmp_path / name, "x", Profile(), [JobCommand(("true",))], ROOT, 1)
    assert "\n" not in str(raised.value)
    assert fakes.calls("sbatch") == []
    assert not (tmp_path / name).exists()


def test_code_that_pythonpath_cannot_name_is_refused(fakes, tmp_path):
    with pytest.raises(UserError, match="where ':' ends a path"):
        submit(Array((0,)), tmp_path, "x", Profile(), [JobCommand(("true",))], Path("/a:b"), 1)
    assert entry.importable("/a b%j") == "/a b%j"


def test_another_submitit_is_noticed(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match="in another way now"), entry.any_folder(tmp_path):
        pass


@pytest.mark.slurm
def test_a_grid_in_an_odd_folder_on_a_real_cluster(slurm, tmp_path, small):
    folder = tmp_path / ODD[0] / ODD[1].replace('"', "")
    folder.mkdir(parents=True)
    command = OnCluster(folder, slurm, small)
    _, told = command.launch("--yes", "--wait", "--no-plots", "--methods", "zero_shot", "linear_probe")
    assert "2 done" in told or "4 done" in told
    assert set(attempts(command.runs).values()) == {1}
    logs = list((command.runs / "slurm" / "launches").rglob("*_log.out"))
    assert any("done: " in log.read_text() for log in logs)
    assert {path.name for path in tmp_path.iterdir()} == {ODD[0]}

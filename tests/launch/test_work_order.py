"""Work orders: what is written is read, old files still serve, and anything else is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys

import pytest

from benchmarks.launch.bundles import Bundle
from benchmarks.launch.slurm import WORKER
from benchmarks.launch.slurm_jobs import TIMING
from benchmarks.launch.work_order import FORMAT, WorkOrder, order
from benchmarks.plan.grid import load
from benchmarks.plan.jobs import resolve
from benchmarks.progress import silent
from benchmarks.workspace import Workspace
from methods.errors import UserError
from tests.conftest import ROOT, grid_text

OLD_BUNDLE = {
    "dataset": "tiny",
    "kind": "runs",
    "needs": ["s" * 64],
    "precision": "fp32",
    "processes": 1,
    "run_ids": ["a" * 64],
    "seconds": 600.0,
    "stage_ids": [],
    "strategy": "ddp",
}


def old_plan(**values: object) -> dict:
    """The keys that `plan --save` wrote before work orders had a format and named their module."""
    return {
        "bundles": [OLD_BUNDLE],
        "checkpoint_seconds": 30.0,
        "code": "/runs/slurm/code/b1c1b62e786f",
        "command": "benchmarks/run.py plan --grid tiny --launcher slurm --save plan.json",
        "data": "/data",
        "estimates": {"a" * 64: None},
        "grid": "/grids/tiny.toml",
        "hang_seconds": 600.0,
        "job_name": "ssmll-tiny",
        "launch": "a8edfa7480444246b7037f53784155c2",
        "launcher": None,
        "nodes": 0,
        "processes": 1,
        "run_ids": ["a" * 64],
        "runs": "/runs",
        "strategy": None,
        "threads": 0,
        "titles": {"a" * 64: "supervised · tiny p=0.05 seed=1 [aaaaaaaa]"},
        **values,
    }


@pytest.fixture(scope="module")
def tiny(voc_root, tmp_path_factory):
    """A grid, its runs, and the folders of a workspace with its cached images."""
    folder = tmp_path_factory.mktemp("order")
    grid = folder / "tiny.toml"
    grid.write_text(grid_text(voc_root, '["linear_probe", "supervised", "fixmatch", "csaa"]'))
    workspace = Workspace(folder / "data", folder / "runs")
    jobs = resolve(load(str(grid)), workspace, progress=silent, workers=1)
    return grid, {job.spec.method: job for job in jobs}, workspace


def test_an_order_is_read_as_it_was_written(tmp_path):
    bundle = Bundle("runs", "fp32", "ddp", "tiny", 2, run_ids=("a",), needs=("s",), seconds=3.0)
    made = WorkOrder.make(
        tmp_path / "grid.toml",
        Workspace(tmp_path / "data", tmp_path / "runs"),
        [],
        strategy="zero1",
        checkpoint_seconds=1.5,
        hang_seconds=60,
        threads=2,
        launcher=77,
        bundles=[bundle],
        code=tmp_path,
        module=TIMING,
    )
    made.write(tmp_path / "plan.json")
    assert WorkOrder.read(tmp_path / "plan.json") == made
    written = json.loads((tmp_path / "plan.json").read_text())
    # `slurm/array.sbatch` and `slurm.launches` read these by name.
    assert {key: written[key] for key in ("code", "module", "format")} == {
        "code": str(tmp_path),
        "module": TIMING,
        "format": FORMAT,
    }
    assert written["bundles"][0] == {**bundle.record(), "run_ids": ["a"], "stage_ids": [], "needs": ["s"]}
    assert made.argv(tmp_path / "plan.json", 3) == ("-m", TIMING, str(tmp_path / "plan.json"), "3")
    assert made.workspace == Workspace(tmp_path / "data", tmp_path / "runs")


def test_an_old_plan_is_an_order_without_a_module():
    found = WorkOrder.from_record(old_plan(), "plan.json")
    assert (found.format, found.module) == (0, "")
    (bundle,) = found.bundles
    assert (bundle.run_ids, bundle.needs, bundle.seconds) == (("a" * 64,), ("s" * 64,), 600.0)
    # A local launcher's plan had neither bundles nor code.
    local = {k: v for k, v in old_plan(launcher=41).items() if k not in ("bundles", "code", "job_name")}
    found = WorkOrder.from_record(local, "plan.json")
    assert (found.bundles, found.code, found.launcher) == ((), "", 41)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no plan of runs: it is not JSON"),
        ("[]", "is no plan of runs; `run.py plan --save FILE` writes one"),
        ('{"name": "something else"}', "is no plan of runs; `run.py plan --save FILE` writes one"),
        (json.dumps(old_plan(format=FORMAT + 1)), f"written by a newer version (format {FORMAT + 1}, this"),
        (json.dumps({"grid": "g", "run_ids": []}), "lacks 'data': save the plan again"),
        (json.dumps(old_plan(threads="two")), "threads = 'two' is not what a plan holds there"),
        (json.dumps(old_plan(bundles=[{"runs": 1}])), "its bundles are not those of this version"),
        (json.dumps(old_plan(bundles=["x"])), "its bundles are not those of this version"),
        (None, "No such file or directory"),
    ],
)
def test_a_foreign_file_is_refused_in_one_line_that_names_it(tmp_path, text, message):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as refusal:
        WorkOrder.read(path)
    (line,) = str(refusal.value).splitlines()
    assert line.startswith(str(path))
    assert message in line


@pytest.mark.parametrize("module", ["benchmarks.worker", WORKER, TIMING])
def test_every_module_refuses_a_foreign_file_in_one_line(tmp_path, module):
    path = tmp_path / "plan.json"
    path.write_text("{}")
    words = [sys.executable, "-m", module, str(path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"error: {path} is no plan of runs; `run.py plan --save FILE` writes one"
    ]
    assert done.stderr == ""


def test_a_bundle_that_an_old_plan_describes_is_executed(tmp_path, tiny):
    """As a job does that waited in the queue while the code was installed anew."""
    grid, jobs, workspace = tiny
    job = jobs["linear_probe"]
    bundle = {**OLD_BUNDLE, "run_ids": [job.spec.run_id], "needs": []}
    places = {"grid": str(grid), "data": str(workspace.data), "runs": str(tmp_path / "runs")}
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(old_plan(**places, run_ids=[job.spec.run_id], bundles=[bundle])))
    words = [sys.executable, "-m", "benchmarks.worker", str(plan)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([*words, "1"], **run)
    assert (done.returncode, done.stdout) == (2, "error: bundle 1: the plan has bundles 0 to 0\n")
    done = subprocess.run([*words, "0"], **run)
    assert done.returncode == 0, done.stdout + done.stderr
    store = Workspace(workspace.data, tmp_path / "runs").store
    result = store.load(job.directory(Workspace(workspace.data, tmp_path / "runs")))
    assert result["provenance"]["command"] == old_plan()["command"]


def test_what_changed_since_the_plan_is_noticed_and_named(tiny):
    grid, jobs, workspace = tiny
    settings = {"module": WORKER, "strategy": None, "checkpoint_seconds": 1.0, "hang_seconds": 1.0}
    made = WorkOrder.make(grid, workspace, [jobs["csaa"], jobs["fixmatch"]], **settings)
    assert {job.spec.run_id for job in made.resolve()} == set(made.run_ids)
    for field, words in (
        ("split_digest", "the labelled images changed since"),
        ("weights_sha256", "the weights of a backbone changed since"),
        ("", "a version or a setting of the code changed since"),
    ):
        planned = {**made.planned, **({field: ["0" * 64]} if field else {})}
        ids = ("0" * 64, made.run_ids[0])
        with pytest.raises(UserError, match=f"1 of the 2 runs of grid tiny are not .* more: {words}"):
            dataclasses.replace(made, run_ids=ids, planned=planned).resolve()
    # A file of an earlier version has no hashes to compare.
    with pytest.raises(UserError, match=r"tiny.toml or what it reads \(recipe, modules"):
        dataclasses.replace(made, run_ids=ids, planned={}, sources={}).resolve()


def test_code_that_changed_since_the_plan_is_named_and_nothing_is_run(tiny):
    grid, jobs, workspace = tiny
    settings = {"module": WORKER, "strategy": None, "checkpoint_seconds": 1.0, "hang_seconds": 1.0}
    made = WorkOrder.make(grid, workspace, [jobs["csaa"]], **settings)
    sources = {**made.sources, "methods/losses.py": "0" * 64}
    with pytest.raises(UserError, match=r"changed since the launch \(methods/losses.py\): nothing was run"):
        dataclasses.replace(made, sources=sources).resolve()


def test_tasks_are_stages_first_and_the_longest_runs_before_the_others(tiny):
    _, jobs, _ = tiny
    tasks = [(stage and stage.kind, job.spec.method) for stage, job in order(list(jobs.values()))]
    stages = [kind for kind, _ in tasks if kind]
    assert sorted(stages) == ["features", "warmup", "warmup"]
    assert [method for kind, method in tasks if not kind] == [
        "fixmatch",
        "csaa",
        "supervised",
        "linear_probe",
    ]
    assert all(kind for kind, _ in tasks[: len(stages)])


def test_a_bundle_of_runs_makes_their_missing_stages_too(tiny):
    grid, jobs, workspace = tiny
    (stage,) = jobs["fixmatch"].stages
    bundles = [
        Bundle("stages", "fp32", "ddp", "tiny", 1, stage_ids=(stage.stage_id,)),
        Bundle("runs", "fp32", "ddp", "tiny", 1, run_ids=(jobs["fixmatch"].spec.run_id,)),
    ]
    settings = {"module": WORKER, "strategy": None, "checkpoint_seconds": 1.0, "hang_seconds": 1.0}
    made = WorkOrder.make(grid, workspace, list(jobs.values()), bundles=bundles, **settings)
    found = list(jobs.values())
    assert [each and each.stage_id for each, _ in made.tasks(found, 0)] == [stage.stage_id]
    assert [each and each.stage_id for each, _ in made.tasks(found, 1)] == [stage.stage_id, None]
    assert made.tasks(found, None) == order(found)


SRUN = """#!/bin/bash
# Runs no task: notes what would run, where the code lies, and what the call is named.
printf '%s\\n' "$*" >> "$NOTES"
printf '%s\\n' "code=${PYTHONPATH%%:*} safe=$PYTHONSAFEPATH launch=$SSMLL_LAUNCH" >> "$NOTES"
"""


@pytest.fixture
def array(tmp_path):
    """Calls `slurm/array.sbatch` as one element of an array; returns the process and what srun was asked."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
    notes = tmp_path / "notes"

    def call(plan: object, element: int = 0, count: int = 1):
        path = tmp_path / "saved.json"
        path.write_text(plan if isinstance(plan, str) else json.dumps(plan))
        notes.write_text("")
        environment = {
            **os.environ,
            "PATH": f"{srun.parent}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "NOTES": str(notes),
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": str(element),
            "SLURM_ARRAY_TASK_MIN": "0",
            "SLURM_ARRAY_TASK_COUNT": str(count),
        }
        words = ["bash", str(ROOT / "slurm" / "array.sbatch"), str(path)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        return done, notes.read_text().splitlines(), path

    return call


def test_array_sbatch_starts_the_module_that_the_plan_names(array, tmp_path):
    bundles = [{**OLD_BUNDLE, "processes": processes} for processes in (1, 4, 1)]
    plan = old_plan(bundles=bundles, code=str(tmp_path), module=WORKER)
    done, notes, path = array(plan, element=0, count=2)
    assert done.returncode == 0, done.stderr
    task = f"{sys.executable} -m slurm.task -- {sys.executable} -m {WORKER} {path}"
    assert notes[::2] == [f"--nodes=1 --ntasks=1 {task} 0", f"--nodes=1 --ntasks=1 {task} 2"]
    assert notes[1] == f"code={tmp_path} safe=1 launch=array-7"
    assert array(plan, element=1, count=2)[1][0] == f"{task} 1"  # all tasks of the job


def test_array_sbatch_starts_what_the_code_of_an_old_plan_has(array, tmp_path):
    done, notes, path = array(old_plan(code=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert notes[0].endswith(f"-m benchmarks.worker {path} 0")


@pytest.mark.parametrize("plan", ["{", "[]", {"code": "/", "bundles": [{}]}, {"grid": "x"}])
def test_array_sbatch_refuses_a_foreign_file_in_one_line(array, plan):
    done, notes, path = array(plan)
    assert (done.returncode, notes) == (2, [])
    assert done.stderr == f"{path} is no plan of a cluster's jobs: make one with run.py plan --save\n"


def test_array_sbatch_says_that_the_code_is_gone(array, tmp_path):
    done, notes, path = array(old_plan(code=str(tmp_path / "absent")))
    assert (done.returncode, notes) == (2, [])
    assert done.stderr.startswith(f"{path}: the code that it was made with is gone ({tmp_path}/absent)")

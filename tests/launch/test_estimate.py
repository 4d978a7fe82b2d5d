"""Estimates against closed forms, and one probe against a run that was really executed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.launch import estimate, timing
from benchmarks.launch.estimate import Estimates
from benchmarks.launch.execution import Execution, Options
from benchmarks.plan.grid import load
from benchmarks.plan.jobs import Job, resolve
from benchmarks.progress import silent
from benchmarks.training import trainer
from benchmarks.training.group import Group
from benchmarks.training.strategy import make
from benchmarks.workspace import Workspace
from tests.conftest import grid_text

METHODS = '["linear_probe", "supervised", "fixmatch", "csaa"]'
GPU, CPU = "NVIDIA H100", "CPU AMD EPYC, 1 threads"


@pytest.fixture(scope="module")
def prepared(voc_root, tmp_path_factory) -> tuple[list[Job], Workspace]:
    folder = tmp_path_factory.mktemp("estimate")
    (folder / "tiny.toml").write_text(grid_text(voc_root, METHODS, epochs=4, eval_every=3))
    workspace = Workspace(folder / "data", folder / "runs")
    grid = load(str(folder / "tiny.toml"))
    return resolve(grid, workspace, progress=silent, workers=1), workspace


@pytest.fixture
def workspace(prepared, tmp_path) -> Workspace:
    return Workspace(prepared[1].data, tmp_path / "runs")


@pytest.fixture
def jobs(prepared) -> dict[str, Job]:
    return {job.spec.method: job for job in prepared[0]}


def finish(
    workspace: Workspace,
    job: Job,
    seconds: float,
    images: int,
    *,
    device: str = GPU,
    wall: float | None = None,
    age: float = 0.0,
    attempts: int = 1,
    processes: int = 1,
    epochs: int | None = None,
    hyper: dict | None = None,
    seed: int = 9,
):
    """A finished run like `job`, but for what is given; `wall` None makes it a copy."""
    recipe = dict(job.spec.recipe) | ({"epochs": epochs} if epochs else {})
    spec = dataclasses.replace(job.spec, seed=seed, recipe=recipe, hyper={**job.spec.hyper, **(hyper or {})})
    folder = workspace.store.directory(spec.run_id, spec.record())
    folder.mkdir(parents=True)
    for number in range(1, attempts + 1):
        (folder / f"lease.{number:06d}").write_text("{}")
    record = {
        "spec": spec.record(),
        "provenance": {"processes": processes},
        "cost": {"seconds": seconds, "device": device, "images_seen": images},
        "split": {"labelled": 45, "held_out": 0, "unlabelled": 45},
    }
    (folder / "result.json").write_text(json.dumps(record))
    (folder / "spec.json").write_text("{}")
    done = 1_700_000_000 - age
    os.utime(folder / "result.json", (done, done))
    claimed = done - (wall or 0.0)
    os.utime(folder / "spec.json", (claimed, claimed))
    return folder


def test_nothing_is_measured(jobs, workspace):
    known = Estimates(workspace)
    for job in jobs.values():
        assert known.run(job) == estimate.Estimate(None, "not measured")
        for stage in job.stages:
            assert known.stage(stage, job).seconds is None


def test_seconds_scale_with_images_and_evaluations(jobs, workspace):
    job = jobs["fixmatch"]
    # 45 unlabelled images in batches of 12 are 4 steps with 6 labelled images each; 2 epochs of
    # them with one evaluation of 40 images were measured, and 4 epochs with 2 are asked for.
    finish(workspace, job, 13.8, 138, epochs=2, wall=13.8 + 8.0)
    found = Estimates(workspace).run(job)
    assert found.seconds == pytest.approx(4 * (45 + 4 * 6) * 0.1 + 2 * 8.0)
    assert found.source == f"1 finished run on {GPU}"
    # A copy has no time of its claim: scored images are guessed from the trained ones.
    other = Workspace(workspace.data, workspace.runs / "copy")
    finish(other, job, 13.8, 138, epochs=2)
    assert Estimates(other).run(job).seconds == pytest.approx(276 * 0.1 + 80 * 0.1 / 3)


def test_the_median_of_several_runs_and_of_equal_settings(jobs, workspace):
    job = jobs["supervised"]
    for seed, seconds in enumerate((9.0, 10.0, 20.0)):
        finish(workspace, job, seconds, 100, wall=seconds, seed=seed)
    finish(workspace, job, 900.0, 100, wall=900.0, hyper={"lr_head": 7.0})
    finish(workspace, job, 900.0, 100, wall=900.0, attempts=2, seed=11)
    found = Estimates(workspace).run(job)
    assert found.seconds == pytest.approx(2 * 45 * 0.1)
    assert found.source == f"3 finished runs on {GPU}"
    changed = dataclasses.replace(job, spec=dataclasses.replace(job.spec, hyper={"lr_head": 8.0}))
    found = Estimates(workspace).run(changed)
    assert found.source == f"4 finished runs with other settings on {GPU}"


def test_a_device_is_preferred_else_the_newest(jobs, workspace):
    job = jobs["supervised"]
    finish(workspace, job, 10.0, 100, wall=10.0, age=50)
    finish(workspace, job, 90.0, 100, wall=90.0, device=CPU, seed=2)
    assert Estimates(workspace).run(job).source == f"1 finished run on {CPU}"
    found = Estimates(workspace, GPU).run(job)
    assert (found.seconds, found.source) == (pytest.approx(9.0), f"1 finished run on {GPU}")
    assert Estimates(workspace, "h100").run(job) == found
    assert Estimates(workspace, "NVIDIA A100").run(job).source == f"1 finished run on {CPU}"


def test_other_numbers_of_processes_and_batches_do_not_count(jobs, workspace):
    job = jobs["supervised"]
    finish(workspace, job, 10.0, 100, processes=2)
    assert Estimates(workspace).run(job).seconds is None
    assert Estimates(workspace, processes=2).run(job).seconds is not None
    recipe = {**job.spec.recipe, "batch_warmup": 99}
    larger = dataclasses.replace(job, spec=dataclasses.replace(job.spec, recipe=recipe))
    assert Estimates(workspace, processes=2).run(larger).seconds is None


def test_a_resumed_run_counts_where_there_is_no_other(jobs, workspace):
    job = jobs["supervised"]
    finish(workspace, job, 10.0, 100, attempts=2, wall=11.0)
    found = Estimates(workspace).run(job)
    assert found.source == f"1 resumed run on {GPU}"
    assert found.seconds == pytest.approx(90 * 0.1 + 40 * 0.1 / 3)


def test_damaged_files_are_passed_over(jobs, workspace):
    job = jobs["supervised"]
    for seed, text in enumerate(("{", "[]", "{}", '{"spec": 3}', "\xff")):
        folder = finish(workspace, job, 1.0, 1, seed=seed)
        (folder / "result.json").write_text(text, encoding="latin-1")
    finish(workspace, job, 0.0, 0, seed=20)
    for name in ("warmup-0", "features-0"):
        (workspace.stages / name).mkdir(parents=True)
        (workspace.stages / name / "stage.json").write_text('{"kind": "warmup"}')
    assert Estimates(workspace).run(job).seconds is None
    fixmatch = jobs["fixmatch"]
    assert Estimates(workspace).stage(fixmatch.stages[0], fixmatch).seconds is None
    finish(workspace, job, 10.0, 100, wall=10.0, seed=30)
    assert Estimates(workspace).run(job).seconds == pytest.approx(9.0)


def test_a_fitted_method_follows_the_run_with_the_nearest_number_of_images(jobs, workspace):
    job = jobs["linear_probe"]
    finish(workspace, job, 3.0, 90)
    finish(workspace, job, 600.0, 2000, seed=2, processes=4)  # fitted by the first process
    found = Estimates(workspace).run(job)
    assert found.seconds == pytest.approx(1.5)
    assert found.source == f"1 finished run on {GPU}"


def test_a_warm_up_from_another_then_from_labelled_only_runs(jobs, workspace):
    job = jobs["fixmatch"]
    (stage,) = job.stages
    finish(workspace, jobs["supervised"], 10.0, 100, wall=10.0)
    found = Estimates(workspace).stage(stage, job)
    assert found.seconds == pytest.approx(45 * 0.1)
    csaa = jobs["csaa"]
    found = Estimates(workspace).stage(csaa.stages[0], csaa)
    assert found.seconds == pytest.approx(45 * 0.1)
    assert found.source == f"1 finished run of another method on {GPU}"
    # The same warm-up, three times as long, on this very split.
    longer = {**stage.key, "recipe": {**stage.key["recipe"], "warmup_epochs": 3}}
    folder = workspace.stages / "warmup-longer"
    folder.mkdir(parents=True)
    record = {"kind": "warmup", "key": longer, "seconds": 6.0, "device": GPU}
    (folder / "stage.json").write_text(json.dumps(record))
    found = Estimates(workspace).stage(stage, job)
    assert (found.seconds, found.source) == (pytest.approx(2.0), f"1 finished warm-up on {GPU}")


@pytest.fixture
def computing_time(monkeypatch):
    """Clocks that stand while other processes have the core; one thread is one core's time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    clock = SimpleNamespace(monotonic=time.process_time)
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(trainer, "time", clock)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("computing_time")
def test_a_probe_foretells_a_run_within_a_factor(jobs, workspace):
    strategy, said = make("ddp", "fp32", Group()), []
    wanted = [jobs["csaa"], jobs["linear_probe"], jobs["supervised"]]
    timing.measure_missing(wanted, workspace, strategy, said.append)
    # Runs of two methods and their stages, and a labelled-only run.
    assert len(said) == 5
    assert all(line.startswith("probed ") for line in said)
    assert len(list((workspace.runs / "slurm" / "probes").iterdir())) == 5
    assert not workspace.store.scan()
    timing.measure_missing(wanted, workspace, strategy, said.append)
    assert len(said) == 5

    before = Estimates(workspace)
    execution = Execution(workspace, strategy, Options())
    for job in wanted:
        guess = before.run(job)
        assert guess.source.startswith("probe on ")
        for stage in job.stages:
            assert before.stage(stage, job).source.startswith("probe on ")
            assert execution.stage(stage, job) == "done"
        started = time.process_time()
        assert execution.run(job) == "done"
        whole = time.process_time() - started
        if job.cell.kind == "fit":  # milliseconds
            continue
        cost = workspace.store.load(job.directory(workspace))["cost"]
        assert abs(math.log(guess.seconds / whole)) < math.log(3)
        assert guess.seconds > cost["seconds"] / 3  # a part of it
        after = Estimates(workspace).run(job)
        assert after.source.startswith("1 finished run on ")
        assert after.seconds >= cost["seconds"]


@pytest.mark.parametrize(
    "method", ["dicap", *(pytest.param(n, marks=pytest.mark.slow) for n in ("bbam", "d2l"))]
)
def test_methods_with_further_scores_patches_and_phases_are_measured(method, voc_root, tmp_path):
    (tmp_path / "tiny.toml").write_text(grid_text(voc_root, f'["{method}"]', epochs=2))
    grid = load(str(tmp_path / "tiny.toml"))
    (job,) = resolve(grid, Workspace(tmp_path / "data", tmp_path / "runs"), progress=silent, workers=1)
    found = timing.measure_steps(job, None, make("ddp", "fp32", Group()))
    assert found["images"] > 0
    assert found["image"] > 0
    images = Estimates(Workspace(tmp_path / "data", tmp_path / "runs")).run(job)
    assert images.seconds is None  # nothing is known of it yet

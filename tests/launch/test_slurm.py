"""Bundles, arrays and submissions without a cluster: SLURM's commands are replaced."""

from __future__ import annotations

import dataclasses
import errno
import json
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from benchmarks.launch import slurm as module
from benchmarks.launch.bundles import GUESS_SECONDS, Bundle, pack
from benchmarks.launch.slurm import WORKER, SlurmOptions, check_hours, confirmed, propose
from benchmarks.launch.slurm_submission import Scheduler, arrays, launch, shortened
from benchmarks.launch.work_order import WorkOrder
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results.store import RunStore
from slurm import client, sbatch
from slurm.launches import Launch, Launches
from slurm.profile import Profile
from tests.conftest import ROOT


@dataclass(frozen=True)
class Stage:
    kind: str
    stage_id: str

    def is_done(self, workspace) -> bool:
        return False


def job(name: str, kind: str = "semi", dataset: str = "voc", stages=(), precision: str = "fp32"):
    return SimpleNamespace(
        spec=SimpleNamespace(
            run_id=name,
            dataset=dataset,
            title=f"title of {name}",
            method="fixmatch",
            code="",
            dataset_digest="d" * 64,
            split_digest="s" * 64,
            backbone={"weights_sha256": "w" * 64},
        ),
        stages=tuple(stages),
        cell=SimpleNamespace(kind=kind),
        process_kind=(precision, "ddp"),
    )


def packed(jobs, stages=(), processes=1, target=100.0, seconds=30.0):
    length = seconds if callable(seconds) else lambda job: seconds
    return pack(
        jobs, list(stages), processes, target, run_seconds=length, stage_seconds=lambda stage, job: 10.0
    )


def test_bundles_are_filled_to_their_length_and_hold_every_run_once():
    jobs = [job(f"r{k}") for k in range(10)]
    found = packed(jobs)
    assert [len(bundle.run_ids) for bundle in found] == [3, 3, 3, 1]
    assert [run for bundle in found for run in bundle.run_ids] == [f"r{k}" for k in range(10)]
    assert [bundle.seconds for bundle in found] == [90, 90, 90, 30]
    # One that is longer than a bundle has a bundle for itself.
    alone = packed(jobs[:3], seconds=lambda job: 500.0 if job.spec.run_id == "r1" else 1.0)
    assert [bundle.run_ids for bundle in alone] == [("r0",), ("r1",), ("r2",)]


def test_runs_of_unknown_length_are_guessed():
    (bundle,) = packed([job("a")], seconds=lambda job: None)
    assert bundle.seconds == GUESS_SECONDS


def test_what_a_process_is_set_up_for_and_how_many_there_are_keep_runs_apart():
    jobs = [job("a"), job("b", precision="bf16"), job("c", kind="fit"), job("d", dataset="coco")]
    found = packed(jobs, processes=4)
    assert {bundle.run_ids: (bundle.precision, bundle.processes) for bundle in found} == {
        ("a",): ("fp32", 4),
        ("b",): ("bf16", 4),
        ("c",): ("fp32", 1),
        ("d",): ("fp32", 4),
    }


def test_stages_come_first_and_only_their_runs_wait_for_them():
    warm, features = Stage("warmup", "w"), Stage("features", "f")
    jobs = [job("a", stages=[warm]), job("b", stages=[warm]), job("c", kind="fit")]
    found = packed(jobs, [(warm, jobs[0]), (features, jobs[2])], processes=2)
    assert [bundle.kind for bundle in found] == ["stages", "stages", "runs", "runs"]
    assert [(bundle.stage_ids, bundle.processes) for bundle in found[:2]] == [
        (("w",), 2),
        (("f",), 1),
    ]
    assert {bundle.run_ids: bundle.needs for bundle in found[2:]} == {
        ("a", "b"): ("w",),
        ("c",): (),
    }


def test_arrays_hold_bundles_of_one_shape_that_wait_for_one_dataset():
    def bundle(kind: str, dataset: str, processes: int, needs=()) -> Bundle:
        return Bundle(kind, "fp32", "ddp", dataset, processes, needs=needs)

    bundles = [
        bundle("stages", "voc", 1),
        bundle("stages", "coco", 1),
        bundle("runs", "voc", 1, ("w",)),
        bundle("runs", "coco", 1, ("x",)),
        bundle("runs", "voc", 1),
        bundle("runs", "coco", 1),
        bundle("runs", "voc", 8),
    ]
    found = arrays(SlurmOptions(Profile(processes_per_node=4), processes=8), bundles)
    assert [(array.bundles, array.nodes, array.each) for array in found] == [
        ((0, 1), 1, 1),
        ((2,), 1, 1),
        ((3,), 1, 1),
        ((4, 5), 1, 1),
        ((6,), 2, 4),
    ]


def test_many_jobs_to_wait_for_are_named_by_their_arrays():
    assert shortened(["7_0", "7_1"]) == ("7_0", "7_1")
    assert shortened([f"7_{k}" for k in range(60)] + ["9"]) == ("7", "9")


@pytest.fixture
def ready(tmp_path):
    """A proposal of two arrays, and a scheduler that records what it is asked."""
    bundles = [
        Bundle("stages", "fp32", "ddp", "voc", 1, stage_ids=("w",), seconds=1.0),
        Bundle("runs", "fp32", "ddp", "voc", 1, run_ids=("a",), needs=("w",), seconds=1.0),
    ]
    proposal = SimpleNamespace(
        options=SlurmOptions(Profile()),
        jobs=[],
        submitted=[job("a")],
        about=[job("a")],
        bundles=bundles,
        stages=[],
        queued_stages={},
        estimates=SimpleNamespace(run=lambda job: SimpleNamespace(seconds=1.0)),
        again=lambda workspace: proposal,
    )
    cancelled: list[set[str]] = []
    submitted = []

    def submit(array, folder, name, profile, commands, pythonpath, size, **told):
        submitted.append((array, commands))
        return [(k, f"{10 * len(submitted)}_{i}") for i, k in enumerate(array.bundles)]

    scheduler = Scheduler(lambda profile: 100, submit, cancelled.append, lambda launches, say: None)
    workspace = Workspace(tmp_path / "data", tmp_path / "runs")
    workspace.runs.mkdir()
    grid = SimpleNamespace(name="x", path=tmp_path / "x.toml")

    def go(scheduler=scheduler):
        return launch(
            grid,
            proposal,
            workspace,
            lambda line: None,
            scheduler=scheduler,
            copy_code=lambda folder: tmp_path / "code",
            copy_files=lambda grid, jobs, folder: folder / "copy" / grid.path.name,
        )

    return SimpleNamespace(
        go=go,
        proposal=proposal,
        submitted=submitted,
        cancelled=cancelled,
        scheduler=scheduler,
        launches=tmp_path / "runs" / "slurm" / "launches",
        code=tmp_path / "code",
    )


def test_runs_wait_for_the_jobs_of_their_stages(ready):
    made = ready.go()
    assert [array.after for array, _ in ready.submitted] == [(), ("10_0",)]
    assert made.jobs() == {0: "10_0", 1: "20_0"}
    assert ready.cancelled == []


def test_runs_wait_for_a_stage_that_an_earlier_launch_has_queued(ready):
    ready.proposal.bundles = [dataclasses.replace(ready.proposal.bundles[1])]
    ready.proposal.queued_stages = {"w": "7_3"}
    ready.go()
    assert [array.after for array, _ in ready.submitted] == [("7_3",)]


def test_a_queued_stage_is_not_submitted_again(tmp_path, monkeypatch):
    warm = Stage("warmup", "w")
    jobs = [job("a" * 64, stages=[warm]), job("b" * 64, stages=[warm])]
    for one in jobs:
        one.directory = lambda workspace, one=one: tmp_path / one.spec.run_id[:4]
    workspace = SimpleNamespace(store=RunStore(tmp_path / "store"), runs=tmp_path)
    plan = {"job_name": "ssmll-x", "bundles": [{"stage_ids": ["w"]}, {"run_ids": ["a" * 64]}]}
    Launches(tmp_path).create("x", plan).record({0: "7", 1: "8"})
    live = {"7": client.Queued("7", "PENDING", "Priority", "0:00", "")}
    monkeypatch.setattr(client, "available", lambda: True)
    monkeypatch.setattr(client, "queue", lambda names: live)
    one_second = SimpleNamespace(seconds=1.0, source="")
    estimates = SimpleNamespace(run=lambda job: one_second, stage=lambda stage, job: one_second)
    monkeypatch.setattr(module, "Estimates", lambda *a, **k: estimates)
    found = propose(SlurmOptions(Profile()), jobs, workspace)
    assert (found.stages, found.queued_stages) == ([], {"w": "7"})
    assert [bundle.needs for bundle in found.bundles] == [("w",)], "the runs wait for its job"
    live.clear()
    again = propose(SlurmOptions(Profile()), jobs, workspace)
    assert [stage.stage_id for stage, _ in again.stages] == ["w"]


def test_the_folder_of_a_submission_that_was_left_open_stays(ready):
    def open_end(array, *rest, before, **told):
        before("ssmll:1", array.bundles)
        raise sbatch.Unsettled("who knows")

    with pytest.raises(UserError, match="who knows"):
        ready.go(dataclasses.replace(ready.scheduler, submit=open_end))
    (folder,) = ready.launches.iterdir()
    assert set(Launch(folder).unsettled()) == {"ssmll:1"}


def test_a_refusal_leaves_nothing_open(ready):
    def refuse(array, *rest, before, **told):
        before(f"ssmll:{len(ready.submitted)}", array.bundles)
        if ready.submitted:
            raise client.SlurmError("sbatch refused: no")
        return ready.scheduler.submit(array, *rest)

    with pytest.raises(UserError, match="1 jobs submitted before go on"):
        ready.go(dataclasses.replace(ready.scheduler, submit=refuse))
    (folder,) = ready.launches.iterdir()
    assert Launch(folder).unsettled() == []


def test_each_job_executes_its_bundle_of_the_work_order(ready):
    made = ready.go()
    plan = made.folder / "plan.json"
    for number, (_, (command,)) in enumerate(ready.submitted):
        assert command.command[1:] == ("-m", WORKER, str(plan), str(number))
    order = WorkOrder.read(plan)
    assert [bundle.run_ids for bundle in order.bundles] == [(), ("a",)]
    assert (order.run_ids, order.code, order.launcher) == (("a",), str(ready.code), None)
    assert order.grid == str(ready.launches.parent / "grids" / "copy" / "x.toml")
    assert (made.run_ids, made.titles) == ([[], ["a"]], {"a": "title of a"})
    assert made.estimates == {"a": 1.0}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_message_and_no_job_goes_on_unrecorded(ready, number, monkeypatch):
    def full(self, jobs):
        raise OSError(number, "No space left")

    monkeypatch.setattr(Launch, "record", full)
    with pytest.raises(UserError, match="No space left; nothing more was submitted"):
        ready.go()
    assert ready.cancelled == [{"10"}]
    assert list(ready.launches.iterdir()) == []


def test_what_was_submitted_before_a_refusal_is_kept_and_told(ready):
    def refuse(array, *rest, **told):
        if ready.submitted:
            raise client.SlurmError("sbatch refused: no", [(1, "20_0")])
        return ready.scheduler.submit(array, *rest, **told)

    with pytest.raises(UserError, match="sbatch refused: no; 2 jobs submitted before go on"):
        ready.go(dataclasses.replace(ready.scheduler, submit=refuse))
    (folder,) = ready.launches.iterdir()
    lines = [json.loads(line)["jobs"] for line in (folder / "jobs.jsonl").read_text().splitlines()]
    assert lines == [{"0": "10_0"}, {"1": "20_0"}]
    assert ready.cancelled == []


def test_a_run_that_was_begun_too_often_is_left_out_until_it_is_retried(tmp_path, monkeypatch):
    store = RunStore(tmp_path / "store")
    jobs = []
    for name, begun in (("a" * 64, 3), ("b" * 64, 2), ("c" * 64, 0)):
        spec = {"dataset": {"alias": "voc"}, "method": "csaa", "ratio": 0.1, "seed": 1}
        place = store.directory(name, spec)
        for _ in range(begun):
            store.claim(place, spec).release()
        one = job(name)
        one.directory = lambda workspace, place=place: place
        jobs.append(one)
    monkeypatch.setattr(client, "available", lambda: False)
    monkeypatch.setattr(
        module,
        "Estimates",
        lambda *a, **k: SimpleNamespace(run=lambda job: SimpleNamespace(seconds=1.0, source="")),
    )
    workspace = SimpleNamespace(store=store, runs=tmp_path)
    bounded = propose(SlurmOptions(Profile(), max_attempts=3), jobs, workspace)
    assert bounded.exhausted == {"a" * 64}
    assert [one.spec.run_id[0] for one in bounded.submitted] == ["b", "c"]
    free = propose(SlurmOptions(Profile(), max_attempts=0), jobs, workspace, {"a" * 64})
    assert [one.spec.run_id[0] for one in free.submitted] == ["a"]


@pytest.mark.parametrize(("answer", "yes"), [("y", True), ("YES", True), ("", False), ("n", False)])
def test_only_yes_is_yes(monkeypatch, answer, yes):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert confirmed("submit?") is yes


def test_what_may_cost_too_much_is_refused():
    proposal = SimpleNamespace(options=SlurmOptions(Profile()), hours=lambda: (2.0, 0))
    check_hours(proposal, None)
    check_hours(proposal, 2.0)
    with pytest.raises(UserError, match=r"2.00 GPU-hours are more than the 1.5 allowed"):
        check_hours(proposal, 1.5)
    with pytest.raises(UserError, match="cannot be promised: of 3 runs or stages"):
        check_hours(SimpleNamespace(options=SlurmOptions(Profile()), hours=lambda: (0.0, 3)), 1.5)


def test_a_proposal_needs_no_torch():
    """Packing, proposing and submitting read records: a login node answers at once."""
    script = (
        "import sys, benchmarks.launch.slurm, benchmarks.launch.slurm_jobs, benchmarks.launch.cost_table; "
        "print(sorted({'torch', 'open_clip', 'accelerate'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"

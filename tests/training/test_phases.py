"""Trainings in phases: what each is made of, what the next starts from, and interruptions anywhere."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import methods
from benchmarks.checks import contract
from benchmarks.checks.small_trainings import LABELLED, TRAIN, SmallTrainings, _on_tiny_backbone
from benchmarks.plan.user_code import import_methods
from benchmarks.training import build, phased
from benchmarks.training.checkpoint import Checkpoints
from benchmarks.training.trainer import Trainer
from methods.errors import UserError
from methods.phases import Phase
from tests.conftest import ROOT

torch.set_num_threads(1)

NAME = "phased_tagger"
MODULE = "benchmarks/checks/sample_methods.py"
ESTIMATION = 2  # a quarter of 8
STEPS = {"agree": 2, "main": 6, "tune": 3}
"""One epoch of 6 images by 4; two of 16 by 7; three of 2 by 2."""


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    with methods.registry.isolated():
        import_methods(MODULE, ROOT, "test")
        yield SmallTrainings(tmp_path_factory.mktemp("phases"), [NAME], {})


def train(trainings, folder):
    """A training that nobody stops, in a folder of its own."""

    def work():
        job, workspace, _ = trainings._staged(NAME, False)
        training = phased.Training(
            job,
            None,
            trainings.strategy,
            checkpoints=lambda name: Checkpoints(folder / name, 1e9),
            workspace=workspace,
        )
        training.fit()
        return training

    return _on_tiny_backbone(work)()


@pytest.fixture
def steps(monkeypatch):
    """Records of each step: the trainer and its batch."""
    found, step = [], Trainer._train_step

    def recorded(trainer, indices, images):
        batch = trainer.batches.batch(indices, images)
        found.append((trainer, batch))
        step(trainer, indices, images)

    monkeypatch.setattr(Trainer, "_train_step", recorded)
    return found


def test_each_phase_has_its_images_length_and_parameters(trainings, steps, tmp_path):
    train(trainings, tmp_path)
    found = {name: [(t, b) for t, b in steps if b.phase == name] for name in STEPS}
    assert {name: len(records) for name, records in found.items()} == STEPS
    assert [batch.phase for _, batch in steps] == [
        name for name, count in STEPS.items() for _ in range(count)
    ]
    labelled, pool = LABELLED - ESTIMATION, TRAIN - LABELLED + ESTIMATION
    sizes = {"agree": [(4, 5), (2, 5)], "main": [(3, 7), (3, 7), (3, 2)] * 2, "tune": [(2, 0)] * 3}
    for name, records in found.items():
        assert [(len(b.labelled), len(b.unlabelled)) for _, b in records] == sizes[name]
        assert [b.global_step for _, b in records] == list(range(STEPS[name]))
        assert {b.total_steps for _, b in records} == {STEPS[name]}
        assert records[0][1].strong_labelled.shape[1:] == (5, 3, contract.SIZE, contract.SIZE)
        data = records[0][0].data
        assert len(data.labelled) == (ESTIMATION if name == "tune" else labelled)
        assert len(data.unlabelled) == pool
        own = data.prepared.dataset.train.labels[data.labelled.numpy()]
        assert torch.equal(data.targets, torch.from_numpy(own).float())
    first, tuned = found["agree"][0][0], found["tune"][0][0]
    # Estimation images leave the labelled batches and are the pool's last; nobody is in both.
    assert torch.equal(first.data.unlabelled[-ESTIMATION:], tuned.data.labelled)
    assert not set(first.data.labelled.tolist()) & set(first.data.unlabelled.tolist())
    trained = {name: {g for g, p in t.method.named_parameters() if p.requires_grad}
               for name, ((t, _), *_) in found.items()}  # fmt: skip
    assert trained["agree"] == trained["main"]
    assert trained["tune"] == {"classifier.weight", "classifier.bias"}
    assert len(tuned.optimizer.param_groups) == 1
    for name, records in found.items():
        lr = records[0][0].scheduler
        assert lr.total_steps == STEPS[name]


def test_a_phase_starts_from_what_the_one_before_left(trainings, monkeypatch, tmp_path):
    starts, left = {}, {}
    begin, made = Trainer.fit, build.build_trainer

    def building(*arguments, **named):
        trainer = made(*arguments, **named)
        state = {name: value.clone() for name, value in trainer.method.training_state().items()}
        starts[trainer.schedule.phase] = state, trainer.ema.steps
        return trainer

    def fitting(trainer, score=True):
        outcome = begin(trainer, score)
        weights = {"model": trainer.method, "ema": trainer.ema.module}
        left[trainer.schedule.phase] = {
            name: {k: v.clone() for k, v in module.training_state().items()}
            for name, module in weights.items()
        }
        return outcome

    monkeypatch.setattr(phased, "build_trainer", building)
    monkeypatch.setattr(Trainer, "fit", fitting)
    train(trainings, tmp_path).clear()
    assert not tmp_path.exists()  # all checkpoints lay in it
    for before, phase, weights in (("agree", "main", "ema"), ("main", "tune", "model")):
        state, averaged = starts[phase]
        assert averaged == 0
        for name, value in state.items():
            assert torch.equal(value, left[before][weights][name]), (phase, name)
    moved = {
        name
        for name, value in left["tune"]["model"].items()
        if not torch.equal(value, starts["tune"][0][name])
    }
    assert moved == {"classifier.weight", "classifier.bias"}


AT_ENDS = (2, 3, 9)
"""At the end of a phase, and after the first step of the next two."""


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(step, marks=() if step in AT_ENDS else pytest.mark.slow)
        for step in range(1, sum(STEPS.values()) + 1)
    ],
)
def test_a_training_stopped_at_any_step_ends_with_the_same_bytes(trainings, stop):
    whole, again = trainings.trained(NAME), trainings.trained(NAME, stop=stop)
    assert whole.weights.keys() == again.weights.keys()
    for name, value in whole.weights.items():
        assert torch.equal(value, again.weights[name]), name
    assert all(torch.equal(one, two) for one, two in zip(whole.scores, again.scores, strict=True))
    assert len(whole.pseudo_labels) == len(again.pseudo_labels) == STEPS["main"]


def test_hidden_labels_change_nothing(trainings):
    whole, other = trainings.trained(NAME), trainings.trained(NAME, other=True)
    assert all(torch.equal(value, other.weights[name]) for name, value in whole.weights.items())


def test_a_run_counts_epochs_over_its_phases_and_leaves_no_checkpoint(trainings):
    job, workspace, execution = trainings._staged(NAME, False)
    run = _on_tiny_backbone(execution.run)(job)
    place = job.directory(workspace)
    assert run == "done"
    rows = [json.loads(line) for line in (place / "epochs.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    scored = [row["mAP_ema"] is not None for row in rows]
    assert scored == [False, False, True, False, True, True]  # every second epoch of a phase, and its last
    result = workspace.store.load(place)
    assert result["metrics"]["oracle"]["epoch"] in (3, 5, 6)
    assert result["cost"]["trainable_parameters"] > 0
    images = {"agree": 6 + 10, "main": 2 * (9 + 16), "tune": 3 * 2}
    assert result["cost"]["images_seen"] == sum(images.values())
    assert not (place / "checkpoints").exists()


def test_a_phase_without_epochs_is_left_out(trainings, monkeypatch):
    job = next(iter(trainings.jobs[0].values()))
    recipe = job.cell.recipe
    object.__setattr__(recipe, "warmup_epochs", 0)
    try:
        assert [phase.name for phase in build.phases_of(job)] == ["main", "tune"]
        assert phased.Training.epochs(job, None) == 5
    finally:
        object.__setattr__(recipe, "warmup_epochs", 1)


def test_a_phase_that_trains_nothing_is_named(trainings, monkeypatch, tmp_path):
    job = next(iter(trainings.jobs[0].values()))
    cls = methods.get(NAME)
    monkeypatch.setattr(cls, "begin_phase", lambda self, name: self.requires_grad_(False))
    monkeypatch.setattr(build, "load_backbone", lambda spec, resolution: contract.tiny_backbone())
    with pytest.raises(UserError, match="'phased_tagger' has no trainable parameter in its phase 'main'"):
        build.build_trainer(
            job,
            None,
            trainings.strategy,
            checkpoints=Checkpoints(tmp_path, 1e9),
            phase=build.phases_of(job)[1],
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recipe": "mian"}, "recipe: unknown value 'mian'; did you mean 'main'"),
        ({"labelled": "all"}, "labelled: unknown value"),
        ({"epoch_over": "both"}, "epoch_over: unknown value"),
        ({"start": "raw"}, "start: unknown value"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"batch_labelled": -1}, "batch_labelled is -1"),
        ({"pool": False, "batch_unlabelled": 3}, "batch_unlabelled is given, and pool = False"),
    ],
)
def test_wrong_fields_of_a_phase_are_named(wrong, message):
    with pytest.raises(UserError, match=f"phase 'one': {message}"):
        Phase("one", **wrong)


@pytest.mark.slow
def test_two_processes_end_where_one_does():
    command = [sys.executable, "-m", "benchmarks.checks.invariance", "--modules", MODULE, "--methods", NAME]
    done = subprocess.run([*command, "--seeds", "1"], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

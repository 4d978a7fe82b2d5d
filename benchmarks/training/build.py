"""Builds what a training is made of from a run: its task, its data, its method, and the trainer.

A stage beside a run means the warm-up that the run starts from; None means the run itself. A run may have
several trainings, see `benchmarks.training.phased`: each is built with the phase that it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import methods
from benchmarks.data.splits.estimation import split_off
from benchmarks.plan import phases
from benchmarks.plan.jobs import Job, warmup
from benchmarks.plan.stages import Stage
from benchmarks.training import stage_files
from benchmarks.training.checkpoint import Checkpoints
from benchmarks.training.hidden_labels import HiddenLabels
from benchmarks.training.host import TrainingHost
from benchmarks.training.metrics import summary
from benchmarks.training.schedule import Schedule, TrainData
from benchmarks.training.scoring import Scorer
from benchmarks.training.selection import Selection
from benchmarks.training.strategy import Strategy
from benchmarks.training.trainer import Trainer
from benchmarks.workspace import Workspace
from methods.backbones import load_backbone
from methods.backbones.base import Backbone
from methods.base import FitMethod, Phase, StepMethod, Task
from methods.errors import UserError


def task_of(job: Job, stage: Stage | None = None) -> Task:
    """The `Task` of the method of a run, or of its warm-up."""
    dataset, split = job.prepared.dataset, job.split
    known = torch.from_numpy(dataset.train.labels[split.labelled].astype(np.float32))
    stay, leave = divided(job, stage)
    pool = len(split.unlabelled) + len(leave) if uses_pool(job, stage) else 0
    estimation = known[leave] if len(leave) else None
    return Task(dataset.classes, dataset.prompts, known[stay], pool, job.spec.seed, estimation)


def divided(job: Job, stage: Stage | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions among the labelled images of those that are trained on, and of the estimation images.

    Raises:
        UserError: the estimation images cannot be taken out of so few.
    """
    name, hyper = method_of(job, stage)
    share = methods.get(name).estimation_share(hyper)
    if not share:
        return np.arange(len(job.split.labelled)), np.arange(0)
    return split_off(job.prepared.dataset.train.labels[job.split.labelled], share)


def method_of(job: Job, stage: Stage | None = None) -> tuple[str, Any]:
    """Name and hyper-parameters of the method of a run, or of its warm-up."""
    if stage is None:
        return job.spec.method, job.cell.hyper
    found = warmup(job.cell)
    assert found is not None  # the stage exists because the method has a warm-up
    return found


def phases_of(job: Job, stage: Stage | None = None) -> tuple[Phase | None, ...]:
    """The phases of a run, those without epochs left out; (None,) for one training without phases."""
    return (stage is None and phases.phases_of(job.cell)) or (None,)


def uses_pool(job: Job, stage: Stage | None = None) -> bool:
    """Whether unlabelled images are trained on: never in a warm-up."""
    return stage is None and job.cell.kind == "semi"


def summariser(job: Job, held_out: bool = False) -> Callable[[Tensor], dict[str, Any]]:
    """From scores to the stored summary.

    Args:
        job: the run.
        held_out: whether the scores are those of the held-out labelled images, not of the test images.

    Returns:
        A function of (N, K) scores. The frequencies for head and tail come from all training labels.
    """
    dataset = job.prepared.dataset
    targets = dataset.train.labels[job.split.held_out] if held_out else dataset.test.labels
    counts = dataset.train.labels.sum(axis=0, dtype=np.int64)
    scale = methods.get(job.spec.method).score_scale
    return lambda scores: summary(scores, targets, counts, scale=scale, classes=dataset.classes)


def train_data(job: Job, stage: Stage | None = None, phase: Phase | None = None) -> TrainData:
    """The images and labels that a run, its warm-up or a phase of it is trained on."""
    split, task = job.split, task_of(job, stage)
    stay, leave = divided(job, stage)
    labelled, labels, estimation = split.labelled[stay], task.labels, split.labelled[leave]
    pool = np.concatenate([split.unlabelled, estimation]) if uses_pool(job, stage) else estimation[:0]
    if phase is not None and phase.labelled == "estimation":
        if task.estimation is None:
            raise UserError(
                f"method {job.spec.method!r}, phase {phase.name!r}: it trains on the estimation images, and "
                "there are none: estimation_share is 0"
            )
        labelled, labels = estimation, task.estimation
    return TrainData(
        job.prepared,
        torch.from_numpy(labelled),
        torch.from_numpy(pool),
        labels,
        torch.from_numpy(split.held_out),
    )


def build_backbone(job: Job) -> Backbone:
    """The backbone of a run, with its weights, on the CPU."""
    return load_backbone(job.cell.backbone, job.cell.recipe.resolution)


def build_fit_method(job: Job, backbone: Backbone, task: Task) -> FitMethod:
    """The method of a run that is fitted once, over its backbone and for its task."""
    method = methods.create(job.spec.method, backbone=backbone, task=task, **job.spec.hyper)
    assert isinstance(method, FitMethod)  # what the kind of the cell says
    return method


def build_method(job: Job, stage: Stage | None = None) -> StepMethod:
    """The method of a run, or of its warm-up, before it has its starting values."""
    name, hyper = job.spec.method, job.spec.hyper
    if stage is not None:
        name, found = method_of(job, stage)
        hyper = dataclasses.asdict(found)
    method = methods.create(name, backbone=build_backbone(job), task=task_of(job, stage), **hyper)
    assert isinstance(method, StepMethod)  # what the kind of the cell says
    return method


def start_values(
    method: StepMethod, job: Job, stage: Stage | None, strategy: Strategy, workspace: Workspace
) -> None:
    """Give a method the values that its training starts from.

    They are the weights of the run's warm-up, which is done, or else the method's own, calibrated on the
    labelled images. A calibrated method is left on the device.
    """
    recipe = job.cell.recipe
    if stage is None and job.stages:
        folder = job.stages[0].directory(workspace)
        method.load_warmup(stage_files.read_weights(folder, recipe.warmup_weights))
        return
    device = strategy.accelerator.device
    method.to(device, strategy.dtype).eval()
    scorer = Scorer(job.prepared, strategy, recipe.eval_batch, job.spec.seed, method.patches(method.hyper))
    labelled = torch.from_numpy(job.split.labelled[divided(job, stage)[0]])
    method.calibrate(scorer.scores(method.predict, "train", labelled, "test", 0).to(device))


def schedule_of(job: Job, stage: Stage | None = None, phase: Phase | None = None) -> Schedule:
    """How long a run, its warm-up or a phase of it is trained, and in which batches."""
    if stage is not None:
        return Schedule.warmup(job.cell.recipe)
    if phase is not None:
        recipe, found = job.cell.recipe, phases_of(job, stage)
        before = (phases.epochs_of(recipe, one) for one in found[: found.index(phase)] if one)
        return Schedule.of_phase(recipe, phase, sum(before))
    make = Schedule.semi_supervised if uses_pool(job) else Schedule.labelled_only
    return make(job.cell.recipe)


def build_trainer(
    job: Job,
    stage: Stage | None,
    strategy: Strategy,
    *,
    checkpoints: Checkpoints,
    workspace: Workspace | None = None,
    schedule: Schedule | None = None,
    host: TrainingHost | None = None,
    phase: Phase | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> Trainer:
    """The trainer of a run, of its warm-up, or of one of its phases.

    Args:
        job: the run.
        stage: its warm-up stage, to train that; None for the run.
        strategy: device, processes and precision.
        checkpoints: where the state is kept.
        workspace: where the run's warm-up lies; None leaves the method as it is built, without warm-up
            weights and calibration, which is enough to measure steps.
        schedule: in place of `schedule_of`.
        host: the program around the training.
        phase: one of `phases_of`.
        start: state that the method starts from, as `StepMethod.training_state` gives it, in place of what
            ``workspace`` has.
    """
    method = build_method(job, stage)
    if phase is not None:
        method.begin_phase(phase.name)
    if start is not None:
        method.load_training_state(start)
    elif workspace is not None:
        start_values(method, job, stage, strategy, workspace)
    data, pool = train_data(job, stage, phase), uses_pool(job, stage) and (phase is None or phase.pool)
    return Trainer(
        method,
        data,
        job.cell.recipe,
        schedule or schedule_of(job, stage, phase),
        job.spec.seed,
        strategy=strategy,
        checkpoints=checkpoints,
        selection=Selection(summariser(job), summariser(job, held_out=True), bool(job.cell.recipe.ema_decay)),
        hidden_labels=HiddenLabels.of(job, data.unlabelled, strategy.accelerator) if pool else None,
        host=host,
    )

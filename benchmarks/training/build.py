"""Builds what a training is made of from a run: its task, its data, its method, and the trainer.

A stage beside a run means the warm-up that the run starts from; None means the run itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import methods
from benchmarks.plan.jobs import Job, Stage, warmup
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
from methods.base import FitMethod, StepMethod, Task


def task_of(job: Job, stage: Stage | None = None) -> Task:
    """The `Task` of the method of a run, or of its warm-up."""
    dataset, split = job.prepared.dataset, job.split
    labels = torch.from_numpy(dataset.train.labels[split.labelled].astype(np.float32))
    pool = len(split.unlabelled) if uses_pool(job, stage) else 0
    return Task(dataset.classes, dataset.prompts, labels, pool, job.spec.seed)


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


def train_data(job: Job, stage: Stage | None = None) -> TrainData:
    """The images and labels that a run, or its warm-up, is trained on."""
    split = job.split
    pool = split.unlabelled if uses_pool(job, stage) else split.unlabelled[:0]
    return TrainData(
        job.prepared,
        torch.from_numpy(split.labelled),
        torch.from_numpy(pool),
        task_of(job, stage).labels,
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
        found = warmup(job.cell)
        assert found is not None  # the stage exists because the method has a warm-up
        name, hyper = found[0], dataclasses.asdict(found[1])
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
    scorer = Scorer(job.prepared, strategy, recipe.eval_batch, job.spec.seed)
    labelled = torch.from_numpy(job.split.labelled)
    method.calibrate(scorer.scores(method.predict, "train", labelled, "test", 0).to(device))


def schedule_of(job: Job, stage: Stage | None = None) -> Schedule:
    """How long a run, or its warm-up, is trained, and in which batches."""
    if stage is not None:
        return Schedule.warmup(job.cell.recipe)
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
) -> Trainer:
    """The trainer of a run, or of its warm-up.

    Args:
        job: the run.
        stage: its warm-up stage, to train that; None for the run.
        strategy: device, processes and precision.
        checkpoints: where the state is kept.
        workspace: where the run's warm-up lies; None leaves the method as it is built, without warm-up
            weights and calibration, which is enough to measure steps.
        schedule: in place of `schedule_of`.
        host: the program around the training.
    """
    method = build_method(job, stage)
    if workspace is not None:
        start_values(method, job, stage, strategy, workspace)
    return Trainer(
        method,
        train_data(job, stage),
        job.cell.recipe,
        schedule or schedule_of(job, stage),
        job.spec.seed,
        strategy=strategy,
        checkpoints=checkpoints,
        selection=Selection(summariser(job), summariser(job, held_out=True), bool(job.cell.recipe.ema_decay)),
        hidden_labels=HiddenLabels.of(job, strategy.accelerator) if uses_pool(job, stage) else None,
        host=host,
    )

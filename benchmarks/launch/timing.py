"""Times a little of a run or a shared stage on this device.

Every function is called by all processes of a group and returns, in seconds, what
`benchmarks.launch.estimate` multiplies out: "start", "image" (per image that goes through the work),
"score" (per image that an evaluation scores), and "images", how many the measurement is of.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

import methods
from benchmarks.launch.execution import summariser, task_of
from benchmarks.plan.jobs import Job, Stage, warmup
from benchmarks.training.checkpoint import Checkpoints
from benchmarks.training.hidden_labels import PseudoLabelProbe
from benchmarks.training.schedule import Schedule, TrainData
from benchmarks.training.scoring import Scorer
from benchmarks.training.strategy import Strategy
from benchmarks.training.trainer import Trainer
from methods.backbones import load_backbone
from methods.base import FitMethod, Pool, StepMethod

LONG = 10_000
"""Epochs of the learning-rate schedule: a measurement must not come to the end of it."""
STEPS, ROUNDS = 5, 3
"""Steps of a round, and rounds that are timed, after one that warms up."""
FIT_ROWS = 1000
"""Most images that a method is fitted to."""


def _clock(strategy: Strategy) -> float:
    """Seconds, after what the device has been given is done."""
    if strategy.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def _timed_scores(
    scorer: Scorer,
    strategy: Strategy,
    forward: Callable[[Tensor], Tensor],
    split: str,
    indices: Tensor,
    policy: str,
) -> tuple[Tensor, float]:
    """Scores of images, and seconds per image; the first pass on a device is slower."""
    scorer.scores(forward, split, indices[: 2 * strategy.group.world], policy, 0)
    started = _clock(strategy)
    scores = scorer.scores(forward, split, indices, policy, 0)
    return scores, (_clock(strategy) - started) / len(indices)


def _some(indices: Tensor, job: Job, strategy: Strategy) -> Tensor:
    """As many of some images as one forward pass of all processes takes."""
    return indices[: job.cell.recipe.eval_batch * strategy.group.world]


def measure_features(job: Job, strategy: Strategy) -> dict[str, float]:
    """A forward pass of the frozen backbone over training images."""
    started = _clock(strategy)
    backbone = load_backbone(job.cell.backbone, job.cell.recipe.resolution)
    backbone = backbone.to(strategy.accelerator.device, strategy.dtype).eval()
    scorer = Scorer(job.prepared, strategy, job.cell.recipe.eval_batch, 0)
    start = _clock(strategy) - started
    some = _some(torch.arange(len(job.prepared.train)), job, strategy)
    _, image = _timed_scores(scorer, strategy, backbone.features, "train", some, "test")
    return {"images": len(some), "image": image, "score": 0.0, "start": start}


def measure_fit(job: Job, strategy: Strategy) -> dict[str, float]:
    """Fits a part of the labelled images and scores all test images, on features of a few."""
    dataset, task = job.prepared.dataset, task_of(job, 0)
    task = dataclasses.replace(task, labels=task.labels[:FIT_ROWS])
    rows, tests = len(task.labels), len(dataset.test)
    started = time.monotonic()
    backbone = load_backbone(job.cell.backbone, job.cell.recipe.resolution)
    method = methods.create(job.spec.method, backbone=backbone, task=task, **job.spec.hyper)
    assert isinstance(method, FitMethod)  # what the kind of the cell says
    start = time.monotonic() - started
    backbone = backbone.to(strategy.accelerator.device, strategy.dtype).eval()
    scorer = Scorer(job.prepared, strategy, job.cell.recipe.eval_batch, 0)
    some = _some(torch.from_numpy(job.split.labelled[:rows]), job, strategy)
    found = scorer.scores(backbone.features, "train", some, "test", 0)
    features = found[torch.arange(max(rows, tests)) % len(found)].float()
    features += 0.1 * found.std() * torch.randn(features.shape)  # no two images are the same
    started = time.monotonic()
    method.fit(features[:rows], job.spec.seed)
    image = (time.monotonic() - started) / rows
    started = time.monotonic()
    summariser(job)(method.predict(features[:tests]).cpu())
    start += time.monotonic() - started
    return {"images": rows, "image": image, "score": 0.0, "start": start}


def measure_steps(job: Job, stage: Stage | None, strategy: Strategy) -> dict[str, float]:
    """Steps and evaluations of a run, or the steps of its warm-up, in the trainer's own loop."""
    semi = stage is None and job.cell.kind == "semi"
    started = _clock(strategy)
    trainer = _trainer(job, stage, strategy, semi)
    start = _clock(strategy) - started
    share = _measure_refresh(trainer, job, strategy) if semi else 0.0
    trainer.model.train()
    times = []
    steps = min(STEPS, trainer.sampler.steps_per_epoch)
    for epoch in range(1 + ROUNDS):  # the first is to get going
        trainer.epoch, trainer.step, seen = epoch, 0, trainer.images_seen
        started = _clock(strategy)
        images = trainer.loader.stream("train", trainer._positions(epoch, 0, steps))
        with closing(images):  # type: ignore[type-var] # an iterator, always with `close` here
            trainer._train_steps(images, steps, started)
        trainer._read_losses()
        times.append((_clock(strategy) - started) / (trainer.images_seen - seen))
    everything = torch.arange(len(job.prepared.test))
    scores, score = _timed_scores(
        trainer.scorer,
        strategy,
        trainer.ema.module.predict,
        "test",
        _some(everything, job, strategy),
        "test",
    )
    started = time.monotonic()
    summariser(job)(scores[everything % len(scores)])
    score += (time.monotonic() - started) / len(everything)
    image = statistics.median(times[1:]) + share
    return {"images": trainer.images_seen, "image": image, "score": score, "start": start}


def _measure_refresh(trainer: Trainer, job: Job, strategy: Strategy) -> float:
    """Seconds per training image that the pool's scores and what is made of them take."""
    epochs = job.cell.recipe.epochs
    wanted = sum(trainer.method.wants_pool(epoch) for epoch in range(epochs))
    if not wanted:
        return 0.0
    pool, module = trainer.data.unlabelled, trainer.ema.module
    scores, each = _timed_scores(
        trainer.scorer,
        strategy,
        module.score_pool,
        "train",
        _some(pool, job, strategy),
        trainer.views.weak,
    )
    whole = scores[torch.arange(len(pool)) % len(scores)].to(strategy.accelerator.device)
    classes = trainer.targets.shape[1]
    started = _clock(strategy)
    trainer.method.refresh(Pool(0, whole[:, :classes], whole[:, classes:]))
    seconds = each * len(pool) + _clock(strategy) - started
    steps, labelled = trainer.sampler.steps_per_epoch, trainer.sampler.batch_labelled
    return wanted / epochs * seconds / (len(pool) + steps * labelled)


def _trainer(job: Job, stage: Stage | None, strategy: Strategy, semi: bool) -> Trainer:
    """As the runner makes it, with a long schedule, no warm-up behind it and no checkpoints."""
    recipe, split = job.cell.recipe, job.split
    name, hyper = job.spec.method, job.spec.hyper
    if stage is not None:
        found = warmup(job.cell)
        assert found is not None  # the stage exists because the method has a warm-up
        name, hyper = found[0], dataclasses.asdict(found[1])
    pool = torch.from_numpy(split.unlabelled if semi else split.unlabelled[:0])
    method = methods.create(
        name,
        backbone=load_backbone(job.cell.backbone, recipe.resolution),
        task=task_of(job, len(pool)),
        **hyper,
    )
    assert isinstance(method, StepMethod)  # what the kind of the cell says
    kind = Schedule.semi_supervised if semi else Schedule.labelled_only
    data = TrainData(
        job.prepared,
        torch.from_numpy(split.labelled),
        pool,
        task_of(job, 0).labels,
        torch.from_numpy(split.held_out),
    )
    hidden = torch.from_numpy(job.prepared.dataset.train.labels[pool.numpy()])
    return Trainer(
        method,
        data,
        recipe,
        dataclasses.replace(kind(recipe), epochs=LONG, schedule_epochs=LONG),
        job.spec.seed,
        strategy=strategy,
        checkpoints=Checkpoints(Path(os.devnull), math.inf),
        probe=PseudoLabelProbe(hidden, strategy.accelerator) if semi else None,
        summarise=summariser(job),
        summarise_val=summariser(job),
    )

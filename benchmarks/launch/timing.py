"""Measures the speed of runs and shared stages on this device, by a few steps of each.

    python -m benchmarks.launch.timing PLAN

All processes of a group call every function. The `measure_…` functions return what
`benchmarks.launch.estimate` multiplies out: seconds of the start ("start"), per image that is trained on
or computed ("image") and per image that an evaluation scores ("score"), and the number of images that
were measured ("images").
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.launch.estimate import Estimates
from benchmarks.launch.memory import keep_large_blocks
from benchmarks.launch.work_order import WorkOrder
from benchmarks.plan.jobs import Job, cached_views, process_kinds
from benchmarks.plan.phases import main_phase
from benchmarks.plan.stages import FROZEN, Stage
from benchmarks.provenance import device_name
from benchmarks.training.build import (
    build_backbone,
    build_fit_method,
    build_trainer,
    schedule_of,
    summariser,
    task_of,
    uses_pool,
)
from benchmarks.training.checkpoint import Checkpoints
from benchmarks.training.group import Group
from benchmarks.training.scoring import Scorer
from benchmarks.training.strategy import Strategy, make
from benchmarks.training.trainer import Trainer
from benchmarks.workspace import Workspace
from methods.base import pool_of
from methods.errors import UserError

LONG = 10_000
"""Epochs of the learning-rate schedule: a measurement must not reach its end."""
STEPS, ROUNDS = 5, 3
"""Steps of a round, and number of timed rounds; one more round warms up."""
FIT_ROWS = 1000
"""Most images that a fitted method is timed with."""


def measure_missing(
    jobs: Sequence[Job], workspace: Workspace, strategy: Strategy, report: Callable[[str], None]
) -> None:
    """Measure each kind of run and stage that was not measured on this device yet, and keep it.

    Called by all processes of a group. Nothing goes to the run store. What fails is reported and
    left out.

    Args:
        jobs: runs of the strategy's precision and strategy.
        workspace: where measurements are looked for and kept.
        strategy: processes, device and precision.
        report: called with one line of progress.
    """
    group, device = strategy.group, device_name(strategy.accelerator.device)
    estimates, seen = Estimates(workspace, device, group.world), set()
    tasks = [(stage, job) for job in jobs for stage in (*job.stages, None)]
    for stage, job in tasks:
        name = estimates.name_of(job, stage)
        # One process computes features, so a group of several has nothing to measure.
        if name in seen or (group.world > 1 and stage is not None and stage.kind in FROZEN):
            continue
        seen.add(name)
        # Only rank 0 looks: the disk may show the others an older state.
        known = estimates.is_measured(job, stage, device) if group.is_main else False
        if group.broadcast(int(known))[0]:
            continue
        method = job.spec.method if stage is None else stage.key.get("method", stage.kind)
        title = f"{method} on {job.spec.dataset}"
        try:
            measured = _measure(job, stage, strategy)
        except Exception as error:  # whatever it is, the run will meet and record it
            if group.world > 1:  # the other ranks wait for this one
                raise
            report(f"no probe of {title}: {type(error).__name__}: {error}")
            continue
        if group.is_main:
            estimates.record(job, stage, device, measured)
            report(f"probed {title}: {1000 * measured['image']:.3g} ms per image")


def _measure(job: Job, stage: Stage | None, strategy: Strategy) -> dict[str, float]:
    if stage is None and job.cell.kind == "fit":
        return measure_fit(job, strategy)
    if stage is not None and stage.kind in FROZEN:
        return measure_features(job, strategy)
    return measure_steps(job, stage, strategy)


def main() -> int:
    """Entry point of `python -m benchmarks.launch.timing PLAN`."""
    try:
        order = WorkOrder.read(Path(sys.argv[1]))
        keep_large_blocks()
        if order.threads:
            torch.set_num_threads(order.threads)
        jobs = order.resolve()
        group = Group.join()
        ((precision, strategy),) = process_kinds(jobs)  # accelerate knows one per process
        measure_missing(jobs, order.workspace, make(strategy, precision, group), _report)
        group.leave()
    except UserError as error:
        _report(f"error: {error}")
        return 2
    return 0


def _report(line: str) -> None:
    print(line, flush=True)


# -- measurements ------------------------------------------------------------------------------


def _clock(strategy: Strategy) -> float:
    """Seconds, read after the device has done all that it was given."""
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
    backbone = build_backbone(job).to(strategy.accelerator.device, strategy.dtype).eval()
    scorer = Scorer(job.prepared, strategy, job.cell.recipe.eval_batch, 0)
    start = _clock(strategy) - started
    some = _some(torch.arange(len(job.prepared.train)), job, strategy)
    _, image = _timed_scores(scorer, strategy, backbone.features, "train", some, "test")
    return {"images": len(some), "image": image, "score": 0.0, "start": start}


def measure_fit(job: Job, strategy: Strategy) -> dict[str, float]:
    """Fits a part of the labelled images and scores all test images, on features of a few."""
    dataset, task = job.prepared.dataset, task_of(job)
    task = dataclasses.replace(task, labels=task.labels[:FIT_ROWS])
    rows, tests = len(task.labels), len(dataset.test)
    started = time.monotonic()
    backbone = build_backbone(job)
    method = build_fit_method(job, backbone, task)
    start = time.monotonic() - started
    backbone = backbone.to(strategy.accelerator.device, strategy.dtype).eval()
    scorer = Scorer(job.prepared, strategy, job.cell.recipe.eval_batch, 0)
    some = _some(torch.from_numpy(job.split.labelled[:rows]), job, strategy)
    found = scorer.scores(backbone.features, "train", some, "test", 0)
    features = found[torch.arange(max(rows, tests)) % len(found)].float()
    features += 0.1 * found.std() * torch.randn(features.shape)  # no two images are the same
    started = time.monotonic()
    if count := cached_views(job.cell):
        method.take_views(torch.stack([features[:rows]] * count))
    method.fit(features[:rows], job.spec.seed)
    image = (time.monotonic() - started) / rows
    started = time.monotonic()
    summariser(job)(method.predict(features[:tests]).cpu())
    start += time.monotonic() - started
    return {"images": rows, "image": image, "score": 0.0, "start": start}


def measure_steps(job: Job, stage: Stage | None, strategy: Strategy) -> dict[str, float]:
    """Steps and evaluations of a run, or the steps of its warm-up, in the trainer's own loop."""
    # The trainer's own schedule, made long, with no checkpoints and no warm-up behind it.
    phase = main_phase(job.cell) if stage is None else None
    schedule = dataclasses.replace(schedule_of(job, stage, phase), epochs=LONG, schedule_epochs=LONG)
    checkpoints = Checkpoints(Path(os.devnull), math.inf)
    started = _clock(strategy)
    trainer = build_trainer(job, stage, strategy, checkpoints=checkpoints, schedule=schedule, phase=phase)
    start = _clock(strategy) - started
    share = _measure_refresh(trainer, job, strategy) if uses_pool(job, stage) else 0.0
    times = []
    steps = min(STEPS, trainer.steps_per_epoch)
    for epoch in range(1 + ROUNDS):  # the first round warms up
        seen, started = trainer.images_seen, _clock(strategy)
        trainer.run_steps(epoch, 0, steps)
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
    pool, known, method = trainer.data.unlabelled, trainer.data.labelled, trainer.method
    scores, each = _timed_scores(
        trainer.scorer,
        strategy,
        trainer.ema.module.score_pool,
        "train",
        _some(pool, job, strategy),
        trainer.batches.views.weak,
    )
    counts = []

    def rows(kind: str) -> Tensor:
        """As many scores as there are images of a kind, of the few that were scored."""
        counts.append(len(known) if "labelled" in kind else len(pool))
        return scores[torch.arange(counts[-1]) % len(scores)].to(strategy.accelerator.device)

    found = pool_of(method, 0, rows)
    started = _clock(strategy)
    method.refresh(found)
    seconds = each * sum(counts) + _clock(strategy) - started
    steps, labelled = trainer.steps_per_epoch, trainer.schedule.batch_labelled
    return wanted / epochs * seconds / (len(pool) + steps * labelled)


if __name__ == "__main__":
    sys.exit(main())

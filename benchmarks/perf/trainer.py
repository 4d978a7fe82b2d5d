"""Trainer: a step of the shared training loop, against a bare loop.

One process with one thread trains the same method on the same batches in turn, round by round:

  trainer  the trainer's loop as a run goes through it: sampler, gathering, views, forward pass,
           losses, backward pass, optimiser, schedule, moving average, scoring of pseudo-labels,
           agreement on stopping and checkpoints
  bare     the same batches (gathering and views are what a bare loop has too; which images come is
           known beforehand), forward pass, sum of the losses, backward pass, optimiser
  recipe   the bare loop with what every recipe asks for: moving average, schedule, clipping

The ratio is trainer to bare. The parts come from rounds of their own, in which the calls are timed.
Work that is done once per epoch or per checkpoint is in none of them; a checkpoint is timed alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import loader
from benchmarks.data.views.views import make_view
from benchmarks.launch.memory import keep_large_blocks
from benchmarks.perf import training
from benchmarks.perf.training import advance, build, check_steps, say
from benchmarks.plan.jobs import Job
from benchmarks.training.build import build_method
from benchmarks.training.ema import Ema
from benchmarks.training.group import Group
from benchmarks.training.schedule import build_optimizer
from benchmarks.training.trainer import Trainer
from methods.base import Batch

LOOPS = ("trainer", "bare", "recipe")
Watched = Sequence[tuple[Any, str, str]]
"""Owner, name of its method, and the part that it belongs to."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this measurement."""
    training.add_arguments(parser, steps=5, rounds=15)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    job = training.find_job(options.method, options.grid, options.data, training.progress())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="ssmll-perf-") as folder,
            # Libraries' remarks: the standard output is for the result.
            redirect_stdout(sys.stderr),
        ):
            found = measure(job, Path(folder), steps=options.steps, rounds=options.rounds)
    finally:
        torch.set_num_threads(threads)
    print(json.dumps(found) if options.json else table(found))
    return 0


def measure(job: Job, folder: Path, *, steps: int, rounds: int) -> dict[str, Any]:
    """Measure the loops.

    Args:
        job: the run.
        folder: for a checkpoint.
        steps: steps of a round; every round takes those of another epoch.
        rounds: rounds that count.

    Returns:
        What the JSON line has. Times are per step in milliseconds, medians over the rounds; "parts"
        has those of trainer and bare loop, "rest" being what no timed call accounts for.

    Raises:
        UserError: an epoch has too few steps.
    """
    check_steps(job, steps)
    found = training.describe(job, steps, rounds)
    keep_large_blocks()
    trainer = build(job, Group(), folder)
    bare = Bare(trainer, job)
    total = trainer.steps_per_epoch
    loops: dict[str, Callable[[int, list[Plan]], None]] = {
        "trainer": lambda epoch, plans: advance(trainer, epoch, steps),
        "bare": lambda epoch, plans: bare.train(plans),
        "recipe": lambda epoch, plans: bare.train(plans, recipe=True),
    }
    watched = {"trainer": _trainer_parts(trainer), "bare": _bare_parts(bare)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in LOOPS}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in watched}
    for number in range(rounds + 1):
        plans = bare.plan(number, range(total - steps, total))
        turn = number % len(LOOPS)
        for name in LOOPS[turn:] + LOOPS[:turn]:
            wall, processor = time.perf_counter(), time.process_time()
            loops[name](number, plans)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            if number:  # everything is touched once before anything counts
                times[name].append((1000 * wall / steps, 1000 * processor / steps))
        for name, calls in watched.items():
            with _timed(calls) as spent:
                began = time.perf_counter()
                loops[name](number, plans)
                spent["rest"] = time.perf_counter() - began - sum(spent.values())
            if number:
                parts[name].append({part: 1000 * took / steps for part, took in spent.items()})
        if number:
            say(
                f"round {number} of {rounds}: trainer {times['trainer'][-1][0]:.1f} ms, "
                f"bare loop {times['bare'][-1][0]:.1f} ms a step"
            )
    wall_ms = {name: [wall for wall, _ in found] for name, found in times.items()}
    middle = {name: statistics.median(found) for name, found in wall_ms.items()}
    spent_ms = {name: statistics.median(spent for _, spent in found) for name, found in times.items()}
    return {
        "ratio": middle["trainer"] / middle["bare"],
        "ratio_to_recipe": middle["trainer"] / middle["recipe"],
        "ratio_processor_time": spent_ms["trainer"] / spent_ms["bare"],
        "ratio_of_fastest": min(wall_ms["trainer"]) / min(wall_ms["bare"]),
        **{f"{name}_ms": value for name, value in middle.items()},
        **{f"{name}_processor_ms": value for name, value in spent_ms.items()},
        "ratios": [ours / theirs for ours, theirs in zip(wall_ms["trainer"], wall_ms["bare"], strict=True)],
        "parts": {name: _medians(found) for name, found in parts.items()},
        "checkpoint_ms": _checkpoint(trainer),
        **found,
    }


def table(found: dict[str, Any]) -> str:
    """The figures for a reader."""
    trainer, bare = found["parts"]["trainer"], found["parts"]["bare"]
    low, high = min(found["ratios"]), max(found["ratios"])
    rows = [f"{'':12} {'trainer':>9} {'bare':>9}"]
    for part, value in trainer.items():
        rows.append(f"{part:12} {value:>9.2f} " + (f"{bare[part]:>9.2f}" if part in bare else ""))
    return "\n".join(
        (
            training.title(found),
            f"trainer                       {found['trainer_ms']:>8.1f} ms a step",
            f"bare loop                     {found['bare_ms']:>8.1f} ms a step",
            f"bare loop with EMA, schedule  {found['recipe_ms']:>8.1f} ms a step",
            f"ratio {found['ratio']:.3f} ({low:.3f} to {high:.3f}; of the fastest rounds "
            f"{found['ratio_of_fastest']:.3f}; by processor time {found['ratio_processor_time']:.3f})",
            f"ratio to the loop with EMA and schedule {found['ratio_to_recipe']:.3f}",
            "parts, ms a step",
            *(f"  {row}" for row in rows),
            f"a checkpoint: {found['checkpoint_ms']:.0f} ms",
            training.ending(found),
        )
    )


@dataclass(frozen=True)
class Plan:
    """A step's batch before it is made.

    Attributes:
        epoch: of the step.
        step: number within the epoch.
        labelled: (b_l,) positions in the labelled set.
        counters: (b_l,) numbers of their views' draws.
        unlabelled: (b_u,) positions in the pool.
        images: (b_l + b_u,) positions of both in the training images; those of unlabelled images
            number their draws.
    """

    epoch: int
    step: int
    labelled: Tensor
    counters: Tensor
    unlabelled: Tensor
    images: Tensor


class Bare:
    """The loop that one would write for a single method without a harness.

    Args:
        trainer: where batches, weights and optimiser are taken from; a copy is trained.
        job: the run.
    """

    def __init__(self, trainer: Trainer, job: Job) -> None:
        self.trainer, self.data, self.schedule = trainer, trainer.data, trainer.schedule
        self.prepared, self.seed, self.clip = job.prepared, trainer.seed, trainer.recipe.clip_norm
        self.model = build_method(job)
        self.model.load_state_dict(trainer.method.state_dict())
        self.optimizer, self.scheduler = build_optimizer(self.model, self.schedule, trainer.steps_per_epoch)
        self.ema = Ema(self.model, trainer.recipe.ema_decay, trainer.recipe.ema_warmup)

    def plan(self, epoch: int, steps: range) -> list[Plan]:
        """The batches of some steps."""
        found = []
        for step in steps:
            positions, pool = map(torch.from_numpy, self.trainer.batches.sampler.batch(epoch, step))
            passes = torch.from_numpy(self.trainer.batches.sampler.passes(epoch, step))
            labelled = self.data.labelled[positions]
            counters = labelled + passes * len(self.prepared.train)
            images = torch.cat((labelled, self.data.unlabelled[pool]))
            found.append(Plan(epoch, step, positions, counters, pool, images))
        return found

    def train(self, plans: Sequence[Plan], *, recipe: bool = False) -> None:
        """Do some steps; with `recipe`, as the recipe asks for them."""
        self.model.train()
        for plan in plans:
            output = self.model(self.batch(self.gather(plan), plan))
            self.backward(torch.stack(list(output.losses.values())).sum())
            if recipe and self.clip:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if recipe:
                self.scheduler.step()
                self.ema.update()

    def backward(self, total: Tensor) -> None:
        """The backward pass."""
        total.backward()

    def gather(self, plan: Plan) -> Tensor:
        """The images of a step, labelled before unlabelled."""
        return self.prepared.images("train", plan.images)

    def batch(self, images: Tensor, plan: Plan) -> Batch:
        """What the trainer's loop would hand to the method."""
        count, views = len(plan.labelled), self.trainer.batches.views
        weak_l, strong_l = (
            make_view(images[:count], plan.counters, policy=policy, seed=self.seed, epoch=0)
            for policy in (views.weak, self.schedule.labelled_view)
        )
        weak_u, strong_u = weak_l[:0], strong_l[:0]
        if len(plan.unlabelled):
            weak_u, strong_u = (
                make_view(
                    images[count:], plan.images[count:], policy=policy, seed=self.seed, epoch=plan.epoch
                )
                for policy in (views.weak, views.strong)
            )
        return Batch(
            epoch=plan.epoch,
            step=plan.step,
            labelled=plan.labelled,
            weak_labelled=weak_l,
            strong_labelled=strong_l,
            targets=self.data.targets[plan.labelled],
            unlabelled=plan.unlabelled,
            weak_unlabelled=weak_u,
            strong_unlabelled=strong_u,
            global_labelled=len(plan.labelled),
            global_unlabelled=len(plan.unlabelled),
            global_step=plan.epoch * self.trainer.steps_per_epoch + plan.step,
            total_steps=self.schedule.epochs * self.trainer.steps_per_epoch,
        )


def _trainer_parts(trainer: Trainer) -> Watched:
    """The calls of a step; none of them is made within another one."""
    batches, hidden = trainer.batches, trainer.hidden_labels
    scoring = [(hidden, "update", "scoring")] if hidden else []
    clip = [(trainer.strategy, "clip", "clip")] if trainer.recipe.clip_norm else []
    return (
        (batches.sampler, "batch", "sampler"),
        (batches.sampler, "passes", "sampler"),
        (loader, "_gather", "gather"),
        (batches, "batch", "views"),
        (trainer.model, "forward", "forward"),
        (trainer.accelerator, "backward", "backward"),
        *clip,
        (trainer.optimizer, "step", "optimizer"),
        (trainer.optimizer, "zero_grad", "optimizer"),
        (trainer.scheduler, "step", "schedule"),
        (trainer.ema, "update", "ema"),
        *scoring,
        (batches, "torch_seed", "seed"),
        (trainer.losses, "add", "losses"),
        (trainer.checkpoints, "due", "agreement"),
        (trainer.group, "start_max", "agreement"),
    )


def _bare_parts(bare: Bare) -> Watched:
    return (
        (bare, "gather", "gather"),
        (bare, "batch", "views"),
        (bare.model, "forward", "forward"),
        (bare, "backward", "backward"),
        (bare.optimizer, "step", "optimizer"),
        (bare.optimizer, "zero_grad", "optimizer"),
    )


@contextmanager
def _timed(calls: Watched) -> Iterator[dict[str, float]]:
    """Add up the seconds that calls take, by part; owners are as before afterwards."""
    spent: dict[str, float] = defaultdict(float)

    def clocked(call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                spent[part] += time.perf_counter() - began

        return timed

    # The optimiser's step is an attribute already: its schedule counts the calls.
    before = [vars(owner).get(name) for owner, name, _ in calls]
    for owner, name, part in calls:
        setattr(owner, name, clocked(getattr(owner, name), part))
    try:
        yield spent
    finally:
        for (owner, name, _), kept in zip(calls, before, strict=True):
            if kept is None:
                delattr(owner, name)
            else:
                setattr(owner, name, kept)


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.median(found[part] for found in rounds) for part in rounds[0]}


def _checkpoint(trainer: Trainer) -> float:
    """Milliseconds of a checkpoint, the second one: the first makes folders."""
    for step in range(2):
        trainer.step = step
        began = time.perf_counter()
        trainer.save()
    return 1000 * (time.perf_counter() - began)

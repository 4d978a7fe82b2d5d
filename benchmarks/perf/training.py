"""A run's training, set up to be measured on the CPU."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import methods
from benchmarks.arguments import positive
from benchmarks.data.sampler import SemiSampler
from benchmarks.perf.machine import machine
from benchmarks.plan.grid import load
from benchmarks.plan.jobs import Job, resolve
from benchmarks.plan.phases import main_phase
from benchmarks.progress import Progress
from benchmarks.provenance import packages
from benchmarks.training.build import build_trainer, schedule_of
from benchmarks.training.checkpoint import Checkpoints
from benchmarks.training.group import Group
from benchmarks.training.schedule import Schedule
from benchmarks.training.strategy import make
from benchmarks.training.trainer import Trainer
from benchmarks.workspace import Workspace
from methods.errors import UserError, nearest

LONG = 10_000
"""Epochs of the learning-rate schedule: a measurement must not come to the end of it."""
VERSIONS = ("python", "torch", "accelerate", "numpy")


def add_arguments(parser: argparse.ArgumentParser, *, steps: int, rounds: int) -> None:
    """The options of a measurement of training, with its own defaults."""
    parser.add_argument("--json", action="store_true", help="print one JSON line, not the table")
    parser.add_argument("--method", default="csaa", help="method to train (default: csaa)")
    parser.add_argument(
        "--grid",
        default="embedded",
        help="grid that says how: its first run of the method is taken (default: "
        "embedded, that is GlyphScenes at ratio 0.05)",
    )
    parser.add_argument("--steps", type=positive, default=steps, help=f"steps of a round (default: {steps})")
    parser.add_argument(
        "--rounds", type=positive, default=rounds, help=f"rounds, after one that warms up (default: {rounds})"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SSMLL_DATA", "data")),
        help="folder of the datasets (default: $SSMLL_DATA or ./data)",
    )


def find_job(
    method: str, grid: str, data: Path, progress: Callable[[str], Callable[[int, int], None]]
) -> Job:
    """The run to measure; its images are prepared if they are not yet.

    Args:
        method: registered name.
        grid: name or path of a grid.
        data: folder of the datasets.
        progress: makes a (done, total) callback from a title.

    Raises:
        UserError: this process would train on a GPU; an unknown method; one that is not in the
            grid or not trained in steps; a recipe that is not in float32; what `grid.load` and
            `plan.resolve` raise.
    """
    if torch.cuda.is_available():
        raise UserError("this measures CPUs; hide the GPU: set CUDA_VISIBLE_DEVICES=-1")
    if method not in methods.available():
        raise UserError(f"no method {method!r}{nearest(method, methods.available())}")
    found = load(grid)
    cells = [cell for cell in found.cells if cell.method == method]
    if not cells:
        known = {cell.method for cell in found.cells}
        raise UserError(f"grid {found.name!r} has no method {method!r}{nearest(method, known)}")
    if cells[0].kind == "fit":
        trained = {cell.method for cell in found.cells if cell.kind != "fit"}
        raise UserError(f"{method!r} is not trained in steps{nearest(method, trained)}")
    recipe = cells[0].recipe
    if (recipe.precision, recipe.strategy) != ("fp32", "ddp"):
        raise UserError(
            f"grid {found.name!r}: precision {recipe.precision!r} with strategy "
            f"{recipe.strategy!r}; measured are 'fp32' and 'ddp'"
        )
    # Nothing is written to the run store.
    workspace = Workspace(data, data / "no-runs")
    one = dataclasses.replace(found, cells=(cells[0],))
    (job,) = resolve(one, workspace, progress=progress, workers=1)
    return job


def build(job: Job, group: Group, folder: Path, times: int = 1) -> Trainer:
    """A trainer as a run has it, but for what takes no time of a step.

    The method starts without a warm-up, the schedule is long, and neither pseudo-labels of whole pools
    nor checkpoints are made.

    Args:
        job: the run.
        group: the processes that train it.
        folder: where checkpoints would go.
        times: factor of the recipe's batches.
    """
    recipe = job.cell.recipe
    return build_trainer(
        job,
        None,
        make(recipe.strategy, recipe.precision, group),
        checkpoints=Checkpoints(folder / "checkpoints", math.inf),
        schedule=long_schedule(job, times),
        phase=main_phase(job.cell),
    )


def long_schedule(job: Job, times: int = 1) -> Schedule:
    """The schedule of a run, made long, with `times` times the recipe's batches."""
    found = schedule_of(job, phase=main_phase(job.cell))
    return dataclasses.replace(
        found,
        epochs=LONG,
        schedule_epochs=LONG,
        batch_labelled=times * found.batch_labelled,
        batch_unlabelled=times * found.batch_unlabelled,
    )


def check_steps(job: Job, steps: int, times: int = 1) -> None:
    """Refuse more steps than an epoch has after its first.

    What is done once per epoch comes before the first step, which is why none is measured from
    there.

    Raises:
        UserError: `steps` is too large with `times` times the recipe's batches.
    """
    schedule, split = long_schedule(job, times), job.split
    pool = len(split.unlabelled) if schedule.batch_unlabelled else 0
    total = SemiSampler(
        len(split.labelled), pool, schedule.batch_labelled, schedule.batch_unlabelled, 0
    ).steps_per_epoch
    if steps >= total:
        raise UserError(f"--steps {steps}: an epoch has {total} steps; at most {total - 1}")


def advance(trainer: Trainer, epoch: int, steps: int) -> None:
    """Train the last steps of an epoch, in the trainer's own loop."""
    trainer.run_steps(epoch, trainer.steps_per_epoch - steps, steps)


def describe(job: Job, steps: int, rounds: int) -> dict[str, Any]:
    """What was measured and where, for the JSON line."""
    recipe, versions = job.cell.recipe, packages()
    semi = job.cell.kind == "semi"
    return {
        "method": job.spec.method,
        "dataset": job.spec.dataset,
        "resolution": recipe.resolution,
        "batch": [recipe.batch_labelled, recipe.batch_unlabelled] if semi else [recipe.batch_warmup, 0],
        "steps": steps,
        "rounds": rounds,
        "machine": machine(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {name: versions[name] for name in VERSIONS if name in versions},
    }


def title(found: dict[str, Any]) -> str:
    """The first line of a table."""
    labelled, unlabelled = found["batch"]
    return (
        f"{found['method']} on {found['dataset']}, {found['resolution']} pixels, batches of "
        f"{labelled} + {unlabelled}; medians of {found['rounds']} rounds of {found['steps']} steps"
    )


def ending(found: dict[str, Any]) -> str:
    """The last line of a table."""
    place, load = found["machine"], found["load"]
    busy = "" if load is None else f", load {load:.1f} before"
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{place['cpu']}, {place['cores']} cores{busy}; {versions}"


def say(line: str) -> None:
    """Tell how far a measurement is; the result alone goes to the standard output."""
    print(line, file=sys.stderr, flush=True)


def progress() -> Callable[[str], Callable[[int, int], None]]:
    """Progress of the preparation of images."""
    return Progress().counter

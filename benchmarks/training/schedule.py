"""What a training is made of: its images, its length, its optimiser, what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.data.cache.prepared import Prepared
from benchmarks.data.views.views import FAMILIES
from benchmarks.plan.phases import batches_of, epochs_of
from benchmarks.plan.recipe import Recipe
from methods.base import Phase, StepMethod
from methods.errors import UserError

RISE = 0.2
"""Share of the steps over which the rate rises in "onecycle", as CAP's code has it."""


@dataclass(frozen=True)
class TrainData:
    """The images of a run and the labels a method may see.

    Attributes:
        prepared: the resized images.
        labelled: (n_l,) int64 positions in the training images.
        unlabelled: (n_u,) int64 positions in the training images; empty for labelled-only methods.
        targets: (n_l, K) float32 labels of the labelled images.
        held_out: (n_v,) int64 positions of the labelled images kept for the "val" rule.
    """

    prepared: Prepared
    labelled: Tensor
    unlabelled: Tensor
    targets: Tensor
    held_out: Tensor


@dataclass(frozen=True)
class Schedule:
    """How long a training runs and what its steps are made of.

    Attributes:
        epochs: epochs to run.
        schedule_epochs: epochs over which the learning rate is laid out.
        batch_labelled: labelled images per step, over all processes.
        batch_unlabelled: unlabelled images per step, over all processes; 0 for none.
        labelled_view: the view of the labelled images whose loss is taken.
        evaluate: whether to score the test images along the way.
        phase: name of the `methods.phases.Phase` that it is; "" for a training without phases.
        first_epoch: epochs of the phases before it, which rows and progress count on from.
        epoch_over: what an epoch passes over once, where there are both kinds of images: "pool" or
            "labelled".
        unlabelled_view: the view of the unlabelled images whose loss is taken; "" for the family's.
    """

    epochs: int
    schedule_epochs: int
    batch_labelled: int
    batch_unlabelled: int
    labelled_view: str
    evaluate: bool
    phase: str = ""
    first_epoch: int = 0
    epoch_over: str = "pool"
    unlabelled_view: str = ""

    @classmethod
    def semi_supervised(cls, recipe: Recipe) -> Schedule:
        """The semi-supervised part of a run."""
        return cls(
            recipe.epochs,
            recipe.schedule_epochs or recipe.epochs,
            recipe.batch_labelled,
            recipe.batch_unlabelled,
            FAMILIES[recipe.views].labelled,
            True,
        )

    @classmethod
    def labelled_only(cls, recipe: Recipe) -> Schedule:
        """A method that reads nothing but the labelled images."""
        return cls(
            recipe.labelled_epochs, recipe.labelled_epochs, recipe.batch_warmup, 0, _warmup_view(recipe), True
        )

    @classmethod
    def warmup(cls, recipe: Recipe) -> Schedule:
        """The shared warm-up; it never sees the test images."""
        return cls(
            recipe.warmup_epochs, recipe.warmup_epochs, recipe.batch_warmup, 0, _warmup_view(recipe), False
        )

    @classmethod
    def of_phase(cls, recipe: Recipe, phase: Phase, first_epoch: int = 0) -> Schedule:
        """A phase of a method's own.

        Args:
            recipe: says what the phase does not.
            phase: the phase.
            first_epoch: epochs of the phases before it.
        """
        warmup = phase.recipe == "warmup"
        epochs = epochs_of(recipe, phase)
        long = epochs if warmup or phase.epochs else recipe.schedule_epochs or epochs
        labelled, unlabelled = batches_of(recipe, phase)
        view = _warmup_view(recipe) if warmup else FAMILIES[recipe.views].labelled
        return cls(
            epochs,
            long,
            labelled,
            unlabelled,
            view,
            not warmup,
            phase.name,
            first_epoch,
            phase.epoch_over,
            view if warmup else "",
        )


def _warmup_view(recipe: Recipe) -> str:
    return recipe.warmup_view if recipe.views == "cap" else FAMILIES[recipe.views].warmup


@dataclass
class Outcome:
    """What a finished training leaves.

    Attributes:
        scores: (n_test, K) float32 of the last epoch's EMA weights; None when not evaluated.
        raw_scores: the same of its raw weights.
        oracle: summary of the best evaluation on test, with "epoch" (from 0) and "weights"; None when not
            evaluated.
        val: summary under the held-out rule, or None when nothing was held out.
        images_seen: views that went through a training step.
        seconds: training time, over all attempts.
    """

    scores: Tensor | None
    raw_scores: Tensor | None
    oracle: dict[str, Any] | None
    val: dict[str, Any] | None
    images_seen: int
    seconds: float


def build_optimizer(
    method: StepMethod, schedule: Schedule, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimiser and the per-step schedule that the method's hyper-parameters name."""
    groups = method.param_groups()
    if not groups or not any(group["params"] for group in groups):
        where = f" in its phase {schedule.phase!r}" if schedule.phase else ""
        raise UserError(f"method {method.name!r} has no trainable parameter{where}")
    optimizer: torch.optim.Optimizer
    if method.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=1e-4, foreach=True)
    elif method.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, lr=1e-4, foreach=True)
    elif method.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9)
    else:
        raise UserError(
            f"method {method.name!r} asks for optimiser {method.optimizer!r}; use 'adamw', 'adam' or 'sgd'"
        )
    total = schedule.schedule_epochs * steps_per_epoch
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if method.schedule == "onecycle":
        # Of five steps torch would let the rate rise for 0.2 · 5 − 1 = 0 of them, and divide by that.
        rise = RISE if RISE * total != 1 else RISE + 1e-6
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=[group["lr"] for group in groups], total_steps=total, pct_start=rise
        )
    elif method.schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    elif method.schedule == "constant":
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    else:
        raise UserError(
            f"method {method.name!r} asks for schedule {method.schedule!r}; "
            "use 'onecycle', 'cosine' or 'constant'"
        )
    return optimizer, scheduler

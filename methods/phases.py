"""The phases of a training: a method that trains in several, one after another, lists them.

A phase is a training of its own: it has its own images, length, optimiser and schedule, and starts from the
weights that the phase before it left. A method without phases has one training, as its recipe says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from methods.errors import UserError, check_choice

LABELLED = ("labelled", "estimation")
LENGTHS = ("main", "warmup")


@dataclass(frozen=True)
class Phase:
    """One phase of a training.

    Attributes:
        name: what `Batch.phase` is in it; unique among a method's phases.
        recipe: which fields of the recipe it follows where it does not say otherwise: "main" (``epochs``,
            ``schedule_epochs``, ``batch_labelled``, ``batch_unlabelled``, views with cutout, scored on the
            test images as ``eval_every`` says) or "warmup" (``warmup_epochs``, ``batch_warmup``,
            ``warmup_view`` for all images that are trained on, never scored).
        labelled: the images whose labels are in the batches: "labelled", or "estimation" for those of
            `StepMethod.estimation_share`.
        pool: whether the batches have images of the pool. Without, an epoch is one pass over ``labelled``.
        epochs: its length; None for the recipe's. A length other than the recipe's has a schedule as long.
        batch_labelled: labelled images of a step over all processes; None for the recipe's.
        batch_unlabelled: images of the pool of a step; None for the recipe's ``batch_unlabelled``.
        epoch_over: what one epoch passes over once, where the batches have both kinds: "pool" or "labelled".
            The other kind goes on from epoch to epoch.
        start: the weights of the phase before that it starts from, and its moving average with them: "model"
            or "ema".

    Raises:
        UserError: a field has a value that is not allowed, or fields contradict each other.
    """

    name: str
    recipe: Literal["main", "warmup"] = "main"
    labelled: Literal["labelled", "estimation"] = "labelled"
    pool: bool = True
    epochs: int | None = None
    batch_labelled: int | None = None
    batch_unlabelled: int | None = None
    epoch_over: Literal["pool", "labelled"] = "pool"
    start: Literal["model", "ema"] = "model"

    def __post_init__(self) -> None:
        where = f"phase {self.name!r}"
        check_choice(f"{where}: recipe", self.recipe, LENGTHS)
        check_choice(f"{where}: labelled", self.labelled, LABELLED)
        check_choice(f"{where}: epoch_over", self.epoch_over, ("pool", "labelled"))
        check_choice(f"{where}: start", self.start, ("model", "ema"))
        for field in ("epochs", "batch_labelled", "batch_unlabelled"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UserError(f"{where}: {field} is {value}; it must be at least 1, or None")
        if self.batch_unlabelled and not self.pool:
            raise UserError(f"{where}: batch_unlabelled is given, and pool = False")


def main_of(phases: Sequence[Phase]) -> Phase | None:
    """The phase that is the semi-supervised part of a run: the first as long as the recipe's ``epochs``.

    Args:
        phases: of a method, in order; where none is like that, the first is taken, and None for no phases.
    """
    main = (phase for phase in phases if phase.recipe == "main" and phase.epochs is None)
    return next(main, phases[0] if phases else None)

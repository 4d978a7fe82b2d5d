"""How much of a training's starting weights is left in the moving average that is reported.

A decay that suits 50,000 steps leaves most of the start in a model that was trained for 700 steps, and the
number in the table is then that of the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.data.sampler import SemiSampler
from benchmarks.plan.phases import batches_of, epochs_of
from benchmarks.plan.recipe import Kind, Recipe, starting_share

if TYPE_CHECKING:
    from methods.phases import Phase

LITTLE = 0.005
"""A share of the starting weights that is not worth a line of its own."""


class Training(NamedTuple):
    """A training, for `remarks`.

    Attributes:
        label: row of the table.
        dataset: its name in tables.
        steps: optimiser steps that the average is taken over.
        recipe: its recipe.
        average: which average that is, in words.
    """

    label: str
    dataset: str
    steps: int
    recipe: Recipe
    average: str = "the reported moving average"


def trainings_of(
    label: str, dataset: str, recipe: Recipe, kind: Kind, labelled: int, unlabelled: int, warmed_up: bool
) -> list[Training]:
    """The trainings of a run whose average something is made of.

    They are the run's own, and its warm-up where the run starts from the warm-up's average.

    Args:
        label: row of the table.
        dataset: its name in tables.
        recipe: its recipe.
        kind: how the method is trained.
        labelled: images that it is trained on.
        unlabelled: images of the pool.
        warmed_up: whether the run starts from a warm-up.
    """
    found = [Training(label, dataset, training_steps(recipe, kind, labelled, unlabelled), recipe)]
    if warmed_up and recipe.warmup_weights == "ema":
        steps = recipe.warmup_epochs * _steps_per_epoch(labelled, recipe.batch_warmup)
        found.append(Training(label, dataset, steps, recipe, "the warm-up's moving average, where it starts"))
    return found


def phase_trainings(
    label: str, dataset: str, recipe: Recipe, phases: Sequence[Phase], sizes: tuple[int, int, int]
) -> list[Training]:
    """The trainings of a run in phases; the average of the last one is reported.

    Args:
        label: row of the table.
        dataset: its name in tables.
        recipe: its recipe.
        phases: those of the run that have epochs.
        sizes: labelled images that are trained on, estimation images, and images of the pool with these.
    """
    labelled, estimation, pool = sizes
    found = []
    for phase in phases:
        own = estimation if phase.labelled == "estimation" else labelled
        first, second = batches_of(recipe, phase)
        sampler = SemiSampler(own, pool, first, second, seed=0, over=phase.epoch_over)
        steps = epochs_of(recipe, phase) * sampler.steps_per_epoch
        which = "the reported moving average" if phase is phases[-1] else "the moving average"
        found.append(Training(label, dataset, steps, recipe, f"{which} of phase {phase.name!r}"))
    return found


def training_steps(recipe: Recipe, kind: Kind, labelled: int, unlabelled: int) -> int:
    """Optimiser steps of a run after its warm-up; 0 for a method that is fitted.

    Args:
        recipe: its recipe.
        kind: how the method is trained.
        labelled: images that it is trained on.
        unlabelled: images of the pool.
    """
    if kind == "fit":
        return 0
    if kind == "semi":
        pool = unlabelled, recipe.batch_unlabelled
        return recipe.epochs * _steps_per_epoch(labelled, recipe.batch_labelled, *pool)
    return recipe.labelled_epochs * _steps_per_epoch(labelled, recipe.batch_warmup)


def _steps_per_epoch(labelled: int, batch: int, unlabelled: int = 0, batch_unlabelled: int = 0) -> int:
    return SemiSampler(labelled, unlabelled, batch, batch_unlabelled, seed=0).steps_per_epoch


def remarks(trainings: Iterable[Training]) -> list[str]:
    """Name the averages that hold a part of their training's start, a line for each, row and dataset."""
    averaged = [one for one in trainings if one.steps and one.recipe.ema_decay]
    kept: dict[tuple[str, ...], tuple[float, Training]] = {}
    for one in averaged:
        share = starting_share(one.steps, one.recipe.ema_decay, one.recipe.ema_warmup)
        key = one.label, one.dataset, one.average
        if share >= LITTLE and share > kept.get(key, (0.0,))[0]:
            kept[key] = share, one
    if averaged and not kept:
        return [f"moving averages: less than {LITTLE:.1%} of the starting weights remain in any"]
    return [
        f"{one.label} on {one.dataset}: up to {share:.0%} of the starting weights remain in {one.average} "
        f"({one.steps} steps, ema_decay = {one.recipe.ema_decay:g}, "
        f"ema_warmup = {str(one.recipe.ema_warmup).lower()})"
        for share, one in kept.values()
    ]

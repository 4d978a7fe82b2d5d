"""The phases of a run, as its method lists them and its recipe fills them in; see `methods.phases`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import methods
from benchmarks.plan.recipe import Recipe
from methods.phases import main_of

if TYPE_CHECKING:
    from benchmarks.plan.grid import Cell
    from methods.phases import Phase


def phases_of(cell: Cell) -> tuple[Phase, ...]:
    """The phases that have epochs, in order; none for a method without phases."""
    if cell.kind != "semi":
        return ()
    found = methods.get(cell.method).phases(cell.hyper)
    return tuple(phase for phase in found if epochs_of(cell.recipe, phase))


def main_phase(cell: Cell) -> Phase | None:
    """The phase that is the semi-supervised part of a run; None for a method without phases."""
    return main_of(phases_of(cell))


def epochs_of(recipe: Recipe, phase: Phase) -> int:
    """The number of epochs of a phase; 0 for one that is left out."""
    if phase.epochs is not None:
        return phase.epochs
    return recipe.warmup_epochs if phase.recipe == "warmup" else recipe.epochs


def batches_of(recipe: Recipe, phase: Phase) -> tuple[int, int]:
    """Labelled and unlabelled images of a phase's steps, over all processes."""
    alone = phase.recipe == "warmup" or not phase.pool
    labelled = phase.batch_labelled or (recipe.batch_warmup if alone else recipe.batch_labelled)
    return labelled, (phase.batch_unlabelled or recipe.batch_unlabelled) if phase.pool else 0

"""What a reader of a grid's numbers should know of its data, splits and averages."""

from __future__ import annotations

from collections.abc import Sequence

import methods
from benchmarks.data.splits.estimation import split_off
from benchmarks.data.splits.rules import sees_hidden_labels
from benchmarks.plan import average
from benchmarks.plan.jobs import Job
from benchmarks.plan.phases import phases_of
from methods.backbones.conventions import conventions


def remarks(found: Sequence[Job]) -> list[str]:
    """List what a reader of a grid's numbers should know about its data, splits and weights, a line each."""
    lines: dict[str, None] = {}
    for backbone in dict.fromkeys(job.cell.backbone for job in found):
        if remark := conventions(backbone).remark:
            lines[remark] = None
    for job in found:
        dataset, split = job.prepared.dataset, job.split
        where = f"{dataset.name} {job.spec.subset}"
        for note in (*dataset.notes, *job.prepared.notes):
            lines[note] = None
        if job.prepared.skipped:
            count = len(job.prepared.skipped)
            lines[f"{dataset.name}: {count} unreadable images are left out"] = None
        if sees_hidden_labels(split.rule, len(split.unlabelled)):
            lines[
                f"{dataset.name}: split '{split.rule}' was drawn with the labels of all training images, "
                "of the unlabelled ones too"
            ] = None
        for note in split.notes:
            lines[f"{where}: {note}"] = None
        if split.absent:
            names = ", ".join(split.absent[:5]) + (" …" if len(split.absent) > 5 else "")
            lines[
                f"{where}: no labelled image to train on of {len(split.absent)} classes: {names}"
                " (split = 'stratified' keeps every class)"
            ] = None
    return [*lines, *average.remarks(training for job in found for training in _trainings(job))]


def _trainings(job: Job) -> list[average.Training]:
    """The trainings of a run whose moving average something is made of."""
    cell, dataset, split = job.cell, job.prepared.dataset, job.split
    if phases := phases_of(cell):
        share = methods.get(cell.method).estimation_share(cell.hyper)
        estimation = len(split_off(dataset.train.labels[split.labelled], share)[1]) if share else 0
        sizes = len(split.labelled) - estimation, estimation, len(split.unlabelled) + estimation
        return average.phase_trainings(cell.label, dataset.name, cell.recipe, phases, sizes)
    return average.trainings_of(
        cell.label,
        dataset.name,
        cell.recipe,
        cell.kind,
        len(split.labelled),
        len(split.unlabelled),
        any(stage.kind == "warmup" for stage in job.stages),
    )

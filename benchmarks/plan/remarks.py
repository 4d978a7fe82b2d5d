"""What a reader of a grid's numbers should know of its data, splits and averages."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.data.splits.rules import sees_hidden_labels
from benchmarks.plan import average
from benchmarks.plan.jobs import Job
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
    trainings = [
        training
        for job in found
        for training in average.trainings_of(
            job.cell.label,
            job.prepared.dataset.name,
            job.cell.recipe,
            job.cell.kind,
            len(job.split.labelled),
            len(job.split.unlabelled),
            any(stage.kind == "warmup" for stage in job.stages),
        )
    ]
    return [*lines, *average.remarks(trainings)]

"""Runs and shared stages packed into bundles: what one job of a cluster does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.plan.jobs import Job, Stage

GUESS_SECONDS = 600.0
"""What a run is taken for when nothing was measured; only bundles' sizes depend on it."""


@dataclass(frozen=True)
class Bundle:
    """What one job does.

    Attributes:
        kind: "stages" or "runs".
        precision: of all its runs; a process is set up for one.
        strategy: likewise.
        dataset: its images.
        processes: that work on it together; methods that are fitted in one process have 1.
        run_ids: its runs.
        stage_ids: its stages.
        needs: stages that have to be there before; made by other bundles.
        seconds: estimated length in seconds, guesses included.
    """

    kind: str
    precision: str
    strategy: str
    dataset: str
    processes: int
    run_ids: tuple[str, ...] = ()
    stage_ids: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


def pack(
    jobs: Sequence[Job],
    stages: Iterable[tuple[Stage, Job]],
    processes: int,
    target: float,
    *,
    of_run: Callable[[Job], float | None],
    of_stage: Callable[[Stage, Job], float | None],
) -> list[Bundle]:
    """Bundles of about the same length; those of stages come first.

    Runs that differ in what a process is set up for, in how many processes train them, or in the
    dataset are kept apart: bundles of one dataset wait for that dataset's stages only.

    Args:
        jobs: the runs to do.
        stages: the stages to do, each with a run that needs it.
        processes: that train a run together.
        target: length in seconds after which a bundle is full.
        of_run: estimated seconds of a run, None where nothing is known.
        of_stage: the same of a stage.
    """
    todo = {stage.stage_id for stage, _ in stages}
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for stage, job in stages:
        count = processes if stage.kind == "warmup" else 1
        key: tuple[Any, ...] = ("stages", *job.process_kind, job.spec.dataset, count)
        groups.setdefault(key, []).append((stage.stage_id, of_stage(stage, job), ()))
    for job in jobs:
        count = 1 if job.cell.kind == "fit" else processes
        needs = tuple(stage.stage_id for stage in job.stages if stage.stage_id in todo)
        key = ("runs", *job.process_kind, job.spec.dataset, count, bool(needs))
        groups.setdefault(key, []).append((job.spec.run_id, of_run(job), needs))
    found = []
    for (kind, precision, strategy, dataset, count, *_), entries in groups.items():
        for part in _parts(entries, target):
            ids = tuple(entry[0] for entry in part)
            found.append(
                Bundle(
                    kind,
                    precision,
                    strategy,
                    dataset,
                    count,
                    run_ids=ids if kind == "runs" else (),
                    stage_ids=ids if kind == "stages" else (),
                    needs=tuple(dict.fromkeys(need for entry in part for need in entry[2])),
                    seconds=sum(_length(entry) for entry in part),
                )
            )
    return sorted(found, key=lambda bundle: bundle.kind != "stages")


def _length(entry: tuple[str, float | None, tuple[str, ...]]) -> float:
    return GUESS_SECONDS if entry[1] is None else entry[1]


def _parts(entries: list[Any], target: float) -> list[list[Any]]:
    """Neighbours together, which share data and stages, until a bundle is full."""
    parts: list[list[Any]] = []
    room = 0.0
    for entry in entries:
        if not parts or _length(entry) > room:
            parts.append([])
            room = target
        parts[-1].append(entry)
        room -= _length(entry)
    return parts

"""Packs runs and shared stages into bundles, each of which one job of a cluster does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.plan.jobs import Job
from benchmarks.plan.stages import Stage

GUESS_SECONDS = 600.0
"""Assumed length of a run that was never measured; it only decides how bundles are filled."""


@dataclass(frozen=True)
class Bundle:
    """What one job does.

    Attributes:
        kind: "stages" or "runs".
        precision: precision of all its runs; a process is set up for one.
        strategy: strategy of all its runs; a process is set up for one.
        dataset: name of the dataset of all its runs.
        processes: processes that work on it together; 1 for methods that are fitted.
        run_ids: identities of its runs.
        stage_ids: identities of its stages.
        needs: identities of the stages that its runs need and other bundles make.
        seconds: estimated length in seconds, `GUESS_SECONDS` for what was never measured.
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

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Bundle:
        """A bundle from its JSON values.

        Raises:
            TypeError: a field is absent or unknown, or the value is no table.
        """
        values: dict[str, Any] = {**record}
        values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**values)

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


def pack(
    jobs: Sequence[Job],
    stages: Iterable[tuple[Stage, Job]],
    processes: int,
    target: float,
    *,
    run_seconds: Callable[[Job], float | None],
    stage_seconds: Callable[[Stage, Job], float | None],
    queued: Iterable[str] = (),
) -> list[Bundle]:
    """Pack runs and stages into bundles of about the same length.

    A bundle holds runs of one process kind, one number of processes and one dataset, so that it waits
    for the stages of its own dataset only.

    Args:
        jobs: the runs to do.
        stages: the stages to do, each with a run that needs it.
        processes: processes that train a run together.
        target: length in seconds after which a bundle is full.
        run_seconds: gives the estimated seconds of a run, None where nothing is known.
        stage_seconds: gives the estimated seconds of a stage, None where nothing is known.
        queued: identities of stages that jobs make already; runs wait for these, too.

    Returns:
        The bundles, those of stages first.
    """
    stages = list(stages)
    todo = {stage.stage_id for stage, _ in stages} | set(queued)
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for stage, job in stages:
        count = processes if stage.kind == "warmup" else 1
        key: tuple[Any, ...] = ("stages", *job.process_kind, job.spec.dataset, count)
        groups.setdefault(key, []).append((stage.stage_id, stage_seconds(stage, job), ()))
    for job in jobs:
        count = 1 if job.cell.kind == "fit" else processes
        needs = tuple(stage.stage_id for stage in job.stages if stage.stage_id in todo)
        key = ("runs", *job.process_kind, job.spec.dataset, count, bool(needs))
        groups.setdefault(key, []).append((job.spec.run_id, run_seconds(job), needs))
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
    """Cut entries into bundles; neighbours, which share data and stages, stay together."""
    parts: list[list[Any]] = []
    room = 0.0
    for entry in entries:
        if not parts or _length(entry) > room:
            parts.append([])
            room = target
        parts[-1].append(entry)
        room -= _length(entry)
    return parts

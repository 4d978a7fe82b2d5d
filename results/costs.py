"""What the runs of a table cost: time, memory and trained parameters, from their results."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from results import text
from results.columns import Column
from results.files import atomic_write_bytes
from results.schema import Result

MIB = 2**20
HEAD = ("method", "column", "runs", "seconds a run", "ms an image", "memory MiB", "trained parameters")


@dataclass(frozen=True)
class Cost:
    """What the finished runs of a cell cost.

    Attributes:
        label: row of the table.
        column: its column.
        runs: number of runs.
        seconds: mean training time of a run, without shared stages and evaluations; scoring the pool is in
            it.
        milliseconds: mean of the time divided by the images that went through a step, or were fitted to.
        memory: largest peak in MiB: of the device where there is one, else of the process; None if unknown.
        parameters: trained parameters, the largest number among the runs.
        devices: names of the devices.
    """

    label: str
    column: Column
    runs: int
    seconds: float
    milliseconds: float
    memory: float | None
    parameters: int
    devices: tuple[str, ...]


def costs(found: Iterable[tuple[dict[str, Any], Result]]) -> list[Cost]:
    """The costs of finished runs by row and column, in the order in which these come up.

    Args:
        found: from `results.frames.finished`.
    """
    cells: dict[tuple[str, Column], list[Result]] = {}
    for item, result in found:
        column = Column(item["dataset"], item["ratio"], item.get("budget") or "")
        cells.setdefault((item["label"], column), []).append(result)
    return [_cost(label, column, results) for (label, column), results in cells.items()]


def _cost(label: str, column: Column, results: Sequence[Result]) -> Cost:
    spent = [result["cost"] for result in results]
    peaks = [peak for peak in map(_peak, spent) if peak is not None]
    return Cost(
        label,
        column,
        len(results),
        statistics.fmean(cost["seconds"] for cost in spent),
        statistics.fmean(1000 * cost["seconds"] / max(cost["images_seen"], 1) for cost in spent),
        max(peaks) / MIB if peaks else None,
        max(cost["trainable_parameters"] for cost in spent),
        tuple(sorted({str(cost["device"]) for cost in spent})),
    )


def _peak(cost: Any) -> int | None:
    """Bytes on the device, or else on the host; None for results that do not say it."""
    found = cost.get("peak_memory_bytes") or {}
    return found.get("device") or found.get("host")


def to_markdown(found: Sequence[Cost]) -> str:
    """A table with a row for each method and column, and what its numbers are."""
    rows = [
        [
            text.markdown(cost.label),
            text.markdown(f"{cost.column.dataset} {cost.column.share}"),
            cost.runs,
            f"{cost.seconds:.0f}",
            f"{cost.milliseconds:.3g}",
            "" if cost.memory is None else f"{cost.memory:,.0f}",
            f"{cost.parameters:,}",
        ]
        for cost in found
    ]
    aligned = ("left", "left", *["right"] * 5)
    shown = tabulate(rows, headers=HEAD, tablefmt="pipe", colalign=aligned, disable_numparse=True)
    return shown + "\n\n" + "\n".join(f"- {text.markdown(line)}" for line in notes(found)) + "\n"


def notes(found: Sequence[Cost]) -> list[str]:
    """What the numbers are, and of which devices."""
    devices = sorted({device for cost in found for device in cost.devices})
    lines = [
        "Seconds: training of a run, the mean of its runs, with the scoring of the pool and without "
        "evaluations and what runs share. An image counts each time it goes through a step; all that was "
        "computed for it, such as patches, further views and the pool's scores, is in its time.",
        "Memory: the largest peak of a run, on the device where there is one, else of the whole process.",
        f"Devices: {', '.join(devices)}.",
    ]
    if len(devices) > 1:
        lines.append("Times of different devices are not comparable.")
    return lines


def to_csv(found: Sequence[Cost]) -> str:
    """CSV with a row for each method and column."""
    head = ["label", "dataset", "ratio", "budget", "runs", "seconds", "ms_per_image", "memory_mib"]
    rows: list[list[Any]] = [[*head, "trainable_parameters", "devices"]]
    for cost in found:
        column = cost.column
        values = [cost.seconds, cost.milliseconds, cost.memory, cost.parameters, " ".join(cost.devices)]
        place = [cost.label, column.dataset, column.ratio, column.budget, cost.runs]
        rows.append([text.exact(value) for value in (*place, *values)])
    return text.csv_of(rows)


def write_costs(found: Sequence[Cost], folder: Path) -> list[Path]:
    """Write costs.md and costs.csv into a folder, which is created when it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "costs.md", folder / "costs.csv"]
    for path, content in zip(paths, (to_markdown(found), to_csv(found)), strict=True):
        atomic_write_bytes(path, text.utf8(content))
    return paths

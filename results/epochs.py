"""The finished epochs of a run, a line each in `epochs.jsonl`; the first epoch is 1. Fields: docs/results.md.

A line says its format. Those without one were written by earlier versions, and their epochs count from 0;
readers get all of them counted from 1. A line that a killed writer left unfinished is no line.

A line also says the generation of the lease under which it was written. Of two lines of one epoch that of the
newer generation counts: the other is of a process that was stopped, lost the run to another, and went on.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from results.damage import DECODING_ERRORS, UnreadableError, read_bytes
from results.errors import StoreError
from results.files import atomic_write_bytes, canonical_json

NAME = "epochs.jsonl"
FORMAT = 2
ASIDE = "epochs.damaged.jsonl"
ADVICE = f"remove the line; the run that goes on does so, and keeps the file as {ASIDE}"


_SCORES = ("mAP_ema", "mAP_model", "mAP_val")
log = logging.getLogger(__name__)


def append(directory: Path, row: dict[str, Any], generation: int = 0) -> None:
    """Add one line. Nothing that is in the file changes: another process may be writing there.

    Args:
        directory: the run's directory; it must exist.
        row: JSON-able, with an integer "epoch" that counts from 1.
        generation: of this process's lease.

    Raises:
        StoreError: there is no such "epoch".
        ValueError: the row holds NaN or infinity.
    """
    if not isinstance(row.get("epoch"), int) or row["epoch"] < 1:
        raise StoreError(f"{directory}: an epoch row needs an integer 'epoch' of at least 1")
    line = _line({**row, "generation": generation} if generation else row)
    with open(directory / NAME, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":  # of a killed writer
                line = b"\n" + line
        file.write(line)  # append mode: one write at the end
        file.flush()
        os.fsync(file.fileno())


def truncate(directory: Path, epoch: int) -> None:
    """Remove the lines of an epoch and of those after it (a resumed run writes them again).

    A file with lines that are damaged is kept under another name, and the run goes on without them.

    Args:
        directory: the run's directory.
        epoch: first epoch to forget; the first of all is 1.
    """
    if os.path.lexists(directory / NAME):
        kept = [row for row in _sound_rows(directory) if row["epoch"] < epoch]
        atomic_write_bytes(directory / NAME, b"".join(map(_line, kept)))


def settle(directory: Path) -> None:
    """Leave the rows that count in the file of a finished run, and nothing of how they came there.

    Args:
        directory: the run's directory.
    """
    if os.path.lexists(directory / NAME):
        rows = map(_without_generation, _sound_rows(directory))
        atomic_write_bytes(directory / NAME, b"".join(map(_line, rows)))


def read(directory: Path) -> list[dict[str, Any]]:
    """Rows by epoch, counted from 1; no file is no rows.

    Raises:
        StoreError: a line that is not torn is no row, or the file cannot be read.
    """
    rows, damage = _rows(directory)
    if damage:
        raise UnreadableError(damage)
    return list(map(_without_generation, rows))


def _without_generation(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "generation"}


def _sound_rows(directory: Path) -> list[dict[str, Any]]:
    """The rows that count; a file with others, or one that is none, is put aside."""
    try:
        rows, damage = _rows(directory)
    except UnreadableError as error:
        rows, damage = [], str(error)
    if damage:
        log.warning("%s; its sound lines are kept, the file is put aside as %s", damage, ASIDE)
        os.replace(directory / NAME, directory / ASIDE)
    return rows


def _rows(directory: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows that count, with their generations; and what is wrong with the first bad line, or ""."""
    try:
        raw = read_bytes(directory / NAME)
    except FileNotFoundError:
        return [], ""
    found: dict[int, dict[str, Any]] = {}
    damage = ""
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(), start=1):
        if line.startswith(b"{") and not line.endswith(b"}"):  # torn, and later lines follow
            continue
        try:
            row = _row(json.loads(line))
        except DECODING_ERRORS:
            damage = damage or f"{directory}/{NAME}: line {number} is damaged; {ADVICE}"
            continue
        known = found.get(row["epoch"])
        if known is None or row.get("generation", 0) >= known.get("generation", 0):
            found[row["epoch"]] = row
    return [found[epoch] for epoch in sorted(found)], damage


def _row(values: Any) -> dict[str, Any]:
    """A row whose epoch counts from 1; ValueError if the values are none."""
    if not isinstance(values, dict):
        raise ValueError("no table of fields")
    fields = {name: value for name, value in values.items() if name != "format"}
    version, generation = values.get("format", 1), values.get("generation", 0)
    if not all(type(value) is int for value in (values.get("epoch"), version, generation)):
        raise ValueError("no epoch")
    losses, quality = values.get("losses", {}), values.get("pseudo_labels") or {}
    if not isinstance(losses, dict) or not isinstance(quality, dict):
        raise ValueError("losses or pseudo_labels is no table")
    numbers = [*losses.values(), *(values.get(name) for name in _SCORES)]
    if not all(value is None or isinstance(value, int | float) for value in numbers):
        raise ValueError("a loss or score is no number")
    return {**fields, "epoch": values["epoch"] + (version < FORMAT)}


def _line(row: dict[str, Any]) -> bytes:
    return canonical_json({"format": FORMAT, **row}).encode()

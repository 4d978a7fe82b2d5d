"""The finished epochs of a run, a line each in `epochs.jsonl`; the first epoch is 1.

A line says its format. Those without one were written by earlier versions, and their epochs count from 0;
readers get all of them counted from 1. A line that a killed writer left unfinished is no line.

A line also says the generation of the lease under which it was written. Of two lines of one epoch that of the
newer generation counts: the other is of a process that was stopped, lost the run to another, and went on.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from results.errors import StoreError
from results.files import atomic_write_bytes, canonical_json

NAME = "epochs.jsonl"
FORMAT = 2


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

    Args:
        directory: the run's directory.
        epoch: first epoch to forget; the first of all is 1.
    """
    if (directory / NAME).exists():
        kept = [row for row in _rows(directory) if row["epoch"] < epoch]
        atomic_write_bytes(directory / NAME, b"".join(map(_line, kept)))


def settle(directory: Path) -> None:
    """Leave the rows that count in the file of a finished run, and nothing of how they came there.

    Args:
        directory: the run's directory.
    """
    if (directory / NAME).exists():
        atomic_write_bytes(directory / NAME, b"".join(map(_line, read(directory))))


def read(directory: Path) -> list[dict[str, Any]]:
    """Rows by epoch, counted from 1; no file is no rows.

    Raises:
        StoreError: a line that is not torn is no row.
    """
    return [{name: value for name, value in row.items() if name != "generation"} for row in _rows(directory)]


def _rows(directory: Path) -> list[dict[str, Any]]:
    """The rows that count, with their generations."""
    try:
        raw = (directory / NAME).read_bytes()
    except FileNotFoundError:
        return []
    found: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(), start=1):
        if line.startswith(b"{") and not line.endswith(b"}"):  # torn, and later lines follow
            continue
        try:
            row = json.loads(line)
            epoch = row["epoch"] + (row.pop("format", 1) < FORMAT)
            known = found.get(epoch)
            if known is None or row.get("generation", 0) >= known.get("generation", 0):
                found[epoch] = {**row, "epoch": epoch}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{directory}/{NAME}: line {number} is damaged") from error
    return [found[epoch] for epoch in sorted(found)]


def _line(row: dict[str, Any]) -> bytes:
    return canonical_json({"format": FORMAT, **row}).encode()

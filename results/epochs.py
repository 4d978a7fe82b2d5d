"""The finished epochs of a run, a line each in `epochs.jsonl`; the first epoch is 1.

A line says its format. Those without one were written by earlier versions, and their epochs count from 0;
readers get all of them counted from 1. A line that a killed writer left unfinished is no line.
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


def append(directory: Path, row: dict[str, Any]) -> None:
    """Add one line; a torn last line of a killed writer is cut off first.

    Args:
        directory: the run's directory; it must exist.
        row: JSON-able, with an integer "epoch" that counts from 1.

    Raises:
        StoreError: there is no such "epoch".
        ValueError: the row holds NaN or infinity.
    """
    if not isinstance(row.get("epoch"), int) or row["epoch"] < 1:
        raise StoreError(f"{directory}: an epoch row needs an integer 'epoch' of at least 1")
    line = _line(row)
    with open(directory / NAME, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
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
        kept = [row for row in read(directory) if row["epoch"] < epoch]
        atomic_write_bytes(directory / NAME, b"".join(map(_line, kept)))


def read(directory: Path) -> list[dict[str, Any]]:
    """Rows in file order, their epochs counted from 1; no file is no rows.

    Raises:
        StoreError: a line other than a torn last one is no row.
    """
    try:
        raw = (directory / NAME).read_bytes()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            earlier = row.pop("format", 1) < FORMAT
            rows.append({**row, "epoch": row["epoch"] + 1} if earlier else row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{directory}/{NAME}: line {number} is damaged") from error
    return rows


def _line(row: dict[str, Any]) -> bytes:
    return canonical_json({"format": FORMAT, **row}).encode()

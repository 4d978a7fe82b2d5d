"""The weights that a run kept, `model.safetensors`: what the file says of itself, without torch.

It is a safetensors file: eight bytes with the length of the header, the header, which is JSON, and the bytes
of the tensors. The header's ``__metadata__`` has the key `KEY`, with JSON in it: what was trained, what an
input is, and the SHA-256 of the bytes after the header. Reading it executes nothing. docs/models.md has the
fields.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.damage import DECODING_ERRORS, UnreadableError, read_bytes, refused
from results.files import atomic_writer, create_bytes
from results.schema import Result

NAME = "model.safetensors"
KEY = "ssmll_bench"
FORMAT = 1
PLACEHOLDER = "0" * 64
"""Stands for the checksum while a file is made."""
LONGEST_HEADER = 100_000_000
"""Bytes, as the safetensors library has it."""
_FIELDS: dict[str, type] = {
    "format": int,
    "kept": str,
    "run_id": str,
    "spec": dict,
    "weights": str,
    "classes": list,
    "score_scale": str,
    "scores_sha256": str,
    "input": dict,
    "backbone": dict,
    "task": dict,
    "sha256": str,
}
"""Fields of the record that are read, and their types; a newer writer may add some without a new format."""


@dataclass(frozen=True)
class Header:
    """What the beginning of a file of weights says.

    Attributes:
        record: see `_FIELDS` and docs/models.md.
        start: byte at which the tensors begin.
        size: bytes of the file.
    """

    record: dict[str, Any]
    start: int
    size: int


def of_run(directory: Path) -> Path | None:
    """The weights of a run; None where it kept none."""
    path = directory / NAME
    return path if os.path.lexists(path) else None


def read_header(path: Path) -> Header:
    """Read what a file of weights says of itself; the tensors are not read.

    Raises:
        UnreadableError: it is cut off, of another kind, or of a newer version.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            # A file of another kind has any number there.
            text = file.read(length) if length <= min(size, LONGEST_HEADER) else b""
    except FileNotFoundError:
        raise UnreadableError(f"{path} is missing") from None
    except OSError as error:
        raise UnreadableError(refused(path, error)) from None
    if len(text) < length or not text:
        raise UnreadableError(f"{path} is no whole safetensors file (its header is cut off): {AGAIN}")
    try:
        header = json.loads(text)
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        end = 8 + length + max((value["data_offsets"][1] for value in tensors.values()), default=0)
        said = header.get("__metadata__", {}).get(KEY)
        record = None if said is None else json.loads(said)
    except (*DECODING_ERRORS, AttributeError, TypeError, KeyError, IndexError):
        raise UnreadableError(f"{path} is damaged (its header is no safetensors header): {AGAIN}") from None
    if end != size:
        raise UnreadableError(f"{path} is cut off: it has {size:,} bytes of {end:,}: {AGAIN}")
    if not isinstance(record, dict):
        raise UnreadableError(f"{path} holds no model of a run: its metadata lack {KEY!r}")
    return Header(_checked(record, path), 8 + length, size)


AGAIN = "copy it again, or train the run again"


def _checked(record: dict[str, Any], path: Path) -> dict[str, Any]:
    version = record.get("format")
    if type(version) is int and version > FORMAT:
        raise UnreadableError(
            f"{path}: format {version} is newer than this version of SSMLL-Bench reads (up to {FORMAT}); "
            "update it"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind) or isinstance(record[name], bool):
            raise UnreadableError(f"{path} is damaged (its record lacks {name!r}): {AGAIN}")
    return record


def verified(path: Path) -> Header:
    """Read a whole file of weights and compare it with its checksum.

    Raises:
        UnreadableError: as `read_header`; or it is not what was written.
    """
    header = read_header(path)
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            file.seek(header.start)
            while part := file.read(1 << 20):
                found.update(part)
    except OSError as error:
        raise UnreadableError(refused(path, error)) from None
    if found.hexdigest() != header.record["sha256"]:
        raise UnreadableError(f"{path} has changed on the disk, its checksum differs: {AGAIN}")
    return header


def write(path: Path, data: bytes, record: Mapping[str, Any]) -> None:
    """Write a file of weights atomically.

    Args:
        path: where.
        data: what safetensors made of the tensors, with `metadata` of the record in the header.
        record: its ``sha256`` is the placeholder, which the checksum replaces here.

    Raises:
        OSError: it cannot be written.
    """
    assert record["sha256"] == PLACEHOLDER
    length = int.from_bytes(data[:8], "little")
    body = memoryview(data)[8 + length :]
    checksum = hashlib.sha256(body).hexdigest()
    mark = json.dumps({"sha256": PLACEHOLDER})[1:-1].replace('"', '\\"').encode()
    header = bytes(data[8 : 8 + length])
    assert header.count(mark) == 1
    with atomic_writer(path) as file:
        file.write(data[:8])
        file.write(header.replace(mark, mark.replace(PLACEHOLDER.encode(), checksum.encode())))
        file.write(body)


def metadata(record: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a file's header: one entry, because the library writes several in any order."""
    return {KEY: json.dumps(record, sort_keys=True, allow_nan=False)}


def foreign(record: Mapping[str, Any], result: Result) -> str:
    """Why weights are not those of a result, or ""."""
    if record["run_id"] != result["run_id"]:
        return f"they are of run {record['run_id'][:16]}, not of {result['run_id'][:16]}"
    if record["classes"] != result["classes"]:
        return "they are of other classes than the result"
    if record["scores_sha256"] != result.get("predictions_sha256"):
        return "they are of another attempt at the run, whose test scores were others"
    return ""


def take(place: Path, here: Path, result: Result) -> tuple[bool, str]:
    """Copy the weights of a run of another store to the same run here, if that has none.

    Args:
        place: the run's directory there.
        here: its directory in this store.
        result: the one that is kept here.

    Returns:
        Whether they were copied; and why those that are there were not, "" where there is no such thing.

    Raises:
        OSError: they cannot be written.
    """
    source = of_run(place)
    if source is None or of_run(here) is not None:
        return False, ""
    try:
        problem = foreign(verified(source).record, result)
        problem = problem and f"{source}: {problem}"
        data = b"" if problem else read_bytes(source)
    except (UnreadableError, FileNotFoundError) as error:
        problem = str(error)
    if problem:
        return False, f"its weights are left there: {problem}"
    return create_bytes(here / NAME, data, whole=True), ""


def total(runs: Iterable[Path]) -> tuple[int, int]:
    """How many of some run directories have weights, and their bytes."""
    found = [path.stat().st_size for path in map(of_run, runs) if path is not None and path.exists()]
    return len(found), sum(found)


def size_text(count: int) -> str:
    """A number of bytes for people: "812 kB", "45.1 MB", "1.2 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"

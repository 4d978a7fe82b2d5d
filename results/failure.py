"""The record of a run's failure, `failure.json`."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from typing import Any

from results.damage import UnreadableError, read_table
from results.errors import StoreError
from results.files import atomic_write_json, canonical_json, create_bytes

NAME = "failure.json"
ADVICE = "why the run failed is not known; running it again puts the file aside"


def read(directory: Path) -> dict[str, Any] | None:
    """The failure that is recorded in a run's directory, or None.

    Of a record that is damaged, or of something else, type and message say just that, and there is no
    generation: it may be of any attempt.
    """
    path = directory / NAME
    try:
        record = read_table(path, ADVICE)
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        return {"type": StoreError.__name__, "message": str(error)}
    texts = all(isinstance(record.get(name), str) for name in ("type", "message"))
    if texts and isinstance(record.get("generation", 0), int):
        return record
    why = f"{path} is damaged (it is no record of a failure); {ADVICE}"
    return {"type": StoreError.__name__, "message": why}


def write(directory: Path, generation: int, error: dict[str, Any]) -> bool:
    """Record why an attempt failed, see `RunStore.write_failure`; whether it was written."""
    first = read(directory)
    if first is not None and int(first.get("generation", 0)) >= generation:
        return False
    record = {
        "signature": error_signature(error["type"], error["message"]),
        "host": socket.gethostname(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **error,
        "generation": generation,
    }
    if first is None:  # the ranks of a group may come at the same moment
        return create_bytes(directory / NAME, canonical_json(record, indent=1).encode())
    atomic_write_json(directory / NAME, record)
    return True


def error_signature(kind: str, message: str) -> str:
    """A text that is equal for errors that differ in numbers, addresses or paths only; groups errors.

    Args:
        kind: name of the exception.
        message: its text; the first line counts.

    Returns:
        For example "OutOfMemoryError: tried to allocate # MiB".
    """
    line = (message.strip().splitlines() or [""])[0]
    line = re.sub(r"(?:/[^\s/'\":,;]+){2,}", "<path>", line)
    line = re.sub(r"0x[0-9a-fA-F]+", "#", line)
    line = re.sub(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", "#", line)
    return f"{kind}: {line}"[:200]

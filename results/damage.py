"""Files of a store that are truncated, empty, foreign or unreadable: what is wrong with one, and what to do.

One bad file harms the run that it belongs to and no other: readers of many runs take what is said here as a
run's state, or as a remark, and go on.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

from results.errors import StoreError

_RIGHTS = (errno.EACCES, errno.EPERM)
_PLACE = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
RUN_AGAIN = "remove it to run again"
SPEC_ADVICE = "a run that is not done writes it again, and a result holds the same"
FOREIGN = "is not the result of this run; move it away to run again"
DECODING_ERRORS = (ValueError, RecursionError)
"""What `json.loads` raises on bytes that are no JSON, or nested without an end."""


class UnreadableError(StoreError):
    """A stored file cannot be read, or does not hold what it should; the message says what to do."""


def refused(path: Path | str, error: OSError) -> str:
    """One line on a file or folder that the system does not let us read."""
    why = error.strerror or str(error)
    if error.errno in _RIGHTS:
        return f"{path} cannot be read: {why}; ask its owner for the right to read it"
    if error.errno in _PLACE or (isinstance(error, FileNotFoundError) and os.path.islink(path)):
        return f"{path} cannot be read: {why}; move it away"
    return f"{path} cannot be read: {why}; try again when the disk answers"


def to_stderr(line: str) -> None:
    """Say what is left out where nobody asked to be told."""
    print(line, file=sys.stderr)


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: there is none of this name.
        UnreadableError: it cannot be read; a link that leads nowhere too.
    """
    try:
        # Without this a pipe of that name would keep the reader waiting for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UnreadableError(f"{path} is no regular file; move it away")
            return file.read()
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise UnreadableError(refused(path, error)) from None
        raise
    except OSError as error:
        raise UnreadableError(refused(path, error)) from None


def read_table(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: the file.
        advice: what to do where it is damaged, for the end of the message.

    Raises:
        FileNotFoundError: there is none.
        UnreadableError: it cannot be read, or is no JSON object.
    """
    data = read_bytes(path)
    try:
        found = json.loads(data)
    except DECODING_ERRORS as error:
        why = "it is empty" if not data.strip() else str(error)
        raise UnreadableError(f"{path} is damaged ({why}); {advice}") from None
    if not isinstance(found, dict):
        raise UnreadableError(f"{path} is damaged (it holds no table of fields); {advice}")
    return found


def read_csv(path: Path, advice: str) -> list[list[str]]:
    """The lines of a CSV file, each as its fields.

    Args:
        path: the file.
        advice: what to do where it is damaged, for the end of the message.

    Raises:
        FileNotFoundError: there is none.
        UnreadableError: it cannot be read, or is no CSV in UTF-8.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
        # A field of a file of another kind may be longer than `csv` allows, or hold a NUL.
        return list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{path}: no UTF-8 text at byte {error.start}; {advice}") from None
    except csv.Error as error:
        raise UnreadableError(f"{path}: no CSV: {error}; {advice}") from None


def result_problem(path: Path, run_id: str) -> str:
    """What is wrong with a result at first sight, or ""; for `status`, which asks for thousands.

    Args:
        path: of the result.json.
        run_id: the first 16 characters of the run's identity.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError as error:
        return refused(path, error)
    except UnreadableError as error:
        return str(error)
    if not data.strip():
        return f"{path} is damaged (it is empty); {RUN_AGAIN}"
    if not (data.startswith(b"{") and data.rstrip().endswith(b"}")):
        return f"{path} is damaged (its beginning or end is missing); {RUN_AGAIN}"
    if f'"{run_id}'.encode() not in data:
        return f"{path} {FOREIGN}"
    return ""

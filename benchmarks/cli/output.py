"""What the command line prints: to terminals of any encoding, to readers that leave early, to full disks."""

from __future__ import annotations

import os
import select
import sys
import traceback
from collections.abc import Callable
from typing import TextIO

from benchmarks.data.disk import FULL
from methods.errors import first_line
from results.text import replace_signs

READER_GONE = 141
"""Exit code of a program whose output nobody reads: 128 + SIGPIPE, as shells show it."""


def guarded(work: Callable[[], int]) -> int:
    """Carry out a command and write what it prints.

    Args:
        work: prints to `sys.stdout`, returns the exit code.

    Returns:
        Its exit code; `READER_GONE` if the reader of the output has left, which is no error; 1 if the system
        refuses something on the way (no room, no right, a faulty disk), which stderr says in one line.
    """
    replace_signs(sys.stdout, sys.stderr)
    try:
        try:
            return work()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here and not at the interpreter's end, which would print a traceback
    except OSError as error:
        # The pipe may also be one to a process of ours, which has died: that is an error like others.
        is_pipe = isinstance(error, BrokenPipeError)
        gone = [stream for stream in (sys.stdout, sys.stderr) if is_pipe and _reader_gone(stream)]
        for stream in gone:
            _discard(stream)
        if gone:
            return READER_GONE
        _discard_unwritten(sys.stdout)
        _say(f"error: {refusal(error)}")
        return 1


def refusal(error: OSError) -> str:
    """One line on what the system has refused, and where."""
    why = error.strerror or first_line(error)
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {why}" if not isinstance(error.filename, int) else why
    # Files are written by functions that name them; what has no name is most likely the output.
    if error.errno in FULL:
        return f"standard output: {why}"
    from benchmarks.status.logs import nearest_frame

    frame = nearest_frame("".join(traceback.format_exception(error)))
    return f"{why} (in {frame})" if frame else why


def _reader_gone(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe without a reader."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)  # type: ignore[union-attr]
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no stream, a closed one, or one without a file
        return False


def _discard_unwritten(stream: TextIO | None) -> None:
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        _discard(stream)


def _discard(stream: TextIO | None) -> None:
    """Send what a stream still holds, and gets, nowhere: the interpreter flushes it once more at its end."""
    if stream is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # stderr lies on the full disk too
        _discard(sys.stderr)

"""Stop signals: SIGINT, SIGTERM and SIGUSR2 (sent by SLURM before a job ends)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Stopped(BaseException):
    """A launcher was asked to stop by SIGTERM or SIGUSR2."""


@contextmanager
def stopped_by(*numbers: int) -> Iterator[None]:
    """Raise `Stopped` when a signal arrives inside the block."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    if threading.current_thread() is not threading.main_thread():  # signals are the main one's
        yield
        return
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

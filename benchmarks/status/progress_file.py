"""The progress of a training, in a file beside its checkpoints, for `status` and `logs`.

    <run or stage>/progress.json
        format       2; in files without one, of earlier versions, epochs count from 0
        title, epoch, epochs, step, steps    steps are those of one epoch that are done; the first epoch is
                     1, and the end is the last epoch with all its steps
        seconds      training time, over all attempts
        left         estimated seconds to the end; null until two steps were timed
        time         when this was written, seconds since the epoch
        host, pid    of the process that trains
        generation   of its lease
        job, log     SLURM's number and the file that takes its output, where there are some

Nothing depends on the file: a training continues when it cannot be written.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from results.files import TEMPORARY_SUFFIX
from slurm.protocol import LOG, job_number

NAME = "progress.json"
FORMAT = 2
EVERY = 10.0
"""Seconds between two writes inside an epoch."""


class ProgressFile:
    """Writes the file of one training.

    The time left is (steps left) x (seconds of a step) + (epochs left) x (seconds between epochs), both
    as measured by this process. Until an epoch has ended, the additional time of the first step stands
    in for the time between epochs: both include scoring the pool.

    Args:
        directory: of the run or stage; it exists.
        title: names it for people.
        epochs: epochs of the training.
        generation: of this process's lease.
        held: whether it still has the lease; without it nothing is written or removed.
        every: seconds between two writes inside an epoch.
    """

    def __init__(
        self,
        directory: Path,
        title: str,
        epochs: int,
        generation: int = 0,
        held: Callable[[], bool] = lambda: True,
        every: float = EVERY,
    ) -> None:
        self.path = directory / NAME
        self.epochs, self.every, self.held = epochs, every, held
        self._fixed = {
            "format": FORMAT,
            "title": title,
            "epochs": epochs,
            "generation": generation,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": job_number(),
            "log": os.environ.get(LOG),
        }
        self._written = self._before = 0.0
        self._place = (-1, -1)
        self._first: float | None = None
        self._steps = self._step_seconds = self._turns = self._turn_seconds = 0.0

    def __call__(self, epoch: int, step: int, steps: int, seconds: float) -> None:
        """Record the present place of a training.

        Called once before the first step, after every step and after the end of every epoch.

        Args:
            epoch: the epoch, from 0.
            step: steps of it that are done.
            steps: steps of an epoch.
            seconds: training time so far.
        """
        now = time.monotonic()
        begins = self._place[0] < 0
        if step and not begins:
            self._learn(epoch, step, now - self._before)
        if step or begins:  # the end of an epoch belongs to the time between epochs
            self._before, self._place = now, (epoch, step)
        if not step or begins or now - self._written >= self.every:
            self._written = now
            self._write(
                {
                    "epoch": min(epoch + 1, self.epochs),
                    "step": step if epoch < self.epochs else steps,
                    "steps": steps,
                    "seconds": seconds,
                    "left": self._left(epoch, step, steps),
                    "time": time.time(),
                }
            )

    def clear(self) -> None:
        """Remove the file: the training is over."""
        with suppress(OSError):
            if self.held():
                self.path.unlink(missing_ok=True)

    def _learn(self, epoch: int, step: int, took: float) -> None:
        if self._first is None:  # loading, compiling and the first look at the pool are in it
            self._first = took
        elif epoch == self._place[0]:
            self._steps += step - self._place[1]
            self._step_seconds += took
        else:
            self._turns += 1
            self._turn_seconds += took

    def _left(self, epoch: int, step: int, steps: int) -> float | None:
        if not self._steps and not self._turns:
            return None
        each = self._step_seconds / self._steps if self._steps else 0.0  # one step an epoch
        longer = self._turn_seconds / self._turns if self._turns else self._first or 0.0
        turn = max(0.0, longer - each)
        turns = self.epochs - epoch
        return each * (steps * turns - step) + turn * turns

    def _write(self, values: dict[str, Any]) -> None:
        if not self.held():
            return
        # Not flushed to the disk, as the store's files are: it costs time, and a lost one is no
        # harm. The name is one that a new attempt sweeps away.
        temporary = self.path.with_name(f".{NAME}.{os.getpid()}{TEMPORARY_SUFFIX}")
        with suppress(OSError):
            temporary.write_text(json.dumps({**self._fixed, **values}), encoding="utf-8")
            os.replace(temporary, self.path)


def read(directory: Path) -> dict[str, Any] | None:
    """The values in the file of a run or stage, epochs from 1; None where there is no valid one."""
    try:
        with open(directory / NAME, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    numbers = [found.get(name) for name in ("epoch", "epochs", "step", "steps", "time")]
    numbers += [found[name] for name in ("left", "seconds") if found.get(name) is not None]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers):
        return None
    if "format" not in found:  # a run that an earlier version was training
        ended = found["epoch"] >= found["epochs"]
        place = {"epoch": found["epochs"], "step": found["steps"]} if ended else {"epoch": found["epoch"] + 1}
        found = {**found, **place, "format": FORMAT}
    return found

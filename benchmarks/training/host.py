"""What a training tells, and asks, the program around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainingHost:
    """The program around a training; by default nobody listens and nobody wants it to stop.

    Attributes:
        on_epoch: called on the main process with the row of each finished epoch, whose "epoch" counts from 1.
        on_step: called with epoch (from 0), step, steps of an epoch and training time in seconds before the
            first step, after every step and after every epoch; it must take no time.
        should_stop: asked after every step; True makes the loop save and raise `Interrupted`.
        is_lost: asked after every step on the main process; True means that another process has taken the
            training over: the loop saves nothing and raises `LeaseLostError`.
        code: a hash of the code of this process, for checkpoints: who continues them learns what began them.
    """

    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None
    on_step: Callable[[int, int, int, float], None] = lambda epoch, step, steps, seconds: None
    should_stop: Callable[[], bool] = lambda: False
    is_lost: Callable[[], bool] = lambda: False
    code: str = ""

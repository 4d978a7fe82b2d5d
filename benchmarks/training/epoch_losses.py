"""The losses of the running epoch, read one step late so that no step waits for the device."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from benchmarks.training.group import Group
from benchmarks.training.schedule import TrainData
from methods.base import Batch


class Diverged(RuntimeError):  # noqa: N818 - it is an outcome of a run before it is an error
    """A loss stopped being finite; carries the step and the images of its batch."""


class _Pending(NamedTuple):
    """A step's losses that the device may still be computing, and positions of its images."""

    epoch: int
    step: int
    labelled: Tensor
    unlabelled: Tensor
    names: list[str]
    values: Tensor


class EpochLosses:
    """Sums of named losses over this process's part of the epoch.

    Args:
        method: name of the method, for messages.
        data: its images, for messages.
        group: the processes whose losses are summed.
    """

    def __init__(self, method: str, data: TrainData, group: Group) -> None:
        self.method, self.data, self.group = method, data, group
        self._sums: dict[str, float] = {}
        self._pending: _Pending | None = None

    def reset(self) -> None:
        """Start a new epoch."""
        self._sums = {}

    def add(self, batch: Batch, names: list[str], values: Tensor) -> None:
        """Take the losses of a step; they are read by the next call, when the device has them.

        Args:
            batch: the step's batch.
            names: n names.
            values: (n,) losses, without a graph.

        Raises:
            Diverged: a loss of the step before is not finite.
        """
        self.read()
        self._pending = _Pending(batch.epoch, batch.step, batch.labelled, batch.unlabelled, names, values)

    def read(self) -> None:
        """Wait for the losses of the last step and add them up.

        Raises:
            Diverged: one of them is not finite.
        """
        if self._pending is None:
            return
        last, self._pending = self._pending, None
        values = dict(zip(last.names, last.values.tolist(), strict=True))
        if not all(map(math.isfinite, values.values())):
            labelled = self.data.labelled[last.labelled.cpu()].tolist()
            unlabelled = self.data.unlabelled[last.unlabelled.cpu()].tolist()
            raise Diverged(
                f"loss of {self.method} not finite at epoch {last.epoch + 1} step {last.step + 1}: "
                + ", ".join(f"{name}={value:g}" for name, value in values.items())
                + f"; labelled images {labelled}"
                + (f", unlabelled {unlabelled}" if unlabelled else "")
            )
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def total(self) -> dict[str, float]:
        """The epoch's losses so far, summed over processes; all of them call.

        They are summed by name: a process whose part of a step holds no unlabelled images may have met the
        names in another order, or not all of them.
        """
        self.read()
        total: dict[str, float] = {}
        for sums in self.group.all_gather_object(self._sums):
            for name, value in sums.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def load(self, total: dict[str, float], is_main: bool) -> None:
        """Continue the running epoch of a checkpoint: the main process with the sums of all of them."""
        self._sums = dict(total) if is_main else dict.fromkeys(total, 0.0)

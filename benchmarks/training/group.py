"""The processes that work on one run together, and what they have to agree on.

Every process (rank) of a group holds a `Group`. Rank 0 chooses what is done next and broadcasts it.
After each training step the ranks take the maximum of what they request (go on, save, stop); its
result is known one step later. The agreement goes over gloo on the CPU, so that it never waits for a
GPU. `Group.watch` finds ranks that hang.
"""

from __future__ import annotations

import datetime
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.training.watch import Watch
from methods.errors import UserError
from slurm.protocol import GROUP, MPI, RENDEZVOUS, meeting_place, notice_of_group, place_in_group

# The watch ends a group that hangs; the back-end's own time limit must not come first, because it
# cannot tell which rank is late, and waiting for work may take days.
_FOREVER = datetime.timedelta(days=30)
_MEETING = datetime.timedelta(minutes=10)
_REMINDER_SECONDS = 10.0
_POLL_SECONDS = 0.1
_PRESENT = "ssmll/present"


class Group:
    """This process's part of a group; alone, it is a group of one and costs nothing.

    Attributes:
        rank: number of this process, 0 … world − 1.
        world: number of processes.
        watch: finds a process that hangs.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self.watch = Watch(rank, world)
        self._control: Any = None
        self._pending_max: tuple[Any, Tensor] | None = None

    @classmethod
    def join(
        cls,
        should_stop: Callable[[], bool] = lambda: False,
        report: Callable[[str], None] = lambda line: None,
    ) -> Group:
        """The group that the environment describes: `--processes N`, torchrun, accelerate, srun.

        Args:
            should_stop: asked while others are waited for.
            report: gets a line when they are long in coming.

        Raises:
            KeyboardInterrupt: this process was asked to stop before all had come.
            UserError: the variables contradict each other; the others did not come.
        """
        rank, world = place_in_group()
        # accelerate takes a rank for a group to look for.
        for name in MPI if world > 1 else (*GROUP, *MPI):
            os.environ.pop(name, None)
        if world == 1:
            return cls()
        store = _meet(rank, world, should_stop, report)
        backend = "gloo"
        if torch.cuda.is_available():  # not before: who waits for others holds no GPU
            local = int(os.environ.get("LOCAL_RANK") or 0)
            torch.cuda.set_device(local % torch.cuda.device_count())
            backend = "nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_FOREVER)
        group = cls(rank, world)
        if backend != "gloo":
            group._control = dist.new_group(backend="gloo", timeout=_FOREVER)
        return group

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that chooses, writes and reports."""
        return self.rank == 0

    def leave(self) -> None:
        """End the group's communication, in every rank."""
        if self.world > 1:
            dist.destroy_process_group()

    def start_max(self, value: int) -> int:
        """Start an asynchronous maximum over ranks and return the result of the previous call.

        No rank is waited for: the values travel while the next step is computed. `finish_max` returns
        the last result. A process alone gets its own value at once.
        """
        if self.world == 1:
            return value
        previous = self.finish_max()
        maximum = torch.tensor(value)
        work = dist.all_reduce(maximum, dist.ReduceOp.MAX, group=self._control, async_op=True)
        self._pending_max = work, maximum
        return previous

    def finish_max(self) -> int:
        """Wait for the last `start_max` and return its result; 0 if none is pending."""
        if self._pending_max is None:
            return 0
        (work, maximum), self._pending_max = self._pending_max, None
        work.wait()
        return int(maximum)

    def broadcast(self, *values: int) -> tuple[int, ...]:
        """Broadcast rank 0's values; other ranks pass as many placeholders."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values)
        dist.broadcast(tensor, 0, group=self._control)
        return tuple(tensor.tolist())

    def all_gather_int(self, value: int) -> list[int]:
        """The values of all ranks, by rank."""
        if self.world == 1:
            return [value]
        values = [torch.tensor(0) for _ in range(self.world)]
        dist.all_gather(values, torch.tensor(value), group=self._control)
        return [int(other) for other in values]

    def all_gather_object(self, value: Any) -> list[Any]:
        """The small plain values of all ranks, by rank; for what happens once in a training."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._control)
        return values

    def mismatches(self, values: Tensor) -> list[tuple[int, int]]:
        """Where the ranks' (n,) int64 values are not rank 0's: (rank, position) of each."""
        if self.world == 1:
            return []
        rows = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(rows, values, group=self._control)
        return [(rank, int(k)) for rank, row in enumerate(rows) for k in (row != rows[0]).nonzero().flatten()]


def lost_peer(error: BaseException) -> bool:
    """Whether an error of a collective says that another process of the group is gone."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in text.lower() or "NCCL" in text)
    )


def _meet(rank: int, world: int, should_stop: Callable[[], bool], report: Callable[[str], None]) -> Any:
    """The store of the group, once all its processes are there.

    torch waits for them in C++, where no handler of a signal is called; so a thread of its own calls torch,
    and this one, which gets the signals, looks whether it is to stop.
    """
    file = os.environ.get(RENDEZVOUS)
    found: list[Any] = []

    def reach() -> None:
        try:
            place = f"file://{file}" if file else "env://"
            # Meeting has a limit of its own: who does not come within minutes does not come.
            found.append(next(dist.rendezvous(place, rank, world, timeout=_MEETING))[0])
        except Exception as error:
            found.append(error)

    threading.Thread(target=reach, daemon=True).start()
    started, reminded, store = time.monotonic(), False, None
    while True:
        if should_stop():
            raise KeyboardInterrupt
        if found and store is None:
            if isinstance(found[0], Exception):
                told = str(found[0]).strip().splitlines() or [type(found[0]).__name__]
                raise UserError(f"{notice_of_group(rank, world)}. It failed: {told[0]}")
            (store,) = found
            store.set_timeout(_MEETING)
            store.add(_PRESENT, 1)
        present = store.add(_PRESENT, 0) if store is not None else 0
        if present >= world:
            return store
        waited = time.monotonic() - started
        if waited > _MEETING.total_seconds():
            raise UserError(
                f"{present or 1} of {world} processes came to {meeting_place()} within "
                f"{_MEETING.total_seconds() / 60:.0f} min. {notice_of_group(rank, world)}"
            )
        if waited > _REMINDER_SECONDS and not reminded:
            report(notice_of_group(rank, world))
            reminded = True
        time.sleep(_POLL_SECONDS)

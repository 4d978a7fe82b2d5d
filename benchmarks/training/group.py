"""The processes that work on one run together, and what they have to agree on.

Every process (rank) of a group holds a `Group`. Rank 0 chooses what is done next and says so; at
each training step the ranks say whether they wish to go on, and after the next one they know. While
a run is worked on, a thread of each rank writes down how far its rank is; if nothing moves in the
whole group for too long, the ranks that stand furthest back are named, the run is recorded as
failed and the group ends. So does a process that works alone.

The agreement goes over gloo on the CPU, so that it never waits for a GPU.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from methods.errors import UserError
from results.files import atomic_write_bytes

RENDEZVOUS = "SSMLL_RENDEZVOUS"
"""Environment variable: a file through which the ranks that one launcher starts find each other."""
# The watch ends a group that hangs; the back-end's own time limit must not come first, because it
# cannot tell which rank is late, and waiting for work may take days.
_FOREVER = datetime.timedelta(days=30)
_MEETING = datetime.timedelta(minutes=10)
_BEATS_PER_LIMIT = 8


@dataclass(frozen=True)
class Beat:
    """How far a rank is.

    Attributes:
        position: number of places reached; all ranks pass the same places in the same order.
        place: the last of them, in words.
        idle: seconds since the rank last moved, as it wrote itself.
        age: seconds since it wrote.
        who: host and process.
    """

    position: int
    place: str
    idle: float
    age: float
    who: str


class Group:
    """This process's part of a group; alone, it is a group of one and costs nothing.

    Attributes:
        rank: number of this process, 0 … world − 1.
        world: number of processes.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self._control: Any = None
        self._asked: tuple[Any, Tensor] | None = None
        self._position, self._place, self._moved = 0, "start", time.monotonic()

    @classmethod
    def join(cls) -> Group:
        """The group that the environment describes: `--processes N`, torchrun, accelerate, srun.

        Raises:
            UserError: the variables contradict each other.
        """
        world, rank = _integer("WORLD_SIZE", 1), _integer("RANK", 0)
        if world == 1:
            if "MASTER_ADDR" not in os.environ:  # accelerate takes a rank for a group to look for
                for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
                    os.environ.pop(name, None)
            return cls()
        if not 0 <= rank < world:
            raise UserError(f"RANK={rank} and WORLD_SIZE={world} in the environment do not agree")
        file = os.environ.get(RENDEZVOUS)
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(_integer("LOCAL_RANK", 0) % torch.cuda.device_count())
            backend = "nccl"
        # Meeting has a limit of its own: who does not come within minutes does not come.
        place = f"file://{file}" if file else "env://"
        store, _, _ = next(dist.rendezvous(place, rank, world, timeout=_MEETING))
        store.set_timeout(_MEETING)
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

    # -- agreement -----------------------------------------------------------------------------

    def agree_soon(self, value: int) -> int:
        """The largest of all ranks' values of the call before; alone, the value itself.

        Nobody is waited for: the ranks' values travel while the next step is computed. What was
        asked last is had by `settle`.
        """
        if self.world == 1:
            return value
        before = self.settle()
        flag = torch.tensor(value)
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._control, async_op=True)
        self._asked = work, flag
        return before

    def settle(self) -> int:
        """The largest of the values of the last `agree_soon`, waited for; 0 if it was had."""
        if self._asked is None:
            return 0
        (work, flag), self._asked = self._asked, None
        work.wait()
        return int(flag)

    def told(self, *values: int) -> tuple[int, ...]:
        """Rank 0's values, in every rank; the others pass as many of their own, which are lost."""
        if self.world == 1:
            return values
        said = torch.tensor(values)
        dist.broadcast(said, 0, group=self._control)
        return tuple(said.tolist())

    def differing(self, values: Tensor) -> list[tuple[int, int]]:
        """Where the ranks' (n,) int64 values are not rank 0's: (rank, position) of each."""
        if self.world == 1:
            return []
        rows = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(rows, values, group=self._control)
        return [(rank, int(k)) for rank, row in enumerate(rows) for k in (row != rows[0]).nonzero().flatten()]

    # -- health --------------------------------------------------------------------------------

    def at(self, place: str) -> None:
        """Note that this rank has come to a place that every rank of the group comes to."""
        self._position += 1
        self._place, self._moved = place, time.monotonic()

    def busy(self) -> None:
        """Note a sign of life between two places."""
        self._moved = time.monotonic()

    @contextmanager
    def watched(
        self, directory: Path, generation: int, limit: float, hung: Callable[[str], None]
    ) -> Iterator[None]:
        """Watch over the group while a run is worked on.

        Args:
            directory: the run's folder, seen by all ranks; where there are several, each keeps a
                small file there.
            generation: number of the attempt; the files of earlier ones are not looked at.
            limit: seconds without any movement in the whole group.
            hung: called with one line, from a thread, when the limit is passed.
        """
        self._position, self._place, self._moved = 0, "start", time.monotonic()
        over = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(directory, generation, limit, hung, over), daemon=True
        )
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()
            with suppress(OSError):
                _file(directory, generation, self.rank).unlink(missing_ok=True)

    def _watch(
        self,
        directory: Path,
        generation: int,
        limit: float,
        hung: Callable[[str], None],
        over: threading.Event,
    ) -> None:
        self._beat(directory, generation, 0.0)  # at once: it may be stopped before the next
        pause, woke = limit / _BEATS_PER_LIMIT, time.monotonic()
        while not over.wait(pause):
            now = time.monotonic()
            late, woke = now - woke - pause, now
            if late > pause:  # the process itself was stopped (Ctrl-Z, a suspended job): no idling
                self._moved = min(now, self._moved + late)
            idle = now - self._moved
            self._beat(directory, generation, idle)
            if idle < limit:
                continue
            if self.world == 1:
                hung(f"{_who()} hangs at {self._place} for {limit:g} s")
                return
            beats = [_read(directory, generation, rank) for rank in range(self.world)]
            if all(beat is None or beat.idle + _missed(beat, limit) >= limit for beat in beats):
                hung(diagnosis(beats, limit))
                return

    def _beat(self, directory: Path, generation: int, idle: float) -> None:
        if self.world == 1:  # nobody would read it
            return
        with suppress(OSError):  # a hiccup of a network disk: the next beat is soon
            _write(directory, generation, self.rank, self._position, self._place, idle)


def lost_peer(error: BaseException) -> bool:
    """Whether an error of a collective says that another process of the group is gone."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in text.lower() or "NCCL" in text)
    )


def diagnosis(beats: list[Beat | None], limit: float) -> str:
    """One line on a group that does not move: which ranks hold it up, and where they are.

    A rank whose process is stopped no longer writes; one that hangs in its own work does, and
    stands at an earlier place than those that wait for it.

    Args:
        beats: the last beat of each rank, None where there is none.
        limit: seconds without movement.
    """
    silent = [
        f"rank {rank} ({beat.who}; last seen at {beat.place})" if beat else f"rank {rank}"
        for rank, beat in enumerate(beats)
        if beat is None or _missed(beat, limit)
    ]
    if silent:
        return f"{', '.join(silent)} gave no sign of life for {limit:g} s"
    known = [(rank, beat) for rank, beat in enumerate(beats) if beat is not None]
    back = min(beat.position for _, beat in known)
    late = [(rank, beat) for rank, beat in known if beat.position == back]
    names = ", ".join(f"rank {rank} ({beat.who})" for rank, beat in late)
    if len(late) == len(known):
        return f"all ranks stand at {late[0][1].place} for {limit:g} s: {names}"
    return f"{names} hangs at {late[0][1].place} for {limit:g} s; the other ranks wait for it"


def _missed(beat: Beat, limit: float) -> float:
    """The age of a beat that is too old for a rank whose watch is alive, else 0."""
    return beat.age if beat.age > 3 * limit / _BEATS_PER_LIMIT else 0.0


def _file(directory: Path, generation: int, rank: int) -> Path:
    return directory / f"beat.{generation:06d}.{rank}"


def _who() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"


def _write(directory: Path, generation: int, rank: int, position: int, place: str, idle: float) -> None:
    beat = {"position": position, "place": place, "idle": idle, "who": _who(), "time": time.time()}
    atomic_write_bytes(_file(directory, generation, rank), json.dumps(beat).encode())


def _read(directory: Path, generation: int, rank: int) -> Beat | None:
    try:
        beat = json.loads(_file(directory, generation, rank).read_text(encoding="utf-8"))
        age = max(0.0, time.time() - beat["time"])
        return Beat(beat["position"], beat["place"], beat["idle"], age, beat["who"])
    except (OSError, ValueError, KeyError):
        return None


def _integer(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise UserError(f"environment variable {name}={text!r} is not a number") from None

"""Finds processes that hang: a thread of each rank records how far the rank is.

While a run is worked on, every rank of a group writes a small file, its beat, in the run's folder. If
no rank of the group moves for too long, the ranks that are furthest behind are named. A process that
works alone is watched too; it writes no file.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from results.files import atomic_write_bytes, filesystem_now

_BEATS_PER_LIMIT = 8
START_SECONDS = 120.0
"""How long a run may take to load its weights and data, before its first mark, whatever the limit."""


@dataclass(frozen=True)
class Beat:
    """How far a rank is.

    Attributes:
        position: number of marks passed; all ranks pass the same marks in the same order.
        place: the last mark, in words.
        idle: seconds since the rank last moved, as it wrote itself.
        age: seconds since it wrote, by the clock of the file system.
        who: host and process.
    """

    position: int
    place: str
    idle: float
    age: float
    who: str


class Watch:
    """Watches one process, and through the beats of the other ranks its whole group.

    Args:
        rank: number of this process.
        world: number of processes of the group.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self._reset()

    def _reset(self) -> None:
        self._position, self._place, self._moved = 0, "start", time.monotonic()

    def mark(self, place: str) -> None:
        """Record that this rank has reached a place that every rank of the group reaches."""
        self._position += 1
        self._place, self._moved = place, time.monotonic()

    def heartbeat(self) -> None:
        """Record a sign of life between two marks."""
        self._moved = time.monotonic()

    @contextmanager
    def watching(
        self,
        directory: Path,
        generation: int,
        limit: float,
        hung: Callable[[str], None],
        start: float = 0.0,
    ) -> Iterator[None]:
        """Watch the group while a run is worked on.

        Args:
            directory: the run's folder, which all ranks see; the beats are written there.
            generation: number of the attempt; beats of earlier attempts are ignored.
            limit: seconds without any movement in the whole group.
            hung: called with one line, from a thread, when the limit is exceeded.
            start: the same limit for a rank that has passed no mark yet, if it is longer: loading takes
                longer than a step.
        """
        self._reset()
        over = threading.Event()
        limits = (max(limit, start), limit)
        thread = threading.Thread(
            target=self._watch, args=(directory, generation, limits, hung, over), daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with suppress(OSError):
                _file(directory, generation, self.rank).unlink(missing_ok=True)

    def _watch(
        self,
        directory: Path,
        generation: int,
        limits: tuple[float, float],
        hung: Callable[[str], None],
        over: threading.Event,
    ) -> None:
        limit = limits[1]
        self._beat(directory, generation, 0.0)  # at once: the process may be stopped before the next beat
        pause, woke = limit / _BEATS_PER_LIMIT, time.monotonic()
        while not over.wait(pause):
            now = time.monotonic()
            late, woke = now - woke - pause, now
            if late > pause:  # the process itself was stopped (Ctrl-Z, a suspended job): it did not idle
                self._moved = min(now, self._moved + late)
            idle = now - self._moved
            self._beat(directory, generation, idle)
            if idle < limits[self._position > 0]:
                continue
            if self.world == 1:
                hung(f"{_who()} hangs at {self._place} for {limits[self._position > 0]:g} s")
                return
            beats = read_beats(directory, generation, self.world)
            least = min((beat.position for beat in beats if beat), default=0)
            allowed = limits[least > 0]
            if all(beat is None or beat.idle + _missed(beat, limit) >= allowed for beat in beats):
                hung(diagnosis(beats, allowed))
                return

    def _beat(self, directory: Path, generation: int, idle: float) -> None:
        if self.world == 1:  # no other rank would read it
            return
        with suppress(OSError):  # a hiccup of a network disk: the next beat comes soon
            _write(directory, generation, self.rank, self._position, self._place, idle)


def diagnosis(beats: list[Beat | None], limit: float) -> str:
    """One line on a group that does not move: which ranks hold it up, and where they are.

    A rank whose process is stopped writes no beats any more. A rank that hangs in its own work writes
    beats and is at an earlier mark than the ranks that wait for it.

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
    beat = {"position": position, "place": place, "idle": idle, "who": _who()}
    atomic_write_bytes(_file(directory, generation, rank), json.dumps(beat).encode())


def read_beats(directory: Path, generation: int, world: int) -> list[Beat | None]:
    """The last beat of each rank, None where there is none.

    Their age is by the clock that stamps the files: the clocks of a cluster's nodes differ.

    Args:
        directory: the run's folder.
        generation: number of the attempt.
        world: number of ranks.
    """
    try:
        now = filesystem_now(directory)
    except OSError:  # a hiccup of a network disk, or the folder is gone: nothing is known of anyone
        return [None] * world
    return [_read(directory, generation, rank, now) for rank in range(world)]


def _read(directory: Path, generation: int, rank: int, now: float) -> Beat | None:
    try:
        with open(_file(directory, generation, rank), "rb") as file:
            age = max(0.0, now - os.fstat(file.fileno()).st_mtime)
            beat = json.loads(file.read())
        return Beat(beat["position"], beat["place"], beat["idle"], age, beat["who"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None

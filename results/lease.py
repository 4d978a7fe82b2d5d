"""Leases: at most one process works on a run, and a dead one loses it.

A lease is a file `lease.000001`, `lease.000002`, ... in the run's directory; the highest generation
holds the run. A generation is created by a hard link (or, where there are none, with O_EXCL), which
fails if the name exists, on local and on network file systems alike; and generations are never
removed: a process that takes a run over must create exactly the next number, so one of two
takers fails. No lock of the file system is used.

The holder touches its file every sixth of the lease's time to live. A lease is free when its
holder released it, when its holder's process is gone (seen at once on the same machine), or when it
was not touched for its time to live (by the clock of the file system, not of this machine).

A holder that was stopped for longer (Ctrl-Z, `scontrol suspend`, a frozen network disk) is a holder no more,
and does not know it. It finds out by `Lease.held`, which costs nothing while the heartbeat runs; and what it
writes carries its generation, or is only created, so that it never replaces what a later holder has written.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from results.errors import LeaseLostError, StoreError
from results.files import atomic_write_json, canonical_json, create_bytes, filesystem_now, uptime

DEFAULT_TTL = 60.0  # seconds
LEASE_SECONDS = "SSMLL_LEASE_SECONDS"
"""Environment variable: seconds without a sign of life after which another process may take a run over."""
HEARTBEAT = "lease-heartbeat"
"""Start of the names of the threads that renew leases."""
_NAME = re.compile(r"lease\.(\d{6})$")


@dataclass(frozen=True)
class LeaseRecord:
    """The newest lease of a run, as found on the disk.

    Attributes:
        generation: number of this attempt, from 1.
        mtime: last heartbeat, seconds since the epoch by the clock of the file system.
        content: host, pid and so on; empty while the holder is still writing it.
    """

    generation: int
    mtime: float
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def released(self) -> bool:
        """Whether the holder released the run."""
        return self.content.get("released") is True

    def free(self, now: float, default_ttl: float = DEFAULT_TTL) -> str:
        """Why the run may be taken over.

        Args:
            now: seconds since the epoch by the clock of the file system.
            default_ttl: time to live if the lease does not say its own.

        Returns:
            A reason for people, or "" while the run is held.
        """
        if self.released:
            return "released"
        who = f"process {self.content.get('pid', '?')} on {self.content.get('host', '?')}"
        if self.content and _holder_is_gone(self.content):
            return f"{who} is gone"
        age = now - self.mtime
        if age > float(self.content.get("ttl", default_ttl)):
            return f"no heartbeat of {who} for {age:.0f} s"
        return ""


@dataclass(frozen=True)
class MemberLease:
    """What the other ranks of a group hold of rank 0's lease.

    It lets them record why the attempt failed, as long as no other process has taken the run over.

    Attributes:
        directory: the run's directory.
        generation: number of the attempt.
    """

    directory: Path
    generation: int

    def held(self) -> bool:
        """Whether rank 0 may still hold the run; it finds out itself, and the step's agreement tells."""
        return True

    def require(self) -> None:
        """Raise `LeaseLostError` if another process has taken the run over."""
        latest = read_latest(self.directory)
        if latest is None or latest.generation != self.generation:
            raise LeaseLostError(
                f"{self.directory}: lease {self.generation} was taken over; nothing was written"
            )


def seconds_to_live() -> float:
    """Time to live of the leases that this process takes.

    Raises:
        StoreError: the environment variable is no number of seconds.
    """
    text = os.environ.get(LEASE_SECONDS, "")
    try:
        seconds = float(text) if text else DEFAULT_TTL
    except ValueError:
        seconds = math.nan
    if not 1.0 <= seconds < math.inf:
        raise StoreError(f"{LEASE_SECONDS}={text!r}: it must be a number of seconds, at least 1")
    return seconds


def read_latest(directory: Path) -> LeaseRecord | None:
    """The lease of the highest generation in a directory.

    Args:
        directory: a run's directory; it may not exist.

    Returns:
        The record, or None where no process ever claimed the run.
    """
    try:
        generation = max(
            (int(m[1]) for entry in os.scandir(directory) if (m := _NAME.match(entry.name))),
            default=0,
        )
    except FileNotFoundError:
        return None
    return seen(directory, generation) if generation else None


def read_generation(directory: Path, generation: int) -> LeaseRecord:
    """One lease file; raises FileNotFoundError when there is none of this generation."""
    with open(_path(directory, generation), "rb") as file:
        mtime = os.fstat(file.fileno()).st_mtime
        raw = file.read()
    return LeaseRecord(generation, mtime, _content(raw))


def seen(directory: Path, generation: int) -> LeaseRecord:
    """As `read_generation`, for others than the holder: of a lease that cannot be read its age counts.

    Raises:
        FileNotFoundError: there is none of this generation.
        OSError: not even its age can be read.
    """
    try:
        return read_generation(directory, generation)
    except OSError:
        return LeaseRecord(generation, os.lstat(_path(directory, generation)).st_mtime)


def _content(raw: bytes) -> dict[str, Any]:
    """What a lease says. Where it is damaged, or not yet written (created without a hard link), nothing."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    if "ttl" in found and not (isinstance(found["ttl"], int | float) and 0 < found["ttl"] < math.inf):
        del found["ttl"]
    return found


def generation_of(name: str) -> int:
    """Generation in the name of a lease file; 0 for any other file."""
    match = _NAME.match(name)
    return int(match[1]) if match else 0


def acquire(directory: Path, ttl: float = DEFAULT_TTL, now: float | None = None) -> Lease | None:
    """Take the lease of a run if nobody holds it.

    Args:
        directory: the run's directory; created when it is missing.
        ttl: seconds without a heartbeat after which others may take the run over.
        now: about the time of the file system, where it is known already. It spares the many who look at a
            run that is held from asking the file system, which takes a new file; nothing is taken over by it.

    Returns:
        The lease, its heartbeat running, or None if another process holds the run.
    """
    if ttl <= 0:
        raise ValueError(f"the time to live of a lease must be positive, not {ttl}")
    directory.mkdir(parents=True, exist_ok=True)
    latest = read_latest(directory)
    if latest is not None:
        if now is not None and not latest.free(now, ttl):
            return None
        if not latest.free(filesystem_now(directory), ttl):
            return None
    generation = latest.generation + 1 if latest else 1
    stat = _process_stat(os.getpid())
    content = {
        "generation": generation,
        "token": secrets.token_hex(8),
        "ttl": ttl,
        "released": False,
        **_machine(),
        "pid": os.getpid(),
        "start": stat[1] if stat else None,
    }
    if not create_bytes(_path(directory, generation), canonical_json(content, indent=1).encode()):
        return None
    return Lease(directory, content)


class Lease:
    """The right to work on one run; made by `RunStore.claim`.

    A context manager that releases itself. A background thread sends the heartbeat. A forked child
    (a data loader's worker) can neither release nor renew its parent's lease.

    Attributes:
        directory: the run's directory.
        generation: number of this attempt, from 1.
        ttl: seconds without a heartbeat after which others may take the run over.
    """

    def __init__(self, directory: Path, content: dict[str, Any]) -> None:
        self.directory = directory
        self.generation: int = content["generation"]
        self.ttl: float = content["ttl"]
        self._content = content
        self._path = _path(directory, self.generation)
        self._confirmed = uptime()
        self._over = threading.Event()  # released or lost
        self._thread = threading.Thread(target=self._beat, name=f"{HEARTBEAT}-{directory.name}", daemon=True)
        self._thread.start()

    def still_mine(self) -> bool:
        """Whether this process still holds the run (looks at the disk)."""
        if self._over.is_set() or os.getpid() != self._content["pid"]:
            return False
        try:
            record = read_generation(self.directory, self.generation)
        except FileNotFoundError:
            return False
        # The token tells a lease of the same number apart after somebody deleted the directory.
        return (
            record.content.get("token") == self._content["token"]
            and not record.released
            and not _path(self.directory, self.generation + 1).exists()
        )

    def held(self) -> bool:
        """Whether this process still holds the run; looks at the disk only where the heartbeat is late.

        For questions asked at every step: the heartbeat confirms the lease every sixth of its time to live.
        A process that was stopped and goes on finds the last confirmation old, and looks.
        """
        if self._over.is_set():
            return False
        if uptime() - self._confirmed < self.ttl / 2:
            return True
        # A hiccup of a network disk is no loss: what is written while it lasts fails by itself.
        with suppress(OSError):
            self._confirm()
        return not self._over.is_set()

    def require(self) -> None:
        """Raise `LeaseLostError` unless this process still holds the run."""
        if not self.still_mine():
            raise LeaseLostError(
                f"{self.directory}: lease {self.generation} is no longer held by process "
                f"{os.getpid()} (released, or taken over after {self.ttl:g} s without a "
                "heartbeat); nothing was written"
            )

    def release(self) -> None:
        """Release the lease so that the run can be claimed at once. Safe to call twice."""
        if os.getpid() != self._content["pid"] or self._over.is_set():
            return
        # Without room or right the lease is left to its time to live: no reason to lose what follows.
        with suppress(OSError):
            mine = self.still_mine()
            self._over.set()
            if mine:
                atomic_write_json(self._path, {**self._content, "released": True})
        self._over.set()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._over.wait(self.ttl / 6):
            # A hiccup of a network disk is no reason to stop: five beats may be missed.
            with suppress(OSError):
                self._confirm()
            if self._over.is_set():
                return

    def _confirm(self) -> None:
        """Touch the lease if it is still this process's; otherwise it is over."""
        if self.still_mine():
            os.utime(self._path)
            self._confirmed = uptime()
        else:
            self._over.set()


def _path(directory: Path, generation: int) -> Path:
    return directory / f"lease.{generation:06d}"


@lru_cache
def _machine() -> dict[str, str | None]:
    """What makes process numbers comparable: host, boot and process namespace."""
    boot = namespace = None
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "namespace": namespace}


def _holder_is_gone(content: dict[str, Any]) -> bool:
    """Whether the holder has certainly ended; known on the same machine only."""
    # The same host name with another boot or another process namespace (a container) says nothing
    # about the process number, so the heartbeat has to decide.
    if any(content.get(key) != here for key, here in _machine().items()):
        return False
    pid = content.get("pid")
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    stat = _process_stat(pid)
    if stat is None:
        return False
    state, start = stat
    # A zombie was killed but not yet waited for; another start time is another process.
    return state in "ZX" or start != content.get("start")


def _process_stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time (clock ticks since boot) of a process, where /proc tells."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 1 :].split()  # the name in brackets may hold spaces
    return fields[0], int(fields[19])

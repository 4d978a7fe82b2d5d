"""The run store: one directory per run, read and written without a database or a lock.

    <root>/<dataset>/<method>/p<ratio>-s<seed>-<run id, 16 characters>/
        spec.json          what was asked for
        result.json        written once, last; a run is done when it exists
        predictions.npz    test scores and labels, from which every metric can be recomputed
        epochs.jsonl       one line per finished epoch, the first of which is epoch 1
        failure.json       error of the newest attempt; older ones are failure.<attempt>.json
        lease.000001 ...   who works or worked on it, see `results.lease`

The trainer keeps its checkpoints in the same directory. The state of a run follows from these files
alone, so a store can be copied, read on a laptop and shared between nodes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from results import epochs
from results.errors import LeaseLostError, StoreError
from results.files import (
    atomic_write_json,
    canonical_json,
    create_bytes,
    filesystem_now,
    folders,
    remove_temporaries,
    uptime,
)
from results.lease import (
    DEFAULT_TTL,
    Lease,
    MemberLease,
    acquire,
    generation_of,
    read_generation,
)
from results.moves import GENERATION
from results.schema import FORMAT, Result, check

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Lease", "RunState", "RunStore", "error_signature"]

Kind = Literal["done", "running", "dead", "failed", "not started"]
STATES: tuple[Kind, ...] = ("done", "running", "dead", "failed", "not started")
CLOCK_SECONDS = 60.0
"""How long the difference between two clocks is believed."""
_RUN = re.compile(r"p[0-9.]+(?:e[-+]?\d+)?-s\d+-[0-9A-Za-z]+$")


@dataclass(frozen=True)
class RunState:
    """What is known of a run from its files.

    Attributes:
        kind: done, running, dead (a process took it and runs no more), failed or not started.
        heartbeat_age: seconds since the holder's last sign of life; running and dead runs.
        detail: one line for people.
        error: failed runs: type, message, signature (for grouping) and what else was recorded.
        attempts: how many times the run was claimed.
    """

    kind: Kind
    heartbeat_age: float | None = None
    detail: str = ""
    error: dict[str, Any] | None = None
    attempts: int = 0


class RunStore:
    """Directory of runs.

    Args:
        root: the store; it is created by the first claim and may be missing before.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._ahead: float | None = None
        self._measured = float("-inf")

    # ---------------------------------------------------------------- finding runs

    def directory(self, run_id: str, spec: dict[str, Any]) -> Path:
        """The directory of a run; nothing is created.

        Args:
            run_id: hexadecimal identity of the run.
            spec: resolved spec; dataset.alias, method, ratio and seed make up the path.
        """
        try:
            dataset, method = str(spec["dataset"]["alias"]), str(spec["method"])
            name = f"p{float(spec['ratio']):g}-s{int(spec['seed'])}-{run_id[:16]}"
        except (KeyError, TypeError) as error:
            raise StoreError(
                f"the spec of run {run_id[:16]} lacks {error}; need dataset.alias, method, ratio and seed"
            ) from error
        return self.root / _safe(dataset) / _safe(method) / name

    def scan(self) -> list[Path]:
        """All run directories, sorted by path; an absent store has none."""
        found = []
        for dataset in folders(str(self.root)):
            for method in folders(dataset):
                found += [run for run in folders(method) if _RUN.match(os.path.basename(run))]
        return [Path(run) for run in sorted(found)]

    def find(self, prefix: str) -> list[Path]:
        """Run directories whose identity starts with a prefix.

        Args:
            prefix: first characters of the run id. Beyond 16 only finished runs can be told apart,
                because the directory's name holds 16.
        """
        found = []
        for run in self.scan():
            stored = run.name.rsplit("-", 1)[1]
            if not stored.startswith(prefix[:16]):
                continue
            if len(prefix) > 16 and (run / "result.json").exists():
                stored = self.load(run)["run_id"]
                if not stored.startswith(prefix):
                    continue
            found.append(run)
        return found

    def state(self, directory: Path) -> RunState:
        """State of a run, from its files alone.

        Args:
            directory: the run's directory; it may not exist.
        """
        try:
            names = {entry.name for entry in os.scandir(directory)}
        except FileNotFoundError:
            return RunState("not started")
        generation = max((generation_of(name) for name in names), default=0)
        if "result.json" in names:
            return RunState("done", attempts=generation)
        if not generation:
            return RunState("not started")
        try:
            lease = read_generation(directory, generation)
        except FileNotFoundError:  # somebody removed the directory this very moment
            return RunState("not started")
        now = self.now()
        age, reason = max(0.0, now - lease.mtime), lease.free(now)
        if not reason:
            who = f"process {lease.content.get('pid', '?')} on {lease.content.get('host', '?')}"
            return RunState("running", age, who, attempts=generation)
        if "failure.json" in names:
            error = self._failure(directory)
            # A newer attempt that died before it could clear the failure is dead, not failed.
            if error and error.get("generation") == generation:
                line = f"{error['type']}: {error['message']}".splitlines()[0]
                return RunState("failed", None, line, error, generation)
        if lease.released:
            reason = "stopped before its end; the next attempt continues it"
        return RunState("dead", age, reason, attempts=generation)

    def now(self) -> float:
        """Seconds since the epoch by the clock that stamps the store's files.

        Ages of files are differences to it, never to the clock of this machine, which may be another. Only a
        store that may not be written to, whose clock cannot be asked, leaves no other, see `clock_is_own`.
        """
        if uptime() - self._measured > CLOCK_SECONDS:
            try:
                self._ahead = filesystem_now(self.root) - uptime()
            except OSError:
                self._ahead = None
            self._measured = uptime()
        return time.time() if self._ahead is None else self._ahead + uptime()

    @property
    def clock_is_own(self) -> bool:
        """Whether `now` is the time of the store's file system; if not, it is this machine's."""
        self.now()
        return self._ahead is not None

    def age(self, path: Path) -> float | None:
        """Seconds since a file of the store was written; None without the file."""
        try:
            return max(0.0, self.now() - path.stat().st_mtime)
        except OSError:
            return None

    # ---------------------------------------------------------------- working on a run

    def claim(self, directory: Path, spec: dict[str, Any], *, ttl: float = DEFAULT_TTL) -> Lease | None:
        """Claim a run for this process.

        Writes spec.json, puts the failure of an earlier attempt aside and removes temporary files
        that a killed writer left.

        Args:
            directory: from `directory()`.
            spec: resolved spec, stored as spec.json.
            ttl: seconds without a heartbeat after which others may take the run over.

        Returns:
            The lease; None if another live process has the run or the run is done.
        """
        if (directory / "result.json").exists():
            return None
        lease = acquire(directory, ttl)
        if lease is None:
            return None
        try:
            # Another process may have finished it between the look and the claim.
            if (directory / "result.json").exists():
                lease.release()
                return None
            remove_temporaries(directory)
            error = self._failure(directory)
            if error is not None:
                attempt = int(error.get("generation", lease.generation - 1))
                os.replace(directory / "failure.json", directory / f"failure.{attempt}.json")
            atomic_write_json(directory / "spec.json", spec)
        except BaseException:
            lease.release()
            raise
        return lease

    def write_result(
        self,
        directory: Path,
        lease: Lease,
        result: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> None:
        """Store the outcome of a run: the predictions first, then the result that makes it done.

        Args:
            directory: the run's directory.
            lease: this process's lease on it.
            result: see `results.schema.Result`; the numbers of the format and of the generation of
                identities are added here.
            arrays: go to predictions.npz, uncompressed; the same arrays give the same bytes.

        Raises:
            LeaseLostError: the run was taken over; nothing was written.
            StoreError: the result belongs to another run, lacks a field or has a wrong one (it is named),
                or exists already.
            ValueError: the result holds NaN or infinity.
        """
        result = {"format": FORMAT, "identities": GENERATION, **result}
        text = canonical_json(result, indent=1)  # may raise: before anything is written
        run_id = check(result, f"{directory}/result.json")["run_id"]
        if directory.name.rsplit("-", 1)[-1] != run_id[:16]:
            raise StoreError(f"{directory}: result of another run, {run_id}")
        self._require(directory, lease)
        if (directory / "result.json").exists():
            raise StoreError(f"{directory}: result.json exists already and is never rewritten")
        self._put_predictions(directory, lease, arrays)
        self._require(directory, lease)
        # Created, never replaced: a process that sleeps here and is overtaken cannot write over a result.
        if not create_bytes(directory / "result.json", text.encode(), whole=True):
            raise LeaseLostError(f"{directory}: another process has written the result")

    def write_failure(self, directory: Path, lease: Lease | MemberLease, error: dict[str, Any]) -> bool:
        """Record why an attempt failed; the run can be claimed again once the lease is released.

        The first error of an attempt is its cause and stays: what the other processes of a group
        run into afterwards is not written.

        Args:
            directory: the run's directory.
            lease: this process's lease on it.
            error: type and message (strings) and anything else, a traceback say.

        Returns:
            Whether it was written.

        Raises:
            LeaseLostError: the run was taken over; nothing was written.
            StoreError: type or message is missing.
        """
        if not {"type", "message"} <= error.keys():
            raise StoreError(f"{directory}: an error needs 'type' and 'message', not {set(error)}")
        self._require(directory, lease)
        first = self._failure(directory)
        if first is not None and int(first.get("generation", 0)) >= lease.generation:
            return False
        record = {
            "signature": error_signature(error["type"], error["message"]),
            "host": socket.gethostname(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **error,
            "generation": lease.generation,
        }
        if first is None:  # the ranks of a group may come at the same moment
            return create_bytes(directory / "failure.json", canonical_json(record, indent=1).encode())
        atomic_write_json(directory / "failure.json", record)
        return True

    def append_epoch(self, directory: Path, row: dict[str, Any], generation: int = 0) -> None:
        """Add a finished epoch, see `results.epochs.append`."""
        epochs.append(directory, row, generation)

    def truncate_epochs(self, directory: Path, epoch: int) -> None:
        """Forget an epoch and those after it, see `results.epochs.truncate`."""
        epochs.truncate(directory, epoch)

    def settle_epochs(self, directory: Path) -> None:
        """Tidy the rows of a run whose result is written, see `results.epochs.settle`."""
        epochs.settle(directory)

    # ---------------------------------------------------------------- reading

    def load(self, directory: Path) -> Result:
        """The result of a finished run.

        Raises:
            StoreError: the run has no result (the message says its state), it is damaged (the field is
                named), or a newer version wrote it.
        """
        return check(self._read(directory, "result.json"), f"{directory}/result.json")

    def spec(self, directory: Path) -> dict[str, Any]:
        """The resolved spec of a run that was claimed at least once; StoreError otherwise."""
        return self._read(directory, "spec.json")

    def digest(self, directory: Path) -> str:
        """SHA-256 (hex) of the bytes of result.json; StoreError when there is none."""
        return hashlib.sha256(self._bytes(directory, "result.json")).hexdigest()

    def epochs(self, directory: Path) -> list[dict[str, Any]]:
        """The finished epochs of a run, finished or not, see `results.epochs.read`."""
        return epochs.read(directory)

    def predictions(self, directory: Path) -> dict[str, np.ndarray]:
        """Arrays of a finished run; StoreError when the run is not done."""
        import numpy as np

        if not (directory / "result.json").exists():
            raise StoreError(f"{directory}: no predictions, the run is {self.state(directory).kind}")
        with np.load(directory / "predictions.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    # ---------------------------------------------------------------- helpers

    def _put_predictions(self, directory: Path, lease: Lease, arrays: dict[str, np.ndarray]) -> None:
        """Create predictions.npz; one that an overtaken attempt left without a result is removed first."""
        path = directory / "predictions.npz"
        data = _array_bytes(path, arrays)
        while not create_bytes(path, data, whole=True):
            self._require(directory, lease)
            path.unlink(missing_ok=True)

    def _bytes(self, directory: Path, name: str) -> bytes:
        try:
            return (directory / name).read_bytes()
        except FileNotFoundError as error:
            state = self.state(directory).kind
            raise StoreError(f"{directory}: no {name}, the run is {state}") from error

    def _read(self, directory: Path, name: str) -> dict[str, Any]:
        try:
            return json.loads(self._bytes(directory, name))
        except ValueError as error:
            raise StoreError(f"{directory}/{name} is damaged ({error}); remove it to run again") from error

    def _failure(self, directory: Path) -> dict[str, Any] | None:
        return self._read(directory, "failure.json") if (directory / "failure.json").exists() else None

    def _require(self, directory: Path, lease: Lease | MemberLease) -> None:
        if lease.directory != directory:
            raise StoreError(f"{directory}: the lease is for {lease.directory}")
        lease.require()


def error_signature(kind: str, message: str) -> str:
    """A text that is equal for errors that differ in numbers, addresses or paths only; groups errors.

    Args:
        kind: name of the exception.
        message: its text; the first line counts.

    Returns:
        For example "OutOfMemoryError: tried to allocate # MiB".
    """
    line = (message.strip().splitlines() or [""])[0]
    line = re.sub(r"(?:/[^\s/'\":,;]+){2,}", "<path>", line)
    line = re.sub(r"0x[0-9a-fA-F]+", "#", line)
    line = re.sub(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", "#", line)
    return f"{kind}: {line}"[:200]


def _safe(name: str) -> str:
    """A name as one path component."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name).lstrip(".") or "_"


def _array_bytes(path: Path, arrays: dict[str, np.ndarray]) -> bytes:
    """The content of a .npz file: the same arrays give the same bytes."""
    import numpy as np

    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise StoreError(f"{path}: array '{name}' holds Python objects, which are not stored")
    buffer = io.BytesIO()
    # Sorted names and the fixed dates of savez.
    np.savez(buffer, **{name: arrays[name] for name in sorted(arrays)})  # type: ignore[arg-type]
    return buffer.getvalue()

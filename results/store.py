"""The run store: one directory per run, read and written without a database or a lock.

    <root>/<dataset>/<method>/p<ratio>-s<seed>-<run id, 16 characters>/
        spec.json          what was asked for
        result.json        written once, last; a run is done when it exists
        predictions.npz    test scores and labels, from which every metric can be recomputed (docs/results.md)
        model.safetensors  its weights, if the run kept them, see `results.weights`
        epochs.jsonl       one line per finished epoch, the first of which is epoch 1 (docs/results.md)
        failure.json       error of the newest attempt; older ones are failure.<attempt>.json
        lease.000001 ...   who works or worked on it, see `results.lease`

The trainer keeps its checkpoints in the same directory. The state of a run follows from these files
alone, so a store can be copied, read on a laptop and shared between nodes.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from results import epochs, failure, predictions
from results.damage import (
    FOREIGN,
    RUN_AGAIN,
    SPEC_ADVICE,
    UnreadableError,
    read_bytes,
    read_table,
    refused,
    result_problem,
)
from results.errors import LeaseLostError, StoreError
from results.failure import error_signature
from results.files import (
    atomic_write_json,
    canonical_json,
    create_bytes,
    filesystem_now,
    folders,
    remove_temporaries,
    uptime,
)
from results.lease import DEFAULT_TTL, Lease, MemberLease, acquire, generation_of, seen
from results.moves import GENERATION
from results.schema import FORMAT, Result, check, check_spec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Lease", "RunState", "RunStore", "error_signature"]

Kind = Literal["done", "running", "dead", "failed", "unreadable", "not started"]
STATES: tuple[Kind, ...] = ("done", "running", "dead", "failed", "unreadable", "not started")
CLOCK_SECONDS = 60.0
"""How long the difference between two clocks is believed."""
_RUN = re.compile(r"p[0-9.]+(?:e[-+]?\d+)?-s\d+-[0-9A-Za-z]+$")


@dataclass(frozen=True)
class RunState:
    """What is known of a run from its files.

    Attributes:
        kind: done, running, dead (a process took it and runs no more), failed, unreadable (its folder; from
            `RunStore.read` its result too; the detail says what to do) or not started.
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

    Attributes:
        hidden: folders whose runs `scan` could not list, with a line on each; who prints runs prints these.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.hidden: dict[str, str] = {}
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
        """All run directories, sorted by path; an absent store has none.

        Folders that cannot be listed are named in `hidden`.
        """
        found = []
        for dataset in self._folders(str(self.root)):
            for method in self._folders(dataset):
                found += [run for run in self._folders(method) if _RUN.match(os.path.basename(run))]
        return [Path(run) for run in sorted(found)]

    def _folders(self, parent: str) -> list[str]:
        try:
            return folders(parent)
        except OSError as error:
            self.hidden[parent] = f"{refused(parent, error)}; its runs are left out"
            return []

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
            result = self.read(run)[1] if len(prefix) > 16 else None
            if result is None or result["run_id"].startswith(prefix):
                found.append(run)
        return found

    def state(self, directory: Path) -> RunState:
        """State of a run, from its files alone.

        Args:
            directory: the run's directory; it may not exist.
        """
        try:
            names = {entry.name for entry in os.scandir(directory)}
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not os.path.islink(directory):
                return RunState("not started")
            return RunState("unreadable", detail=refused(directory, error))
        generation = max((generation_of(name) for name in names), default=0)
        if "result.json" in names:  # not opened here: a file system that is far away takes its time
            return RunState("done", attempts=generation)
        if not generation:
            return RunState("not started")
        try:
            lease = seen(directory, generation)
        except FileNotFoundError:  # somebody removed the directory this very moment
            return RunState("not started")
        except OSError as error:
            return RunState("unreadable", detail=refused(directory, error), attempts=generation)
        now = self.now()
        age, reason = max(0.0, now - lease.mtime), lease.free(now)
        if not reason:
            who = f"process {lease.content.get('pid', '?')} on {lease.content.get('host', '?')}"
            return RunState("running", age, who, attempts=generation)
        if "failure.json" in names:
            failed = failure.read(directory)
            # A newer attempt that died before it could clear the failure is dead, not failed.
            if failed and failed.get("generation", generation) == generation:
                line = f"{failed['type']}: {failed['message']}".splitlines()[0]
                return RunState("failed", None, line, failed, generation)
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
        if os.path.lexists(directory / "result.json"):
            return None
        lease = acquire(directory, ttl, self.now())
        if lease is None:
            return None
        try:
            # Another process may have finished it between the look and the claim.
            if os.path.lexists(directory / "result.json"):
                lease.release()
                return None
            remove_temporaries(directory)
            error = failure.read(directory)
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
        if _short_id(directory) != run_id[:16]:
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
        return failure.write(directory, lease.generation, error)

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
        return check(self._read(directory, "result.json", RUN_AGAIN), f"{directory}/result.json")

    def read(self, directory: Path) -> tuple[RunState, Result | None]:
        """The state of a run and, where it is done, its result.

        For readers of many runs: a result that cannot be used makes the state "unreadable", with the reason.
        """
        state = self.state(directory)
        if state.kind != "done":
            return state, None
        try:
            result = self.load(directory)
            if not result["run_id"].startswith(_short_id(directory)):
                raise UnreadableError(f"{directory}/result.json {FOREIGN}")
        except StoreError as error:
            return RunState("unreadable", detail=str(error), attempts=state.attempts), None
        return state, result

    def problem(self, directory: Path) -> str:
        """What is wrong at first sight with the result of a finished run, or ""; much faster than `read`."""
        return result_problem(directory / "result.json", _short_id(directory))

    def spec(self, directory: Path) -> dict[str, Any]:
        """The resolved spec of a run that was claimed at least once.

        Raises:
            StoreError: it is absent, or damaged; the next attempt writes it anew, and a result holds it too.
        """
        spec = self._read(directory, "spec.json", SPEC_ADVICE)
        check_spec(spec, f"{directory}/spec.json")
        return spec

    def digest(self, directory: Path) -> str:
        """SHA-256 (hex) of the bytes of result.json; StoreError when there is none."""
        try:
            return hashlib.sha256(read_bytes(directory / "result.json")).hexdigest()
        except FileNotFoundError:
            raise self._absent(directory, "result.json") from None

    def epochs(self, directory: Path) -> list[dict[str, Any]]:
        """The finished epochs of a run, finished or not, see `results.epochs.read`."""
        return epochs.read(directory)

    def predictions(self, directory: Path) -> dict[str, np.ndarray]:
        """Arrays of a finished run; StoreError when the run is not done, or they are damaged."""
        kind = self.state(directory).kind
        if kind != "done":
            raise StoreError(f"{directory}: no predictions, the run is {kind}")
        return predictions.read(directory)

    def _put_predictions(self, directory: Path, lease: Lease, arrays: dict[str, np.ndarray]) -> None:
        """Create predictions.npz; one that an overtaken attempt left without a result is removed first."""
        path = directory / predictions.NAME
        data = predictions.content(path, arrays)
        while not create_bytes(path, data, whole=True):
            self._require(directory, lease)
            path.unlink(missing_ok=True)

    def _read(self, directory: Path, name: str, advice: str) -> dict[str, Any]:
        try:
            return read_table(directory / name, advice)
        except FileNotFoundError:
            raise self._absent(directory, name) from None

    def _absent(self, directory: Path, name: str) -> StoreError:
        return StoreError(f"{directory}: no {name}, the run is {self.state(directory).kind}")

    def _require(self, directory: Path, lease: Lease | MemberLease) -> None:
        if lease.directory != directory:
            raise StoreError(f"{directory}: the lease is for {lease.directory}")
        lease.require()


def _short_id(directory: Path) -> str:
    return directory.name.rsplit("-", 1)[-1]


def _safe(name: str) -> str:
    """A name as one path component."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name).lstrip(".") or "_"

"""Takes the finished runs of other stores into one: those of two machines, or of a copy that went on.

A run is taken whole or not at all: under a lease on its directory here, predictions and epochs first, and
`result.json` last, which makes it done. So a merge may be killed and repeated, may work while the other
store is being written by runs, and respects the processes that work here. A result is never replaced: where
both stores have one, it is equal (same predictions, same measures), or a conflict that is named and left to
people.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from results import epochs, predictions, weights
from results.damage import read_bytes, read_table, refused
from results.errors import StoreError
from results.files import atomic_write_bytes, create_bytes, folders
from results.lease import seconds_to_live
from results.moves import flat
from results.schema import Result
from results.store import STATES, RunStore

Kind = Literal["taken", "equal", "conflict", "held", "damaged", "unfinished", "foreign"]
KINDS: tuple[Kind, ...] = ("taken", "equal", "conflict", "held", "damaged", "unfinished", "foreign")
LEFT: tuple[Kind, ...] = ("conflict", "held", "damaged")
"""Finished runs that the merged store lacks afterwards, or has in another form."""
STAGE = "stage.json"
CHECKPOINTS = "checkpoints"
"""What an attempt that has not ended keeps in the directory of a run or stage."""
_FULL = (errno.ENOSPC, errno.EDQUOT)  # nothing that follows would fare better
SHOWN = 3
"""Differing values that a line names."""


@dataclass(frozen=True)
class Met:
    """One run, or stage, of another store, and what has become of it.

    Attributes:
        kind: taken; equal (it is here already, and the same); conflict (it is here, and another); held (a
            process works on it here); damaged (there, or here); unfinished there; foreign (no run of a
            store).
        path: its directory there.
        detail: one line on why; for taken and equal on the weights that the run kept, or "".
    """

    kind: Kind
    path: Path
    detail: str = ""


@dataclass
class Merged:
    """What a merge has met.

    Attributes:
        source: the store that was read.
        met: each of its runs and stages.
    """

    source: Path
    met: list[Met] = field(default_factory=list)

    def of(self, *kinds: Kind) -> list[Met]:
        """Those of some kinds."""
        return [each for each in self.met if each.kind in kinds]

    @property
    def complete(self) -> bool:
        """Whether everything that is finished there is here too, and the same."""
        return not self.of(*LEFT)


def merge(
    target: RunStore,
    source: RunStore,
    *,
    dry_run: bool = False,
    say: Callable[[Met], None] = lambda met: None,
) -> Merged:
    """Take the finished runs of a store into another.

    Args:
        target: the store that gets them; it is made if there is none.
        source: the store that is read; nothing in it changes.
        dry_run: only look what would be taken.
        say: called with each run, once it is dealt with.

    Raises:
        StoreError: there is no such source, or it is the target itself.
        OSError: the target cannot be written to; what was taken stays.
    """
    check(target.root, source.root)
    found = Merged(source.root)
    for met in _runs(target, source, dry_run):
        found.met.append(met)
        say(met)
    return found


def merge_stages(
    target: RunStore,
    source: RunStore,
    *,
    dry_run: bool = False,
    say: Callable[[Met], None] = lambda met: None,
) -> Merged:
    """Take the finished shared stages of a folder of runs into another; as `merge`.

    A stage that is here already stays: what it depends on is its name.

    Args:
        target: the folder of stages that gets them, as a store.
        source: the one that is read.
        dry_run: only look what would be taken.
        say: called with each stage, once it is dealt with.
    """
    found = Merged(source.root)
    for place in map(Path, sorted(folders(source.root))):
        try:
            met = _stage(target, source, place, dry_run)
        except (OSError, StoreError) as error:
            if isinstance(error, OSError) and _is_of_target(error, target.root):
                raise
            line = refused(error.filename or place, error) if isinstance(error, OSError) else str(error)
            met = Met("damaged", place, line)
        found.met.append(met)
        say(met)
    return found


def check(target: Path, source: Path) -> None:
    """Look whether a store can be merged into another.

    Raises:
        StoreError: there is none, or it is the other.
    """
    if not source.is_dir():
        raise StoreError(f"{source.parent}: no runs there, {source} is missing; name a folder as for --runs")
    if target.exists() and os.path.samefile(target, source):
        raise StoreError(f"{source.parent} is the folder of runs that it would be merged into")


def _runs(target: RunStore, source: RunStore, dry_run: bool) -> Iterator[Met]:
    runs = source.scan()
    for hidden, line in source.hidden.items():
        yield Met("damaged", Path(hidden), line)
    for place in sorted(_others(source, set(runs))):
        yield Met("foreign", place, "no run's directory")
    for place in runs:
        try:
            yield _run(target, source, place, dry_run)
        except OSError as error:
            if _is_of_target(error, target.root):
                raise
            yield Met("damaged", place, refused(error.filename or place, error))


def _others(store: RunStore, runs: set[Path]) -> Iterator[Path]:
    """Folders at the place of runs that are none."""
    for dataset in folders(store.root):
        for method in [] if dataset in store.hidden else folders(dataset):
            if method not in store.hidden:
                yield from (path for path in map(Path, folders(method)) if path not in runs)


def _run(target: RunStore, source: RunStore, place: Path, dry_run: bool) -> Met:
    state = source.state(place)
    if state.kind == "unreadable":
        return Met("damaged", place, state.detail)
    if state.kind != "done":
        return Met("unfinished", place, f"{state.kind}: {state.detail}" if state.detail else state.kind)
    try:
        theirs = source.load(place)
    except StoreError as error:
        return Met("damaged", place, str(error))
    expected = target.directory(theirs["run_id"], dict(theirs["spec"]))
    if expected.relative_to(target.root) != place.relative_to(source.root):
        return Met("foreign", place, f"its result is that of {expected.relative_to(target.root)}")
    if os.path.lexists(expected / "result.json"):
        return _compared(target, expected, source, place, theirs, dry_run)
    try:
        scores = _predictions(place, theirs)
        source.epochs(place)  # each line of it is one
    except StoreError as error:
        return Met("damaged", place, str(error))
    return _take(target, expected, source, place, theirs, scores, dry_run)


def _take(
    target: RunStore,
    here: Path,
    source: RunStore,
    place: Path,
    theirs: Result,
    scores: bytes,
    dry_run: bool,
) -> Met:
    """Copy a finished run under a lease; `scores` are the bytes of its predictions, which were checked."""
    if dry_run:
        return _foreseen(target, here, place)
    lease = target.claim(here, _spec(source, place, theirs), ttl=seconds_to_live())
    if lease is None:
        if (here / "result.json").exists():  # this very moment
            return _compared(target, here, source, place, theirs, dry_run)
        return Met("held", place, f"{here}: {_state(target, here)}")
    with lease:
        for name in (predictions.NAME, weights.NAME):  # of an attempt that has left no result
            (here / name).unlink(missing_ok=True)
        create_bytes(here / predictions.NAME, scores, whole=True)
        rows = (place / epochs.NAME).read_bytes() if (place / epochs.NAME).exists() else None
        if rows is None:
            (here / epochs.NAME).unlink(missing_ok=True)
        else:
            atomic_write_bytes(here / epochs.NAME, rows)
        lease.require()
        problem = weights.take(place, here, theirs)[1]
        lease.require()
        text = (place / "result.json").read_bytes()
        if json.loads(text)["run_id"] != theirs["run_id"] or not create_bytes(
            here / "result.json", text, whole=True
        ):
            return Met("held", place, f"{here}: another process has written the result; merge again")
        for name in ("spec.json", "result.json"):  # their difference is how long the run took
            _copy_times(place / name, here / name)
        _clear(here)
    return Met("taken", place, problem)


def _foreseen(target: RunStore, here: Path, place: Path) -> Met:
    """What a claim would come to."""
    state = target.state(here)
    held = state.kind == "running"
    return Met("held", place, f"{here}: {state.detail}") if held else Met("taken", place)


def _compared(
    target: RunStore, here: Path, source: RunStore, place: Path, theirs: Result, dry_run: bool
) -> Met:
    """Two results of one run: equal, or a conflict. Of an equal one its weights are taken."""
    try:
        ours = target.load(here)
        differing = _differences(target, here, ours, source, place, theirs)
    except StoreError as error:
        return Met("damaged", place, f"it cannot be compared: {error}")
    if not differing:
        taken, problem = (False, "") if dry_run else weights.take(place, here, ours)
        return Met("equal", place, "its weights are taken" if taken else problem)
    return Met("conflict", place, f"{here} has another result: {'; '.join(differing)}")


def _differences(
    target: RunStore, here: Path, ours: Result, source: RunStore, place: Path, theirs: Result
) -> list[str]:
    if ours["run_id"] != theirs["run_id"]:
        return [f"run {ours['run_id']} here, {theirs['run_id']} there"]
    # Results of earlier versions name fewer arrays, or none.
    both = [predictions.named(ours), predictions.named(theirs)]
    if both[0].keys() != both[1].keys() or not both[0]:
        both = [
            predictions.digests(store.predictions(path)) for store, path in ((target, here), (source, place))
        ]
    found = []
    for name in sorted(both[0].keys() & both[1].keys()):
        if both[0][name] != both[1][name]:
            what = "predictions" if name == "scores" else name
            found.append(f"{what} {both[0][name][:12]}… here, {both[1][name][:12]}… there")
    mine, other = flat(dict(ours["metrics"])), flat(dict(theirs["metrics"]))
    fields = [name for name in sorted({*mine, *other}) if mine.get(name) != other.get(name)]
    found += [f"{name} {mine.get(name)} here, {other.get(name)} there" for name in fields[:SHOWN]]
    return found + ([f"and {len(fields) - SHOWN} more values"] if len(fields) > SHOWN else [])


def _predictions(place: Path, theirs: Result) -> bytes:
    """The bytes of a run's predictions, if they are those that its result names.

    Raises:
        StoreError: they are missing, unreadable, or others.
    """
    import numpy as np

    path = place / predictions.NAME
    try:
        data = read_bytes(path)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            arrays["scores"]  # results of the first versions name no array
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except StoreError:
        raise
    except Exception as error:  # zipfile and NumPy raise many kinds on a damaged file
        raise StoreError(f"{path} is damaged ({error})") from None
    problems = predictions.strange(arrays, theirs)
    if problems:
        raise StoreError(f"{place}: {'; '.join(problems)}")
    return data


def _spec(source: RunStore, place: Path, theirs: Result) -> dict[str, Any]:
    try:
        return source.spec(place)
    except StoreError:  # the result has it too
        return dict(theirs["spec"])


def _state(store: RunStore, place: Path) -> str:
    try:
        state = store.state(place)
    except StoreError as error:
        return str(error)
    return f"{state.kind}: {state.detail}" if state.detail else state.kind


def _copy_times(path: Path, copy: Path) -> None:
    if path.exists():
        found = path.stat()
        os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))


def _clear(here: Path) -> None:
    """Remove what an attempt here has left that did not come to its end."""
    shutil.rmtree(here / CHECKPOINTS, ignore_errors=True)
    (here / "progress.json").unlink(missing_ok=True)


def _stage(target: RunStore, source: RunStore, place: Path, dry_run: bool) -> Met:
    here, path = target.root / place.name, place / STAGE
    if not path.exists():
        return Met("unfinished", place, _state(source, place))
    record = read_table(path, "remove it, and the stage is made anew")
    if not {"kind", "key"} <= record.keys():
        return Met("damaged", place, f"{path} is no record of a stage")
    if (here / STAGE).exists():
        return _compared_stage(here, place, record["key"])
    files = _stage_files(place, record)
    if dry_run:
        return _foreseen(target, here, place)
    claimed = {"stage": record["kind"], "key": record["key"]}
    lease = target.claim(here, claimed, ttl=seconds_to_live())
    if lease is None:
        return Met("held", place, f"{here}: {_state(target, here)}")
    with lease:
        for name, data in files.items():
            atomic_write_bytes(here / name, data)
        lease.require()
        create_bytes(here / STAGE, read_bytes(path), whole=True)
        _copy_times(path, here / STAGE)
        _clear(here)
    return Met("taken", place)


def _stage_files(place: Path, record: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a finished stage, by name, if they are those that its record names.

    Raises:
        StoreError: one has changed, or cannot be read.
    """
    found = {
        name: read_bytes(place / name)
        for name in sorted(os.listdir(place))
        if name.endswith((".npy", ".safetensors")) and not name.startswith(".")
    }
    try:
        sums = {name: sha256 for name, (_, sha256) in record.get("files", {}).items()}
    except (AttributeError, TypeError, ValueError):
        raise StoreError(f"{place / STAGE} is damaged (its checksums are none)") from None
    for name, sha256 in sums.items():  # stages of earlier versions have none
        if name not in found or hashlib.sha256(found[name]).hexdigest() != sha256:
            raise StoreError(f"{place / name} is not what was written: its checksum differs")
    return found


def _compared_stage(here: Path, place: Path, key: Any) -> Met:
    """Two results of one stage. Their bytes may differ, as those of a run continued elsewhere do."""
    try:
        same = read_table(here / STAGE, "remove it, and the stage is made anew").get("key") == key
    except StoreError as error:
        return Met("damaged", place, f"it cannot be compared: {error}")
    return Met("equal", place) if same else Met("conflict", place, f"{here} is of another key")


def _is_of_target(error: OSError, root: Path) -> bool:
    """Whether writing failed, and not reading one run of the other store."""
    return error.errno in _FULL or str(error.filename or "").startswith(f"{root}{os.sep}")


def summary(found: Merged) -> str:
    """Counts of each kind in one line, such as "12 taken, 3 equal, 2 unfinished (1 dead, 1 running)"."""
    parts = []
    for kind in KINDS:
        met = found.of(kind)
        if not met:
            continue
        words = f"{len(met)} {kind}"
        if kind == "unfinished":
            states = [each.detail.split(":")[0] for each in met]
            told = [f"{states.count(state)} {state}" for state in STATES if state in states]
            words += f" ({', '.join(told)})" if told else ""
        parts.append(words)
    return ", ".join(parts) or "nothing"

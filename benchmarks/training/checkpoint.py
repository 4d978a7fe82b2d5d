"""Checkpoints of a running training: folders that appear whole, with nothing executable in them.

    00003-0000120.000002/     epoch and step, and the generation of the lease under which it was written
        model.safetensors     one file for each entry of the state that is a table of tensors
        ema.safetensors
        state.pt              the rest, as a weights-only archive
        COMPLETE.json         sizes and checksums of the files above, written last

A folder is filled under another name, every file is flushed to the disk, and then it is renamed: a
process killed at any instant leaves a whole checkpoint or none. The last two are kept; one that was
damaged afterwards is passed over with a warning and the one before it is used. Folders without a
generation are of earlier versions.

A process writes under its own generation, and removes what this and earlier ones left. One that was stopped
and goes on after another has taken the training over thus cannot touch what that one has written.

The processes of a group save together: they first make sure that their weights are equal.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from benchmarks.training.group import Group
from benchmarks.training.strategy import Strategy
from results.files import fsync_directory

log = logging.getLogger(__name__)
KEEP = 2
SEAL = "COMPLETE.json"
_NAME = re.compile(r"\.?(\d{5})-(\d{7})(?:\.(\d{6}))?$")


class Place(NamedTuple):
    """A checkpoint.

    Attributes:
        generation: of the lease under which it was written; 0 for earlier versions.
        epoch: the epoch, from 0.
        step: steps of it that are done.
    """

    generation: int
    epoch: int
    step: int


class Checkpoints:
    """The checkpoints of one directory.

    Several processes may put their own parts into one checkpoint: the first calls `stage`, all call
    `write`, and when all have, the first calls `seal`; `save_together` does that.

    Args:
        directory: where they lie; made on the first save.
        every: seconds between checkpoints inside an epoch; 0 saves after every step. The moment
            of a checkpoint never changes a number.
        generation: of this process's lease.
        require: called before a checkpoint is begun and before it counts; raises if the lease is lost.
    """

    def __init__(
        self,
        directory: Path,
        every: float,
        generation: int = 0,
        require: Callable[[], None] = lambda: None,
    ) -> None:
        self.directory, self.every = directory, every
        self.generation, self.require = generation, require
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save inside an epoch."""
        return time.monotonic() - self._last >= self.every

    def save(self, state: dict[str, Any], epoch: int, step: int) -> None:
        """Write a whole state from one process; older ones beyond the last two are removed."""
        self.stage(epoch, step)
        self.write(state, epoch, step)
        self.seal(epoch, step)

    def save_together(self, state: dict[str, Any], epoch: int, step: int, strategy: Strategy) -> None:
        """Write one checkpoint from all processes of a group; every one of them calls this.

        Rank 0 writes its whole state. Under a strategy that shards the optimiser state, the other ranks
        write their shares, before rank 0 seals the checkpoint.

        Args:
            state: this process's state.
            epoch: of the checkpoint.
            step: of the checkpoint.
            strategy: the processes.

        Raises:
            RuntimeError: weights, buffers or moving averages of the processes differ.
        """
        group, accelerator = strategy.group, strategy.accelerator
        check_agreement(state, epoch, step, group)
        if group.is_main:
            self.stage(epoch, step)
            self.write(state, epoch, step)
        if strategy.sharded and group.world > 1:
            accelerator.wait_for_everyone()
            if not group.is_main:
                share = {name: value for name, value in state.items() if name.startswith("share.")}
                self.write(share, epoch, step)
            accelerator.wait_for_everyone()
        if group.is_main:
            self.seal(epoch, step)
        accelerator.wait_for_everyone()

    def stage(self, epoch: int, step: int) -> None:
        """Begin a checkpoint: an empty folder under a name that `load` does not look at."""
        self.require()
        self.directory.mkdir(parents=True, exist_ok=True)
        for left_over in self._own(hidden=True):  # of a process that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        self._staging(epoch, step).mkdir()

    def write(self, state: dict[str, Any], epoch: int, step: int, suffix: str = "") -> None:
        """Put entries into a checkpoint that was begun.

        Args:
            state: tables of tensors, or nested plain values and tensors.
            epoch: of the checkpoint.
            step: of the checkpoint.
            suffix: tells the files of several processes apart.
        """
        folder = self._staging(epoch, step)
        rest: dict[str, Any] = {}
        for name, value in state.items():
            if _is_table(value):
                data = safetensors.torch.save(_apart(value))
                _write(folder / f"{name}{suffix}.safetensors", data)
            else:
                rest[name] = value
        if rest:
            buffer = io.BytesIO()
            torch.save(rest, buffer)
            _write(folder / f"state{suffix}.pt", buffer.getvalue())

    def seal(self, epoch: int, step: int) -> None:
        """End a checkpoint: from now on it counts."""
        folder = self._staging(epoch, step)
        files = {
            path.name: [path.stat().st_size, zlib.crc32(path.read_bytes())]
            for path in sorted(folder.iterdir())
        }
        _write(folder / SEAL, json.dumps({"files": files}, indent=1).encode())
        fsync_directory(folder)
        final = self.directory / folder.name[1:]
        self.require()
        if final.exists():  # the step that this process continued from, saved again
            shutil.rmtree(final)
        os.rename(folder, final)
        fsync_directory(self.directory)
        for old in self._own()[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
        self._last = time.monotonic()

    def newest(self) -> Place | None:
        """The newest sound checkpoint of the newest generation that has one, or None."""
        found = self._folders()
        while found:
            folder = found.pop()
            damage = _damage(folder)
            if not damage:
                return _place(folder)
            then = "trying the one before" if found else "there is none before: the training starts anew"
            log.warning("checkpoint %s is damaged (%s); %s", folder, damage, then)
        return None

    def load(self, place: Place, map_location: Any = "cpu") -> dict[str, Any]:
        """The state that was saved. Nothing in a file is executed.

        Files of several processes come back under their own names, such as "optimizer.0-of-2".
        """
        folder = self.directory / _folder_name(place)
        state: dict[str, Any] = {}
        for path in sorted(folder / name for name in _sealed(folder)):
            if path.suffix == ".safetensors":
                tensors = safetensors.torch.load(path.read_bytes())
                state[path.stem] = {name: value.to(map_location) for name, value in tensors.items()}
            elif path.suffix == ".pt":
                state |= torch.load(path, map_location=map_location, weights_only=True)
        return state

    def clear(self) -> None:
        """Remove every checkpoint of this and of earlier generations, once the result is written."""
        for folder in (*self._own(), *self._own(hidden=True)):
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # absent, or a later generation's checkpoints are in it
            self.directory.rmdir()

    def _staging(self, epoch: int, step: int) -> Path:
        return self.directory / f".{_folder_name(Place(self.generation, epoch, step))}"

    def _own(self, *, hidden: bool = False) -> list[Path]:
        """Folders that this process may remove, the oldest first."""
        return [path for path in self._folders(hidden=hidden) if _place(path).generation <= self.generation]

    def _folders(self, *, hidden: bool = False) -> list[Path]:
        """Sealed checkpoints, or (hidden) those that were begun; the newest of the newest generation last."""
        if not self.directory.is_dir():
            return []
        found = [path for path in self.directory.iterdir() if _NAME.match(path.name)]
        return sorted((path for path in found if path.name.startswith(".") == hidden), key=_place)


def _place(folder: Path) -> Place:
    match = _NAME.match(folder.name)
    assert match is not None  # by `Checkpoints._folders`
    return Place(int(match[3] or 0), int(match[1]), int(match[2]))


def _folder_name(place: Place) -> str:
    name = f"{place.epoch:05d}-{place.step:07d}"
    return f"{name}.{place.generation:06d}" if place.generation else name


def check_agreement(state: dict[str, Any], epoch: int, step: int, group: Group) -> None:
    """Make sure that the entries "model" and "ema" are the same on every process, to the last bit.

    Raises:
        RuntimeError: they are not; names a rank and a tensor.
    """
    if group.world == 1:
        return
    names = [f"{part}.{name}" for part in ("model", "ema") for name in state[part]]
    values = [value for part in ("model", "ema") for value in state[part].values()]
    mismatches = group.mismatches(fingerprints(values))
    if mismatches:
        rank, k = mismatches[0]
        raise RuntimeError(
            f"rank {rank} has another {names[k]} than rank 0 in epoch {epoch + 1} after {step} steps "
            f"({len(mismatches)} tensors differ): the processes have come apart"
        )


def fingerprints(values: list[Tensor]) -> Tensor:
    """(n,) int64 on the CPU, one per tensor: the sum of its bytes, four at a time."""
    sums = []
    for value in values:
        flat = value.detach().contiguous().flatten().view(torch.uint8)
        words = flat.view(torch.int32) if len(flat) % 4 == 0 else flat
        sums.append(words.sum(dtype=torch.int64))
    return torch.stack(sums).cpu() if sums else torch.zeros(0, dtype=torch.int64)


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and all(isinstance(tensor, Tensor) for tensor in value.values())
    )


def _apart(table: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, none of them sharing memory, which the format does not know."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in table.items():
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _damage(folder: Path) -> str:
    """What is wrong with a checkpoint, or ""."""
    try:
        files = _sealed(folder)
        if not files:
            return f"{SEAL} names no file"
        for name, (size, checksum) in files.items():
            data = (folder / name).read_bytes()
            if len(data) != size:
                return f"{name} has {len(data)} bytes instead of {size}"
            if zlib.crc32(data) != checksum:
                return f"the content of {name} has changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _sealed(folder: Path) -> dict[str, Any]:
    """Size and checksum of each file of a checkpoint, by name."""
    return json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]

"""The files of a finished stage, with checksums: what has changed on the disk is made again, never used.

    <stages>/<kind>-<16 digits>/
        train.npy, test.npy                      of features
        views.npy                                of views
        model.safetensors, ema.safetensors       of a warm-up
        stage.json      written last: kind, key, cost, and size and SHA-256 of the files above

Stages of earlier versions have no checksums. Of their files the form is checked; what they hold is believed,
as those versions did, and said.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from benchmarks.plan.stages import STAGE_RECORD
from results.damage import UnreadableError, read_table, refused
from results.files import atomic_write_bytes

FILES = {
    "features": ("train.npy", "test.npy"),
    "views": ("views.npy",),
    "warmup": ("model.safetensors", "ema.safetensors"),
}
"""The files of each kind of stage."""
AGAIN = "run again, and the stage is made anew"
Sum = tuple[int, str]
"""Size in bytes and SHA-256 (hexadecimal) of a file."""
_known: dict[str, tuple[Any, ...]] = {}
"""Files that this process has found sound: path to state on the disk and checksum."""


class StageDamagedError(UnreadableError):
    """A file of a finished stage is not what was written; the message names it."""


def write_array(path: Path, values: np.ndarray) -> Sum:
    """Write one .npy file atomically."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return _write(path, buffer.getvalue())


def write_tensors(path: Path, state: dict[str, Tensor]) -> Sum:
    """Write one .safetensors file atomically."""
    return _write(path, safetensors.torch.save(state))


def _write(path: Path, data: bytes) -> Sum:
    atomic_write_bytes(path, data)
    return len(data), hashlib.sha256(data).hexdigest()


def read_features(directory: Path, kind: str = "features") -> dict[str, Tensor]:
    """The arrays of a stage, by the names of their files.

    Args:
        directory: of the stage.
        kind: "features": "train" and "test", (N, D) float32 each; or "views": "views", (V, n_l, D) float32.

    Raises:
        StageDamagedError: a file has changed since it was written, or cannot be read.
    """
    sums = _sums(directory)
    return {
        name.removesuffix(".npy"): torch.from_numpy(
            np.load(_sound(directory / name, sums), allow_pickle=False)
        )
        for name in FILES[kind]
    }


def read_weights(directory: Path, weights: str) -> dict[str, Tensor]:
    """The weights of a warm-up.

    Args:
        directory: of the stage.
        weights: "model" or "ema".

    Raises:
        StageDamagedError: the file has changed since it was written, or cannot be read.
    """
    stream = _sound(directory / f"{weights}.safetensors", _sums(directory))
    return safetensors.torch.load(stream.read())


def damage(directory: Path, kind: str) -> str:
    """What is wrong with a finished stage, or "".

    A process reads each file once, while it stays as it is.

    Args:
        directory: of the stage.
        kind: of the stage.
    """
    try:
        sums = _sums(directory)
        for name in FILES[kind]:
            state = _state(directory / name)
            if _known.get(str(directory / name)) != (state, sums and sums.get(name)):
                _sound(directory / name, sums).close()
                _known[str(directory / name)] = (state, sums and sums.get(name))
    except StageDamagedError as error:
        return str(error).removesuffix(f"; {AGAIN}")
    return ""


def has_checksums(directory: Path) -> bool:
    """Whether a finished and sound stage has them."""
    return _sums(directory) is not None


def _sums(directory: Path) -> dict[str, Sum] | None:
    """The checksums of a stage; None where an earlier version wrote none."""
    path = directory / STAGE_RECORD
    try:
        record = read_table(path, AGAIN)
    except FileNotFoundError:
        raise StageDamagedError(f"{path} is missing; {AGAIN}") from None
    except UnreadableError as error:
        raise StageDamagedError(str(error)) from None
    if "files" not in record:
        return None
    try:
        return {str(name): (int(size), str(sha256)) for name, (size, sha256) in record["files"].items()}
    except (AttributeError, TypeError, ValueError):
        raise StageDamagedError(f"{path} is damaged (its checksums are none); {AGAIN}") from None


def _sound(path: Path, sums: dict[str, Sum] | None) -> BinaryIO:
    """A file, open at its start, whose content is what was written."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller reads it
    except OSError as error:
        raise StageDamagedError(f"{refused(path, error)}; {AGAIN}") from None
    try:
        problem = _form_problem(file) if sums is None else _sum_problem(file, sums.get(path.name))
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    if problem:
        file.close()
        raise StageDamagedError(f"{path} {problem}; {AGAIN}")
    file.seek(0)
    return file


def _sum_problem(file: BinaryIO, expected: Sum | None) -> str:
    if expected is None:
        return "has no checksum in the record of its stage"
    size = os.fstat(file.fileno()).st_size
    if size != expected[0]:
        return f"has {size:,} bytes instead of {expected[0]:,}"
    found = hashlib.sha256()
    while part := file.read(1 << 20):
        found.update(part)
    if found.hexdigest() != expected[1]:
        return "has changed on the disk: its checksum differs"
    return ""


def _form_problem(file: BinaryIO) -> str:
    """What is wrong with the form of a file of an earlier version: a truncated one shows."""
    try:
        if file.name.endswith(".npy"):
            np.load(file.name, mmap_mode="r", allow_pickle=False)
        else:
            with safetensors.safe_open(file.name, framework="pt") as archive:
                list(archive.keys())
    except Exception as error:  # NumPy and safetensors raise many kinds on a damaged file
        return f"is damaged ({(str(error) or type(error).__name__).splitlines()[0]})"
    return ""


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

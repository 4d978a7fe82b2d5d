"""Labelled subsets of a user: files of positions or of image names."""

from __future__ import annotations

import difflib
import json
import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.dataset import ImageSet
from methods.errors import UserError, nearest

ENDINGS = (".txt", ".json", ".npy")
_TOLERANCE = 0.01
"""Largest relative deviation of the number of images from the ratio's: codes round differently."""


def is_file(rule: str) -> bool:
    """Whether a dataset's `split` is the path of a list."""
    return rule.lower().endswith(ENDINGS)


def place(pattern: str, ratio: float, seed: int) -> Path:
    """The file for a ratio and a seed: `{ratio}` becomes 0.05, `{seed}` becomes 1."""
    text = pattern.replace("{ratio}", f"{ratio:g}").replace("{seed}", str(seed))
    return Path(text).expanduser()


def read(
    pattern: str, images: ImageSet, ratio: float, seed: int, count: int
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Read the labelled subset of a ratio and a seed.

    A `.txt` has one image a line; a `.json` is a list, or a split file of this harness; a `.npy` is
    one-dimensional. An image is its position in the training images (0 is the first), its id, or
    its file's name (folders before the name are ignored). Digits in a `.txt` are ids where all of
    them are, else positions; in the other two, numbers are positions and text is an id or a name.

    Args:
        pattern: a path, in which `{ratio}` and `{seed}` are filled in (see `place`). Without them
            one file serves all ratios or all seeds.
        images: the training images.
        ratio: labelled share p.
        seed: seed of the split.
        count: `int(p * N)`, the number of images that p means.

    Returns:
        Labelled positions, (n_l,) int64 in the file's order, and remarks for the user, such as a number of
        images that is not exactly `count`.

    Raises:
        UserError: the file is missing or malformed, an image is unknown, out of range or listed
            twice, or their number is more than 1 % away from the ratio's.
    """
    file = place(pattern, ratio, seed)
    if not file.is_file():
        present = os.listdir(file.parent) if file.parent.is_dir() else []
        lists = [name for name in present if is_file(name)]
        raise UserError(
            f"split file {file} is not there{nearest(file.name, lists)}; a dataset's split is "
            f"{'published'!r}, {'stratified'!r} or such a path, with {{ratio}} and {{seed}}"
        )
    found = _positions(_entries(file), file, images)
    twice, times = Counter(found).most_common(1)[0] if found else (0, 0)
    if times > 1:
        raise UserError(
            f"{file}: image {images.ids[twice]!r} (position {twice}) is listed {times} times; list it once"
        )
    return np.array(found, dtype=np.int64), _notes(file, len(found), len(images), ratio, count)


def _notes(file: Path, found: int, total: int, ratio: float, count: int) -> tuple[str, ...]:
    if found == count:
        return ()
    text = f"{file}: {found:,} images, where ratio {ratio:g} of {total:,} is {count:,}"
    if abs(found - count) > max(1.0, _TOLERANCE * count):
        hint = f"use ratio {found / total:.3g} or another file" if found else "it is empty"
        raise UserError(f"{text}; {hint}")
    return (f"{text}; accepted",)


def _entries(file: Path) -> list[str] | list[int]:
    """The entries of the file: text or numbers."""
    try:
        if file.suffix.lower() == ".npy":
            return _array(file)
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    if file.suffix.lower() == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        content: Any = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON: {error}") from None
    if isinstance(content, dict):
        content = content.get("ids")  # a split file: names stay valid when the order changes
    if isinstance(content, list):
        for kind in (str, int):
            if all(type(entry) is kind for entry in content):
                return content
    raise UserError(
        f"{file}: neither a list of positions, nor one of image names, nor a split file with "
        "'ids'; write one of these"
    )


def _array(file: Path) -> list[str] | list[int]:
    try:
        values = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{file}: not an array of numbers or text ({error}); save it with numpy.save"
        ) from None
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iuU":
        kind = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise UserError(
            f"{file}: {kind}; it must be one-dimensional and hold positions (integers) or image names (text)"
        )
    return values.tolist()


def _positions(entries: list[str] | list[int], file: Path, images: ImageSet) -> list[int]:
    listed = [entry for entry in entries if isinstance(entry, str)]
    if not listed:
        return _in_range([int(entry) for entry in entries], file, len(images))
    by_id = {name: k for k, name in enumerate(images.ids)}
    if all(entry.isdecimal() and entry.isascii() for entry in listed):
        known = sum(entry in by_id for entry in listed)
        numbers = [int(entry) for entry in listed]
        if known == len(listed):
            ids = [by_id[entry] for entry in listed]
            if max(numbers) < len(images) and ids != numbers and file.suffix.lower() == ".txt":
                raise UserError(
                    f"{file}: its numbers are image ids and could be positions; make it a .json "
                    'list: ["12", …] of ids, or [12, …] of positions'
                )
            return ids
        # Positions are seldom ids by chance: where most entries are ids, another one is a wrong id.
        if file.suffix.lower() == ".txt" and 2 * known <= len(listed):
            return _in_range(numbers, file, len(images))
    by_name: dict[str, list[int]] = {}
    for k, path in enumerate(images.paths):
        by_name.setdefault(path.name, []).append(k)
    found = []
    for row, entry in enumerate(listed, start=1):
        name = PurePosixPath(entry).name
        places = [by_id[entry]] if entry in by_id else by_name.get(name, [])
        if len(places) != 1:
            what = (
                f"{len(places)} training images are named {name!r}; list ids, such as "
                + repr(images.ids[places[0]])
                if places
                else f"no training image {entry!r}{_close(entry, images.ids)}"
            )
            raise UserError(f"{file}: entry {row}: {what}")
        found.append(places[0])
    return found


def _in_range(numbers: list[int], file: Path, total: int) -> list[int]:
    for row, number in enumerate(numbers, start=1):
        if not 0 <= number < total:
            raise UserError(
                f"{file}: entry {row}: position {number} is not among the {total:,} training "
                f"images (0 … {total - 1})"
            )
    return numbers


def _close(name: str, ids: tuple[str, ...]) -> str:
    """A hint with the nearest id only: a list of valid ids would be the whole dataset."""
    close = difflib.get_close_matches(name, ids, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "; list ids, file names or positions"

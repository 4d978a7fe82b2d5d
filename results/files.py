"""Files that a reader sees either in full or not at all.

Every write goes to a temporary file in the same directory, is flushed to the disk and then put in
place by `os.replace`, which is atomic on local and on network file systems; the directory is
flushed too, so that the new name survives a power cut.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY_SUFFIX = ".tmp"


def folders(parent: Path | str) -> list[str]:
    """Paths of a directory's sub-directories; empty when there is no such directory.

    Raises:
        OSError: it cannot be listed.
    """
    try:
        with os.scandir(parent) as entries:
            return [entry.path for entry in entries if _is_folder(entry)]
    except FileNotFoundError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


@contextmanager
def whole_folder(place: Path, sign: str) -> Iterator[Path]:
    """Fill a folder that others see whole or not at all.

    Args:
        place: the folder; it is left alone if another process makes it meanwhile.
        sign: a file in it that says that it is whole.

    Yields:
        A folder beside it, to be filled; ``sign`` too.

    Raises:
        OSError: it cannot be put in place.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.parent / f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        yield temporary
        try:
            os.rename(temporary, place)
        except OSError:  # another process was faster
            if not (place / sign).is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fsync_directory(directory: Path) -> None:
    """Flush a directory's entries to the disk.

    Args:
        directory: an existing directory.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        # Some network and FUSE file systems refuse fsync on a directory and order renames anyway.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_writer(path: Path | str) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of `path` when the block ends without an error.

    Args:
        path: file to create or replace; its directory must exist.

    Yields:
        A binary file, open for writing and seeking.

    Raises:
        OSError: the disk is full, the directory is missing, and so on; `path` is then unchanged. The error
            names `path`, even if writing failed and not opening.
    """
    path = Path(path)
    # Host, process and a random part: two writers never share a temporary file.
    tag = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.{tag}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # a read-only disk refuses that too; the first error is what to tell
            os.unlink(temporary)
        _name(error, path)
        raise
    fsync_directory(path.parent)


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Write a whole file atomically.

    Args:
        path: file to create or replace; its directory must exist.
        data: its new content.

    Raises:
        OSError: see `atomic_writer`.
    """
    with atomic_writer(path) as file:
        file.write(data)


def create_bytes(path: Path, data: bytes, *, whole: bool = False) -> bool:
    """Create a file with its content unless it exists: of several processes exactly one succeeds.

    Args:
        path: file to create; its directory must exist.
        data: its content.
        whole: what a file system without hard links cannot do: False gives up that the file appears together
            with its content, True that exactly one of several processes succeeds.

    Returns:
        Whether this call created it.

    Raises:
        OSError: the disk is full, the directory is missing, and so on.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            try:
                os.link(temporary, path)  # the file appears together with its content
            except FileExistsError:
                # A network disk may repeat a request whose answer was lost: two names mean
                # success. (A winner that sweeps temporary files leaves none.)
                if os.fstat(file.fileno()).st_nlink != 2:
                    return False
            except OSError:
                if not whole:
                    return _create_without_links(path, data)
                if path.exists():
                    return False
                os.replace(temporary, path)
    except OSError as error:
        _name(error, path)
        raise
    finally:
        with suppress(OSError):
            os.unlink(temporary)
    fsync_directory(path.parent)
    return True


def _name(error: BaseException, path: Path) -> None:
    """Have an error of the system name the file that was to be written, and not a temporary one."""
    if isinstance(error, OSError) and error.errno is not None:
        temporary = str(error.filename or "").endswith(TEMPORARY_SUFFIX)
        if error.filename is None or temporary:
            error.filename = str(path)


def _create_without_links(path: Path, data: bytes) -> bool:
    """As `create_bytes`, but the file is empty for a moment; an empty lease counts as held."""
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def filesystem_now(directory: Path) -> float:
    """Seconds since the epoch by the clock that stamps files in a directory.

    Clocks of a cluster's nodes differ; heartbeats are file times, so they are compared with a file
    time.

    Args:
        directory: an existing directory that may be written to.
    """
    stamp = directory / f".clock.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    descriptor = os.open(stamp, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        with suppress(FileNotFoundError):  # a new holder may have swept it away already
            os.unlink(stamp)


def uptime() -> float:
    """Seconds by a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def atomic_write_json(path: Path | str, value: Any) -> None:
    """Write a value as canonical JSON, atomically.

    Args:
        path: file to create or replace; its directory must exist.
        value: see `canonical_json`.

    Raises:
        ValueError: the value holds NaN or infinity.
        TypeError: the value holds something that JSON has no form for.
        OSError: see `atomic_writer`.
    """
    atomic_write_bytes(path, canonical_json(value, indent=1).encode())


def canonical_json(value: Any, *, indent: int | None = None) -> str:
    """One text per value: sorted keys, shortest exact floats, no NaN.

    Args:
        value: dictionaries, lists, tuples, strings, numbers, None, numpy scalars and arrays.
        indent: spaces of indentation; None gives one line.

    Returns:
        JSON text that ends with a newline.

    Raises:
        ValueError: a number is NaN or infinite (the message gives its place).
        TypeError: something that JSON has no form for.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    try:
        text = json.dumps(
            value,
            sort_keys=True,
            allow_nan=False,
            ensure_ascii=False,
            indent=indent,
            separators=separators,
            default=_plain,
        )
    except ValueError as error:
        place = _not_finite(value, "")
        if place is None:
            raise
        raise ValueError(f"{place} is NaN or infinite and cannot be stored; use None") from error
    # File names that are no UTF-8 give names with lone surrogates; JSON can write them, UTF-8 cannot.
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def remove_temporaries(directory: Path) -> None:
    """Remove what writers that were killed left behind in a directory.

    Args:
        directory: scanned without its sub-directories.
    """
    for entry in os.scandir(directory):
        if entry.name.startswith(".") and entry.name.endswith(TEMPORARY_SUFFIX):
            with suppress(FileNotFoundError):
                os.unlink(entry.path)


def _plain(value: Any) -> Any:
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot store a {type(value).__name__} as JSON: {value!r:.80}")


def _not_finite(value: Any, place: str) -> str | None:
    """Path of the first number that is NaN or infinite, such as 'losses.asl[3]'."""
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        finite = value - value == 0.0
        return None if finite else place or "the value"
    items: Any = ()
    if isinstance(value, dict):
        items = [(f"{place}.{key}" if place else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{place}[{i}]", item) for i, item in enumerate(value)]
    for name, item in items:
        found = _not_finite(item, name)
        if found is not None:
            return found
    return None

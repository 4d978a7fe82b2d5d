"""Unpack tar and zip archives without trusting them.

The whole listing is checked before the first byte is written. This module writes the files itself, not with
`tarfile` or `zipfile`: each under a temporary name and then renamed, so that every file in place is complete
and an interrupted call can be continued.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from benchmarks.data.disk import amount
from methods.errors import UserError

MIB = 2**20

Progress = Callable[[int, int], None]
Open = Callable[[], IO[bytes]]


@dataclass(frozen=True)
class _Entry:
    """One file of an archive: its path, its length in the listing, and a function that opens it."""

    path: PurePosixPath
    size: int
    open: Open


def need(archive: Path, root: Path) -> int:
    """Bytes that unpacking an archive into a folder will add there.

    Raises:
        UserError: see `unpack`.
    """
    with _entries(archive) as entries:
        return sum(entry.size for entry in _absent(entries, root))


def unpack(archive: Path, root: Path, progress: Progress | None = None) -> None:
    """Unpack an archive into a folder; existing files of full length are not written again.

    Args:
        archive: a .zip file or a tar file.
        root: the folder; it must exist.
        progress: called with (MiB written, MiB in total).

    Raises:
        UserError: the archive is damaged, the disk is full, or the archive has an entry that no dataset needs
            (a path that leaves the folder, a link, a device, an encrypted file, content longer than listed).
            Such entries are found before anything is written, except the last kind.
    """
    with _entries(archive) as entries:
        absent = _absent(entries, root)
        total = sum(entry.size for entry in absent)
        free = shutil.disk_usage(root).free
        if total > free:
            raise UserError(
                f"{archive.name} unpacks to {amount(total)} more, the disk of {root} has "
                f"{amount(free)} left; make room and run again"
            )
        done = 0
        for entry in absent:
            _write(entry, root, archive)
            done += entry.size
            if progress is not None:
                progress(-(-done // MIB), -(-total // MIB))
    os.sync()  # once for all files: thousands of single calls would take minutes


def _absent(entries: list[_Entry], root: Path) -> list[_Entry]:
    def there(entry: _Entry) -> bool:
        place = root / entry.path
        return place.is_file() and place.stat().st_size == entry.size

    return [entry for entry in entries if not there(entry)]


def _write(entry: _Entry, root: Path, archive: Path) -> None:
    place = root / entry.path
    beside = place.with_name(f".{place.name}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with entry.open() as source, open(beside, "wb") as file:
            left = entry.size
            # Read up to one byte more than listed: it must not exist.
            while block := source.read(min(MIB, left + 1)):
                left -= len(block)
                if left < 0:
                    break
                file.write(block)
        if left:
            beside.unlink()
            raise _damaged(archive, f"{entry.path} is not as long as listed")
        os.replace(beside, place)
    except OSError as error:
        if error.errno is None:  # zipfile and tarfile raise some without an errno
            raise _damaged(archive, f"{entry.path}: {error}") from None
        raise UserError(
            f"{place}: cannot be written: {error.strerror}; what is unpacked is kept, run again "
            "when that is mended"
        ) from None
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise _damaged(archive, f"{entry.path}: {error}") from None


@contextmanager
def _entries(archive: Path) -> Iterator[list[_Entry]]:
    """The checked listing of an open archive, one entry for each file."""
    try:
        with _tar(archive) if archive.suffix != ".zip" else _zip(archive) as entries:
            # Of a path that is listed twice the last entry counts, as in the usual programs.
            yield list({entry.path: entry for entry in entries}.values())
    except (zipfile.BadZipFile, tarfile.TarError, NotImplementedError) as error:
        raise _damaged(archive, str(error)) from None
    except OSError as error:
        raise UserError(f"{archive}: cannot be read: {error.strerror or error}") from None


@contextmanager
def _tar(archive: Path) -> Iterator[list[_Entry]]:
    with tarfile.open(archive, "r:") as file:
        entries = []
        for member in file:
            path = _checked(member.name, archive, member.isdir())
            # Only REGTYPE and AREGTYPE: a sparse file of a few bytes can be listed with terabytes.
            if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                entries.append(_Entry(path, member.size, _tar_opener(file, member)))
            elif not member.isdir():
                raise _refused(archive, member.name, "it is neither a plain file nor a folder")
        yield entries


def _tar_opener(file: tarfile.TarFile, member: tarfile.TarInfo) -> Open:
    def opener() -> IO[bytes]:
        opened = file.extractfile(member)
        assert opened is not None  # the member is a plain file
        return opened

    return opener


@contextmanager
def _zip(archive: Path) -> Iterator[list[_Entry]]:
    with zipfile.ZipFile(archive) as file:
        entries = []
        for member in file.infolist():
            path = _checked(member.filename, archive, member.is_dir())
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 in archives from other systems
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, member.filename, "it is neither a plain file nor a folder")
            if member.flag_bits & 1:
                raise _refused(archive, member.filename, "it is encrypted")
            if not member.is_dir():
                entries.append(_Entry(path, member.file_size, _zip_opener(file, member)))
        yield entries


def _zip_opener(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> Open:
    return lambda: file.open(member)


def _checked(name: str, archive: Path, is_folder: bool) -> PurePosixPath:
    path = PurePosixPath(name)
    nameless = not path.parts and not is_folder
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or nameless:
        raise _refused(archive, name, "its path does not stay in the folder")
    return path


def _refused(archive: Path, name: str, why: str) -> UserError:
    return UserError(
        f"{archive}: {name!r} is not unpacked: {why}; this is not an official archive, remove it"
    )


def _damaged(archive: Path, what: str) -> UserError:
    return UserError(f"{archive}: damaged: {what}; remove it and run again")

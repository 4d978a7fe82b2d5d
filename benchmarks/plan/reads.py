"""Which files this process reads, and whether they are still the same later.

A plan is a function of the files that it was made from: grid, recipe, annotations, lists of labelled
images, weights, users' modules. Readers of datasets and users' modules open what they like, so the
files are not listed by hand: Python's audit events tell of every file that is opened and every folder
that is listed. A reader that looks for a file which is not there shows nothing, so the folders above
the opened files count as well: a new file changes the time of its folder.

A file is unchanged while its size and time of change are, or while its content is; the content of a
folder is the names in it. The time alone is not believed where it lies within `YOUNG` of the moment of
the record, because a file may change twice within one tick of its file system's clock.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.data.cache.source import YOUNG
from benchmarks.workspace import REPOSITORY
from results.lease import HEARTBEAT

HASHED = 16 << 20
"""Bytes; the content of a longer file is not hashed."""
PACKAGES = ("benchmarks", "methods", "csaa", "results", "slurm")
_SYSTEM = ("/proc", "/sys", "/dev")


@dataclass(frozen=True)
class State:
    """A file or folder at one moment.

    Attributes:
        size: bytes; -1 where there is nothing, or nothing that can be looked at.
        changed: time of change, nanoseconds.
        sha256: of its content; "" for a file that is longer than `HASHED`.
        young: whether the time of change lies so near to the record that it proves nothing.
    """

    size: int
    changed: int
    sha256: str = ""
    young: bool = False

    @classmethod
    def of(cls, path: str) -> State:
        """The present state, without the content."""
        try:
            found = os.stat(path)
        except OSError:
            return cls(-1, 0)
        return cls(found.st_size, found.st_mtime_ns)

    @classmethod
    def recorded(cls, path: str) -> State:
        """The present state, with the content."""
        now = cls.of(path)
        young = now.changed > time.time_ns() - YOUNG
        return cls(now.size, now.changed, _sha256(path) if now.size <= HASHED else "", young)

    def holds(self, path: str) -> bool:
        """Whether the file is still what it was."""
        now = State.of(path)
        if (now.size, now.changed) == (self.size, self.changed) and not self.young:
            return True
        return bool(self.sha256) and _sha256(path) == self.sha256


class Reads:
    """Files that are read, and folders that are listed, while a block runs.

    Attributes:
        files: absolute path to state before the first read.
        folders: the same of every folder that was listed, or that lies above a file of `files`.
    """

    def __init__(self) -> None:
        self.files: dict[str, State] = {}
        self.folders: dict[str, State] = {}

    def __enter__(self) -> Reads:
        _listen()
        _active.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _active.remove(self)

    def changed(self) -> set[str]:
        """What is no longer as it was before it was first read."""
        return {path for path, state in {**self.files, **self.folders}.items() if State.of(path) != state}

    def keep(self, wanted: Callable[[str], bool], folder: Callable[[str], bool]) -> None:
        """Forget the files and the folders that are not wanted."""
        self.files = {path: state for path, state in self.files.items() if wanted(path)}
        self.folders = {path: state for path, state in self.folders.items() if folder(path)}

    def add(self, path: str, listed: bool) -> None:
        """Note a file, or a listed folder."""
        if listed:
            self.folders.setdefault(path, State.of(path))
        elif path not in self.files:
            self.files[path] = State.of(path)
        above = os.path.dirname(path)
        while above not in self.folders and above != os.path.dirname(above):
            self.folders[above] = State.of(above)
            above = os.path.dirname(above)


def modules() -> set[str]:
    """Files of the imported modules that belong neither to Python, nor to an installed package, nor here."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    # Some modules that are no files, such as `torch.ops`, say a name that is no path.
    found = (file for file in files if isinstance(file, str) and os.path.isfile(file))
    return {path for file in found if not _uninteresting(path := os.path.abspath(file))}


def installed() -> str:
    """SHA-256 over Python and the names, with versions, of all installed distributions."""
    names = {sys.version, sys.platform}
    for folder in _site_folders():
        try:
            names |= {
                entry.name for entry in os.scandir(folder) if entry.name.endswith((".dist-info", ".pth"))
            }
        except OSError:  # a folder of the path that does not exist
            continue
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def sources(folders: Iterable[str]) -> list[str]:
    """Python and JSON files below some folders of the repository, relative to it."""
    found = []
    for folder in folders:
        for place, below, names in os.walk(REPOSITORY / folder):
            below[:] = [name for name in below if name != "__pycache__"]
            found += [
                os.path.relpath(os.path.join(place, name), REPOSITORY)
                for name in names
                if name.endswith((".py", ".json"))
            ]
    return sorted(found)


_active: list[Reads] = []
_listening = False


def _listen() -> None:
    """Have `_heard` called from now on; a hook cannot be removed again."""
    global _listening
    if not _listening:
        _listening = True
        sys.addaudithook(_heard)


def _heard(event: str, details: tuple[object, ...]) -> None:
    if not _active or event not in ("open", "os.listdir", "os.scandir"):
        return
    # A heartbeat looks at its lease, which no plan stands on.
    if threading.current_thread().name.startswith(HEARTBEAT):
        return
    target = details[0]
    listed = event != "open"
    if listed and target is None:
        target = "."
    if not isinstance(target, str | bytes | os.PathLike):  # a file descriptor: its file was opened before
        return
    if not listed:
        flags = details[2]
        if isinstance(flags, int) and (flags & os.O_CREAT or flags & os.O_ACCMODE == os.O_WRONLY):
            return
    path = os.path.abspath(os.fsdecode(target))
    if not _uninteresting(path):
        for reads in list(_active):
            reads.add(path, listed)


def _uninteresting(path: str) -> bool:
    """Whether a file belongs to the system, to Python, to a package, or is code of this repository.

    Zip files count as Python's: importing looks for the standard library in one.
    """
    if path.endswith((".pyc", ".zip")) or path.startswith(_SYSTEM):
        return True
    if path.startswith(_own_folders()):
        return path.endswith(".py")
    return path.startswith(_foreign_folders())


@cache
def _own_folders() -> tuple[str, ...]:
    return tuple(f"{REPOSITORY / name}{os.sep}" for name in PACKAGES)


@cache  # asked for at every file that is opened
def _foreign_folders() -> tuple[str, ...]:
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    return tuple(f"{folder}{os.sep}" for folder in {*standard, *_site_folders()} if folder)


def _site_folders() -> set[str]:
    """Folders of installed packages."""
    named = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return named | {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}


def _sha256(path: str) -> str:
    """SHA-256 of a file's bytes or of a folder's names; "" where neither can be read."""
    try:
        if os.path.isdir(path):
            names = "\0".join(sorted(os.listdir(path)))
            return hashlib.sha256(os.fsencode(names)).hexdigest()
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""

"""Download one large file: resumable, verified by checksum.

The received bytes are in `NAME.part`; `NAME.part.json` has their address and version, so that a file that was
changed on the server is not appended to the old beginning.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.data.disk import amount
from methods.errors import UserError
from results.files import atomic_write_json, fsync_directory

MIB = 2**20
TRIES = 3
"""Consecutive attempts without new bytes after which an address is abandoned."""
PAUSE = 1.0
"""Seconds before the second attempt; doubled before each further attempt."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection is considered broken."""

Progress = Callable[[int, int], None]


class _UndeliveredError(Exception):
    """An address does not deliver the file; the text says why."""


def fetch(
    urls: Sequence[str],
    target: Path,
    *,
    size: int,
    checksum: str,
    progress: Callable[[str], Progress],
    announce: Callable[[str], None] = lambda line: None,
) -> None:
    """Download a file if it is not there, and check it.

    A shorter file at `target` is treated as an unfinished download of another program and continued.

    Args:
        urls: addresses of the same bytes; if one does not deliver, the next one is tried.
        target: path of the file; its folder must exist.
        size: its length in bytes.
        checksum: "md5:" or "sha256:" and its hexadecimal digest.
        progress: makes a (done, total) callback from a title; the unit is MiB.
        announce: called with remarks, such as that a server cannot resume.

    Raises:
        UserError: no address delivers or the disk is full (the received bytes are kept), or the content is
        not
            the published one (a download is removed, a file that was already there is not).
    """
    part, state = _part(target), _state(target)
    if target.exists():
        if target.stat().st_size >= size:
            if target.stat().st_size > size or not _matches(target, checksum, progress):
                raise UserError(
                    f"{target}: not the published file ({size:,} bytes, {checksum}); remove it and run again"
                )
            return
        if not part.exists():  # started by `curl -C -`
            state.unlink(missing_ok=True)
            os.replace(target, part)
    problems = []
    for url in urls:
        try:
            _transfer(url, target, size, progress(f"{target.name} (MiB)"), announce)
            break
        except _UndeliveredError as error:
            problems.append(f"{url}: {error}")
    else:
        kept = f"; {amount(_length(part))} are kept" if _length(part) else ""
        raise UserError(
            f"{target.name} cannot be brought: {'; '.join(problems)}{kept}; run again, or put the "
            f"file into {target.parent} yourself"
        )
    if not _matches(part, checksum, progress):
        part.unlink()
        state.unlink(missing_ok=True)
        raise UserError(
            f"{target.name}: what arrived is not the published file ({checksum}) and was removed; run again"
        )
    os.replace(part, target)
    state.unlink(missing_ok=True)
    fsync_directory(target.parent)


def have(target: Path) -> int:
    """Received bytes of a file, in it or in its part."""
    return max(_length(target), _length(_part(target)))


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _state(target: Path) -> Path:
    return target.with_name(f"{target.name}.part.json")


def _length(file: Path) -> int:
    with suppress(OSError):
        return file.stat().st_size
    return 0


def _transfer(url: str, target: Path, size: int, show: Progress, announce: Callable[[str], None]) -> None:
    """Fill the part to its full length, over as many connections as needed."""
    part = _part(target)
    best, failures = _length(part), 0
    while True:
        before = _length(part)
        if before > size:
            part.unlink()
            before = 0
        if before == size:
            return
        try:
            _receive(url, target, before, size, show, announce)
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}"
            if error.code == 416:  # the server has fewer bytes than the part
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise _UndeliveredError(reason) from None
        except urllib.error.URLError as error:
            reason = getattr(error.reason, "strerror", None) or str(error.reason)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if _length(part) == size:
            return
        # Not `before`: a server that starts again each time makes no progress.
        failures = 0 if _length(part) > best else failures + 1
        best = max(best, _length(part))
        if failures >= TRIES:
            raise _UndeliveredError(reason)
        time.sleep(PAUSE * 2 ** max(failures - 1, 0))


def _receive(
    url: str, target: Path, before: int, size: int, show: Progress, announce: Callable[[str], None]
) -> None:
    """Append the bytes of one connection to the part, or start it again."""
    part, state = _part(target), _state(target)
    request = urllib.request.Request(url, headers={"User-Agent": "ssmll-bench"})
    if before:
        request.add_header("Range", f"bytes={before}-")
        version = _version(state, url)
        if version:
            request.add_header("If-Range", version)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if answer.status == 206:
            expected = f"bytes {before}-{size - 1}/{size}"
            if answer.headers.get("Content-Range", "").strip() != expected:
                part.unlink(missing_ok=True)
                raise _UndeliveredError(f"it has another length than the published {size:,} bytes")
        else:
            offered = answer.headers.get("Content-Length")
            if offered is not None and offered != str(size):
                raise _UndeliveredError(f"it offers {offered} bytes, the published file has {size}")
            if before:
                announce(f"{target.name}: the server begins at the start again")
            part.unlink(missing_ok=True)
            before = 0
        version = answer.headers.get("ETag", "")
        if not version or version.startswith("W/"):  # a weak tag does not identify the bytes
            version = answer.headers.get("Last-Modified", "")
        try:
            atomic_write_json(state, {"url": url, "version": version})
        except OSError as error:
            raise _unwritable(state, error) from None
        show(-(-before // MIB), -(-size // MIB))
        with _Appending(part) as file:
            while before < size:
                block = answer.read(min(MIB, size - before))
                if not block:
                    return
                file.write(block)
                before += len(block)
                show(-(-before // MIB), -(-size // MIB))


class _Appending:
    """A file to append to; its errors are reported as the disk's, not the network's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Appending:
        try:
            self.file = open(self.path, "ab", buffering=0)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        return self

    def write(self, block: bytes) -> None:
        view = memoryview(block)
        try:
            while view:
                view = view[self.file.write(view) :]
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            os.fsync(self.file.fileno())
        self.file.close()


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be written: {error.strerror}; what has arrived is kept, run again after making room"
    )


def _version(state: Path, url: str) -> str:
    """The version of a part from the same address; empty where unknown."""
    try:
        found = json.loads(state.read_text())
        return str(found["version"]) if found["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _matches(file: Path, checksum: str, progress: Callable[[str], Progress]) -> bool:
    kind, _, expected = checksum.partition(":")
    digest, total, done = hashlib.new(kind), file.stat().st_size, 0
    show = progress(f"check {file.name.removesuffix('.part')} (MiB)")
    with open(file, "rb") as stream:
        while block := stream.read(MIB):
            digest.update(block)
            done += len(block)
            show(-(-done // MIB), -(-total // MIB))
    return digest.hexdigest() == expected

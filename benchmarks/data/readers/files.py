"""Shared by the readers: text files, names of images, and the check that images are on disk."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from methods.errors import UserError

_DRIVE = re.compile(r"[A-Za-z]:([\\/]|$)")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:[a-z]+/")
_NO_NAME = re.compile("[\0\n\r\ud800-\udfff]")


def read_lines(file: Path, hint: str = "") -> list[str]:
    """The lines of a UTF-8 text file without line ends and byte-order mark.

    Only line feeds and carriage returns end a line, so that line numbers in messages match those of an
    editor.

    Raises:
        UserError: the file is missing, unreadable or not UTF-8; `hint` says what to do when it is missing.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}") from None
    except OSError as error:
        raise unreadable(file, error, hint) from None
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def unreadable(file: Path, error: OSError, hint: str = "") -> UserError:
    """The error for a file that cannot be opened; `hint` says what to do when it is missing."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UserError(f"{file}: no such file{hint}")
    return UserError(f"{file}: cannot be read: {error.strerror or error}")


def composed(text: str) -> str:
    """The text in Unicode's composed form (NFC): both ways to write "é" give the same name."""
    return unicodedata.normalize("NFC", text)


def relative(where: str, name: object, folder: object = "the folder of images") -> PurePosixPath:
    r"""An image's path in an annotation, with `/` or `\` between folders.

    Raises:
        UserError: the path is empty, absolute, a URL, leaves its folder, or cannot be a file's name; the
            message starts with `where` and names `folder`.
    """
    if _DRIVE.match(str(name)):
        raise UserError(f"{where}: {name!r} starts with a drive letter; it must be a path below {folder}")
    if _URL.match(str(name)):
        raise UserError(f"{where}: {name!r} is a URL; download the images, and write paths below {folder}")
    path = PurePosixPath(str(name).replace("\\", "/"))
    if not path.name or path.is_absolute() or ".." in path.parts or not is_name(str(path)):
        raise UserError(f"{where}: {name!r} is not a path below {folder}")
    return path


def is_name(text: str) -> bool:
    """Whether a text can be printed on one line, hashed as UTF-8 and used as a file's name."""
    return _NO_NAME.search(text) is None


def holder(folders: Sequence[Path], first: PurePosixPath | str | None) -> Path:
    """The first folder that holds an image; without one, the first folder."""
    found = (folder for folder in folders if first is not None and (folder / first).is_file())
    return next(found, folders[0])


def check_unique(names: Sequence[str], message: Callable[[int, int], str]) -> None:
    """Raise `UserError` with `message(position, earlier position)` for a repeated name."""
    if len(set(names)) == len(names):
        return
    seen: dict[str, int] = {}
    for k, name in enumerate(names):
        if name in seen:
            raise UserError(message(k, seen[name]))
        seen[name] = k


def check_files(
    paths: Iterable[Path], where: str, hint: str = "unpack the image archive completely"
) -> tuple[Path, ...]:
    """Check that every image is on disk, by listing each folder once.

    A name that was decomposed (NFD, as in archives made on macOS) or composed on its way is found in its
    other form.

    Returns:
        The paths as they are on disk, in the same order.

    Raises:
        UserError: images are missing; the message counts them and names the first.
    """
    listed: dict[str, set[str]] = {}
    forms: dict[str, dict[str, str]] = {}
    found, missing = [], []
    for path in paths:
        # Text is split here because `Path.parent` and `Path.name` take a second for 120,000 images.
        folder, _, name = str(path).rpartition(os.sep)
        if folder not in listed:
            listed[folder] = _names(folder or (os.sep if path.is_absolute() else "."))
        if name in listed[folder]:
            found.append(path)
            continue
        other = _on_disk(path, forms)
        if other is None:
            missing.append(path)
        else:
            found.append(other)
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(found) + len(missing)} images are not on disk, such "
            f"as {missing[0]}; {hint}"
        )
    return tuple(found)


def _names(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _on_disk(path: Path, forms: dict[str, dict[str, str]]) -> Path | None:
    """A missing path with each part in the Unicode form on the disk; None if it is absent.

    `forms` keeps the names in each folder that was listed, under the name itself and its composed form.
    """
    if str(path).isascii():
        return None
    place = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        folder = str(place)
        if folder not in forms:
            names = sorted(_names(folder))
            forms[folder] = {composed(name): name for name in names} | {n: n for n in names}
        name = forms[folder].get(part) or forms[folder].get(composed(part))
        if name is None:
            return None
        place = place / name
    return place

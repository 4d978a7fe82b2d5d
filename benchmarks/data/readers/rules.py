"""The rules that all readers share: what a class may be called, and one entry for each image file."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.data.readers.base import Contents
from benchmarks.data.readers.files import composed, read_lines
from methods.errors import UserError

NOTHING = frozenset({"nan", "none", "null", "nat", "<na>", "n/a", "#n/a", "[]", "{}", "()", "set()"})
"""What programs write where there is nothing, in lower case."""
SEPARATORS = ("|", ",", ";", "/", "\t", " ")
"""Characters that people put between the classes of a cell."""


def class_name(start: str, name: str) -> str:
    """A class's name without blanks around it, in Unicode's composed form.

    Args:
        start: the beginning of a message, such as "labels.csv:3: class".
        name: the name as it was read.

    Raises:
        UserError: the name is empty, has control characters, or is no name but a list or a text for nothing.
    """
    text = composed(name.strip())
    if not text or any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text):
        raise UserError(f"{start} {name!r} is not a name in one line")
    if text.casefold() in NOTHING:
        raise UserError(
            f"{start} {text!r} is what programs write for nothing; leave it empty, rename the class, "
            f"or, in a CSV, set nothing = {text!r}"
        )
    if text[0] + text[-1] in ("[]", "{}", "()", "''", '""') and len(text) > 1:
        inside = [part.strip(" '\"") for part in text[1:-1].split(",")]
        raise UserError(f"{start} {text!r} looks like a list and not like a name; write {';'.join(inside)}")
    return text


def class_names(named: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The names of classes, each with the place of its entry, such as "x.json: categories[1].name:".

    Raises:
        UserError: as `class_name`, or two names are equal; the message names both entries.
    """
    seen: dict[str, str] = {}
    for start, name in named:
        text = class_name(start, name)
        if text in seen:
            raise UserError(f"{start} {name!r} is also {seen[text].rstrip(':')}")
        seen[text] = start
    return tuple(seen)


def read_classes(file: Path) -> tuple[str, ...]:
    """Class names, one a line, in the order of the label columns; blank lines are skipped.

    Raises:
        UserError: the file is missing or empty, a name is listed twice, or a line is no name.
    """
    hint = "; it holds the names of the classes, one a line, in the order of the label columns"
    lines: dict[str, int] = {}
    for number, line in enumerate(read_lines(file, hint), 1):
        if not line.strip():
            continue
        name = class_name(f"{file}:{number}: class", line)
        if name in lines:
            raise UserError(f"{file}:{number}: class {name!r} is also in line {lines[name]}")
        lines[name] = number
    if not lines:
        raise UserError(f"{file}: no class is listed")
    return tuple(lines)


def joined_classes(names: Mapping[str, str], used: str = ";") -> list[str]:
    """Messages for names that are several classes with a separator that was not understood.

    A name is meant when all its parts are names too. Of a name with bars it is enough that a part is one, or
    that it is in another such name.

    Args:
        names: the name of each class and the place where it is first used.
        used: the separator that was understood.

    Returns:
        One message for each separator, with the first such name.
    """
    found = []
    for separator in (one for one in SEPARATORS if one != used):
        parts = {name: [part.strip() for part in name.split(separator)] for name in names}
        joined = {name: some for name, some in parts.items() if len(some) > 1 and all(some)}
        for name, some in joined.items():
            others = {part for other, theirs in joined.items() if other != name for part in theirs}
            known = [part in names or (separator == "|" and part in others) for part in some]
            if all(known) or (separator == "|" and any(known)):
                found.append(
                    f"{names[name]}: class {name!r} looks like {len(some)} classes separated by "
                    f"{_spoken(separator)}; {_proposal(separator, some, used)}"
                )
                break
    return found


def check(found: Contents, where: Path) -> None:
    """What no reader may return: unclean or equal names of classes, or a file that is two images.

    Raises:
        UserError: the message names both entries.
    """
    class_names((f"{where}: class {k}:", name) for k, name in enumerate(found.classes))
    for split, images in (("training", found.train), ("test", found.test)):
        if len(set(images.paths)) == len(images.paths):
            continue
        seen: dict[Path, str] = {}
        for name, path in zip(images.ids, images.paths, strict=True):
            if path in seen:
                raise UserError(f"{path}: the {split} images {seen[path]!r} and {name!r} are this one file")
            seen[path] = name


def _spoken(separator: str) -> str:
    return {" ": "blanks", "\t": "tabs"}.get(separator, repr(separator))


def _proposal(separator: str, parts: Sequence[str], used: str) -> str:
    return (
        f"write {used.join(parts)} or set separator = {separator!r}, or list all classes in classes.txt "
        "if it is one class"
    )

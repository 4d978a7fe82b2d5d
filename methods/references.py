"""The papers behind methods, datasets and backbones: BibTeX entries by what they are cited for.

`references.bib` beside this file holds them. The field ``keywords`` of an entry, which BibTeX styles do not
print, lists subjects such as ``method:csaa``, ``dataset:voc2007`` or ``backbone:open_clip``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from methods.errors import UserError

FILE = Path(__file__).with_name("references.bib")
KINDS = ("method", "dataset", "backbone")
_ENTRY = re.compile(r"^@\w+\{([^,\s]+),\n(.*?)^\}$", re.MULTILINE | re.DOTALL)
_KEYWORDS = re.compile(r"^\s*keywords = \{([^}]*)\},\n", re.MULTILINE)


class Reference(NamedTuple):
    """A BibTeX entry.

    Attributes:
        key: what a citation names.
        text: the entry, without its keywords.
        subjects: what it is cited for, as "method:csaa".
    """

    key: str
    text: str
    subjects: tuple[str, ...]

    def is_of(self, subject: str) -> bool:
        """Whether it is cited for a subject; one of a backbone names the start of those it stands for."""
        if subject.startswith("backbone:"):
            return any(subject.startswith(mine) for mine in self.subjects)
        return subject in self.subjects


@functools.cache
def references(file: Path = FILE) -> tuple[Reference, ...]:
    """Read a file of references.

    Args:
        file: entries as in `FILE`: one field a line, the closing brace on a line of its own.

    Returns:
        The entries in the order of the file.

    Raises:
        UserError: an entry is not closed, has a key twice, or no subject of a known kind.
    """
    text = file.read_text(encoding="utf-8")
    found: dict[str, Reference] = {}
    for match in _ENTRY.finditer(text):
        key, body = match[1], match[2]
        keywords = _KEYWORDS.search(body)
        subjects = tuple(word.strip() for word in keywords[1].split(",")) if keywords else ()
        if key in found:
            raise UserError(f"{file}: the key {key!r} stands twice")
        if not subjects or any(subject.partition(":")[0] not in KINDS for subject in subjects):
            raise UserError(f"{file}: {key}: keywords must list subjects such as method:csaa ({KINDS})")
        found[key] = Reference(key, _KEYWORDS.sub("", match[0]), subjects)
    if len(found) != text.count("\n@"):
        raise UserError(f"{file}: {text.count(chr(10) + '@')} entries begin and {len(found)} are closed")
    return tuple(found.values())


def cited(subjects: Iterable[str]) -> tuple[list[Reference], list[str]]:
    """Find what to cite for some subjects.

    Args:
        subjects: such as "method:csaa" or "backbone:open_clip/RN101".

    Returns:
        Entries in the order of the file, and the subjects that have none.

    Example:
        >>> entries, without = cited(["backbone:open_clip/RN101", "method:mine"])
        >>> [entry.key for entry in entries], without
        (['radford2021clip', 'ilharco2021openclip'], ['method:mine'])
    """
    wanted = list(dict.fromkeys(subjects))
    entries = [entry for entry in references() if any(map(entry.is_of, wanted))]
    return entries, [subject for subject in wanted if not any(entry.is_of(subject) for entry in entries)]

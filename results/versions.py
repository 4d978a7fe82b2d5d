"""Which code made a result, and means over results that different code made.

A result's `provenance` names, since it is recorded, the source files of this repository that decide its
number (`sources`), the code that made its stages (`stages`), that which began its training where another
version continued it (`continued_from`), and of a user's method its files
(`method_code`) and the data files beside them (`module_data`). Commits are not compared: two of them may
differ in a document only. Results from before that say nothing, and count as unknown.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from results import text
from results.columns import Column

if TYPE_CHECKING:
    import pandas as pd

    from results.schema import Result

Differs = Callable[[Mapping[str, str]], list[str]]
"""Gets hashes of source files, as a result names them, and names those that are others today."""
MARK = "‡"
SHOWN = 4
"""Names of files, or cells, that a sentence lists."""


@dataclass(frozen=True)
class MadeBy:
    """The code that made a result.

    Attributes:
        parts: (name, hash) of each file or stage, sorted by name.
    """

    parts: tuple[tuple[str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.parts)

    @property
    def digest(self) -> str:
        """A hash over the parts, 12 hexadecimal digits; "" where they are unknown."""
        text = "".join(f"{name} {sha}\n" for name, sha in self.parts)
        return hashlib.sha256(text.encode()).hexdigest()[:12] if text else ""


UNKNOWN = MadeBy(())
"""Of results from before it was recorded."""


def made_by(result: Result) -> MadeBy:
    """The code that made a result; `UNKNOWN` where it does not say."""
    provenance: Mapping[str, Any] = result["provenance"]
    if "sources" not in provenance:
        return UNKNOWN
    parts = dict(provenance["sources"]["files"])
    for kind, sha in (provenance.get("stages") or {}).items():
        parts[f"the {kind} stage"] = sha or "not recorded"
    own = provenance.get("method_code") or {}
    for name, sha in (own.get("files") or {}).items():
        parts[f"{name} of the method"] = sha
    earlier = provenance.get("continued_from")
    if earlier:
        parts["the code that began the training"] = ", ".join(earlier)
    for name, sha in provenance.get("module_data") or ():
        parts[f"{name} beside the method"] = sha
    return MadeBy(tuple(sorted(parts.items())))


def differing(some: Iterable[MadeBy]) -> list[str]:
    """Names of what is not the same in all of them, sorted."""
    known = [dict(each.parts) for each in some]
    names = sorted({name for parts in known for name in parts})
    return [name for name in names if len({parts.get(name) for parts in known}) > 1]


def mixed(frame: pd.DataFrame, value: str) -> dict[tuple[str, Column], list[str]]:
    """The means over results that different code made.

    Args:
        frame: from `results.frames.collect`.
        value: the column that is averaged; runs without a value there are in no mean.

    Returns:
        By label and column: what differs. Results whose code is unknown are left out.
    """
    found: dict[tuple[str, Column], list[str]] = {}
    for key, some in _cells(frame, value):
        names = differing(filter(None, some))
        if names:
            found[key] = names
    return found


def partly_unknown(frame: pd.DataFrame, value: str) -> tuple[int, int]:
    """Results of unknown code in means with others whose code is known: how many, in how many means."""
    counts = [
        len(some) - len(list(filter(None, some)))
        for _, some in _cells(frame, value)
        if any(some) and not all(some)
    ]
    return sum(counts), len(counts)


def _cells(frame: pd.DataFrame, value: str) -> list[tuple[tuple[str, Column], list[MadeBy]]]:
    """The code of the results behind each mean."""
    used = frame[frame[value].notna()]
    columns = map(Column, used["dataset"], used["ratio"], used["budget"])
    found: dict[tuple[str, Column], list[MadeBy]] = {}
    for label, column, made in zip(used["label"], columns, used["made_by"], strict=True):
        found.setdefault((str(label), column), []).append(made)
    return list(found.items())


def notes(found: Mapping[tuple[str, Column], Sequence[str]], unknown: tuple[int, int]) -> list[str]:
    """Sentences of a footer on means over results that different code made; none where all is well.

    Args:
        found: from `mixed`.
        unknown: from `partly_unknown`.
    """
    lines = []
    if found:
        by_names: dict[tuple[str, ...], list[tuple[str, Column]]] = {}
        for key, names in found.items():
            by_names.setdefault(tuple(names), []).append(key)
        each = [
            f"{'; '.join(_cells_of(keys))} (differ in {listed(names)})" for names, keys in by_names.items()
        ]
        lines.append(
            f"{MARK}: a mean over results that different versions of the code made, which may differ for "
            f"that reason: {'; '.join(each)}. run.py why RUN shows a result's version."
        )
    runs, cells = unknown
    if runs:
        lines.append(
            f"The code of {runs} result{'s' * (runs > 1)} in {cells} of the means is not recorded (an "
            "earlier version made them), that of the others is: they may differ."
        )
    return lines


def tell(frame: pd.DataFrame, value: str, report: Callable[[str], None]) -> None:
    """Report the sentences of `notes` on the means of a frame."""
    for line in notes(mixed(frame, value), partly_unknown(frame, value)):
        report(line)


def differences(some: Iterable[MadeBy]) -> str:
    """The end of a sentence on a mean over results that different code made; "" where one code did."""
    names = differing(filter(None, some))
    return f"; different versions of the code made them (differ in {listed(names)})" if names else ""


def against_today(files: Mapping[str, Any], differs: Differs) -> str:
    """Whether the code that made a result is that of today.

    Args:
        files: from `sources.files` of a result's provenance; names may begin with that.
        differs: compares them with the files of today.
    """
    if not files:
        return "not recorded"
    names = differs({name.removeprefix("sources.files."): str(sha) for name, sha in files.items()})
    if not names:
        return f"that of today ({len(files)} source files)"
    return f"not that of today: it differs in {listed(names)}"


def listed(names: Sequence[str]) -> str:
    """The first of some files, and how many follow."""
    return text.listed(names, SHOWN)


def _cells_of(keys: Sequence[tuple[str, Column]]) -> list[str]:
    """Cells for people, a text for each label and dataset."""
    return [
        f"{label} on {dataset} {', '.join(column.share for _, column in group)}"
        for (label, dataset), group in itertools.groupby(keys, key=lambda key: (key[0], key[1].dataset))
    ]

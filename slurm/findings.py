"""What the doctor found, and how a terminal shows it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        what: what was looked at, in a few words.
        state: "problem" keeps runs from working, "warning" costs something, "ok" neither.
        found: what is there.
        advice: what to change; empty where nothing has to be.
    """

    what: str
    state: State
    found: str
    advice: str = ""


def table(findings: Sequence[Finding], width: int = 100) -> str:
    """Findings as aligned lines, in their order; advice stands below what it is about.

    Args:
        findings: of `slurm.doctor.examine`.
        width: characters of a line; a word longer than a line is not broken.
    """
    if not findings:
        return ""
    wide = max(len(finding.what) for finding in findings)
    blank = " " * (len("problem  ") + wide + 2)
    lines: list[str] = []
    for finding in findings:
        first = f"{finding.state:<9}{finding.what:<{wide}}  "
        for text, start in ((finding.found, first), (finding.advice, blank + "→ ")):
            if text or start is first:
                lines += textwrap.wrap(
                    start + " ".join(text.split()),
                    width,
                    drop_whitespace=True,
                    subsequent_indent=blank + ("  " if start is not first else ""),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
    return "\n".join(lines)

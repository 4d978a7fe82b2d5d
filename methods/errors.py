"""The error for users, which is shown without a traceback, and helpers for its message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user asked for.

    The message is a single line: what is wrong, where, the nearest valid name, what to do. The
    command line prints it without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type where it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest name and the valid ones.

    Args:
        name: what was asked for.
        valid: the names that exist. At most twelve are listed.

    Returns:
        For example ``"; did you mean 'csaa'? (valid: csaa, dualcoop)"``; the question is left out
        when nothing is close, the list when there are no valid names.
    """
    names = sorted(set(valid))
    if not names:
        return ""
    # Case is folded so that 'CSAA' finds 'csaa'.
    folded = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.5)
    question = f"; did you mean {folded[close[0]]!r}?" if close else ";"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"{question} (valid: {shown})"


def check_choice(field: str, value: str, valid: Iterable[str]) -> None:
    """Raise `UserError` unless ``value`` is one of ``valid``; ``field`` is the setting's name."""
    valid = list(valid)
    if value not in valid:
        raise UserError(f"{field}: unknown value {value!r}{nearest(str(value), valid)}")


def check_range(field: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise `UserError` unless ``low <= value <= high``; ``field`` is the setting's name."""
    if not low <= value <= high:
        bound = f"between {low:g} and {high:g}" if high != float("inf") else f"at least {low:g}"
        raise UserError(f"{field}: {value:g} is not allowed; it must be {bound}")

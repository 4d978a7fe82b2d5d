"""Errors of the run store and of what is made from it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StoreError(Exception):
    """A problem with stored results; one line: what is wrong, where, and what to do."""


class LeaseLostError(StoreError):
    """The run was taken over by another process, so this one must not write its result."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Tail of an error message that points to the nearest valid name.

    Args:
        name: what was given.
        valid: what would have been right.

    Returns:
        For example "; did you mean 'mAP'? (valid: mAP, OF1, CF1)".
    """
    names = list(valid)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"{hint} (valid: {', '.join(names) or 'none'})"

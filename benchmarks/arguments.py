"""Argument types of the command lines: what a text must be, and the message when it is not."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path


def positive(text: str) -> int:
    """A whole number above 0.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def seconds(text: str) -> float:
    """A finite number of seconds above 0.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def one_line(text: str) -> str:
    """A text without line breaks and other control characters, which logs, scripts and tables cannot hold.

    Raises:
        argparse.ArgumentTypeError: it has some.
    """
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise argparse.ArgumentTypeError(f"{text!r} has a line break or another control character; rename it")
    return text


def folder(text: str) -> Path:
    """The path of a folder; it need not exist.

    Raises:
        argparse.ArgumentTypeError: it is empty, or has control characters.
    """
    if not text:
        raise argparse.ArgumentTypeError("a folder has a name; . is the present one")
    return Path(one_line(text))

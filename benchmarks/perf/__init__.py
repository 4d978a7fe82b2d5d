"""Measurements of the harness itself: `python -m benchmarks.perf NAME`."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number above 0, for the options of a measurement."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value

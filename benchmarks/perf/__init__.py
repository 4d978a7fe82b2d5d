"""Measurements of the harness itself: `python -m benchmarks.perf NAME`."""

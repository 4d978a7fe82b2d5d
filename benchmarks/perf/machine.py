"""The machine that a figure was measured on."""

from __future__ import annotations

from typing import Any

from benchmarks.provenance import cores, processor


def machine() -> dict[str, Any]:
    """Return the processor's name and the number of cores that this process may use."""
    return {"cpu": processor(), "cores": cores()}

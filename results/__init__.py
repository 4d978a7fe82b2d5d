"""What is kept of runs and made from them: the run store, tables, statistics, plots and `why`.

This package knows nothing of datasets, methods or trainers; it reads and writes files. Importing it
is cheap: pandas and matplotlib are loaded by the functions that need them.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "LeaseLostError": "results.errors",
    "StoreError": "results.errors",
    "Lease": "results.store",
    "RunState": "results.store",
    "RunStore": "results.store",
    "collect": "results.frames",
    "collect_classes": "results.frames",
    "collect_epochs": "results.frames",
    "Table": "results.tables",
    "table": "results.tables",
    "write_tables": "results.writers",
    "write_plots": "results.plots",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'results' has no attribute '{name}'")

"""A made-up run and processes that work on one, for the tests of the store and of leases."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from results.store import RunStore

RUN_ID = "0123456789abcdef" * 4
ROOT = Path(__file__).resolve().parents[2]


def make_spec(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "dataset": {"alias": "GlyphScenes"},
        "method": "csaa",
        "ratio": 0.05,
        "seed": 1,
        "label": "CSAA",
    }
    return {**spec, **changes}


def make_summary(**changes: Any) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "mAP": 71.25,
        "num_classes": 2,
        "AP": [80.5, 62.0],
        "OF1": 60.0,
        "CF1": 55.5,
        "head": 80.5,
        "medium": None,
        "tail": 62.0,
        "groups": ["head", "tail"],
        "train_counts": [700, 20],
    }
    return {**summary, **changes}


def make_cost(**changes: Any) -> dict[str, Any]:
    return {"seconds": 12.0, "device": "CPU", **changes}


def make_result(run_id: str = RUN_ID, **changes: Any) -> dict[str, Any]:
    result: dict[str, Any] = {
        "run_id": run_id,
        "spec": make_spec(),
        "metrics": {"last": make_summary(), "val": None, "oracle": None},
        "classes": ["sun", "moon"],
        "cost": make_cost(),
        "provenance": {},
        "finished": "2026-01-01T00:00:00Z",
    }
    return {**result, **changes}


def claim(store: RunStore, run: Path, ttl: float = 60.0):  # type: ignore[no-untyped-def]
    lease = store.claim(run, make_spec(), ttl=ttl)
    assert lease is not None
    return lease


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs some lines with a store; it prints when it got where it should."""
    head = """
        import sys, time, os
        import numpy as np
        from pathlib import Path
        from results.store import RunStore
        from tests.results.records import RUN_ID, make_cost, make_result, make_spec
        store, run = RunStore(sys.argv[1]), Path(sys.argv[2])
    """
    source = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word

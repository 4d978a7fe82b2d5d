from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results.store import RunStore
from tests.results.records import RUN_ID, make_spec

CLASSES = ["sun", "moon", "star", "comet", "cloud", "kite"]
COUNTS = [10, 600, 90, 300, 40, 1200]
GROUPS = ["tail", "head", "medium", "medium", "tail", "head"]


class FakeRuns:
    """A store that is filled run by run with made-up numbers."""

    def __init__(self, root: Path) -> None:
        self.store = RunStore(root)
        self.wanted: list[dict[str, Any]] = []

    def add(
        self,
        label: str,
        value: float | None,
        *,
        dataset: str = "GlyphScenes",
        ratio: float = 0.05,
        seed: int = 1,
        state: str = "done",
        val: float | None = None,
        method: str = "",
        arrays: dict[str, np.ndarray] | None = None,
        **hyper: Any,
    ) -> str:
        """Want a run and bring it into a state; returns its identity."""
        method = method or label.lower().replace(" ", "_")
        identity = f"{label}{dataset}{ratio}{seed}{hyper}"
        run_id = hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()
        keys = {"ratio": ratio, "seed": seed, "method": method, "label": label}
        self.wanted.append({"run_id": run_id, "dataset": dataset, **keys})
        spec = {
            **keys,
            "dataset": {"alias": dataset, "digest": "d" * 64},
            "split_digest": f"{seed}" * 64,
            "hyper": hyper,
        }
        run = self.store.directory(run_id, spec)
        if state == "not started":
            return run_id
        lease = self.store.claim(run, spec)
        assert lease is not None
        for epoch in range(1, 5):
            self.store.append_epoch(
                run, {"epoch": epoch, "mAP_ema": 49.0 + epoch, "pseudo_labels": quality(epoch - 1)}
            )
        if state == "failed":
            self.store.write_failure(run, lease, {"type": "ValueError", "message": "NaN"})
        elif state == "done":
            assert value is not None
            metrics = {
                "last": summary(value),
                "val": None if val is None else summary(val),
                "oracle": {**summary(value + 1), "epoch": 2, "weights": "ema"},
            }
            self.store.write_result(
                run,
                lease,
                {
                    "run_id": run_id,
                    "spec": spec,
                    "metrics": metrics,
                    "classes": CLASSES,
                    "cost": {"seconds": 61.5, "device": "cpu"},
                    "provenance": {
                        "command": "run.py --grid x",
                        "commit": "c" * 40,
                        "dirty": None,
                        "host": "box",
                        "packages": {"torch": "2.15.0"},
                    },
                    "finished": "2026-01-01T00:00:00Z",
                },
                arrays or {"scores": np.zeros((2, 6), np.float32)},
            )
        if state != "running":
            lease.release()
        return run_id


def summary(value: float) -> dict[str, Any]:
    ap = [value - 5, value + 5, value - 1, value + 1, None, value]
    return {
        "mAP": value,
        "num_classes": 5,
        "AP": ap,
        "OF1": value - 10,
        "CF1": None,
        "head": value + 2.5,
        "medium": value,
        "tail": value - 5,
        "groups": GROUPS,
        "train_counts": COUNTS,
    }


def quality(epoch: int) -> dict[str, Any] | None:
    if epoch < 1:
        return None
    names = ("OP", "OR", "OF1", "CP", "CR", "CF1", "coverage")
    return {name: 40.0 + 3 * epoch + i for i, name in enumerate(names)}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    # Made-up runs need not survive a power cut, and a busy disk takes its time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return FakeRuns(tmp_path / "store")


@pytest.fixture
def new_fake() -> Callable[[Path], FakeRuns]:
    return FakeRuns


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


@pytest.fixture
def run(store: RunStore) -> Path:
    return store.directory(RUN_ID, make_spec())

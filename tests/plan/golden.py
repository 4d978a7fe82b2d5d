"""Run and stage identities of the shipped grids, with stand-ins for data, splits and weights.

`golden.json` holds those of the second generation of identities (`results.moves`); `test_golden.py` compares.
A change of an identity means that finished runs are done again. Where that is meant, write the file anew:

    python -m tests.plan.golden
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.data.registry import DatasetSpec
from benchmarks.plan import grid, jobs

GRIDS = ("demo", "ablation", "field", "full")
FILE = Path(__file__).with_name("golden.json")
CLASSES, IMAGES, SHOWN = 40, 400, 12


def prepared(spec: DatasetSpec, size: int) -> Any:
    """A stand-in for a prepared dataset: names, labels and digests, no images."""
    rng = np.random.default_rng(0)
    parts = {}
    for name, count in (("train", IMAGES), ("test", 50)):
        labels = (rng.random((count, CLASSES)) < 0.2).astype(np.uint8)
        parts[name] = SimpleNamespace(labels=labels, ids=[f"{name}{k}" for k in range(count)])
    classes = tuple(f"c{k}" for k in range(CLASSES))
    dataset = SimpleNamespace(name=spec.alias, classes=classes, prompts=classes, notes=(), **parts)
    digest = f"{spec.name}-{size}-".ljust(64, "0")
    return SimpleNamespace(dataset=dataset, digest=digest, skipped=(), notes=())


def split_of(dataset: Any, rule: str, ratio: float, seed: int, val_share: float) -> jobs.Split:
    """A stand-in for a split: its digest names what it was asked for."""
    count = max(1, int(IMAGES * ratio))
    order = np.random.RandomState(seed).permutation(IMAGES)
    digest = hashlib.sha256(f"{rule}{ratio}{seed}{val_share}".encode()).hexdigest()
    return jobs.Split(order[:count], order[:0], order[count:], digest)


def identities(name: str) -> list[list[str]]:
    """Title, run id and stage ids of each run of a grid."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSMLL_TEST_DATA", "/data")
        patch.setattr(jobs, "weights_digest", lambda spec: "w" * 64)
        patch.setattr(jobs, "split_of", split_of)
        loaded = grid.load(name)
        images = {
            (spec, size): prepared(spec, size) for spec, sizes in loaded.datasets.items() for size in sizes
        }
        return [
            [job.spec.title.split(" [")[0], job.spec.run_id, *(stage.stage_id for stage in job.stages)]
            for job in jobs.jobs(loaded, images)
        ]


def summary(name: str) -> dict[str, Any]:
    """What the file says of a grid: a digest over all runs, and some of them to see what differs."""
    found = identities(name)
    text = "".join(" ".join(line) + "\n" for line in found)
    shown = found[:: -(-len(found) // SHOWN)]
    return {"runs": len(found), "sha256": hashlib.sha256(text.encode()).hexdigest(), "some": shown}


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: summary(name) for name in GRIDS}, indent=1, ensure_ascii=False) + "\n")

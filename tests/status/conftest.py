"""A folder of runs that a test fills by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks.status.overview import overview
from results.store import RunStore
from slurm.launches import Launches
from tests.results.records import make_result

TRACE = """Traceback (most recent call last):
  File "/home/me/benchmarks/trainer.py", line 12, in step
    loss()
  File "/usr/lib/python3.11/site-packages/torch/nn.py", line 7, in forward
    raise
ValueError: bad
"""


class Folder:
    """A folder of runs, filled by hand, and a PATH with nothing but made-up commands."""

    def __init__(self, root: Path, monkeypatch) -> None:
        self.runs, self.bin = root / "runs", root / "bin"
        self.store = RunStore(self.runs / "store")
        self.bin.mkdir()
        monkeypatch.setenv("PATH", str(self.bin))
        self.held: list = []

    def add(self, seed: int, state: str, more: dict[str, object] | None = None, **error: str) -> str:
        """A run in a state of the store, with more fields of its spec; returns its identity."""
        run_id = hashlib.sha256(str(seed).encode()).hexdigest()
        spec = {"dataset": {"alias": "toy"}, "method": "csaa", "label": "CSAA", "ratio": 0.05, "seed": seed}
        spec |= more or {}
        if state == "not started":
            return run_id
        directory = self.store.directory(run_id, spec)
        lease = self.store.claim(directory, spec)
        assert lease is not None
        if state == "running":
            self.held.append(lease)
            return run_id
        if state == "failed":
            record = {"type": "ValueError", "message": f"bad {seed}", "traceback": TRACE, **error}
            self.store.write_failure(directory, lease, record)
        elif state == "done":
            result = make_result(run_id, spec=spec)
            self.store.write_result(directory, lease, result, {"scores": np.zeros((1, 1))})
        lease.release()
        return run_id

    def place(self, run_id: str) -> Path:
        (found,) = self.store.find(run_id[:16])
        return found

    def launch(self, *bundles: list[str], first: int = 7):
        """Submit bundles as the elements of one array."""
        titles = {run: f"title of {run[:8]}" for bundle in bundles for run in bundle}
        plan = {"job_name": "ssmll-x", "bundles": [{"run_ids": b} for b in bundles]}
        made = Launches(self.runs).create("toy", {**plan, "titles": titles})
        made.record({k: f"{first}_{k}" for k in range(len(bundles))})
        return made

    def answers(self, **commands: str) -> None:
        """Let commands print something; "!text" lets one fail with the text."""
        for name, text in {"sbatch": "", **commands}.items():
            (self.bin / f"{name}.txt").write_text(text.removeprefix("!"))
            out = " >&2; exit 1" if text.startswith("!") else ""
            (self.bin / name).write_text(f"#!/bin/sh\n/bin/cat '{self.bin / name}.txt'{out}\n")
            (self.bin / name).chmod(0o755)

    def kinds(self) -> dict[str, str]:
        return {run.run_id[:16]: run.kind for run in overview(self.runs).runs}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    made = Folder(tmp_path, monkeypatch)
    yield made
    for lease in made.held:
        lease.release()


def section(text: str, title: str) -> str:
    """A section of the plain output."""
    (found,) = [part for part in text.split("\n\n") if part.startswith(title)]
    return found

"""The small grid of the harness's self-checks (`benchmarks.checks.chaos`, `.invariance`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.workspace import REPOSITORY

RUN = REPOSITORY / "benchmarks" / "run.py"
GRID = """
description = "a small grid for examinations of the harness"
modules = {modules}
datasets = [{{ name = "coco", alias = "scenes", root = {root} }}]
ratios = [0.3]
seeds = {seeds}
methods = {methods}
recipe = "embedded"
[override]
precision = {precision}
resolution = 64
warmup_epochs = 3
epochs = 3
labelled_epochs = 6
batch_labelled = 8
batch_unlabelled = 24
batch_warmup = 16
eval_every = 1
"""


def write_scenes(folder: Path) -> Path:
    """Render the 240 training and 60 test images of the grid, and return their directory."""
    from benchmarks.data.glyphscenes import scenes as glyphscenes

    return glyphscenes.write(folder, sizes={"train": 240, "test": 60}, workers=1)


def write_grid(
    path: Path,
    scenes: Path,
    seeds: int,
    methods: Sequence[str],
    precision: str = "fp32",
    modules: Sequence[str] = (),
) -> Path:
    """Write the grid, and return its path.

    Args:
        path: file to write.
        scenes: from `write_scenes`.
        seeds: the grid has the seeds 1 to this.
        methods: names of the methods.
        precision: precision of the recipe.
        modules: Python files or modules that register further methods.
    """
    values = {
        "root": str(scenes),
        "seeds": list(range(1, seeds + 1)),
        "methods": list(methods),
        "precision": precision,
        "modules": list(modules),
    }
    path.write_text(GRID.format(**{name: json.dumps(value) for name, value in values.items()}))
    return path


def command(grid: Path, data: Path, runs: Path, processes: int) -> list[str]:
    """The command that runs the grid, one run at a time."""
    return [
        sys.executable,
        str(RUN),
        "--grid",
        str(grid),
        "--data",
        str(data),
        "--runs",
        str(runs),
        "--processes",
        str(processes),
        "--workers",
        "1",
        "--no-plots",
    ]

"""A tiny VOC tree and grids on it, for tests of the whole path."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# With a process for each core, threads within them only get in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
LONG = (
    "launch/test_groups",
    "test_end_to_end",
    "training/test_two_processes",
    "checks/",
    "perf/",
    "cli/",
    "methods/test_contract",
    "launch/",
    "test_own_folder",
    "status/",
    "training/",
)
"""Where the tests are that take longest, by the start of their path in tests/, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files; within a file the order stays."""

    def rank(item: pytest.Item) -> int:
        place = item.path.relative_to(ROOT / "tests").as_posix()
        return next((k for k, start in enumerate(LONG) if place.startswith(start)), len(LONG))

    items.sort(key=rank)


CLASSES = ("car", "cat", "dog")
SIDE = 48


def write_voc(root: Path) -> None:
    """An official VOC2007 tree of small pictures: each class is a coloured square somewhere."""
    folder = root / "VOCdevkit" / "VOC2007"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    rng = np.random.default_rng(7)
    number = 0
    names = sorted(VOC_CLASSES)
    for split, count in (("trainval", 90), ("test", 40)):
        lines: dict[str, list[str]] = {name: [] for name in names}
        for _ in range(count):
            number += 1
            present = rng.random(3) < (0.6, 0.4, 0.3)
            if not present.any():
                present[rng.integers(3)] = True
            pixels = rng.integers(60, 120, (SIDE, SIDE, 3)).astype(np.uint8)
            for k in np.flatnonzero(present):
                top, left = rng.integers(0, SIDE - 16, 2)
                pixels[top : top + 16, left : left + 16] = 0
                pixels[top : top + 16, left : left + 16, k] = 255
            name = f"{number:06d}"
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
            for other in names:
                positive = other in CLASSES and present[CLASSES.index(other)]
                lines[other].append(f"{name} {'1' if positive else '-1':>2}")
        for other in names:
            (folder / "ImageSets" / "Main" / f"{other}_{split}.txt").write_text(
                "\n".join(lines[other]) + "\n"
            )


VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@pytest.fixture(scope="session")
def voc_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("voc")
    write_voc(root)
    return root


def grid_text(voc_root: Path, methods: str, **recipe: object) -> str:
    """A grid on the tiny VOC tree; recipe values are written as they are."""
    values = {
        "resolution": 64,
        "warmup_epochs": 1,
        "epochs": 2,
        "labelled_epochs": 2,
        "batch_labelled": 6,
        "batch_unlabelled": 12,
        "batch_warmup": 12,
        "ema_decay": 0.9,
        **recipe,
    }
    override = "\n".join(f"{name} = {value}" for name, value in values.items())
    dataset = (
        f'name = "voc2007", alias = "tiny", root = "{voc_root}", allow_counts = true, '
        'classes = ["car", "cat", "dog"]'
    )
    return f"""
description = "tiny VOC tree of the tests"
datasets = [{{ {dataset} }}]
ratios = [0.5]
seeds = [1]
methods = {methods}
recipe = "embedded"
[override]
{override}
[hyper.csaa]
num_contexts = 2
"""


class CommandLine:
    """The command line in a process of its own, with its own data and runs folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.runs = folder / "data", folder / "runs"

    def arguments(self, *words: str) -> list[str]:
        places = ["--data", str(self.data), "--runs", str(self.runs)]
        return [sys.executable, str(ROOT / "benchmarks" / "run.py"), *words, *places]

    def start(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.arguments(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # A shell's background job ignores Ctrl-C and hands that down; a user's does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def __call__(self, *words: str, code: int = 0) -> tuple[str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return out, err


@pytest.fixture
def command(tmp_path) -> CommandLine:
    return CommandLine(tmp_path)

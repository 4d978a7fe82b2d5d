"""Input: weak and strong views from the cache, against per-image Pillow transforms.

Three paths alternate round by round, so that other load on the machine affects all of them alike:

  cache    as a run does it: the loader reads cached images and both views are made; one process per
           core with one thread each, as the local launcher starts them
  Pillow   as the published code does it: a DataLoader with one worker process per core; each worker
           opens and decodes a file and makes both views with Pillow
  memory   reading alone: cached images are gathered through the memory map

Starting processes is not counted. The ratio compares wall-clock rates; a second ratio compares pairs
per second of processor time, which other work on the machine disturbs less. Without --images the
pictures are synthetic photographs (500 x 375 pixels, about 80 kB) in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.arguments import positive
from benchmarks.data.cache.prepared import Prepared, prepare
from benchmarks.data.dataset import Dataset, ImageSet
from benchmarks.data.loader import Loader
from benchmarks.data.rng import permutation
from benchmarks.data.views.views import make_view
from benchmarks.launch.memory import keep_large_blocks
from benchmarks.perf.machine import machine
from benchmarks.perf.pillow import Batches
from benchmarks.provenance import cores, packages
from methods.errors import UserError

ROUNDS = 10
SYNTHETIC = 400
"""Synthetic photographs; at 224 pixels their cache is larger than most processors' caches."""
SUFFIXES = frozenset((".jpg", ".jpeg", ".png"))
SHARES = {"pillow": 0.55, "cache": 0.25, "threads": 0.15, "memory": 0.05}
"""Share of the measuring time per path; the slowest path gets most, because it makes the fewest batches."""
VERSIONS = ("python", "torch", "torchvision", "numpy", "pillow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--json", action="store_true", help="print one JSON line, not the table")
    parser.add_argument("--size", type=positive, default=224, help="side of the views in pixels")
    parser.add_argument("--batch", type=positive, default=64, help="pairs of views in a batch")
    parser.add_argument(
        "--workers", type=positive, default=min(2, cores()), help="cores that each path uses (default: 2)"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of real images to use")
    parser.add_argument("--seconds", type=positive, default=50, help="time to measure for")


def run(options: argparse.Namespace) -> int:
    """Measure, print, and return the exit code."""
    with tempfile.TemporaryDirectory(prefix="ssmll-perf-") as folder:
        paths, what = _images(options.images, Path(folder))
        found = measure(
            paths,
            Path(folder),
            size=options.size,
            batch=options.batch,
            workers=options.workers,
            seconds=options.seconds,
        )
    found["images"] = what
    print(json.dumps(found) if options.json else table(found))
    return 0


def measure(
    paths: Sequence[Path], folder: Path, *, size: int, batch: int, workers: int, seconds: float
) -> dict[str, Any]:
    """Measure all paths.

    Args:
        paths: two or more image files.
        folder: folder for the cache.
        size: side of the views in pixels.
        batch: pairs of views in a batch.
        workers: cores to use.
        seconds: measuring time, divided among paths and rounds.

    Returns:
        The fields of the JSON line, without "images". Rates are medians over the rounds, per second.
    """
    _say(f"preparing the cache of {len(paths)} images at {size} pixels")
    prepared = prepare(_dataset(paths), size, folder / "cache", workers=workers)
    _say(f"starting {2 * workers + 1} processes")
    side_by_side = [_Process(prepared, batch, threads=1, seed=k) for k in range(workers)]
    threaded = [_Process(prepared, batch, threads=workers, seed=workers)]
    pillow = _Pillow(Batches(prepared.dataset.train.paths, size, batch, workers), batch, workers)
    rates: dict[str, list[Rate]] = {name: [] for name in SHARES}
    try:
        for number in range(ROUNDS + 1):
            share = {name: part * seconds / ROUNDS for name, part in SHARES.items()}
            if number == 0:  # the first round warms up
                share = dict.fromkeys(SHARES, 0.2)
            measured = {
                "cache": _rate(side_by_side, "views", share["cache"]),
                "pillow": pillow.rate(share["pillow"]),
                "threads": _rate(threaded, "views", share["threads"]),
                "memory": _rate(side_by_side, "memory", share["memory"]),
            }
            if number:
                for name, value in measured.items():
                    rates[name].append(value)
                _say(
                    f"round {number} of {ROUNDS}: cache {measured['cache'].wall:,.0f}, "
                    f"Pillow {measured['pillow'].wall:,.0f} pairs a second"
                )
    finally:
        for process in (*side_by_side, *threaded):
            process.end()
    wall, processor = (
        {name: statistics.median(getattr(rate, of) for rate in found) for name, found in rates.items()}
        for of in ("wall", "processor")
    )
    versions = packages()
    return {
        "ratio": wall["cache"] / wall["pillow"],
        "ratio_processor_time": processor["cache"] / processor["pillow"],
        "pairs_per_second": wall["cache"],
        "pairs_per_second_one_process": wall["threads"],
        "pillow_pairs_per_second": wall["pillow"],
        "raw_images_per_second": wall["memory"],
        "pairs_per_processor_second": processor["cache"],
        "pillow_pairs_per_processor_second": processor["pillow"],
        "ratios": [
            ours.wall / theirs.wall for ours, theirs in zip(rates["cache"], rates["pillow"], strict=True)
        ],
        "size": size,
        "batch": batch,
        "workers": workers,
        "machine": machine(),
        "versions": {name: versions[name] for name in VERSIONS if name in versions},
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures as a table for people."""
    low, high = min(found["ratios"]), max(found["ratios"])
    many = found["workers"]
    rows = [
        (f"cache, {many} processes with one thread", found["pairs_per_second"]),
        (f"cache, one process with {many} threads", found["pairs_per_second_one_process"]),
        (f"Pillow, DataLoader with {many} workers", found["pillow_pairs_per_second"]),
        ("memory read alone (images)", found["raw_images_per_second"]),
    ]
    lines = [f"{name:42} {value:>10,.0f} / s" for name, value in rows]
    place, versions = found["machine"], found["versions"]
    return "\n".join(
        (
            f"weak and strong views, {found['size']} pixels, batches of {found['batch']}, {found['images']}",
            *lines,
            f"ratio {found['ratio']:.1f} ({low:.1f} to {high:.1f} over {len(found['ratios'])} rounds); "
            f"by processor time {found['ratio_processor_time']:.1f}",
            f"{place['cpu']}, {place['cores']} cores; "
            + ", ".join(f"{name} {version}" for name, version in versions.items()),
        )
    )


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Write synthetic JPEG photographs of VOC's size: 500 x 375 pixels, about 80 kB."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        # Grain is what fills a JPEG file.
        noisy = smooth + rng.normal(0, 9, (375, 500, 1)).astype(np.float32)
        paths.append(folder / f"{number:04d}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


class Rate(NamedTuple):
    """Pairs or images per second.

    Attributes:
        wall: per second of wall-clock time, all processes together.
        processor: per second of processor time, that is the rate of one core.
    """

    wall: float
    processor: float


class _Process:
    """A process that holds the cache and measures on request."""

    def __init__(self, prepared: Prepared, batch: int, *, threads: int, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, prepared, batch, threads, seed), daemon=True
        )
        self.process.start()
        theirs.close()

    def begin(self, what: str, seconds: float) -> None:
        self.pipe.send((what, seconds))

    def result(self) -> tuple[int, float, float]:
        """Return images, seconds, and seconds of processor time."""
        try:
            return self.pipe.recv()
        except EOFError:
            raise UserError("a measuring process died; its message stands above") from None

    def end(self) -> None:
        self.pipe.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()


def _rate(processes: Sequence[_Process], what: str, seconds: float) -> Rate:
    for process in processes:
        process.begin(what, seconds)
    found = [process.result() for process in processes]
    spent = sum(processor for _, _, processor in found)
    return Rate(sum(count / wall for count, wall, _ in found), sum(count for count, _, _ in found) / spent)


def _serve(pipe: Connection, prepared: Prepared, batch: int, threads: int, seed: int) -> None:
    """Serve measurements: like a run's worker, without the training."""
    torch.set_num_threads(threads)
    keep_large_blocks()
    positions = _positions(len(prepared.train), batch, seed)
    epoch = 0
    while True:
        try:
            what, seconds = pipe.recv()
        except EOFError:
            return
        drawn: list[torch.Tensor] = []

        def noted(drawn: list[torch.Tensor] = drawn) -> Iterator[torch.Tensor]:
            for some in positions:
                drawn.append(some)
                yield some

        images = Loader(prepared, "cpu").stream("train", noted())
        count, started, processor = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - started < seconds:
            pixels = next(images)
            indices = drawn.pop(0)
            if what == "views":
                views = [
                    make_view(pixels, indices, policy=policy, seed=1, epoch=epoch)
                    for policy in ("weak", "strong")
                ]
                del views
            count += len(pixels)
            epoch += 1
        pipe.send((count, time.perf_counter() - started, time.process_time() - processor))


def _positions(images: int, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield batches of positions without end; drop a smaller last batch of an epoch."""
    epoch = 0
    while True:
        order = torch.from_numpy(permutation(seed, epoch, images, "perf"))
        order = order.repeat(math.ceil(batch / images))
        yield from order.split(batch)[: len(order) // batch]
        epoch += 1


class _Pillow:
    """Measures the DataLoader of `benchmarks.perf.pillow`."""

    def __init__(self, batches: Batches, batch: int, workers: int) -> None:
        self.batches, self.batch, self.workers = batches, batch, workers
        self.last = 0.0

    def rate(self, seconds: float) -> Rate:
        """Return the rate between the arrival of the first wave (one batch per worker) and of the last."""
        waves = max(3, 1 + round(self.last * seconds / (self.batch * self.workers)))
        times: list[float] = []
        spent: dict[int, list[float]] = {}
        for process, processor in self.batches.draw(waves * self.workers):
            times.append(time.perf_counter())
            spent.setdefault(process, []).append(processor)
        wall = times[-1] - times[self.workers - 1]
        self.last = (len(times) - self.workers) * self.batch / wall
        made = sum(len(seconds) - 1 for seconds in spent.values()) * self.batch
        return Rate(self.last, made / sum(each[-1] - each[0] for each in spent.values()))


def _images(folder: Path | None, temporary: Path) -> tuple[list[Path], str]:
    if folder is None:
        _say(f"writing {SYNTHETIC} synthetic photographs")
        paths = write_photographs(temporary / "photographs", SYNTHETIC)
        name = "synthetic photographs"
    else:
        if not folder.is_dir():
            raise UserError(f"--images {folder} is not a folder")
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if len(paths) < 2:
            raise UserError(f"--images {folder}: {len(paths)} image files; at least 2 are needed")
        name = str(folder)
    size = sum(path.stat().st_size for path in paths) / len(paths) / 1000
    return paths, f"{len(paths)} {name} of {size:.0f} kB"


def _dataset(paths: Sequence[Path]) -> Dataset:
    """Make a dataset of the images; the last one is the test split, because a dataset needs one."""

    def images(some: Sequence[Path]) -> ImageSet:
        return ImageSet(tuple(path.name for path in some), tuple(some), np.ones((len(some), 1), np.uint8))

    return Dataset("perf", ("any",), ("any",), images(paths[:-1]), images(paths[-1:]))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""Seconds of the bootstrap behind `tables --intervals`, by default of ten matrices of COCO's size.

Scores are drawn at random with about as many positives as COCO val2014 has (2.9 an image, the first classes
with more). Pairs are compared too. A matrix is a run: ten methods with three seeds are thirty.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

import numpy as np

from benchmarks.arguments import positive
from benchmarks.perf.machine import machine
from results.bootstrap import RESAMPLES, resample

POSITIVES = 2.9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this measurement."""
    parser.add_argument("--json", action="store_true", help="print one JSON line, not a sentence")
    parser.add_argument("--images", type=positive, default=40137, help="test images (default: 40137)")
    parser.add_argument("--classes", type=positive, default=80, help="classes (default: 80)")
    parser.add_argument("--methods", type=positive, default=10, help="matrices of scores (default: 10)")
    parser.add_argument(
        "--resamples", type=positive, default=RESAMPLES, help=f"resamples (default: {RESAMPLES})"
    )


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    found = measure(options.images, options.classes, options.methods, options.resamples)
    if options.json:
        print(json.dumps(found))
        return 0
    size = f"{found['methods']} matrices of {found['images']:,} × {found['classes']}"
    used = f"{found['processor']:.0f} s of processor time, {found['memory']:.1f} GiB at most"
    print(f"{size}, {found['resamples']:,} resamples: {found['seconds']:.0f} s ({used})")
    where = machine()
    print(f"all pairs: {found['pairs']:.1f} s; {where['cpu']}, {where['cores']} cores")
    return 0


def measure(images: int, classes: int, methods: int, resamples: int) -> dict[str, Any]:
    """Resample random scores, and compare all pairs.

    Returns:
        The arguments, and: ``seconds`` and ``processor`` of the resampling, ``pairs`` seconds of the
        comparison, ``memory`` of this process at most, GiB.
    """
    rng = np.random.default_rng(0)
    share = 1 / np.arange(3, classes + 3)
    labels = (rng.random((images, classes)) < POSITIVES * share / share.sum()).astype(np.uint8)
    labels[0] = 1
    runs = {
        str(number): {1: ((rng.standard_normal(labels.shape) + 2 * labels).astype(np.float32), labels)}
        for number in range(methods)
    }
    begin, used = time.perf_counter(), time.process_time()
    found = resample(runs, resamples)
    end, processor = time.perf_counter(), time.process_time() - used
    found.pairs()
    return {
        "images": images,
        "classes": classes,
        "methods": methods,
        "resamples": resamples,
        "seconds": end - begin,
        "processor": processor,
        "pairs": time.perf_counter() - end,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }

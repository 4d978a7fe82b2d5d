"""How often intervals hold the truth, and equal methods are told apart: a study where the truth is known.

    python -m benchmarks.checks.coverage
    python -m benchmarks.checks.coverage --draws 400 --json

A run scores images as signal × label + noise, a part of the noise common to all runs (hard images). What a
training adds is a change of its expected score, with a standard deviation in points that is a method's own:
"steady" methods have none, so that only images decide, "even" ones 2, "uneven" ones from 0.5 to 10.

Error: any two of five methods with the same expected score are told apart at level 0.05, by
`results.bootstrap.Resampled.pairs`. Score, score of the last, difference: share of 95 % intervals that hold
the expected score of the steadiest method and of the least steady one, and the difference of 0. Power: one
method is better by 3 points; the share of the other four that are told from it.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from results.bootstrap import Ranked, Resampled, resample
from results.statistics import Floats

METHODS = 5
SCORE, LEAD = 65.0, 3.0
"""Percent, and points."""
PREVALENCE, COMMON = 0.2, 0.8
KINDS = {"steady": (0.0,) * 5, "even": (2.0,) * 5, "uneven": (0.5, 2.0, 4.0, 4.0, 10.0)}
"""Standard deviation of each method's expected score between trainings, points."""
CASES = (
    ("steady", 1, 200, 4),
    ("steady", 1, 800, 4),
    ("steady", 1, 800, 20),
    ("steady", 3, 200, 4),
    ("even", 3, 200, 4),
    ("even", 5, 200, 4),
    ("uneven", 3, 200, 4),
    ("uneven", 5, 200, 4),
)
"""Kind, seeds, test images, classes."""
LEVEL = 0.05
Runs = dict[str, dict[int, tuple[npt.NDArray[Any], npt.NDArray[Any]]]]


@functools.cache
def curve(images: int, classes: int) -> tuple[Floats, Floats]:
    """Signals, and the mean score over 100 test sets that each of them gives, percent, both ascending."""
    signals, rng = np.linspace(-1, 8, 37), np.random.default_rng(3)
    total = np.zeros(len(signals))
    once = np.ones((1, images), np.int32)
    for _ in range(100):
        labels = _labels(rng, images, classes)
        noise = rng.standard_normal(labels.shape)
        total += [Ranked(noise + signal * labels, labels).mean_ap(once)[0] for signal in signals]
    return signals, total / 100


def _labels(rng: np.random.Generator, images: int, classes: int) -> npt.NDArray[np.uint8]:
    labels = (rng.random((images, classes)) < PREVALENCE).astype(np.uint8)
    labels[0] = 1
    return labels


def draw(
    rng: np.random.Generator, deviations: Sequence[float], seeds: int, images: int, classes: int, lead: float
) -> Runs:
    """Scores and labels of a run for each method and seed; the first method's expected score has a lead."""
    labels = _labels(rng, images, classes)
    common = np.sqrt(COMMON) * rng.standard_normal(labels.shape)
    signals, scores = curve(images, classes)
    runs: Runs = {}
    for place, deviation in enumerate(deviations):
        runs[str(place)] = {}
        for seed in range(seeds):
            score = SCORE + (0 if place else lead) + deviation * rng.standard_normal()
            noise = common + np.sqrt(1 - COMMON) * rng.standard_normal(labels.shape)
            runs[str(place)][seed] = noise + np.interp(score, scores, signals) * labels, labels
    return runs


def told_apart(found: Resampled) -> dict[tuple[str, str], bool]:
    """Pairs of methods, and whether they differ significantly."""
    return {pair: p <= LEVEL for pair, (_, p) in found.pairs().items()}


def measure(kind: str, seeds: int, images: int, classes: int, draws: int, resamples: int) -> dict[str, Any]:
    """Error, coverage and power of one case."""
    deviations = KINDS[kind]
    error = score = score_last = difference = power = 0
    rng = np.random.default_rng(1)
    for _ in range(draws):
        found = resample(draw(rng, deviations, seeds, images, classes, 0.0), resamples)
        error += any(told_apart(found).values())
        first, last = found.interval("0"), found.interval(str(METHODS - 1))
        score += first.low <= SCORE <= first.high
        score_last += last.low <= SCORE <= last.high
        between = found.difference("0", "1")
        difference += between.low <= 0 <= between.high
        better = told_apart(resample(draw(rng, deviations, seeds, images, classes, LEAD), resamples))
        power += sum(apart for pair, apart in better.items() if "0" in pair)
    return {
        "trainings": kind,
        "seeds": seeds,
        "images": images,
        "classes": classes,
        "error": error / draws,
        "score": score / draws,
        "score of the last": score_last / draws,
        "difference": difference / draws,
        "power": power / draws / (METHODS - 1),
    }


def main() -> None:
    """Run the study and print it."""
    parser = argparse.ArgumentParser(description="Coverage, error rate and power of `tables --intervals`.")
    parser.add_argument("--draws", type=int, default=300, help="of all runs, for each case")
    parser.add_argument("--resamples", type=int, default=200, help="of the test images, for each draw")
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    args = parser.parse_args()
    for name in ("draws", "resamples"):
        if getattr(args, name) < 20:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 20")
    rows = [measure(*case, args.draws, args.resamples) for case in CASES]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3f"))


if __name__ == "__main__":
    main()

"""How often the test of tables errs, and what it finds: a study with scores whose truth is known.

    python -m benchmarks.checks.significance
    python -m benchmarks.checks.significance --draws 4000 --json

Scores are drawn as (method, dataset, ratio, seed) with unit variance. Ratios of a seed correlate by .6,
through a part that all methods share ("common": it cancels in differences) or that every method has for
itself ("own": differences of a seed's ratios correlate). Error: how often any method is called worse
although all are equal. Power: the best is better than the other six, which are equal, by a gap in standard
deviations of a score; the share of the six that are called worse. Beside `results.statistics.compare`
stands the test that tables had before it: paired sign flips over (dataset, ratio, seed) blocks against the
best of the data, with Holm's correction for these comparisons alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from results.statistics import compare

METHODS, DATASETS, RATIOS, SEEDS = 7, 2, 4, 5
CORRELATION = 0.6
LEVEL = 0.05
GAPS = (0.5, 1.0, 2.0, 4.0)
Scores = npt.NDArray[np.float64]
Rule = Callable[[Scores], list[bool]]


def draw(rng: np.random.Generator, kind: str, gaps: list[float], seeds: int = SEEDS) -> Scores:
    """Scores (method, dataset, ratio, seed) with the given means."""
    noise = np.sqrt(1 - CORRELATION) * rng.normal(size=(len(gaps), DATASETS, RATIOS, seeds))
    owners = len(gaps) if kind == "own" else 1
    shared = np.sqrt(CORRELATION) * rng.normal(size=(owners, DATASETS, 1, seeds))
    return noise + shared + np.array(gaps)[:, None, None, None]


def present(scores: Scores) -> list[bool]:
    """Which methods `results.statistics.compare` calls worse than the best."""
    values = {
        str(k): {(d, r, s): float(value) for (d, r, s), value in np.ndenumerate(row)}
        for k, row in enumerate(scores)
    }
    found = compare(values, LEVEL)
    return [found.worse(name) for name in values]


@functools.cache
def _flips(blocks: int) -> Scores:
    """Patterns of signs of the former test, a row each."""
    return (1 - 2 * np.random.default_rng(0).integers(0, 2, (9_999, blocks))).astype(np.float64)


def former(scores: Scores) -> list[bool]:
    """Which methods the former test calls worse."""
    rows = scores.reshape(len(scores), -1)
    best = int(rows.mean(axis=1).argmax())
    others = [k for k in range(len(rows)) if k != best]
    differences = (rows[best] - rows[others]).T
    extreme = np.abs(_flips(len(differences)) @ differences) >= np.abs(differences.sum(axis=0)) * (1 - 1e-9)
    p = (1 + extreme.sum(axis=0)) / 10_000
    worse, running = [False] * len(rows), 0.0
    for rank, k in enumerate(np.argsort(p)):
        running = max(running, (len(p) - rank) * p[k])
        worse[others[k]] = running <= LEVEL
    return worse


RULES: Mapping[str, Rule] = {"present": present, "former": former}


def errors(kind: str, draws: int) -> dict[str, float]:
    """Share of draws in which any of equal methods is called worse, for each rule."""
    rng = np.random.default_rng(1)
    count = dict.fromkeys(RULES, 0)
    for _ in range(draws):
        scores = draw(rng, kind, [0.0] * METHODS)
        for name, rule in RULES.items():
            count[name] += any(rule(scores))
    return {name: value / draws for name, value in count.items()}


def power(kind: str, gap: float, more: str, draws: int) -> dict[str, float]:
    """Share of the six lesser methods that are called worse than the best.

    Args:
        kind: "own" or "common".
        gap: of the best, in standard deviations.
        more: "" or a further method: "hopeless", 30 standard deviations below; "unstable", which is that in
            half of its runs.
        draws: number of draws.
    """
    rng = np.random.default_rng(2)
    count = dict.fromkeys(RULES, 0.0)
    for _ in range(draws):
        scores = draw(rng, kind, [gap, *[0.0] * (METHODS - 1), *([0.0] if more else [])])
        if more:
            scores[METHODS] -= 30 * (more == "hopeless" or rng.random(scores[METHODS].shape) < 0.5)
        for name, rule in RULES.items():
            worse = rule(scores)
            count[name] += sum(worse[1:METHODS]) / (METHODS - 1) if not worse[0] else 0.0
    return {name: value / draws for name, value in count.items()}


def study(draws: int) -> list[dict[str, Any]]:
    """All scenarios, a row each, with a rate for each rule."""
    rows: list[dict[str, Any]] = []
    for kind in ("own", "common"):
        rows.append({"what": "error", "correlation": kind, "gap": 0.0, "further": "", **errors(kind, draws)})
        for more in ("", "hopeless", "unstable"):
            for gap in GAPS:
                rates = power(kind, gap, more, draws // 4)
                rows.append({"what": "power", "correlation": kind, "gap": gap, "further": more, **rates})
    return rows


def seconds() -> float:
    """Processor seconds of one call with 12 methods and 40 units."""
    rng = np.random.default_rng(0)
    values = {
        str(k): {("d", 0.05, s): float(v) for s, v in enumerate(rng.normal(size=40))} for k in range(12)
    }
    begin = time.process_time()
    compare(values)
    return time.process_time() - begin


def main() -> None:
    """Run the study and print it."""
    parser = argparse.ArgumentParser(description="Error rate and power of the significance test of tables.")
    parser.add_argument("--draws", type=int, default=1000, help="of equal methods; a quarter for each power")
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    args = parser.parse_args()
    if args.draws < 4:
        parser.error(f"--draws is {args.draws}; it must be at least 4")
    rows = study(args.draws)
    if args.json:
        print(json.dumps({"rows": rows, "seconds": seconds()}, indent=1))
        return
    print(tabulate(rows, headers="keys", tablefmt="simple", floatfmt=".3f"))
    print(f"\n12 methods, 40 units: {seconds():.2f} s of processor time a call")


if __name__ == "__main__":
    main()

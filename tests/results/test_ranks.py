"""Ranks, ratings, practical equivalence and the critical-difference figure, computed another way."""

from __future__ import annotations

import csv
import io
import itertools

import numpy as np
import pytest
from scipy import optimize

from results import ranks_figure
from results.ranks import DRAWS, equivalence, ranks, ratings, to_csv, to_text
from results.statistics import compare
from results.verdict import Ranking
from tests.results.test_statistics import scores

NAMES = [f"method {letter}" for letter in "ABCDEFGHIJ"]


def table(seed: int = 0, units: int = 8, gap: float = 0.6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 60 - gap * np.arange(len(NAMES))[:, None] + rng.normal(0, 1, (len(NAMES), units))


def values(rows: np.ndarray) -> dict[str, dict]:
    return scores(dict(zip(NAMES, rows, strict=False)))


def place(row: list[float], k: int) -> float:
    """Rank of an entry, 1 for the highest, ties averaged: by counting."""
    return 1 + sum(other > row[k] for other in row) + 0.5 * (sum(other == row[k] for other in row) - 1)


def test_ranks_and_their_intervals_are_those_of_counting() -> None:
    rows = table()
    rows[3, :4] = rows[2, :4]  # ties in some units
    found = ranks(values(rows))
    assert found is not None
    size = rows.shape[1]
    inside = np.array([[place(list(rows[:, u]), k) for u in range(size)] for k in range(len(NAMES))])
    draws = np.random.Generator(np.random.PCG64(0)).multinomial(size, [1 / size] * size, DRAWS)
    means = np.array([[np.repeat(row, draw).mean() for row in rows] for draw in draws])
    by_mean = np.array([[place(list(line.round(9)), k) for k in range(len(NAMES))] for line in means])
    assert [one.method for one in found.standings] == [NAMES[k] for k in np.argsort(-rows.mean(axis=1))]
    assert (found.units, found.datasets) == (8, 1)
    for one in found.standings:
        k = NAMES.index(one.method)
        assert one.mean_rank.value == pytest.approx(inside[k].mean())
        assert one.rank.value == place(list(rows.mean(axis=1)), k)
        for interval, drawn in ((one.mean_rank, draws @ inside[k] / size), (one.rank, by_mean[:, k])):
            assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_ratings_are_the_maximum_of_the_literal_posterior() -> None:
    rows = table(1)[:5]
    rows[1, :3] = rows[0, :3]
    weights = np.array([[1 / 8] * 8, [0.5, 0, 0.25, 0, 0.25, 0, 0, 0]])
    found = ratings(weights, rows)
    for weight, rating in zip(weights, found, strict=True):

        def loss(strength: np.ndarray, weight: np.ndarray = weight) -> float:
            total = 0.0
            for unit, share in enumerate(8 * weight):
                for i, j in itertools.permutations(range(5), 2):
                    won = 1.0 if rows[i, unit] > rows[j, unit] else 0.5 * (rows[i, unit] == rows[j, unit])
                    total += share * won * np.log1p(np.exp(strength[j] - strength[i]))
            # A game won and one lost against a method of strength 0.
            return total + float(np.sum(np.log1p(np.exp(-strength)) + np.log1p(np.exp(strength))))

        best = optimize.minimize(loss, np.zeros(5), tol=1e-10)
        assert rating == pytest.approx(1000 + 400 * best.x / np.log(10), abs=0.1)
    always = ratings(np.full((1, 8), 1 / 8), np.arange(3.0)[:, None] + np.zeros(8))[0]
    assert always[0] < always[1] < always[2] < 2000
    assert always[1] == pytest.approx(1000)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [  # baycomp 1.0.3 (PyPI), SignedRankTest.probs(z, 0, rope=0.5, nsamples=200000, random_state=1)
        ([0.9, 0.2, -0.1, 1.4, 0.6, 0.8], (0.643, 0.357, 0.0)),
        ([0.1, -0.2, 0.3, 0.05, -0.1, 0.2], (0.0, 1.0, 0.0)),
        ([2.0, 3.0, 2.5, 1.8, 2.2, -4.0, 2.1, 3.3], (0.945, 0.0, 0.054)),
    ],
)
def test_practical_equivalence_is_that_of_baycomp(differences: list[float], expected: tuple) -> None:
    assert equivalence(np.array(differences), 0.5) == pytest.approx(expected, abs=0.01)
    turned = equivalence(-np.array(differences), 0.5)
    assert turned == pytest.approx(expected[::-1], abs=0.01)


def test_nemenyi_s_difference_is_that_of_its_table() -> None:
    # Demšar 2006, section 3.2.2: four classifiers, 14 data sets, q = 2.569.
    found = ranks(values(table(units=14)[:4]))
    assert found is not None
    assert found.critical == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=0.002)


def test_too_few_units_and_regions_that_are_none() -> None:
    assert ranks(values(table(units=5))) is None
    assert ranks(values(table()[:1])) is None
    assert ranks({}) is None
    for rope in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="the region of practical equivalence is"):
            ranks(values(table()), rope)


def test_scores_that_differ_by_rounding_are_ties() -> None:
    row = np.linspace(60, 61, 6)
    found = ranks(values(np.stack([row, row + 1e-12, row - 5])))
    assert found is not None
    first, second, last = found.standings
    assert first.mean_rank.value == second.mean_rank.value == 1.5
    assert first.rating.value == pytest.approx(second.rating.value)
    assert second.equivalent == 1
    assert last.best_better == pytest.approx(1, abs=0.01)


def test_text_and_csv_hold_the_views() -> None:
    found = ranks(values(table()), rope=0.25)
    assert found is not None
    text = to_text(found)
    assert "neither or the method is better by more than 0.25 points" in text
    assert "Over 8 units of 1 dataset." in text
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert [row["method"] for row in rows] == [one.method for one in found.standings]
    for row, one in zip(rows, found.standings, strict=True):
        assert float(row["mean_rank_low"]) == one.mean_rank.low
        assert (float(row["rope"]), row["units"]) == (0.25, "8")
    assert rows[0]["equivalent"] == ""
    total = sum(float(rows[1][name]) for name in ("best_better", "equivalent", "better"))
    assert total == pytest.approx(1)


def ranking(rows: np.ndarray) -> Ranking:
    found = compare(values(rows))
    names = sorted(found.means, key=lambda name: -found.means[name])
    p = found.pair_p_values
    pairs = itertools.combinations(names, 2)
    return Ranking(None, found.means, {(a, b): p.get((a, b), p.get((b, a), 1.0)) for a, b in pairs}, 0.05)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_the_largest_sets_that_cannot_be_told_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = NAMES[:8]
    p = {pair: float(rng.random() < 0.5) for pair in itertools.combinations(names, 2)}
    whole = [
        set(some)
        for size in range(2, 9)
        for some in itertools.combinations(names, size)
        if all(p[pair] for pair in itertools.combinations(some, 2))
    ]
    largest = [some for some in whole if not any(some < other for other in whole)]
    found = ranks_figure.groups(Ranking(None, dict.fromkeys(names, 0.0), p, 0.05))
    assert sorted(map(sorted, largest)) == sorted(map(sorted, found))


def test_the_figure_joins_what_the_verdict_cannot_tell_apart() -> None:
    rows = table()
    found, verdict = ranks(values(rows)), ranking(rows)
    assert found is not None
    figure = ranks_figure.draw(found, verdict, "mAP")
    (axis,) = figure.axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    lines = [
        line for line in axis.lines if line.get_color() == ranks_figure.JOIN and len(line.get_xdata()) > 0
    ]
    dots = [line for line in lines if line.get_marker() == "o"]
    drawn = {frozenset(names[int(y)] for y in line.get_ydata()) for line in dots}
    assert drawn == {frozenset(group) for group in ranks_figure.groups(verdict)}
    assert drawn
    said: list[str] = []
    first = ranks_figure.files(found, verdict, "50 % $x_", ("png", "pdf", "svg"), said.append)
    assert first == ranks_figure.files(found, verdict, "50 % $x_", ("png", "pdf", "svg"), said.append)
    assert first["png"].startswith(b"\x89PNG")
    assert said == []

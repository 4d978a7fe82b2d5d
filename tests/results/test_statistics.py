from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from results.statistics import DRAWS, EXACT_UNITS, FEWEST_UNITS, compare, signs


def scores(rows: dict[str, np.ndarray], ratios=(0.05,), datasets=("d",)) -> dict[str, dict]:
    """Values of `compare` from arrays (dataset, ratio, seed), or (seed,) for one dataset and ratio."""
    found = {}
    for name, row in rows.items():
        cube = np.asarray(row, dtype=float).reshape(len(datasets), len(ratios), -1)
        found[name] = {
            (dataset, ratio, seed): float(cube[d, r, seed])
            for d, dataset in enumerate(datasets)
            for r, ratio in enumerate(ratios)
            for seed in range(cube.shape[2])
        }
    return found


def literal(table: np.ndarray) -> np.ndarray:
    """Adjusted p of all pairs by loops: every pattern, every step of the step-down."""
    count, units = table.shape
    pairs = list(itertools.combinations(range(count), 2))
    squares = {(i, j): np.mean((table[i] - table[j]) ** 2) for i, j in pairs}
    added = np.quantile(list(squares.values()), 0.1)

    def statistic(pair, pattern):
        i, j = pair
        return abs(np.mean(pattern * (table[i] - table[j]))) / np.sqrt(squares[pair] + added)

    patterns = [np.array(pattern) for pattern in itertools.product((1, -1), repeat=units)]
    observed = {pair: statistic(pair, np.ones(units)) for pair in pairs}
    left, p, running = sorted(pairs, key=lambda pair: -observed[pair]), np.ones((count, count)), 0.0
    while left:
        bar = observed[left[0]]
        exceed = np.mean(
            [max(statistic(pair, pattern) for pair in left) >= bar - 1e-12 for pattern in patterns]
        )
        running = max(running, exceed)
        i, j = left.pop(0)
        p[i, j] = p[j, i] = running
    return p


@pytest.mark.parametrize("seed", range(4))
def test_p_values_equal_the_literal_step_down(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(0, 1, (4, 7)) + np.array([3.0, 2.2, 2.9, -40.0])[:, None]
    found = compare(scores({f"m{k}": row for k, row in enumerate(table)}))
    expected = literal(table)
    for (first, second), value in found.pair_p_values.items():
        assert value == pytest.approx(expected[int(first[1]), int(second[1])])
    best = int(table.mean(axis=1).argmax())
    assert found.best == f"m{best}"
    assert found.p_values == {f"m{k}": pytest.approx(expected[best, k]) for k in range(4) if k != best}


def test_two_methods_have_the_p_value_of_the_paired_permutation_test() -> None:
    rng = np.random.default_rng(5)
    first, second = rng.normal(0, 1, (2, 8))
    found = compare(scores({"a": first, "b": second}))
    expected = stats.permutation_test(
        (first, second),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert next(iter(found.p_values.values())) == pytest.approx(expected.pvalue)


def test_many_units_are_sampled_from_a_fixed_seed_and_near_the_t_test() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(0.4, 1, 30)
    values = scores({"a": first, "b": np.zeros(30)})
    p = compare(values).p_values["b"]
    assert p == compare(values).p_values["b"]
    assert p == pytest.approx(stats.ttest_1samp(first, 0).pvalue, abs=0.01)
    assert signs(30).shape == (DRAWS + 1, 30)
    assert signs(EXACT_UNITS).shape == (2 ** (EXACT_UNITS - 1), EXACT_UNITS)
    assert (signs(30)[0] == 1).all()
    assert (signs(3)[0] == 1).all()


def test_ratios_of_a_seed_are_one_unit() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(0, 1, (2, 2, 4, 3))
    found = compare(scores({"a": first, "b": second}, ratios=(0.05, 0.1, 0.15, 0.2), datasets=("d", "e")))
    averaged = compare(scores({"a": first.mean(axis=1), "b": second.mean(axis=1)}, datasets=("d", "e")))
    assert (found.units, found.blocks, found.total_blocks) == (6, 24, 24)
    assert found.p_values == pytest.approx(averaged.p_values)


def test_worse_equivalent_and_how_many_seeds_are_missing() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(60, 5, 10)
    close = base - rng.normal(0.1, 0.2, 10)
    found = compare(scores({"low": base - 4, "best": base, "close": close}))
    assert found.best == "best"
    assert found.worse("low")
    assert not found.worse("close")
    assert not found.worse("best")
    assert found.equivalent == ("close",)
    difference = base - close
    effect = difference.mean() / difference.std(ddof=1)
    bar = stats.norm.ppf(1 - 0.05 / 6) + stats.norm.ppf(0.8)
    assert found.more_seeds == {"close": int(np.ceil((bar / effect) ** 2 - 10))}


def test_fewer_than_six_units_give_no_verdict() -> None:
    for units in range(1, FEWEST_UNITS):
        found = compare(scores({"a": np.full(units, 5.0), "b": np.full(units, 1.0)}))
        assert (found.decided, found.worse("b"), found.equivalent) == (False, False, ())
        assert found.best == "a"
    assert compare(scores({"a": np.full(6, 5.0), "b": np.full(6, 1.0)})).worse("b")


def test_a_hopeless_method_does_not_hide_what_the_others_show() -> None:
    rng = np.random.default_rng(3)
    rows = {f"m{k}": rng.normal(60 - 1.5 * (k == 2), 0.5, 10) for k in range(3)}
    without = compare(scores(rows))
    assert without.worse("m2")
    for gap, spread in ((50, 0.5), (50, 20)):  # as bad everywhere, or somewhere
        with_it = compare(scores({**rows, "hopeless": rng.normal(60 - gap, spread, 10)}))
        assert with_it.worse("m2")
        assert with_it.worse("hopeless")


def test_equal_scores_are_never_told_apart() -> None:
    row = np.array([5.0, 6, 7, 5, 6, 7, 5])
    found = compare(scores({"a": row, "b": row, "c": row}))
    assert found.best == "a"
    assert set(found.p_values.values()) == {1.0}
    assert found.more_seeds == {"b": None, "c": None}


def test_a_method_with_few_results_does_not_shrink_the_units_of_the_others() -> None:
    rows = scores({"a": np.full(8, 5.0), "b": np.full(7, 4.0), "c": np.full(1, 9.0)})
    found = compare({**rows, "d": {}})
    assert (found.best, found.units, found.total_blocks) == ("a", 7, 8)
    assert found.left_out == {"c": 1, "d": 0}
    assert found.worse("b")
    assert not found.worse("c")


def test_a_method_that_cuts_the_units_of_the_others_is_named() -> None:
    rows = scores({"a": np.full(10, 5.0), "b": np.full(10, 4.0), "half": np.full(5, 4.5)})
    found = compare(rows)
    assert (found.units, found.left_out, found.cuts) == (5, {}, {"half": (10, 10)})
    assert compare({name: rows[name] for name in "ab"}).cuts == {}
    # Two that lack different units: each alone gives the others one more.
    rows = scores({name: np.arange(8.0) for name in "abcd"})
    del rows["c"]["d", 0.05, 0], rows["d"]["d", 0.05, 7]
    assert compare(rows).cuts == {"c": (7, 7), "d": (7, 7)}


def test_a_ratio_that_one_method_lacks_counts_for_no_method() -> None:
    # "b" lacks the easy ratio of one seed: its mean there must not be held against that of both ratios.
    rows = {
        name: {("d", r, s): base + 30 * (r == 0.2) for r in (0.05, 0.2) for s in range(6)}
        for name, base in (("a", 40.0), ("b", 41.0))
    }
    del rows["b"]["d", 0.2, 3]
    found = compare(rows)
    assert (found.best, found.units, found.blocks) == ("b", 6, 11)
    assert found.worse("a")


def test_nothing_to_compare() -> None:
    for values in ({}, {"a": {}}, {"a": {("d", 0.1, 1): 1.0}}, scores({"a": np.ones(6)})):
        found = compare(values)
        assert (found.best, found.decided) == ("", False)
        for name in values:
            assert not found.worse(name)
    disjoint = {"a": {("d", 0.1, 1): 1.0}, "b": {("d", 0.2, 1): 1.0}}
    assert compare(disjoint).best == ""


@pytest.mark.parametrize("base", [0.0, 0.6, 60.0, 1e6])
def test_differences_of_the_size_of_rounding_are_none(base: float) -> None:
    low = np.linspace(base, base * 1.1, 8)
    above = low + 1e-12 * max(1, base)
    found = compare(scores({"a": low, "b": above, "c": low - 1e-12 * max(1, base)}))
    assert found.best == "a"
    assert set(found.pair_p_values.values()) == {1.0}
    assert found.more_seeds == {"b": None, "c": None}
    assert compare(scores({"a": low, "b": low + 1e-6 * max(1, base)})).worse("a")


def test_a_constant_difference_needs_the_units_at_which_its_pattern_is_rare() -> None:
    row = np.arange(6.0)
    assert compare(scores({"a": row + 1, "b": row}), level=0.01).more_seeds == {"b": 2}
    assert not compare(scores({"a": np.arange(7.0) + 1, "b": np.arange(7.0)}), level=0.01).worse("b")
    assert compare(scores({"a": np.arange(8.0) + 1, "b": np.arange(8.0)}), level=0.01).worse("b")
    assert compare(scores({"a": np.ones(1), "b": np.zeros(1)})).more_seeds == {}  # a unit has no spread


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"a": {("d", 0.1): 1.0}}, r"a has a score at \('d', 0.1\), not at \(dataset, ratio, seed\); give"),
        ({"a": {"d": 1.0}}, "a has a score at 'd', not at"),
        ({"a": {"abc": 1.0}}, "a has a score at 'abc', not at"),
        ({"a": {("d", 0.1, 1, 2): 1.0}}, "not at"),
        ({"a": {1: 1.0}}, "a has a score at 1, not at"),
        ({"a": {(): 1.0}}, r"a has a score at \(\), not at"),
        ({"a": {("d", None, 1): 1.0}}, "of which a part is missing"),
        ({"a": {("d", float("nan"), 1): 1.0}}, "of which a part is missing"),
        ({"a": {("d", 0.1, 1): "70"}}, r"the score of a at \('d', 0.1, 1\) is '70', no number; leave out"),
        ({"a": {("d", 0.1, 1): None}}, "is None, no number"),
        ({"a": {("d", 0.1, 1): True}}, "is True, no number"),
        ({"a": {("d", 0.1, 1): [70.0, 71.0]}}, r"is \[70.0, 71.0\], no number"),
        ({"a": [70.0]}, r"the values of a are \[70.0\]; give method -> "),
        ({"a": 70.0}, "the values of a are 70.0"),
        ({1: {("d", 0.1, 1): 1.0}}, "the method 1 is no text"),
        ([("a", {})], "the values are"),
        (None, "the values are None; give method -> "),
    ],
)
def test_malformed_values_are_refused_in_one_line(values, line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        compare(values)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    values = {
        name: {("d", np.float32(0.1), np.int64(s)): np.float32(k) for s in range(6)}
        for k, name in enumerate("ab")
    }
    assert compare(values).worse("a")


@pytest.mark.parametrize("level", [0, 1, -1, 5, float("nan"), "0.05", None])
def test_levels_outside_zero_and_one_are_refused(level) -> None:
    with pytest.raises(ValueError, match=r"level is .*; it must be a number in \(0, 1\)"):
        compare({}, level=level)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"the score of a at .*; leave out what is missing"):
        compare({"a": {("d", 0.1, 1): value}, "b": {("d", 0.1, 1): 1.0}})


def test_unknown_names_and_levels_are_refused() -> None:
    found = compare(scores({"fixmatch": np.ones(6), "cap": np.zeros(6)}))
    with pytest.raises(ValueError, match="did you mean 'fixmatch'"):
        found.worse("fixmach")
    with pytest.raises(ValueError, match="level is 5"):
        compare({}, level=5)


def test_the_order_of_blocks_and_methods_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    rows = scores({name: rng.normal(0, 1, 20) for name in "abc"})
    shuffled = {name: dict(reversed(rows[name].items())) for name in "cab"}
    assert compare(shuffled).p_values == pytest.approx(compare(rows).p_values)


def test_patterns_in_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    rows = scores({f"m{k}": rng.normal(0, 1, 9) for k in range(5)})
    whole = compare(rows).pair_p_values
    monkeypatch.setattr("results.statistics.CELLS", 70)
    assert compare(rows).pair_p_values == whole

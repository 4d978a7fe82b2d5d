from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from results.statistics import compare_with_best, holm, sign_flip_test, smallest_p


def test_sign_flips_equal_the_literal_enumeration_and_scipy() -> None:
    differences = np.array([0.8, -0.2, 1.5, 0.3, 0.3, -0.9, 0.4])
    observed = abs(differences.mean())
    flips = [abs(np.mean(differences * s)) for s in itertools.product((1, -1), repeat=7)]
    expected = np.mean([value >= observed - 1e-12 for value in flips])
    assert sign_flip_test(differences) == pytest.approx(expected)
    scipy = stats.permutation_test(
        (differences, np.zeros(7)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert sign_flip_test(differences) == pytest.approx(scipy.pvalue)


def test_many_blocks_are_sampled_from_a_fixed_seed() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0.4, 1, size=24)
    p = sign_flip_test(differences)
    assert p == sign_flip_test(differences)
    # With 24 blocks the flip distribution is close to the t distribution.
    assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)
    assert sign_flip_test(np.full(24, 2.0)) == smallest_p(24)


@pytest.mark.parametrize("blocks", range(1, 9))
def test_smallest_p_is_reached_when_all_differences_agree(blocks: int) -> None:
    assert sign_flip_test(np.full(blocks, 0.7)) == smallest_p(blocks) == 2 / 2**blocks


def test_no_difference_and_no_block_give_one() -> None:
    assert sign_flip_test(np.zeros(6)) == 1
    assert sign_flip_test([]) == smallest_p(0) == 1
    with pytest.raises(ValueError, match="finite"):
        sign_flip_test([1.0, float("nan")])


def test_the_level_is_kept_under_the_null() -> None:
    rng = np.random.default_rng(1)
    p = [sign_flip_test(rng.normal(size=8)) for _ in range(400)]
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def blocks(values: list[float]) -> dict[tuple, float]:
    return {("d", 0.05, seed): value for seed, value in enumerate(values)}


def test_best_equivalent_and_worse() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(60, 5, size=10)
    found = compare_with_best(
        {
            "low": blocks(list(base - 4)),
            "best": blocks(list(base)),
            "close": blocks(list(base - rng.normal(0.1, 0.2, size=10))),
        }
    )
    assert found.best == "best"
    assert found.blocks == 10
    assert found.p_values["low"] == pytest.approx(2 * 2 / 2**10)
    assert found.equivalent == ("close",)
    assert found.possible


def test_too_few_blocks_mark_nothing() -> None:
    found = compare_with_best({"a": blocks([5, 6, 7]), "b": blocks([1, 2, 3])})
    assert (found.possible, found.smallest, found.equivalent) == (False, 0.25, ())
    # six blocks suffice for one comparison but not for two
    six = {"a": blocks([5.0] * 6), "b": blocks([4.0] * 6)}
    assert compare_with_best(six).possible
    assert not compare_with_best({**six, "c": blocks([3.0] * 6)}).possible


def test_a_method_with_few_results_does_not_shrink_the_blocks_of_the_others() -> None:
    found = compare_with_best({"a": blocks([5.0] * 8), "b": blocks([4.0] * 7), "c": blocks([9.0]), "d": {}})
    assert (found.best, found.blocks, found.total_blocks) == ("a", 7, 8)
    assert found.left_out == {"c": 1, "d": 0}
    assert set(found.p_values) == {"b"}


def test_nothing_to_compare() -> None:
    assert compare_with_best({"a": blocks([1.0, 2.0]), "b": {}}).best == ""
    assert compare_with_best({}).best == ""
    disjoint = {"a": {("d", 0.1, 1): 1.0}, "b": {("d", 0.2, 1): 1.0}}
    assert compare_with_best(disjoint).best == ""

"""Bootstrap intervals against literal resampling with scikit-learn, and what they cover."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from results.bootstrap import Ranked, resample


def data(rng: np.random.Generator, images: int, classes: int, signal: float, ties: bool = False):
    labels = (rng.random((images, classes)) < 0.2).astype(np.uint8)
    labels[0] = 1
    scores = rng.normal(size=(images, classes)) + signal * labels
    return (scores.round(1) if ties else scores), labels


def literal(scores: np.ndarray, labels: np.ndarray, picks: np.ndarray) -> float:
    scores, labels = scores[picks], labels[picks]
    return 100 * float(
        np.mean(
            [
                average_precision_score(labels[:, k], scores[:, k])
                for k in range(labels.shape[1])
                if labels[:, k].any()
            ]
        )
    )


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_average_precision_is_that_of_the_repeated_images(ties: bool) -> None:
    rng = np.random.default_rng(0)
    scores, labels = data(rng, 60, 5, 1.0, ties)
    labels[:, 4] = 0
    labels[7, 4] = 1  # a class that some resamples lose
    ranked = Ranked(scores, labels)
    picks = rng.integers(0, 60, (40, 60))
    counts = np.stack([np.bincount(pick, minlength=60) for pick in picks]).astype(np.int32)
    expected = [literal(scores, labels, pick) for pick in picks]
    assert ranked.mean_ap(counts) == pytest.approx(expected, abs=1e-9)
    assert ranked.mean_ap(np.ones((1, 60), np.int32))[0] == pytest.approx(
        literal(scores, labels, np.arange(60))
    )


def test_a_resample_without_a_positive_has_no_value() -> None:
    labels = np.zeros((4, 1), np.uint8)
    labels[0] = 1
    found = Ranked(np.arange(4.0)[:, None], labels).mean_ap(np.array([[0, 2, 1, 1], [1, 1, 1, 1]], np.int32))
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(25.0)


def test_values_and_intervals_of_methods_and_of_their_difference() -> None:
    rng = np.random.default_rng(1)
    _, labels = data(rng, 300, 6, 0)
    runs = {
        name: {seed: (rng.normal(size=labels.shape) + signal * labels, labels) for seed in (1, 2, 3)}
        for name, signal in (("a", 2.0), ("b", 1.0))
    }
    found = resample(runs, 400)
    for name in runs:
        mean = np.mean([literal(*runs[name][seed], np.arange(300)) for seed in (1, 2, 3)])
        interval = found.interval(name)
        assert interval.value == pytest.approx(mean)
        assert interval.low < interval.value < interval.high
    assert found.difference("b", "a").high < 0
    assert found.difference("a", "a").low == found.difference("a", "a").high == 0
    again = resample(runs, 400)
    assert np.array_equal(found.draws["a"], again.draws["a"])


def test_trainings_that_differ_widen_what_images_say_and_equal_ones_do_not() -> None:
    rng = np.random.default_rng(5)
    _, labels = data(rng, 300, 6, 0)
    noise = rng.normal(size=labels.shape)
    same = dict.fromkeys((1, 2, 3), (noise + labels, labels))
    apart = {seed: (noise + signal * labels, labels) for seed, signal in ((1, 0.7), (2, 1.1), (3, 1.8))}
    one, three = resample({"a": {1: same[1]}}, 200), resample({"a": same, "b": apart}, 200)
    assert three.interval("a") == one.interval("a")  # as of a method without training
    spread = np.std(three.points["b"], ddof=1) / np.sqrt(3)
    assert (
        three.interval("b").high - three.interval("b").low > 2 * 4.3 * spread
    )  # t with 2 degrees of freedom
    # Their mean is above by points, and told from nothing: one training in three was below.
    assert three.values["b"] - three.values["a"] > 2
    assert three.pairs()["a", "b"][1] > 0.05
    close = {seed: (noise + 1.2 * labels + 0.01 * rng.normal(size=labels.shape), labels) for seed in same}
    assert resample({"a": same, "b": close}, 200).pairs()["a", "b"][1] < 0.05


def test_all_methods_get_the_same_images() -> None:
    rng = np.random.default_rng(2)
    scores, labels = data(rng, 100, 4, 1.0)
    found = resample({"a": {1: (scores, labels)}, "b": {1: (scores * 2 + 5, labels)}}, 100)
    assert np.array_equal(found.draws["a"], found.draws["b"])  # the same ranking
    assert found.difference("a", "b").low == found.difference("a", "b").high == 0


def test_the_interval_covers_the_expected_score_of_test_sets_of_this_size() -> None:
    # 80 samples of 150 images: about 95 % of the intervals hold the mean of all scores, and all their own.
    rng = np.random.default_rng(3)
    scores, labels = data(rng, 20_000, 4, 1.5)
    found = []
    for _ in range(80):
        some = rng.choice(len(scores), 150, replace=False)
        found.append(resample({"a": {1: (scores[some], labels[some])}}, 300).interval("a"))
    expected = np.mean([interval.value for interval in found])
    assert sum(interval.low <= expected <= interval.high for interval in found) >= 68
    assert all(interval.low < interval.value < interval.high for interval in found)


def test_a_score_that_trainings_throw_about_stays_a_percentage() -> None:
    rng = np.random.default_rng(6)
    _, labels = data(rng, 200, 3, 0)
    noise = rng.normal(size=labels.shape)
    runs = {seed: (noise + signal * labels, labels) for seed, signal in ((1, -2.0), (2, 1.0), (3, 9.0))}
    found = resample({"a": runs}, 100).interval("a")
    assert (found.low, found.high) == (0, 100)


def test_what_is_refused() -> None:
    rng = np.random.default_rng(4)
    scores, labels = data(rng, 20, 2, 1.0)
    with pytest.raises(ValueError, match="no method"):
        resample({})
    with pytest.raises(ValueError, match="no seed has a run of every method: a, b"):
        resample({"a": {1: (scores, labels)}, "b": {2: (scores, labels)}})
    with pytest.raises(ValueError, match="b, seed 1: its test images or labels are others"):
        resample({"a": {1: (scores, labels)}, "b": {1: (scores, labels[::-1])}})
    with pytest.raises(ValueError, match="no class has a positive"):
        resample({"a": {1: (scores, np.zeros_like(labels))}})

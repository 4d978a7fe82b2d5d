"""The study of intervals draws what it says, and equal methods are told apart about as often as promised."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.checks.coverage import LEAD, SCORE, draw, measure
from results.bootstrap import Ranked


def test_runs_have_the_expected_scores_and_spread_that_the_study_states() -> None:
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(120):
        runs = draw(rng, [0.0, 0.0, 6.0], 1, 100, 4, LEAD)
        scores.append([Ranked(*run[0]).mean_ap(np.ones((1, 100), np.int32))[0] for run in runs.values()])
    first, second, varied = np.transpose(scores)
    # A standard error is about 0.4 points; images are common, so less of a difference.
    assert second.mean() == pytest.approx(SCORE, abs=1.5)
    assert varied.mean() == pytest.approx(SCORE, abs=2.0)
    assert (first - second).mean() == pytest.approx(LEAD, abs=1.2)
    assert np.std(varied - second) ** 2 - np.std(first - second) ** 2 == pytest.approx(36, rel=0.35)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seeds"), [("steady", 1), ("steady", 3), ("even", 3), ("uneven", 3)])
def test_equal_methods_are_told_apart_in_about_five_percent(kind: str, seeds: int) -> None:
    # 200 draws have a standard error of 1.5 %.
    found = measure(kind, seeds, 200, 4, 200, 200)
    assert found["error"] <= 0.1
    assert min(found["score"], found["score of the last"], found["difference"]) >= 0.9

"""The study of the significance test draws what it says, and its scenarios keep the promised error rate."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.checks.significance import draw, present

KINDS = ("own", "common")


@pytest.mark.parametrize(("kind", "differences"), [("own", 0.6), ("common", 0.0)])
def test_scores_have_the_variance_and_correlations_that_the_study_states(
    kind: str, differences: float
) -> None:
    scores = draw(np.random.default_rng(0), kind, [0.0, 3.0], seeds=40_000)
    assert scores.shape == (2, 2, 4, 40_000)
    assert scores.mean(axis=(1, 2, 3)) == pytest.approx([0, 3], abs=0.02)
    assert scores.var(axis=3) == pytest.approx(1, abs=0.03)
    assert np.corrcoef(scores[0, 0, 0], scores[0, 0, 3])[0, 1] == pytest.approx(0.6, abs=0.02)
    assert np.corrcoef(scores[0, 0, 0], scores[0, 1, 0])[0, 1] == pytest.approx(0, abs=0.02)
    first, second = scores[0, 0, :2] - scores[1, 0, :2]
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(differences, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("means", [[0.0] * 7, [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, -30.0]], ids=str)
def test_a_truly_best_method_is_called_worse_in_at_most_six_percent(kind: str, means: list[float]) -> None:
    # Not the study's seed: its own draws would only repeat it. 1,000 draws have a standard error of 0.7 %.
    rng = np.random.default_rng(20261128)
    leading = means.count(max(means))
    wrong = sum(any(present(draw(rng, kind, means))[:leading]) for _ in range(1000))
    assert wrong <= 60


def test_a_hopeless_method_takes_no_power() -> None:
    found = []
    for further in ([], [-30.0]):
        rng = np.random.default_rng(3)
        drawn = (present(draw(rng, "own", [2.0, *[0.0] * 6, *further])) for _ in range(200))
        found.append(np.mean([worse[1:7] for worse in drawn]))
    assert min(found) > 0.9

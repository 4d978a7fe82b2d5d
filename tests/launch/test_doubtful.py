"""Warnings on a finished run: a score near chance, and no pseudo-positive at all."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from benchmarks.launch.doubtful import doubts

RNG = np.random.default_rng(0)
LABELS = (RNG.random((2000, 8)) < np.linspace(0.02, 0.3, 8)).astype(np.uint8)
LABELS[:, 3] = 0  # a class without a positive has no score


def mean_ap(scores):
    return 100 * np.mean([average_precision_score(LABELS[:, k], scores[:, k]) for k in range(8) if k != 3])


def epoch(op):
    return {"epoch": 1, "pseudo_labels": op and {"OP": None if op == "none" else op}}


@pytest.mark.parametrize(("signal", "near"), [(0.0, True), (1.5, False)])
def test_a_random_ranking_is_near_chance_and_one_that_has_learnt_is_not(signal, near):
    score = mean_ap(RNG.normal(size=LABELS.shape) + signal * LABELS)
    found = doubts(score, LABELS, [])
    assert bool(found) == near
    if near:
        chance = 100 * np.delete(LABELS.mean(axis=0), 3).mean()
        assert f"mAP {score:.2f} is near chance ({chance:.2f}, the mean frequency" in found[0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([epoch("none"), epoch("none")], True),
        ([epoch(None), epoch("none")], True),  # a warm-up has none to choose
        ([epoch("none"), epoch(3.0)], False),
        ([epoch(None)], False),
        ([], False),
    ],
)
def test_a_run_that_never_chose_a_pseudo_positive_is_named(rows, said):
    found = doubts(90.0, LABELS, rows)
    assert [line.startswith("no pseudo-positive was chosen in any of its") for line in found] == [True] * said


def test_labels_without_a_positive_have_no_chance_to_be_near():
    assert doubts(0.0, np.zeros((4, 2), np.uint8), []) == []

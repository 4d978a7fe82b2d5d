"""The measures against scikit-learn and against literal loops."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
)

from benchmarks.training import metrics


def literal_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """AP = sum over distinct thresholds of (recall step) x precision, written out."""
    total, value, recall_before = targets.sum(), 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        recall = targets[chosen].sum() / total
        value += (recall - recall_before) * targets[chosen].mean()
        recall_before = recall
    return value


def problem(n: int, k: int, seed: int, rate: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, k)) < rate).astype(np.uint8)
    targets[0] = 1  # every class has a positive
    return (rng.normal(size=(n, k)) + targets).astype(np.float32), targets


@pytest.mark.parametrize("levels", [None, 30, 3, 1], ids=["no-ties", "30", "3", "constant"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_average_precision_equals_scikit_learn(levels: int | None, dtype: type) -> None:
    scores, targets = problem(700, 9, seed=1)
    if levels is not None:
        edges = np.quantile(scores, np.linspace(0, 1, levels + 1)[1:-1])
        scores = np.digitize(scores, edges)
    scores = scores.astype(dtype)
    expected = average_precision_score(targets, scores.astype(np.float64), average=None)
    np.testing.assert_allclose(metrics.average_precision(scores, targets), expected, atol=1e-12)


def test_average_precision_equals_the_literal_loop_and_ignores_the_order_of_ties() -> None:
    scores, targets = problem(120, 6, seed=2)
    scores = scores.round(1)
    expected = [literal_average_precision(s, t) for s, t in zip(scores.T, targets.T, strict=True)]
    np.testing.assert_allclose(metrics.average_precision(scores, targets), expected, atol=1e-12)
    shuffled = np.random.default_rng(0).permutation(len(scores))
    np.testing.assert_array_equal(
        metrics.average_precision(scores, targets),
        metrics.average_precision(scores[shuffled], targets[shuffled]),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_tensors_give_the_numbers_of_their_own_precision(dtype: torch.dtype) -> None:
    scores, targets = problem(400, 5, seed=3)
    tensor = torch.from_numpy(scores).to(dtype).requires_grad_()
    expected = average_precision_score(targets, tensor.detach().double().numpy(), average=None)
    got = metrics.average_precision(tensor, torch.from_numpy(targets).bool())
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_integer_scores_and_float_targets() -> None:
    scores = np.array([[3], [1], [2], [2]])
    targets = np.array([[1.0], [0.0], [1.0], [0.0]])
    # thresholds 3: precision 1, recall 1/2; 2: precision 2/3, recall 1.
    assert metrics.average_precision(scores, targets)[0] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_classes_without_a_positive_are_nan_and_left_out_of_the_mean() -> None:
    scores, targets = problem(300, 4, seed=4)
    targets[:, 1] = 0
    targets[:, 3] = 1
    ap = metrics.average_precision(scores, targets)
    assert np.isnan(ap[1])
    assert ap[3] == 1.0
    value, counted = metrics.mean_average_precision(scores, targets)
    assert counted == 3
    assert value == pytest.approx(100 * (ap[0] + ap[2] + ap[3]) / 3)


def test_no_class_with_a_positive_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of the 2 classes has a positive"):
        metrics.mean_average_precision(np.zeros((3, 2)), np.zeros((3, 2)))


def test_scores_that_are_not_finite_name_the_class_and_the_count() -> None:
    scores, targets = problem(50, 4, seed=5)
    scores[[3, 7], 2] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 of 50 scores of class 2 'dog' are NaN or infinite;"):
        metrics.average_precision(scores, targets, classes=["a", "b", "dog", "c"])
    scores[0, 3] = -np.inf
    with pytest.raises(ValueError, match=r"class 2 .*, and in 1 more classes"):
        metrics.average_precision(torch.from_numpy(scores), targets)


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), r"must both have shape \(N, K\)"),
        (np.zeros(3), np.zeros(3), r"must both have shape \(N, K\)"),
        (np.zeros((2, 2)), np.array([[1, 0], [-1, 0]]), "class 0 holds -1"),
        (np.zeros((2, 2)), np.array([[1, 0], [0, 0.5]]), "class 1 holds 0.5"),
    ],
)
def test_malformed_input(scores: np.ndarray, targets: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.average_precision(scores, targets)


def test_speed_against_scikit_learn() -> None:
    scores, targets = problem(20_000, 30, seed=6, rate=0.04)

    def best(function, repeats: int) -> float:  # type: ignore[no-untyped-def]
        times = []
        for _ in range(repeats):
            start = time.process_time()  # other processes do not count
            function()
            times.append(time.process_time() - start)
        return min(times)

    ours = best(lambda: metrics.average_precision(scores, targets), 5)
    theirs = best(lambda: average_precision_score(targets, scores, average=None), 2)
    # About 5x when measured alone; half of it is enough to notice an argsort or a slow copy.
    assert theirs > 2.5 * ours


def test_f1_equals_scikit_learn_with_both_scales() -> None:
    logits, targets = problem(500, 7, seed=7)
    logits -= 1
    logits[:, 2] = -5  # never predicted: precision counts as zero
    targets[:, 4] = 0  # absent: left out of CP and CR, but its false positives count in OP
    predicted = logits > 0
    present = np.delete(np.arange(7), 4)
    cp = precision_score(targets[:, present], predicted[:, present], average="macro", zero_division=0)
    cr = recall_score(targets[:, present], predicted[:, present], average="macro")
    got = metrics.f1(logits, targets, scale="logits")
    assert got["OF1"] == pytest.approx(100 * f1_score(targets, predicted, average="micro"))
    assert got["OP"] == pytest.approx(100 * precision_score(targets, predicted, average="micro"))
    assert got["OR"] == pytest.approx(100 * recall_score(targets, predicted, average="micro"))
    assert got["CP"] == pytest.approx(100 * cp)
    assert got["CR"] == pytest.approx(100 * cr)
    assert got["CF1"] == pytest.approx(100 * 2 * cp * cr / (cp + cr))
    each = f1_score(targets, predicted, average=None, zero_division=0)
    assert got["per_class"][4] is None
    np.testing.assert_allclose(np.delete(got["per_class"], 4).astype(float), 100 * each[present])
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert metrics.f1(probabilities, targets, scale="probabilities") == got


def test_f1_scale_is_checked() -> None:
    logits, targets = problem(50, 3, seed=8)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\] .* scale='logits'"):
        metrics.f1(logits, targets, scale="probabilities")
    with pytest.raises(ValueError, match="unknown scale 'sigmoid'"):
        metrics.f1(logits, targets, scale="sigmoid")  # type: ignore[arg-type]
    ranking = metrics.f1(logits, targets, scale="ranking")
    assert ranking["OF1"] is None
    assert ranking["per_class"] == [None] * 3


def test_f1_without_any_prediction_is_zero() -> None:
    _, targets = problem(50, 3, seed=9)
    got = metrics.f1(np.full((50, 3), -1.0), targets, scale="logits")
    assert (got["OP"], got["OF1"], got["CF1"]) == (0.0, 0.0, 0.0)


def test_frequency_groups_are_terciles_with_stable_ties() -> None:
    counts = [5, 100, 5, 40, 0, 90, 5]
    # order: 1, 5, 3 | 0, 2 | 6, 4
    assert metrics.frequency_groups(counts) == [
        "medium",
        "head",
        "medium",
        "head",
        "tail",
        "head",
        "tail",
    ]
    assert metrics.frequency_groups([3, 7]) == ["medium", "head"]


def test_summary_is_json_and_agrees_with_its_parts() -> None:
    scores, targets = problem(400, 6, seed=10)
    targets[:, 5] = 0
    counts = np.array([60, 50, 40, 30, 20, 10])
    got = json.loads(json.dumps(metrics.summary(scores, targets, counts, scale="logits"), allow_nan=False))
    ap = 100 * metrics.average_precision(scores, targets)
    assert got["mAP"] == pytest.approx(ap[:5].mean())
    assert got["num_classes"] == 5
    assert got["AP"][:5] == pytest.approx(ap[:5])
    assert got["AP"][5] is None
    assert got["head"] == pytest.approx(ap[:2].mean())
    assert got["medium"] == pytest.approx(ap[2:4].mean())
    assert got["tail"] == pytest.approx(ap[4])
    assert got["groups"] == ["head", "head", "medium", "medium", "tail", "tail"]
    assert got["train_counts"] == counts.tolist()
    assert got["OF1"] == metrics.f1(scores, targets, scale="logits")["OF1"]
    with pytest.raises(ValueError, match="train_counts must have shape"):
        metrics.summary(scores, targets, counts[:5], scale="logits")


def pseudo_counts(targets: np.ndarray, mask: np.ndarray, truth: np.ndarray) -> dict:
    positive = (targets == 1) & (mask == 1)
    return {
        "tp": (positive & (truth == 1)).sum(0),
        "fp": (positive & (truth == 0)).sum(0),
        "fn": (~positive & (truth == 1)).sum(0),
        "tn": (~positive & (mask == 1) & (truth == 0)).sum(0),
        "used": (mask == 1).sum(0),
        "total": len(truth),
    }


def test_pseudo_label_quality_against_scikit_learn() -> None:
    rng = np.random.default_rng(11)
    truth = (rng.random((600, 5)) < 0.3).astype(int)
    targets = np.where(rng.random((600, 5)) < 0.2, 1 - truth, truth)
    mask = (rng.random((600, 5)) < 0.7).astype(int)
    targets[:, 1] = 0  # no positive pseudo-label: no precision
    truth[:, 3] = 0  # no hidden positive: no recall
    found = targets * mask
    got = metrics.pseudo_label_quality(pseudo_counts(targets, mask, truth))
    precision = precision_score(truth, found, average=None, zero_division=np.nan)
    recall = recall_score(truth, found, average=None, zero_division=np.nan)
    assert got["OP"] == pytest.approx(100 * precision_score(truth, found, average="micro"))
    assert got["OR"] == pytest.approx(100 * recall_score(truth, found, average="micro"))
    assert got["OF1"] == pytest.approx(100 * f1_score(truth, found, average="micro"))
    cp, cr = np.nanmean(precision), np.nanmean(recall)
    assert got["CP"] == pytest.approx(100 * cp)
    assert got["CR"] == pytest.approx(100 * cr)
    assert got["CF1"] == pytest.approx(100 * 2 * cp * cr / (cp + cr))
    assert (got["classes_CP"], got["classes_CR"]) == (4, 4)
    assert got["per_class"]["precision"][1] is None
    assert got["per_class"]["recall"][3] is None
    assert got["coverage"] == pytest.approx(100 * mask.mean())
    assert got["per_class"]["coverage"] == pytest.approx(100 * mask.mean(0))


def test_pseudo_label_quality_takes_torch_counts_and_nothing_used_is_none_not_zero() -> None:
    zero = torch.zeros(3, dtype=torch.int64)
    counts = {"tp": zero, "fp": zero, "fn": zero + 4, "tn": zero, "used": zero, "total": 10}
    got = json.loads(json.dumps(metrics.pseudo_label_quality(counts), allow_nan=False))
    assert got["OP"] is None
    assert got["CF1"] is None
    assert (got["OR"], got["CR"], got["coverage"]) == (0.0, 0.0, 0.0)
    assert got["classes_CP"] == 0


def test_pseudo_label_quality_refuses_wrong_counts() -> None:
    one = np.ones(2, dtype=int)
    counts = {"tp": one, "fp": one, "fn": one, "tn": one, "used": 3 * one, "total": 5}
    with pytest.raises(ValueError, match="lack used, total"):
        metrics.pseudo_label_quality({k: counts[k] for k in ("tp", "fp", "fn", "tn")})
    with pytest.raises(ValueError, match="class 0 do not add up"):
        metrics.pseudo_label_quality({**counts, "used": 6 * one})
    with pytest.raises(ValueError, match="one shape"):
        metrics.pseudo_label_quality({**counts, "fp": np.ones(3)})

"""Rules of CAP and D2L, against numbers of their code (`golden/noisy.json`), and numbers per image."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from methods.losses import asymmetric_loss
from methods.thresholds import (
    class_distribution_pseudo_labels,
    instance_adaptive_pseudo_labels,
    metric_adaptive_thresholds,
    top_k_pseudo_labels,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "noisy.json").read_text(encoding="utf-8"))


def literal_mat(scores, labels, beta, formula):
    """D2L's rule in loops over fractions; the lowest of the best thresholds."""
    weight = Fraction(str(beta)) if formula == "code" else Fraction(str(beta)) ** 2
    found = []
    for k in range(scores.shape[1]):
        best, chosen = Fraction(0), None
        for step in range(100):
            predicted = [
                bool(s >= torch.tensor(step / 100, dtype=torch.float64).to(scores)) for s in scores[:, k]
            ]
            hits = sum(p and bool(y) for p, y in zip(predicted, labels[:, k], strict=True))
            denominator = weight * int(labels[:, k].sum()) + sum(predicted)
            value = Fraction(hits) / denominator if hits else Fraction(0)
            if value > best:
                best, chosen = value, step / 100
        found.append(float("inf") if chosen is None else chosen)
    return found


def test_cap_labels_are_those_of_the_official_code_where_a_class_occurs():
    part = GOLDEN["cap"]
    scores, counts = torch.tensor(part["scores"]), torch.tensor(part["counts"])
    for case in part["cases"]:
        assert case["eta_neg"] == min(case["asked"], 0.998)  # it clips what it is asked for
        found = class_distribution_pseudo_labels(
            scores, counts, case["eta_pos"], case["eta_neg"], total=part["labelled"]
        )
        targets, mask = (torch.tensor(case[name], dtype=torch.float32) for name in ("targets", "mask"))
        present = counts > 0
        assert torch.equal(found.targets[:, present], targets[:, present])
        assert torch.equal(found.mask[:, present], mask[:, present])
        # The bug: index -1 is the smallest score, so all images show a class that no labelled image shows.
        assert (targets[:, ~present] == 1).all()
        assert (~present).any()
        assert (found.targets[:, ~present] == 0).all()


def test_cap_masked_loss_and_gradient_are_those_of_the_official_code():
    part = GOLDEN["cap"]["batch"]
    logits, targets, mask, loss, gradient = (
        torch.tensor(part[name], dtype=torch.float32)
        for name in ("logits", "targets", "mask", "loss", "gradient")
    )
    logits.requires_grad_()
    found = mask * asymmetric_loss(logits, targets)
    torch.testing.assert_close(found, loss, rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), logits)[0], gradient, rtol=1e-5, atol=2e-7)


def test_metric_adaptive_thresholds_are_those_of_the_official_code_where_a_class_occurs():
    part = GOLDEN["d2l"]
    scores, labels = torch.sigmoid(torch.tensor(part["logits"])), torch.tensor(part["labels"])
    present = labels.any(dim=0)
    assert present.tolist() == [True, True, True, True, False]
    for case in part["cases"]:
        found = metric_adaptive_thresholds(scores, labels, case["beta"])
        official = torch.tensor(case["thresholds"])
        assert torch.equal(found[present], official[present])
        # The bug: there the threshold stays 0, and every image is positive.
        assert official[~present].tolist() == [0.0]
        assert found[~present].tolist() == [float("inf")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("formula", ["code", "paper"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_metric_adaptive_thresholds_equal_the_literal_rule(beta, formula, dtype):
    torch.manual_seed(3)
    # Scores on the grid itself, so that >= and > differ, and few images, so that thresholds tie.
    scores = (torch.randint(0, 101, (12, 6)).double() / 100).to(dtype)
    labels = (torch.rand(12, 6) < torch.tensor([0.1, 0.3, 0.5, 0.9, 0.0, 1.0])).long()
    found = metric_adaptive_thresholds(scores, labels, beta, formula=formula)
    assert found.dtype == dtype
    assert found.double().tolist() == pytest.approx(literal_mat(scores, labels, beta, formula), abs=1e-7)


def test_beta_as_coded_is_not_the_papers():
    torch.manual_seed(0)
    labels = (torch.rand(200, 8) < 0.3).long()
    scores = torch.sigmoid(torch.randn(200, 8) + labels)
    code, paper = (metric_adaptive_thresholds(scores, labels, formula=f) for f in ("code", "paper"))
    assert (code != paper).any()
    assert (code <= paper).all()  # .25 instead of .5 for the recall: the paper's asks for more precision
    same = metric_adaptive_thresholds(scores, labels, 1.0, formula="paper")
    assert torch.equal(metric_adaptive_thresholds(scores, labels, 1.0), same)


def test_metric_adaptive_thresholds_at_the_edges():
    none = metric_adaptive_thresholds(torch.zeros(0, 3), torch.zeros(0, 3))
    assert torch.isinf(none).all()
    assert none.shape == (3,)
    assert metric_adaptive_thresholds(torch.tensor([[0.0]]), torch.ones(1, 1)).tolist() == [0.0]
    assert metric_adaptive_thresholds(torch.tensor([[1.0]]), torch.ones(1, 1)).tolist() == [0.0]
    for scores, labels, options, words in (
        (torch.tensor([[0.5, torch.nan]]), torch.zeros(1, 2), {}, "diverged"),
        (torch.tensor([[1.5]]), torch.zeros(1, 1), {}, "not logits"),
        (torch.tensor([[0.5]]), torch.full((1, 1), 0.5), {}, "labels must be 0 or 1"),
        (torch.zeros(2, 2), torch.zeros(2, 1), {}, r"must both be \(N, K\)"),
        (torch.zeros(1, 1), torch.zeros(1, 1), {"beta": -1.0}, "beta: -1 is not allowed"),
        (torch.zeros(1, 1), torch.zeros(1, 1), {"formula": "f1"}, "formula 'f1'"),
    ):
        with pytest.raises(ValueError, match=words):
            metric_adaptive_thresholds(scores, labels, **options)


def test_top_k_takes_exactly_k_and_the_lower_index_of_ties():
    torch.manual_seed(0)
    scores = torch.randint(0, 4, (50, 9)).float()
    for k in (1, 3, 9):
        found = top_k_pseudo_labels(scores, k)
        assert (found.mask == 1).all()
        for row, targets in zip(scores.tolist(), found.targets.tolist(), strict=True):
            chosen = sorted(range(9), key=lambda c: (-row[c], c))[:k]
            assert [c for c in range(9) if targets[c]] == sorted(chosen)


def test_numbers_of_an_image_follow_its_probabilities():
    torch.manual_seed(0)
    p = torch.rand(60, 7).square()
    p[0] = 0.0  # nothing is expected: one class all the same
    p[1] = 0.5  # 3.5 rounds up, and all tie
    p[2] = 1.0
    found = instance_adaptive_pseudo_labels(p)
    assert (found.mask == 1).all()
    for row, targets in zip(p.tolist(), found.targets.tolist(), strict=True):
        count = max(1, int(sum(row) + 0.5))
        chosen = sorted(range(7), key=lambda c: (-row[c], c))[:count]
        assert [c for c in range(7) if targets[c]] == sorted(chosen)
    assert found.targets[1].tolist() == [1, 1, 1, 1, 0, 0, 0]


def test_a_single_class_is_not_positive_everywhere():
    found = instance_adaptive_pseudo_labels(torch.tensor([[0.2], [0.5], [0.9]]))
    assert found.targets.tolist() == [[0], [1], [1]]


def test_empty_pools_and_wrong_input():
    for rule in (instance_adaptive_pseudo_labels, lambda scores: top_k_pseudo_labels(scores, 2)):
        assert rule(torch.zeros(0, 3)).targets.shape == (0, 3)
        with pytest.raises(ValueError, match="diverged"):
            rule(torch.tensor([[0.1, torch.nan, 0.3]]))
        with pytest.raises(ValueError, match=r"\(N, K\)"):
            rule(torch.zeros(3))
    with pytest.raises(ValueError, match="need a sigmoid"):
        instance_adaptive_pseudo_labels(torch.tensor([[1.5, 0.0]]))
    for k in (0, -1, 4):
        with pytest.raises(
            ValueError, match=f"k: {k} is not allowed; it must be between 1 and the number of"
        ):
            top_k_pseudo_labels(torch.zeros(2, 3), k)

import math

import pytest
import torch

import methods
from methods import thresholds
from methods.thresholds import (
    class_distribution_pseudo_labels,
    class_distribution_thresholds,
    fixed_pseudo_labels,
)


def literal_cap(scores, counts_of, labelled, eta_pos, eta_neg):
    """CAP's algorithm (xiemk/SSMLL-CAP) in loops, integer counts, the zero-frequency guard."""
    n, classes = scores.shape
    targets, mask = torch.zeros(n, classes), torch.zeros(n, classes)
    for k in range(classes):
        column = sorted((float(s) for s in scores[:, k]), reverse=True)
        positives = counts_of[k] * n // labelled
        sure_pos = math.floor(eta_pos * counts_of[k] * n / labelled + 1e-9)
        sure_neg = math.floor(eta_neg * (labelled - counts_of[k]) * n / labelled + 1e-9)
        for i in range(n):
            s = float(scores[i, k])
            if positives and s >= column[positives - 1]:
                targets[i, k] = 1
            used_pos = sure_pos and s >= column[sure_pos - 1]
            used_neg = sure_neg and s <= column[::-1][sure_neg - 1]
            mask[i, k] = float(bool(used_pos or used_neg))
    return targets, mask


@pytest.mark.parametrize(("eta_pos", "eta_neg"), [(1.0, 0.998), (0.5, 0.7), (1.0, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize("ties", [False, True])
def test_pseudo_labels_equal_the_literal_algorithm(eta_pos, eta_neg, ties):
    torch.manual_seed(1)
    n, labelled = 237, 29
    scores = torch.randn(n, 6)
    if ties:
        scores = scores.mul(2).round()
    counts = [0, 1, 7, 14, 28, 29]
    frequencies = torch.tensor(counts, dtype=torch.float32) / labelled
    found = class_distribution_pseudo_labels(scores, frequencies, eta_pos, eta_neg)
    targets, mask = literal_cap(scores, counts, labelled, eta_pos, eta_neg)
    assert torch.equal(found.targets, targets)
    assert torch.equal(found.mask, mask)


def test_threshold_is_the_floor_of_pi_n_th_largest_score():
    scores = torch.tensor([[0.1], [0.9], [0.5], [0.7], [0.3]])
    for share, expected in ((0.2, 0.9), (0.39, 0.9), (0.4, 0.7), (1.0, 0.1)):
        found = methods.thresholds.class_distribution_thresholds(scores, torch.tensor([share]))
        assert float(found) == pytest.approx(expected)


def test_class_absent_from_the_labelled_images_gets_no_positive():
    # The published code indexes the smallest score and makes every image positive.
    scores = torch.randn(50, 2)
    frequencies = torch.tensor([0.0, 0.01])  # floor(0.01 * 50) = 0 as well
    assert torch.isinf(class_distribution_thresholds(scores, frequencies)).all()
    found = class_distribution_pseudo_labels(scores, frequencies)
    assert found.targets.sum() == 0
    assert found.mask.mean() > 0.9  # they still teach absence


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_that_are_integers_up_to_rounding_are_those_integers(dtype):
    # 0.29 * 100 is 28.999999999999996 in double precision.
    for n in (100, 1000, 77977):
        scores = torch.arange(n, dtype=torch.float64).flip(0)[:, None]
        for count in range(1, 100, 7):
            frequencies = torch.tensor([count / 100], dtype=dtype)
            threshold = class_distribution_thresholds(scores, frequencies)
            assert int((scores >= threshold).sum()) == count * n // 100


@pytest.mark.parametrize(
    ("labelled", "pool"), [(4104, 77977), (8208, 73873), (7500, 142500), (285, 5432)]
)  # COCO 5 and 10 %, NUS-WIDE 5 %, VOC2012 5 %
def test_numbers_of_labelled_images_give_exact_counts(labelled, pool):
    scores = torch.arange(pool, dtype=torch.float64).flip(0)[:, None]
    counts = torch.arange(labelled + 1)
    wanted = [count * pool // labelled for count in range(labelled + 1)]
    found = class_distribution_thresholds(scores.expand(-1, labelled + 1)[:, ::57], counts[::57], labelled)
    assert [0 if math.isinf(value) else pool - int(value) for value in found] == wanted[::57]
    assert thresholds._counts(thresholds._shares(counts, labelled), pool).tolist() == wanted
    # As far as a frequency can say: exact for float64, and for float32 of a few thousand images.
    for dtype in (torch.float64, *((torch.float32,) if labelled < 5000 else ())):
        assert (
            thresholds._counts(thresholds._shares(counts.to(dtype) / labelled, None), pool).tolist() == wanted
        )


def test_shares_of_the_ends_are_taken_as_they_are_written():
    # 0.998 * 500 is 499 exactly, and 498.99999999999994 in float64 for some orders of the factors.
    scores = torch.arange(500.0)[:, None]
    found = class_distribution_pseudo_labels(scores, torch.tensor([0]), eta_neg=0.998, total=10)
    assert int(found.mask.sum()) == 499


@pytest.mark.parametrize("count", [-1, 11, 2.5])
def test_numbers_that_cannot_be_counts_are_refused(count):
    with pytest.raises(ValueError, match=r"must be whole and lie in \[0, 10\]"):
        class_distribution_thresholds(torch.rand(5, 1), torch.tensor([count]), 10)


def test_ties_at_the_threshold_are_all_positive():
    scores = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    found = class_distribution_pseudo_labels(scores, torch.tensor([0.25]))
    assert found.targets[:, 0].tolist() == [1, 1, 1, 0]


def test_empty_pool():
    found = class_distribution_pseudo_labels(torch.zeros(0, 3), torch.full((3,), 0.5))
    assert found.targets.shape == found.mask.shape == (0, 3)


def test_diverged_scores_and_wrong_input_are_named():
    with pytest.raises(ValueError, match="diverged"):
        class_distribution_thresholds(torch.tensor([[float("nan")]]), torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"\(N, K\)"):
        class_distribution_thresholds(torch.zeros(4, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        class_distribution_thresholds(torch.zeros(4, 1), torch.tensor([1.5]))


def test_fixed_thresholds_ignore_the_middle():
    p = torch.tensor([[0.95, 0.94, 0.5, 0.06, 0.05]])
    found = fixed_pseudo_labels(p, 0.95, 0.05)
    assert found.targets.tolist() == [[1, 0, 0, 0, 0]]
    assert found.mask.tolist() == [[1, 0, 0, 0, 1]]
    with pytest.raises(ValueError, match="below"):
        fixed_pseudo_labels(p, 0.3, 0.3)

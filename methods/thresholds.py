"""Turn scores into pseudo-labels: thresholds for classes, fixed ones, and numbers of positives for images."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from methods.base import PseudoLabels

ETA_POS = 1.0
ETA_NEG = 0.998


def class_distribution_thresholds(scores: Tensor, frequencies: Tensor, total: int | None = None) -> Tensor:
    """Class-distribution-aware thresholds of CAP (Xie et al., NeurIPS 2023).

    The threshold of class k is the floor(pi_k N)-th largest score of column k, so that the share
    of pseudo-positives (``scores >= threshold``) equals the labelled frequency pi_k; scores tied
    with the threshold are all positive. Where floor(pi_k N) = 0 the threshold is +inf and no image
    is positive. The published code indexes the *smallest* score in that case and makes every image
    positive.

    Args:
        scores: (N, K) float, comparable within a column.
        frequencies: (K,) in [0, 1], any dtype; or with ``total`` c, the numbers of labelled images that
            show each class.
        total: number of labelled images n_l. With it floor(c N / n_l) is exact, which a product of rounded
            frequencies is not for many images.

    Returns:
        (K,) tensor, dtype and device of ``scores``.

    Raises:
        ValueError: wrong shapes, a frequency outside [0, 1], a number that is not whole or outside
            [0, total], or a score that is not a number.

    Example:
        Half of the four images show the first class, none shows the second.

        >>> scores = torch.tensor([[0.9, 0.9], [0.6, 0.2], [0.4, 0.1], [0.1, 0.3]])
        >>> class_distribution_thresholds(scores, torch.tensor([0.5, 0.0]))
        tensor([0.6000,    inf])
    """
    _check(scores, frequencies, total)
    counts = _counts(_shares(frequencies, total), len(scores))
    return _pick(_descending(scores), counts.to(scores.device))


def class_distribution_pseudo_labels(
    scores: Tensor,
    frequencies: Tensor,
    eta_pos: float = ETA_POS,
    eta_neg: float = ETA_NEG,
    *,
    total: int | None = None,
) -> PseudoLabels:
    """Pseudo-labels and mask of CAP: class-distribution-aware thresholds, most of both ends used.

    Positive: ``score >= class_distribution_thresholds``. An entry is used if it is among the
    floor(eta_pos pi_k N) largest or the floor(eta_neg (1 - pi_k) N) smallest scores of its class
    (ties included). CAP asks for eta_neg = 1 but its code clips it to 0.998, the default here.

    Args:
        scores: (N, K) float.
        frequencies: (K,) labelled class frequencies in [0, 1], or numbers of images with ``total``.
        eta_pos: share of the predicted positives that is used, in [0, 1].
        eta_neg: share of the predicted negatives that is used, in [0, 1].
        total: see `class_distribution_thresholds`.

    Returns:
        PseudoLabels of shape (N, K).

    Raises:
        ValueError: as in `class_distribution_thresholds`, or a share outside [0, 1].

    Example:
        Two of four images are positive, and of the two negatives the surer half is used.

        >>> scores = torch.tensor([[0.9], [0.6], [0.4], [0.1]])
        >>> pseudo = class_distribution_pseudo_labels(scores, torch.tensor([0.5]), eta_neg=0.5)
        >>> pseudo.targets.flatten().tolist(), pseudo.mask.flatten().tolist()
        ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0])
    """
    _check(scores, frequencies, total)
    if not (0 <= eta_pos <= 1 and 0 <= eta_neg <= 1):
        raise ValueError(f"eta_pos={eta_pos} and eta_neg={eta_neg} must lie in [0, 1]")
    n = len(scores)
    present = _shares(frequencies, total)
    # As they are written: 0.998 is a little less in binary.
    use_positive, use_negative = Fraction(str(eta_pos)), Fraction(str(eta_neg))
    # One sort serves the three thresholds.
    ordered = _descending(scores)
    positive = scores >= _pick(ordered, _counts(present, n))
    sure_positive = scores >= _pick(ordered, _counts([use_positive * share for share in present], n))
    absent = [use_negative * (1 - share) for share in present]
    sure_negative = scores <= -_pick(-ordered.flip(1), _counts(absent, n))
    return PseudoLabels(positive.float(), (sure_positive | sure_negative).float())


def fixed_pseudo_labels(probabilities: Tensor, positive: float, negative: float) -> PseudoLabels:
    """Make an entry positive where p >= ``positive``, negative where p <= ``negative``, else ignore it.

    Args:
        probabilities: (N, K) in [0, 1].
        positive: lower bound of the positives.
        negative: upper bound of the negatives; must be smaller than ``positive``.

    Returns:
        PseudoLabels of shape (N, K).

    Raises:
        ValueError: ``negative >= positive``.

    Example:
        >>> pseudo = fixed_pseudo_labels(torch.tensor([[0.97, 0.5, 0.02]]), 0.95, 0.05)
        >>> pseudo.targets.tolist(), pseudo.mask.tolist()
        ([[1.0, 0.0, 0.0]], [[1.0, 0.0, 1.0]])
    """
    if not negative < positive:
        raise ValueError(f"the negative threshold {negative} must lie below the positive one {positive}")
    targets = probabilities >= positive
    return PseudoLabels(targets.float(), (targets | (probabilities <= negative)).float())


def metric_adaptive_thresholds(
    scores: Tensor, labels: Tensor, beta: float = 0.5, *, formula: Literal["code", "paper"] = "code"
) -> Tensor:
    """Metric-adaptive thresholds (MAT) of D2L (Xiao et al., ECCV 2024): the best on labelled images.

    The threshold t of class k is the lowest on the grid 0, .01, …, .99 that maximises
    F = (1 + beta²) tp / (beta n_true + n_pred): n_pred images have a score >= t, n_true show the class, tp do
    both. So the official code has it (github JiahaoXxX/SSMLL-D2L_MAT, 50c9a1c, cat_strategy fB, which its
    script runs with beta = 0.5); F_beta as defined has beta² in the denominator too: ``formula="paper"``.
    F is computed from counts, so thresholds that are equally good tie exactly.

    A class without a labelled positive gets +inf and no image is positive. The official code leaves its
    threshold at 0 and makes every image positive.

    Args:
        scores: (N, K) probabilities of the N labelled images.
        labels: (N, K) {0, 1}.
        beta: 0 or more; smaller than 1 prefers precision.
        formula: "code" or "paper".

    Returns:
        (K,) tensor, dtype and device of ``scores``, each on the grid or +inf.

    Raises:
        ValueError: wrong shapes, a score outside [0, 1] or not a number, a label that is neither 0 nor 1, a
            negative beta, an unknown formula.

    Example:
        Above .21, up to .80, only the positive is predicted; nobody shows the second class.

        >>> scores = torch.tensor([[0.8, 0.9], [0.2, 0.7]])
        >>> metric_adaptive_thresholds(scores, torch.tensor([[1, 0], [0, 0]]))
        tensor([0.2100,    inf])
    """
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must both be (N, K), not {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    if formula not in ("code", "paper"):
        raise ValueError(f"formula {formula!r} is neither 'code' nor 'paper'")
    if not beta >= 0:
        raise ValueError(f"beta: {beta:g} is not allowed; it must be at least 0")
    _check_numbers(scores)
    if bool(((scores < 0) | (scores > 1)).any()):
        raise ValueError("scores must be probabilities in [0, 1], not logits")
    if bool(((labels != 0) & (labels != 1)).any()):
        raise ValueError("labels must be 0 or 1")
    grid = (torch.arange(100, dtype=torch.float64) / 100).to(scores)
    shown = labels.bool()
    true = shown.sum(dim=0)
    predicted = [scores >= threshold for threshold in grid]
    hits = torch.stack([(positive & shown).sum(dim=0) for positive in predicted]).double()
    total = torch.stack([positive.sum(dim=0) for positive in predicted]).double()
    recall_weight = beta if formula == "code" else beta**2
    # Where nothing is predicted and nothing is to be found, 0 / 0: nothing is hit.
    metric = (1 + beta**2) * hits / (recall_weight * true + total).clamp(min=torch.finfo(torch.float64).tiny)
    # The first of equal maxima: argmax does not promise which one it returns.
    best = (metric == metric.amax(dim=0)).to(torch.uint8).cumsum(dim=0).eq(0).sum(dim=0)
    return torch.where(true > 0, grid[best], torch.inf)


def top_k_pseudo_labels(scores: Tensor, k: int) -> PseudoLabels:
    """Make the k classes with the highest scores of each image positive, all others negative.

    Exactly k: of tied classes the one with the lower index is taken, on every device.

    Args:
        scores: (N, K) float, comparable within a row.
        k: number of positives of an image, 1 … K.

    Returns:
        PseudoLabels of shape (N, K); every entry is used.

    Raises:
        ValueError: scores that are not (N, K), k outside 1 … K, or a score that is not a number.

    Example:
        >>> top_k_pseudo_labels(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.5]]), 2).targets
        tensor([[0., 1., 1.],
                [1., 1., 0.]])
    """
    _check_matrix(scores)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(
            f"k: {k} is not allowed; it must be between 1 and the number of classes, {scores.shape[1]}"
        )
    targets = (_ranks(scores) < k).float()
    return PseudoLabels(targets, torch.ones_like(targets))


def instance_adaptive_pseudo_labels(probabilities: Tensor) -> PseudoLabels:
    """Make as many classes of an image positive as its probabilities lead to expect.

    The n classes with the highest probabilities are positive, n = the image's sum of probabilities, rounded
    (halves up) and at least 1; with a single class at least 0, so that an image may show none. Of tied
    classes the one with the lower index is taken. This is our reading of "instance-adaptive thresholding", a
    baseline of CAP (Xie et al., NeurIPS 2023) whose rule is not published.

    Args:
        probabilities: (N, K) in [0, 1].

    Returns:
        PseudoLabels of shape (N, K); every entry is used.

    Raises:
        ValueError: probabilities that are not (N, K), one outside [0, 1] or not a number.

    Example:
        The sums are 1.6 and 0.3.

        >>> instance_adaptive_pseudo_labels(torch.tensor([[0.9, 0.6, 0.1], [0.0, 0.1, 0.2]])).targets
        tensor([[1., 1., 0.],
                [0., 0., 1.]])
    """
    _check_matrix(probabilities)
    if bool(((probabilities < 0) | (probabilities > 1)).any()):
        raise ValueError("probabilities must lie in [0, 1]; logits need a sigmoid first")
    least = min(1, probabilities.shape[1] - 1)
    expected = (probabilities.double().sum(dim=1, keepdim=True) + 0.5).floor().clamp(min=least)
    targets = (_ranks(probabilities) < expected).float()
    return PseudoLabels(targets, torch.ones_like(targets))


def _ranks(scores: Tensor) -> Tensor:
    """(N, K) place of each entry in its row, 0 for the highest; of ties the lower index comes first."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(scores.shape[1]).to(order).expand_as(order)
    )


def _check_matrix(scores: Tensor) -> None:
    if scores.ndim != 2 or not scores.shape[1]:
        raise ValueError(f"scores must be (N, K) with K >= 1, not {tuple(scores.shape)}")
    _check_numbers(scores)


def _check_numbers(scores: Tensor) -> None:
    if bool(torch.isnan(scores).any()):
        raise ValueError("scores contain values that are not a number; the model has diverged")


def _check(scores: Tensor, frequencies: Tensor, total: int | None) -> None:
    if scores.ndim != 2 or frequencies.shape != scores.shape[1:]:
        raise ValueError(
            f"scores must be (N, K) and frequencies (K,), "
            f"not {tuple(scores.shape)} and {tuple(frequencies.shape)}"
        )
    if total is None and bool(((frequencies < 0) | (frequencies > 1)).any()):
        raise ValueError("class frequencies must lie in [0, 1]")
    if total is not None and bool(
        ((frequencies < 0) | (frequencies > total) | (frequencies != frequencies.round())).any()
    ):
        raise ValueError(f"numbers of labelled images must be whole and lie in [0, {total}]")
    _check_numbers(scores)


def _shares(frequencies: Tensor, total: int | None) -> list[Fraction]:
    """Class frequencies as exact fractions; without ``total``, simple ones where rounding explains the rest.

    0.29 means 29 of 100 and not 28.999999. A float32 frequency is off by up to 6e-8 of its value, which tells
    fractions of a few thousand images apart; of more, the largest value that it can mean is taken.
    """
    if total is not None:
        return [Fraction(int(count), total) for count in frequencies.tolist()]
    largest, error = (10**6, 4e-16) if frequencies.dtype == torch.float64 else (5000, 6e-8)
    shares = []
    for value in frequencies.double().tolist():
        simple = Fraction(value).limit_denominator(largest)
        shares.append(
            simple if abs(float(simple) - value) <= error * value else Fraction(value * (1 + 2 * error))
        )
    return shares


def _counts(shares: list[Fraction], n: int) -> Tensor:
    """Floor of ``shares * n`` as (K,) int64."""
    return torch.tensor([math.floor(share * n) for share in shares], dtype=torch.int64)


def _descending(scores: Tensor) -> Tensor:
    return scores.t().contiguous().sort(dim=1, descending=True).values


def _pick(ordered: Tensor, counts: Tensor) -> Tensor:
    """The counts-th entry of each row of ``ordered`` (K, N); +inf where the count is 0."""
    counts = counts.to(ordered.device)
    index = (counts - 1).clamp(min=0)[:, None]
    if ordered.shape[1] == 0:
        return ordered.new_full((len(ordered),), torch.inf)
    picked = ordered.gather(1, index)[:, 0]
    return torch.where(counts == 0, torch.full_like(picked, torch.inf), picked)

"""Turn scores into pseudo-labels: class-distribution-aware and fixed thresholds."""

from __future__ import annotations

import math
from fractions import Fraction

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
    if bool(torch.isnan(scores).any()):
        raise ValueError("scores contain values that are not a number; the model has diverged")


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

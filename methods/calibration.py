"""How far predictions are to be trusted, by those of labelled images: bins, thresholds, a weighted loss."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from methods.base import at_least_fp32
from methods.errors import UserError, check_choice, check_range

Repair = Literal["none", "monotone", "cubic"]
REPAIRS = ("none", "monotone", "cubic")
OUTLIER = 1.5
"""Distance from the quartiles, in interquartile ranges, from which a bin is left out of the cubic."""


def bin_index(probabilities: Tensor, bins: int) -> Tensor:
    """The bin of each probability: bins of equal width over [0, 1], closed below, the last one closed.

    Computed on the tensor's device, without reading a number back.

    Args:
        probabilities: any shape, in [0, 1].
        bins: number of bins.

    Returns:
        int64 of the same shape, in [0, bins).

    >>> bin_index(torch.tensor([0.0, 0.49, 0.5, 1.0]), 2)
    tensor([0, 0, 1, 1])
    """
    values = at_least_fp32(probabilities)
    inner = torch.arange(1, bins, dtype=torch.float64, device=values.device) / bins
    return torch.bucketize(values.contiguous(), inner.to(values.dtype), right=True)


def bin_reliability(probabilities: Tensor, labels: Tensor, bins: int = 20, repair: Repair = "none") -> Tensor:
    """Share of positives among the predictions of each bin, all classes together (DiCaP, AAAI 2026).

    The weight of a pseudo-positive with probability p is then ``reliability[bin_index(p, bins)]``, that of a
    pseudo-negative 1 minus it.

    A bin without predictions has 0, as in the code (github xxjustintwxx/DiCaP_PCLab at 1261d0d, a fork; the
    official repository is not available). Its repairs:

    - "monotone" (COCO, NUS-WIDE, AWA2): an inner bin of exactly 1, or of exactly 0 from the fourth on, takes
      the mean of its neighbours; inner bins are averaged with their neighbours; then no bin exceeds one to
      its right.
    - "cubic" (VOC): after these, the first two bins become 0, bins further than 1.5 interquartile ranges
      from the quartiles are left out (the first two and the last stay), and a cubic polynomial fitted to the
      rest gives all bins, cut to [0, 1].

    In both the last bin keeps its share. The code counts no prediction of exactly 1, and looks up one that
    lies on an edge in the bin below; here both belong to the bin that `bin_index` says.

    Args:
        probabilities: (N, K) of images with labels, in [0, 1].
        labels: (N, K) in {0, 1}.
        bins: number of bins, at least 1.
        repair: "none", "monotone" or "cubic".

    Returns:
        (bins,) float64 in [0, 1].

    Raises:
        UserError: a probability outside [0, 1] or NaN, another shape of the labels, or an unknown repair.

    >>> p = torch.tensor([[0.1, 0.2], [0.6, 1.0]])
    >>> bin_reliability(p, torch.tensor([[0, 1], [1, 1]]), bins=2)
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    check_choice("repair", repair, REPAIRS)
    check_range("bins", bins, 1)
    if probabilities.shape != labels.shape:
        raise UserError(
            f"bin_reliability: probabilities have the shape {tuple(probabilities.shape)}, labels "
            f"{tuple(labels.shape)}"
        )
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise UserError(
            "bin_reliability: probabilities must lie in [0, 1]; scores are logits, apply a sigmoid first"
        )
    places = bin_index(probabilities, bins).flatten()
    count = torch.zeros(bins, dtype=torch.float64, device=places.device)
    positive = torch.zeros_like(count)
    count.index_add_(0, places, torch.ones_like(places, dtype=torch.float64))
    positive.index_add_(0, places, labels.flatten().double())
    shares = positive / count.clamp(min=1)
    return shares if repair == "none" else _repaired(shares, repair)


def _repaired(shares: Tensor, repair: Repair) -> Tensor:
    """Shares of the bins as the code repairs them; a few numbers once per epoch, so on the host."""
    raw = shares.cpu().numpy()
    bins = len(raw)
    values = raw.copy()
    if bins >= 3:
        neighbours = (raw[:-2] + raw[2:]) / 2
        inner, where = raw[1:-1], np.arange(1, bins - 1)
        filled = raw.copy()
        filled[1:-1] = np.where((inner == 1) | ((inner == 0) & (where >= 3)), neighbours, inner)
        values[1:-1] = (filled[:-2] + filled[1:-1] + filled[2:]) / 3
    values = np.minimum.accumulate(values[::-1])[::-1]
    values = _cubic(values) if repair == "cubic" and bins >= 3 else values.copy()
    values[-1] = raw[-1]
    return torch.from_numpy(values).to(shares.device)


def _cubic(values: np.ndarray) -> np.ndarray:
    """A polynomial of degree 3, or less for fewer bins, through the bins that are no outliers."""
    bins = len(values)
    centres = (np.arange(bins) + 0.5) / bins
    low, high = np.percentile(values, [25, 75])
    span = OUTLIER * (high - low)
    kept = (values >= low - span) & (values <= high + span)
    kept[[0, 1, -1]] = True
    values = values.copy()
    values[:2] = 0
    fitted = np.polynomial.Polynomial.fit(centres[kept], values[kept], min(3, int(kept.sum()) - 1))
    return np.clip(fitted(centres), 0, 1)


def middles(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(min + max)/2 of the scores of each class's positives, and of its negatives (DiCaP, AAAI 2026).

    The official code leaves scores of exactly 0 out, and stops at a class without a positive or a negative.

    Args:
        scores: (n, K) probabilities, n >= 1.
        labels: (n, K) in {0, 1}.

    Returns:
        Two (K,); .5 where a class has none.

    >>> middles(torch.tensor([[0.25, 0.9], [0.5, 0.8], [0.75, 0.1]]), torch.tensor([[1, 0], [1, 0], [0, 0]]))
    (tensor([0.3750, 0.5000]), tensor([0.7500, 0.5000]))
    """
    found = []
    for chosen in (labels > 0.5, labels < 0.5):
        least = scores.masked_fill(~chosen, torch.inf).amin(dim=0)
        greatest = scores.masked_fill(~chosen, -torch.inf).amax(dim=0)
        found.append(torch.where(chosen.any(dim=0), (least + greatest) / 2, 0.5))
    return found[0], found[1]


def margin_loss(
    logits: Tensor, targets: Tensor, gamma_pos: float = 0.0, gamma_neg: float = 4.0, clip: float = 0.05
) -> Tensor:
    """DiCaP's asymmetric loss of pseudo-labels, before their weights.

    With p = sigmoid(logits) and m = max(p − clip, 0) a positive costs ``-(1-p)^gamma_pos log(p + 1e-5)``, a
    negative ``-m^gamma_neg log(1 - m + 1e-5)``. The factors carry gradients, unlike those of
    `methods.losses.asymmetric_loss`.

    Args:
        logits: (B, K) any float dtype.
        targets: (B, K) in {0, 1}.
        gamma_pos: focusing exponent of positives.
        gamma_neg: focusing exponent of negatives.
        clip: margin of negatives.

    Returns:
        (B, K) float32, or float64 for float64 logits.

    >>> margin_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    tensor([[0.6931, 0.0245]])
    """
    present = torch.sigmoid(at_least_fp32(logits))
    # Bases stay above 0, where an exponent between 0 and 1 has an infinite slope.
    missed, margin = (1 - present).clamp(min=1e-8), (present - clip).clamp(min=1e-8)
    positive = -(missed**gamma_pos) * torch.log(present + 1e-5)
    negative = -(margin**gamma_neg) * torch.log(1 - margin + 1e-5)
    return torch.where(targets > 0.5, positive, negative)

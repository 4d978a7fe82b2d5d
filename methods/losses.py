"""Element-wise losses for multi-label targets.

All return a (B, K) float32 tensor, are computed in float32 (also under autocast; float64 logits
stay so) and leave the reduction to the caller; the methods here sum, as CAP and its relatives do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.base import at_least_fp32


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
    eps: float = 1e-8,
) -> Tensor:
    """Asymmetric loss (ASL) of Ridnik et al., ICCV 2021, as in the code of CAP and D2L.

    With p = sigmoid(logits) and q = min(1 - p + clip, 1) the loss is
    ``-[y (1-p)^gamma_pos log p + (1-y) (1-q)^gamma_neg log q]``; the logarithms' arguments are
    clamped at ``eps`` and the focal weights carry no gradient.

    Args:
        logits: (B, K) any float dtype.
        targets: (B, K) in {0, 1}; a soft target mixes the two terms.
        gamma_pos: focusing exponent of positives.
        gamma_neg: focusing exponent of negatives.
        clip: probability margin added to q, 0 for none.
        eps: smallest argument of the logarithms.

    Returns:
        (B, K) float32.

    Example:
        With p = 0.5 a positive costs log 2, a negative 0.45⁴ · -log 0.55.

        >>> asymmetric_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        tensor([[0.6931, 0.0245]])
    """
    logits = at_least_fp32(logits)
    return _asymmetric(logits, targets.to(logits), gamma_pos, gamma_neg, clip, eps)


def pair_asymmetric_loss(
    positive: Tensor,
    negative: Tensor,
    targets: Tensor,
    gamma_pos: float = 1.0,
    gamma_neg: float = 2.0,
    clip: float = 0.05,
    eps: float = 1e-6,
) -> Tensor:
    """Asymmetric loss on the soft-max of a pair of logits, as DualCoOp (NeurIPS 2022) uses it.

    The probability of presence is softmax(negative, positive)[1] = sigmoid(positive - negative).
    Entries whose target is negative (-1 = unknown) contribute 0.

    Args:
        positive: (B, K) logits for "present".
        negative: (B, K) logits for "absent".
        targets: (B, K) in {-1, 0, 1}.
        gamma_pos: focusing exponent of positives.
        gamma_neg: focusing exponent of negatives.
        clip: probability margin of negatives.
        eps: smallest argument of the logarithms.

    Returns:
        (B, K) float32.

    Example:
        Equal logits mean p = 0.5; the third entry is unknown.

        >>> same = torch.ones(1, 3)
        >>> pair_asymmetric_loss(same, same, torch.tensor([[1, 0, -1]]))
        tensor([[0.3466, 0.1211, 0.0000]])
    """
    logits = at_least_fp32(positive) - at_least_fp32(negative)
    targets = targets.to(logits)
    loss = _asymmetric(logits, targets.clamp(min=0), gamma_pos, gamma_neg, clip, eps)
    return torch.where(targets < 0, torch.zeros_like(loss), loss)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each entry.

    Args:
        logits: (B, K) any float dtype.
        targets: (B, K) in [0, 1].

    Returns:
        (B, K) float32.

    Example:
        >>> binary_cross_entropy(torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]]))
        tensor([[0.6931, 2.1269]])
    """
    logits = at_least_fp32(logits)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="none")


def _asymmetric(
    logits: Tensor, targets: Tensor, gamma_pos: float, gamma_neg: float, clip: float, eps: float
) -> Tensor:
    present = torch.sigmoid(logits)
    # sigmoid(-z) is 1 - sigmoid(z) without the cancellation for large z.
    absent = (torch.sigmoid(-logits) + clip).clamp(max=1)
    loss = targets * torch.log(present.clamp(min=eps)) * _focal(present, gamma_pos)
    loss = loss + (1 - targets) * torch.log(absent.clamp(min=eps)) * _focal(absent, gamma_neg)
    return -loss


def _focal(probability: Tensor, gamma: float) -> Tensor | float:
    return (1 - probability.detach()) ** gamma if gamma else 1.0

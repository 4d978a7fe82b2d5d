"""Logits of classes from the local features of an image, as the prompting methods aggregate them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.base import at_least_fp32, full_precision

COSINE_SCALE, SUM_SCALE = 20.0, 5.0


def region_logits(local: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Class-specific region aggregation of DualCoOp (NeurIPS 2022; github sunxm2357/DualCoOp, 49e71d7).

    Args:
        local: (B, L, d) location features.
        positive: (K, d) positive text features.
        negative: (K, d) negative text features.

    Returns:
        Two (B, K) float32 logits: locations weighted by the soft-max of the positive scores.
    """
    with full_precision(local):
        local = F.normalize(at_least_fp32(local), dim=-1)
        texts = F.normalize(at_least_fp32(torch.cat([positive, negative])), dim=-1)
        plus, minus = (COSINE_SCALE * local @ texts.T).chunk(2, dim=-1)
        weights = plus.softmax(dim=1)
        return SUM_SCALE * (weights * plus).sum(dim=1), SUM_SCALE * (weights * minus).sum(dim=1)

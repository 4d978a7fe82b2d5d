"""Angles between images and classes, and how BBAM balances and samples them; see `methods.bbam`.

All is by Li et al., "Semi-supervised Multi-label Learning with Balanced Binary Angular Margin Loss", NeurIPS
2024, as in its code (github changchunli/SSMLL-BBAM, eda5cdd).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.base import Backbone
from methods.base import at_least_fp32, full_precision
from methods.parts.heads import Classifier

LARGEST = 1 - 1e-6
"""Cosines are cut here: arccos has an infinite slope at 1."""

NARROWEST = 1e-6
"""Variance in rad² up to which angles count as equal: a spread of 0.06° that a class of one image has."""


class AngularClassifier(Classifier):
    """Cosines of projected features and class vectors: (B, 3, H, W) to (B, K) float32 in [-1, 1]."""

    calibrated = False

    def __init__(self, backbone: Backbone, classes: int, hidden: int, width: int) -> None:
        super().__init__(backbone)
        self.project = nn.Sequential(nn.Linear(backbone.dim, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.weight = nn.Parameter(nn.init.uniform_(torch.empty(classes, width), -(width**-0.5), width**-0.5))

    def embed(self, images: Tensor) -> Tensor:
        """(B, width) float32 projected features, not normalised."""
        features = self.backbone.features(images)
        with full_precision(features):
            return self.project(at_least_fp32(features))

    def cosines(self, embedded: Tensor) -> Tensor:
        """(B, K) of (B, width) projected features."""
        with full_precision(embedded):
            return F.linear(F.normalize(embedded, dim=1), F.normalize(self.weight, dim=1))

    def forward(self, images: Tensor) -> Tensor:
        """Cosines of images."""
        return self.cosines(self.embed(images))


def balanced_angles(angles: Tensor, targets: Tensor | float, means: Tensor, variances: Tensor) -> Tensor:
    """θ' = (1 − y)(a_0 θ + b_0) + y (a_1 θ + b_1), which gives both states of a class the same variance.

    a_c = √(v̄/v_c) and b_c = (1 − a_c) μ_c, with v̄ = (v_0 + v_1)/2: means stay where they are. A class of
    which a variance is 0, because nothing or one image is known of a state, keeps its angles.

    Args:
        angles: (B, K) θ in radians.
        targets: (B, K) y in [0, 1], or one number for all.
        means: (2, K) μ of the angles of negatives and of positives.
        variances: (2, K) v.

    Returns:
        (B, K), outside [0, π] for angles far from the means.

    Example:
        Negatives with variance 1 and positives with .04: v̄ = .52; the second class has no positives.

        >>> means, variances = torch.tensor([[1.5, 1.5], [1.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.04, 0.0]])
        >>> balanced_angles(torch.full((2, 2), 1.2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]), means, variances)
        tensor([[1.2837, 1.2000],
                [1.7211, 1.2000]])
    """
    known = (variances > NARROWEST).all(dim=0)
    slope = torch.where(known, (variances.mean(dim=0) / variances.clamp(min=NARROWEST)).sqrt(), 1)
    negative, positive = (a * angles + (1 - a) * mean for a, mean in zip(slope, means, strict=True))
    return (1 - targets) * negative + targets * positive


def angle_statistics(
    angles: Tensor, states: Tensor, means: Tensor, variances: Tensor, keep: float
) -> tuple[Tensor, Tensor]:
    """Means and variances of the angles of a class's negatives and positives, blended with the old ones.

    Args:
        angles: (N, K) in radians.
        states: (2, N, K) {0, 1}, which entries are negatives and which positives.
        means: (2, K) of the epoch before; 0 at the start.
        variances: (2, K) of the epoch before.
        keep: γ in [0, 1], share of the old value.

    Returns:
        Means and variances, (2, K) each. Variances are about the blended mean, divided by the number less 1.

    Example:
        Angles of 1 and 2 are of negatives, with the mean 1.5 and the variance .5; 3 is of a positive.

        >>> states = torch.tensor([[[1.0], [1.0], [0.0]], [[0.0], [0.0], [1.0]]])
        >>> old = torch.zeros(2, 1)
        >>> found = angle_statistics(torch.tensor([[1.0], [2.0], [3.0]]), states, old, old, keep=0.0)
        >>> [[round(number, 4) for number in value.flatten().tolist()] for value in found]
        [[1.5, 3.0], [0.5, 0.0]]
    """
    counts = states.sum(dim=1)
    means = (1 - keep) * (states * angles).sum(dim=1) / (counts + 1e-5) + keep * means
    spread = (states * (angles - means[:, None]).square()).sum(dim=1) / (counts - 1).clamp(min=1)
    return means, (1 - keep) * spread + keep * variances


def nearest_negatives(cosines: Tensor, states: Tensor, share: float) -> Tensor:
    """For each class the min(η·positives, negatives) negatives nearest to its prototype; ties are all taken.

    Args:
        cosines: (N, K) of images and prototypes.
        states: (2, N, K) {0, 1}, which entries are negatives and which positives.
        share: η.

    Returns:
        (N, K) bool.

    Example:
        >>> states = torch.tensor([[[0.0], [1], [1], [1]], [[1.0], [0], [0], [0]]])
        >>> nearest_negatives(torch.tensor([[0.9], [0.1], [0.8], [0.5]]), states, 2.5).flatten().tolist()
        [False, False, True, True]
    """
    negatives, positives = states.double().sum(dim=1)
    counts = torch.minimum((share * positives).floor(), negatives).long()
    candidates = torch.where(states[0].bool(), cosines, -torch.inf)
    ordered = candidates.sort(dim=0, descending=True).values
    threshold = ordered.gather(0, (counts - 1).clamp(min=0)[None])
    return (counts > 0) & states[0].bool() & (candidates >= threshold)

"""Soft consistency: the strong view of an unlabelled image is drawn to the probabilities of its weak view.

Source: the main phase of PCLP, Liu, Xu, Fang, Geng, "Correlation-Induced Label Prior for Semi-Supervised
Multi-Label Learning", ICML 2024, without its generator; code: github palm-biaoliu/pclp at 79ef2f1
(`semi_train` of main.py, read).
Golden test: `tests/methods/test_soft_consistency.py`, numbers of its losses, run and combined as in that
function.

What it does: ASL on the WEAK views of the labelled images, and binary cross-entropy between the strong view
of an unlabelled image and the probabilities of its weak view, which carry no gradient. Every entry is used,
with its probability as the target: no threshold, no mask. What PCLP's generative prior adds is what this
lacks.

What differs from the official code: both losses are means there; here the unlabelled weight multiplies
B_l/B_u times a sum, which is the ratio of its means (`methods.parts.pseudo_labelling`). The weak views of
the unlabelled images are scored in a pass of their own, without gradients; the code scores all views in one
pass, which differs where batch normalisation is trained. It starts from the shared warm-up, on strong
views, where the code has PCLP's own.

Expected score: none known; PCLP itself: see its paper (256 px, best epoch on test). Cost: one forward pass
without gradients and one forward and backward pass per unlabelled image and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from methods.base import Batch, PseudoLabels
from methods.losses import binary_cross_entropy
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod, mean_factor
from methods.registry import register


@dataclass(frozen=True)
class SoftConsistencyHyper(PseudoLabelHyper):
    """As `PseudoLabelHyper`; the weight has another meaning.

    Attributes:
        unlabelled_weight: factor between the means of both losses (official: 0.1).
    """

    unlabelled_weight: float = field(default=0.1, metadata={"low": 0.01, "high": 10.0, "scale": "log"})


@register
class SoftConsistency(PseudoLabelMethod):
    """The own weak view's probabilities as targets; see the module's docstring."""

    name = "soft_consistency"
    Hyper = SoftConsistencyHyper
    hyper: SoftConsistencyHyper

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """The probabilities of the weak views, all used."""
        soft = self.weak_probabilities(batch)
        return PseudoLabels(soft, torch.ones_like(soft))

    def unlabelled_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy of each entry, whatever the labelled loss is."""
        return binary_cross_entropy(logits, targets)

    def unlabelled_factor(self, batch: Batch) -> float:
        """The weight as a factor between means."""
        return self.hyper.unlabelled_weight * mean_factor(batch)

    def labelled_views(self, batch: Batch) -> Tensor:
        """The weak ones."""
        return batch.weak_labelled

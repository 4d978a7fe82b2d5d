"""Pseudo-Label: the model's own confident answers are labels of the view that they were given on.

Source: Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
Networks", ICML workshop 2013; code read: github microsoft/Semi-supervised-learning at 1ef4cbe
(single-label), github ytaek-oh/mlssl-simple at 027be6c (multi-label, VOC2007).
Golden test: `tests/methods/test_pseudo_label.py`, numbers of running both.

What it does: one view, the weak one, is both labelled and trained on: ŷ = 1[p >= 0.5] with p = σ(z), used
where max(p, 1 − p) >= 0.95 (or outside a pair of cut-offs), without gradients through ŷ. The weight of
the unlabelled loss rises linearly from 0 to λ_u over the first 40 % of the training. It is FixMatch
without strong views: the baseline that shows what they add.

What differs from the official code: the cut-off is Semi-supervised-learning's; mlssl-simple's default is the
pair (0.5, 0.5), every entry. The loss is ASL by default (both: cross-entropy) and summed over entries.
Semi-supervised-learning takes a mean over all entries, masked ones included: its λ = 1 is
``unlabelled_weight`` = B_l/B_u. mlssl-simple takes the mean of an image's used entries, then of the images
that have any: an image with one confident entry counts as much as one with all, which a sum does not carry
over. The ramp is (t + 1)/0.4T from t = 0, as in mlssl-simple's Mean Teacher (its Pseudo-Label has none;
Semi-supervised-learning: t/0.4T). Labelled images have the strong view, as in every method here.
Labelled and unlabelled images pass through the network together, as in mlssl-simple;
Semi-supervised-learning keeps unlabelled ones out of the statistics of batch normalisation, which are
not updated here by default. It starts from the warm-up that all pseudo-labelling methods share.

Expected score: none known under this protocol; VOC2007, ResNet-50 from random weights, 10 % labelled: 24.8
mAP in mlssl-simple's README (supervised 19.4; last epoch). Cost: one forward and backward pass per
unlabelled image and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from methods.base import Batch, StepOutput
from methods.errors import check_range
from methods.parts.pseudo_labelling import CutoffHyper, PseudoLabelMethod, ramp
from methods.registry import register


@dataclass(frozen=True)
class PseudoLabelRampHyper(CutoffHyper):
    """As `CutoffHyper`, with a ramp.

    Attributes:
        ramp: share of the training over which the weight of the unlabelled loss rises (official: 0.4).
    """

    ramp: float = field(default=0.4, metadata={"low": 0.0, "high": 1.0, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("ramp", self.ramp, 0, 1)


@register
class PseudoLabel(PseudoLabelMethod):
    """Labels and loss of the same weak view; see the module's docstring."""

    name = "pseudo_label"
    Hyper = PseudoLabelRampHyper
    hyper: PseudoLabelRampHyper

    def unlabelled_factor(self, batch: Batch) -> float:
        """λ_u times the ramp."""
        return self.hyper.unlabelled_weight * ramp(batch, self.hyper.ramp)

    def training_step(self, batch: Batch) -> StepOutput:
        """One forward pass; the weak views' logits make the pseudo-labels and take the loss."""
        logits = self.classifier(torch.cat([batch.strong_labelled, batch.weak_unlabelled]))
        labelled, unlabelled = logits.split([len(batch.labelled), len(batch.unlabelled)])
        pseudo = self.hyper.pseudo_labels(torch.sigmoid(unlabelled.detach()))
        masked = pseudo.weighted_mask * self.unlabelled_loss(unlabelled, pseudo.targets)
        losses = {
            "labelled": self.labelled_loss(labelled, batch),
            "unlabelled": self.unlabelled_factor(batch) * masked.sum(),
        }
        return StepOutput(losses, pseudo)

"""DeFixMatch: FixMatch whose pseudo-labels' error is measured on labelled images and taken off.

Source: Schmutz, Humbert, Mattei, "Don't fear the unlabelled: safe semi-supervised learning via debiasing",
ICLR 2023, arXiv 2203.07512; code read: github mxbh/spatiotemporal-ssl at 47e6299 (its multi-label form,
arXiv 2404.18583); the authors' own was not available.
Golden test: `tests/methods/test_defixmatch.py`, numbers of running it.

What it does: a control. FixMatch's loss U of the unlabelled images is no risk that one wants small: it
treats wrong pseudo-labels as right. The same loss on the labelled images, with their own pseudo-labels
(weak view → strong view) in place of their labels, has the same expectation, so that

    L = ½ (L_weak + L_strong) + λ (U(unlabelled) − U(labelled))

estimates the supervised risk without bias, for any model and any cut-off. What a method gains over
supervised training and DeFixMatch does not, is due to pseudo-labels being trusted.

What differs from the code read: the loss is ASL by default (``loss = "bce"`` is theirs). The two U have to be
means for their difference to be unbiased, and λ has to be a factor of means for the loss of a labelled
image to stay bounded (λ <= ½: what U(labelled) takes off, L_strong has put on). All is multiplied by B_l·K
to make the labelled part a sum as in every method here: sum of ½ (weak + strong), plus
λ (B_l/B_u · sum over unlabelled entries − sum over labelled entries). ``unlabelled_weight`` is therefore the
paper's λ, and not the λ_u of FixMatch here, which is larger by B_u/B_l. Weak views of unlabelled images
have a forward pass of their own. It starts from the warm-up that all pseudo-labelling methods share.

Expected score: none known under this protocol. Cost: one forward pass without gradients and one
forward and backward pass per unlabelled image, two per labelled image and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from methods.base import Batch, PseudoLabels, StepOutput
from methods.parts.pseudo_labelling import CutoffHyper, PseudoLabelMethod, mean_factor
from methods.registry import register


@dataclass(frozen=True)
class DeFixMatchHyper(CutoffHyper):
    """As `CutoffHyper`; the weight has another meaning.

    Attributes:
        unlabelled_weight: λ, a factor of means (official: 0.5). Above 0.5 the loss of a labelled image is
            unbounded below where its pseudo-label is right.
    """

    unlabelled_weight: float = field(default=0.5, metadata={"low": 0.05, "high": 0.5, "scale": "log"})


@register
class DeFixMatch(PseudoLabelMethod):
    """FixMatch minus its own loss on labelled images; see the module's docstring."""

    name = "defixmatch"
    Hyper = DeFixMatchHyper
    hyper: DeFixMatchHyper

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Confident entries of the weak view."""
        return self.hyper.pseudo_labels(self.weak_probabilities(batch))

    def training_step(self, batch: Batch) -> StepOutput:
        """Both views of labelled images, the strong view of unlabelled ones."""
        with torch.no_grad():
            pseudo = self.pseudo_labels(batch)
        counts = [len(batch.labelled), len(batch.labelled), len(batch.unlabelled)]
        views = [batch.weak_labelled, batch.strong_labelled, batch.strong_unlabelled]
        weak, strong, unlabelled = self.classifier(torch.cat(views)).split(counts)
        own = self.hyper.pseudo_labels(torch.sigmoid(weak.detach()))
        trusted = pseudo.weighted_mask * self.unlabelled_loss(unlabelled, pseudo.targets)
        error = own.weighted_mask * self.unlabelled_loss(strong, own.targets)
        weight = self.hyper.unlabelled_weight
        # A step without unlabelled images has nothing to be corrected.
        correction = weight if batch.global_unlabelled else 0.0
        losses = {
            "labelled": (self.labelled_loss(weak, batch) + self.labelled_loss(strong, batch)) / 2,
            "unlabelled": weight * mean_factor(batch) * trusted.sum(),
            "correction": -correction * error.sum(),
        }
        return StepOutput(losses, pseudo)

"""FixMatch for multi-label images: fixed confidence thresholds on the weak view.

What it does: FixMatch (Sohn et al., NeurIPS 2020) keeps a pseudo-label of the weak view when its
confidence passes a fixed threshold, and trains the strong view towards it. Here each class is a
binary problem: positive where p >= 0.95, negative where p <= 0.05, ignored in between. The loss is
ASL on the labelled strong views plus λ_u times masked ASL on the unlabelled strong views.

What differs from the original: FixMatch is single-label, and no official multi-label version is
known; this conversion is ours. Pseudo-labels come from the current model, not from an average, as
in the original. It starts from the warm-up that all pseudo-labelling methods share.

Expected score: none known under this protocol. Cost: one forward pass without gradients and one
forward and backward pass per unlabelled image and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.base import Batch, PseudoLabels
from methods.errors import UserError
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod
from methods.registry import register
from methods.thresholds import fixed_pseudo_labels


@dataclass(frozen=True)
class FixMatchHyper(PseudoLabelHyper):
    """Hyper-parameters of FixMatch: `PseudoLabelHyper` and two thresholds.

    Attributes:
        positive: probability from which an entry is pseudo-positive.
        negative: probability up to which an entry is pseudo-negative.
    """

    positive: float = 0.95
    negative: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.negative < self.positive <= 1:
            raise UserError(
                f"fixmatch: thresholds must satisfy 0 <= negative < positive <= 1, "
                f"not negative={self.negative}, positive={self.positive}"
            )


@register
class FixMatch(PseudoLabelMethod):
    """Fixed thresholds on the present model's weak view; see the module's docstring."""

    name = "fixmatch"
    version = 2
    Hyper = FixMatchHyper
    hyper: FixMatchHyper

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Confident entries of the weak view."""
        probabilities = self.weak_probabilities(batch)
        return fixed_pseudo_labels(probabilities, self.hyper.positive, self.hyper.negative)

"""The base of pseudo-labelling methods: a subclass says where pseudo-labels come from.

A pseudo-labelling baseline is `PseudoLabelMethod` plus one rule: see `methods.fixmatch`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Batch, PseudoLabels, StepOutput
from methods.errors import check_range
from methods.parts.linear import LinearHyper, LinearMethod


@dataclass(frozen=True)
class PseudoLabelHyper(LinearHyper):
    """As `LinearHyper`, with a weight for the pseudo-labelled part.

    Attributes:
        unlabelled_weight: factor λ_u of the unlabelled loss (CAP, FixMatch: 1).
    """

    unlabelled_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("unlabelled_weight", self.unlabelled_weight, 0)


class PseudoLabelMethod(LinearMethod):
    """Pseudo-labels on strong views: labelled loss + λ_u · masked loss, both summed.

    A subclass says where pseudo-labels come from. It starts from the labelled-only training of
    `methods.supervised` with the same classifier and loss, shared by all such methods.
    """

    hyper: PseudoLabelHyper
    warmup_name = "supervised"

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Return the pseudo-labels of the batch's unlabelled images; called without gradients."""
        raise NotImplementedError

    def weak_probabilities(self, batch: Batch) -> Tensor:
        """(B_u, K) probabilities of the present model on the weak views."""
        return torch.sigmoid(self.predict(batch.weak_unlabelled))

    def further_losses(self, batch: Batch, logits: Tensor, pseudo: PseudoLabels) -> dict[str, Tensor]:
        """Return further named losses of a step, by default none; every process calls it.

        Args:
            batch: the step's batch.
            logits: (B_u, K) of the strong views of the unlabelled images, with gradients.
            pseudo: their pseudo-labels.
        """
        return {}

    def training_step(self, batch: Batch) -> StepOutput:
        """Pseudo-labels without gradients, then one forward pass over all strong views."""
        with torch.no_grad():
            pseudo = self.pseudo_labels(batch)
        images = torch.cat([batch.strong_labelled, batch.strong_unlabelled])
        logits = self.classifier(images)
        labelled, unlabelled = logits.split([len(batch.labelled), len(batch.unlabelled)])
        masked = pseudo.weighted_mask * self.loss(unlabelled, pseudo.targets)
        losses = {
            "labelled": self.loss(labelled, batch.targets).sum(),
            "unlabelled": self.hyper.unlabelled_weight * masked.sum(),
            **self.further_losses(batch, unlabelled, pseudo),
        }
        return StepOutput(losses, pseudo)

    @classmethod
    def warmup_hyper(cls, hyper: PseudoLabelHyper) -> LinearHyper:
        """The `supervised` hyper-parameters with the same classifier, loss and optimiser."""
        return LinearHyper(**hyper.shared())

"""The base of methods that take what nobody said of an unlabelled image for a noisy label, "absent"."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from methods.base import Batch, PseudoLabels, StepOutput
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod


@dataclass(frozen=True)
class NoisyLabelHyper(PseudoLabelHyper):
    """As `PseudoLabelHyper`; the method's own loss is that of all its images.

    Attributes:
        loss: of the warm-up alone: "asl" or "bce".
        gamma_pos: of the warm-up's asymmetric loss (CAP: 0).
        gamma_neg: of the warm-up's asymmetric loss (CAP: 4).
        clip: of the warm-up's asymmetric loss (CAP: 0.05).
        unlabelled_weight: factor λ_u of the unlabelled loss; 1 is the official sum over all entries alike, in
            which images without any positive can outweigh the labelled ones.
    """

    unlabelled_weight: float = field(default=1.0, metadata={"low": 0.01, "high": 1.0, "scale": "log"})


class NoisyLabelMethod(PseudoLabelMethod):
    """Losses for missing labels: in the papers each image lacks some labels, here unlabelled images lack all.

    Labelled images are fully observed. A subclass has a loss for them and one for unlabelled images; both get
    strong views and are summed, which is the official mean over all entries of a batch but for a constant.
    Neither weak views nor scores of the pool are needed. Training starts from the shared warm-up on labelled
    images, which stands for the official codes' first epoch: the one after which losses are corrected.
    """

    hyper: NoisyLabelHyper

    def known(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(B_l, K) loss of labelled images."""
        raise NotImplementedError

    def unknown(self, logits: Tensor, batch: Batch) -> tuple[Tensor, PseudoLabels | None]:
        """(B_u, K) loss of unlabelled images, and the labels it takes for true; called by every process.

        Args:
            logits: (B_u, K) of the strong views, with gradients.
            batch: the step's batch.
        """
        raise NotImplementedError

    def training_step(self, batch: Batch) -> StepOutput:
        """One forward pass over all strong views."""
        logits = self.classifier(torch.cat([batch.strong_labelled, batch.strong_unlabelled]))
        labelled, unlabelled = logits.split([len(batch.labelled), len(batch.unlabelled)])
        element, pseudo = self.unknown(unlabelled, batch)
        losses = {
            "labelled": self.known(labelled, batch.targets).sum(),
            "unlabelled": self.unlabelled_factor(batch) * element.sum(),
        }
        return StepOutput(losses, pseudo)

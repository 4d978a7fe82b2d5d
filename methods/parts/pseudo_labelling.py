"""The base of pseudo-labelling methods: a subclass says where pseudo-labels come from.

A pseudo-labelling baseline is `PseudoLabelMethod` plus one rule: see `methods.fixmatch`.

Rules that hold for the whole family:

- An entry's pseudo-label is p >= 0.5, and whether it is used depends on its confidence max(p, 1 − p).
  A label that is positive from a high threshold only would teach that all entries between 0.5 and the
  threshold are negative.
- Losses are sums over a process's entries, as in CAP's code. An entry outside the mask contributes 0,
  and nothing is divided. The official code of most methods has means, over B_l·K labelled and over
  B_u·K unlabelled entries, masked ones included: its weight λ is ``unlabelled_weight`` = λ·B_l/B_u here
  (B_l, B_u: images of a step). ``unlabelled_weight`` = 1, as in CAP, is λ = B_u/B_l: 15 for 4 + 60.
- Methods whose weight has a meaning between means only (a distance that is bounded, a difference that
  has to stay bounded) multiply the unlabelled sum by B_l/B_u themselves, see `mean_factor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from methods.base import Batch, PseudoLabels, StepOutput
from methods.errors import UserError, check_range
from methods.parts.linear import LinearHyper, LinearMethod


@dataclass(frozen=True)
class PseudoLabelHyper(LinearHyper):
    """As `LinearHyper`, with a weight for the pseudo-labelled part.

    Attributes:
        unlabelled_weight: factor λ_u of the unlabelled loss (CAP, FixMatch: 1).
    """

    unlabelled_weight: float = field(default=1.0, metadata={"low": 0.1, "high": 10.0, "scale": "log"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("unlabelled_weight", self.unlabelled_weight, 0)


@dataclass(frozen=True)
class CutoffHyper(PseudoLabelHyper):
    """As `PseudoLabelHyper`, with a fixed cut-off on the confidence, or a pair of cut-offs.

    Attributes:
        confidence: an entry is used where max(p, 1 − p) reaches it; None for the pair below.
        positive: probability from which a pseudo-positive is used.
        negative: probability up to which a pseudo-negative is used.
    """

    later: ClassVar[Mapping[str, Any]] = {"confidence": None}

    confidence: float | None = field(default=None, metadata={"low": 0.5, "high": 0.99, "scale": "linear"})
    positive: float = field(default=0.95, metadata={"low": 0.5, "high": 0.99, "scale": "linear"})
    negative: float = field(default=0.05, metadata={"low": 0.01, "high": 0.5, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        pair = f"negative = {self.negative}, positive = {self.positive}"
        if not 0 <= self.negative <= 0.5 <= self.positive <= 1:
            raise UserError(
                f"{pair}: cut-offs must satisfy 0 <= negative <= 0.5 <= positive <= 1, "
                "because an entry is positive from 0.5 on"
            )
        if self.confidence is None:
            return
        check_range("confidence", self.confidence, 0.5, 1)
        if (self.positive, self.negative) != (type(self).positive, type(self).negative):
            raise UserError(f"confidence = {self.confidence} replaces the pair {pair}; give one or the other")

    def pseudo_labels(self, probabilities: Tensor) -> PseudoLabels:
        """Label (B, K) probabilities at 0.5, and use the entries that reach a cut-off."""
        if self.confidence is None:
            used = (probabilities >= self.positive) | (probabilities <= self.negative)
        else:
            used = torch.maximum(probabilities, 1 - probabilities) >= self.confidence
        return PseudoLabels((probabilities >= 0.5).to(probabilities), used.to(probabilities))


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

    def labelled_views(self, batch: Batch) -> Tensor:
        """(B_l, 3, H, W) the views of the labelled images that are trained on: the strong ones."""
        return batch.strong_labelled

    def labelled_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Summed loss of the (B_l, K) logits of the labelled images."""
        return self.loss(logits, batch.targets).sum()

    def unlabelled_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(B_u, K) element-wise loss of the unlabelled images, before mask and weight."""
        return self.loss(logits, targets)

    def unlabelled_factor(self, batch: Batch) -> float:
        """What the summed unlabelled loss of a step is multiplied by: λ_u."""
        return self.hyper.unlabelled_weight

    def further_losses(self, batch: Batch, logits: Tensor, pseudo: PseudoLabels) -> dict[str, Tensor]:
        """Return further named losses of a step, by default none; every process calls it.

        Args:
            batch: the step's batch.
            logits: (B_u, K) of the strong views of the unlabelled images, with gradients.
            pseudo: their pseudo-labels.
        """
        return {}

    def training_step(self, batch: Batch) -> StepOutput:
        """Pseudo-labels without gradients, then one forward pass over all views that are trained on."""
        with torch.no_grad():
            pseudo = self.pseudo_labels(batch)
        images = torch.cat([self.labelled_views(batch), batch.strong_unlabelled])
        logits = self.classifier(images)
        labelled, unlabelled = logits.split([len(batch.labelled), len(batch.unlabelled)])
        masked = pseudo.weighted_mask * self.unlabelled_loss(unlabelled, pseudo.targets)
        losses = {
            "labelled": self.labelled_loss(labelled, batch),
            "unlabelled": self.unlabelled_factor(batch) * masked.sum(),
            **self.further_losses(batch, unlabelled, pseudo),
        }
        return StepOutput(losses, pseudo)

    @classmethod
    def warmup_hyper(cls, hyper: PseudoLabelHyper) -> LinearHyper:
        """The `supervised` hyper-parameters with the same classifier, loss and optimiser."""
        return LinearHyper(**hyper.shared())


def ramp(batch: Batch, share: float) -> float:
    """Factor that rises linearly over the first part of a training and is 1 afterwards.

    Args:
        batch: says which step it is, of how many.
        share: length of the rise as a share of the training, in [0, 1]; 0 for none.

    Returns:
        min(1, (t + 1) / (share·T)), t from 0: the first step counts a little, not nothing.

    >>> none = torch.empty(0)
    >>> batch = Batch(0, 3, *[none] * 7, 0, 0, global_step=3, total_steps=20)
    >>> ramp(batch, 0.4), ramp(batch, 0)
    (0.5, 1.0)
    """
    steps = share * batch.total_steps
    return min(1.0, (batch.global_step + 1) / steps) if steps else 1.0


def mean_factor(batch: Batch) -> float:
    """B_l/B_u of the step over all processes; with it a summed unlabelled loss weighs as a mean does.

    The sum of a labelled sum and this times an unlabelled sum is, up to the factor B_l·K, the sum of
    their two means over all entries. 0 where the step has no labelled or no unlabelled image.

    >>> none = torch.empty(0)
    >>> mean_factor(Batch(0, 0, *[none] * 7, global_labelled=4, global_unlabelled=16))
    0.25
    """
    return batch.global_labelled / batch.global_unlabelled if batch.global_unlabelled else 0.0

"""Mean Teacher: strong views are pulled towards the probabilities of the weights' moving average.

Source: Tarvainen, Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv 1703.01780; code read:
github ytaek-oh/mlssl-simple at 027be6c (multi-label, VOC2007) and github microsoft/Semi-supervised-learning
at 1ef4cbe (single-label).
Golden test: `tests/methods/test_mean_teacher.py`, numbers of running the former, and by hand.

What it does: with p̄ = σ(z̄) of the teacher, the moving average of the weights, on the weak view, and
p = σ(z) of the student on the strong view,

    L = labelled + λ · r(t) · mean over entries of (p − p̄)²

with λ = 25 and a ramp r from 0 to 1 over the first 40 % of the training. Every entry is used, no threshold
and no hard label takes part, and gradients reach the student only.

What differs from the official code: λ = 25 is mlssl-simple's (Semi-supervised-learning: 50), a factor of a
mean over classes and images beside a labelled mean. All is multiplied by B_l·K to make the labelled part
a sum as in every method here: the unlabelled part is λ r B_l/B_u times the sum of squares, so
``unlabelled_weight`` is the paper's λ (of binary cross-entropy; beside ASL, the default here, the same λ
weighs more). The teacher is the average that the recipe keeps (``recipe.ema_decay``, 0.9997 with a warm-up in
the shipped protocols; mlssl-simple 0.99 and Semi-supervised-learning 0.999, without); at ``ema_decay`` = 0
teacher and student have the same weights, a Π-model. The teacher sees the weak view, as in
Semi-supervised-learning; in mlssl-simple both see views of the same kind. Semi-supervised-learning's
consistency has no gradient: its student's logits are overwritten with the teacher's, so its numbers are
those of supervised training. Training starts from the warm-up that all pseudo-labelling methods share.

Examined (`results/field-dev`, GlyphScenes-dev, 5 %): the nearer its weight to 0, the better: 52.9 mAP at λ
= 25, 56.4 at 5, 59.1 with nothing of the pool used. Every entry counts, the teacher's errors as much as the
rest, and of the 40 classes 10 have no predicted positive left at 25. It is the method.

Expected score: none known under this protocol; VOC2007, ResNet-50 from random weights, 10 % labelled: 23.4
mAP in mlssl-simple's README (supervised 19.4; last epoch). Cost: one forward pass without gradients and one
forward and backward pass per unlabelled image and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from methods.base import Batch, PseudoLabels
from methods.errors import check_range
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod, mean_factor, ramp
from methods.registry import register


@dataclass(frozen=True)
class MeanTeacherHyper(PseudoLabelHyper):
    """As `PseudoLabelHyper`, with a ramp; the weight has another meaning.

    Attributes:
        unlabelled_weight: λ, a factor of a mean over entries (mlssl-simple: 25).
        ramp: share of the training over which the weight rises (official: 0.4).
    """

    unlabelled_weight: float = field(default=25.0, metadata={"low": 1.0, "high": 100.0, "scale": "log"})
    ramp: float = field(default=0.4, metadata={"low": 0.0, "high": 1.0, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("ramp", self.ramp, 0, 1)


@register
class MeanTeacher(PseudoLabelMethod):
    """Squared distance to the moving average's probabilities; see the module's docstring."""

    name = "mean_teacher"
    Hyper = MeanTeacherHyper
    hyper: MeanTeacherHyper
    wants_teacher = True

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """The teacher's probabilities of the weak view, all used."""
        soft = torch.sigmoid(self.teacher.predict(batch.weak_unlabelled))
        return PseudoLabels(soft, torch.ones_like(soft))

    def unlabelled_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(p − p̄)² of each entry."""
        return (torch.sigmoid(logits) - targets).square()

    def unlabelled_factor(self, batch: Batch) -> float:
        """λ times the ramp, as a factor of a mean."""
        return self.hyper.unlabelled_weight * ramp(batch, self.hyper.ramp) * mean_factor(batch)

"""UDA for multi-label images: sharpened soft targets, and training signal annealing.

Source: Xie, Dai, Hovy, Luong, Le, "Unsupervised Data Augmentation for Consistency Training", NeurIPS 2020,
arXiv 1904.12848; code read: github google-research/uda at 960684e (the authors', TensorFlow 1) and github
microsoft/Semi-supervised-learning at 1ef4cbe, both single-label.
Golden test: `tests/methods/test_uda.py`, numbers of running the latter on binary problems; the annealing
by hand.

What it does: each class is a binary problem with p = σ(z) of the weak view. The target of the strong view is
p sharpened at temperature T, p^(1/T) / (p^(1/T) + (1 − p)^(1/T)) = σ(z/T), used where max(p, 1 − p), before
sharpening, reaches 0.8. Training signal annealing (``tsa``) leaves a labelled entry out while the
probability that the model gives its true label exceeds f(t/T_max)/2 + 1/2, with f linear, exp(5(x − 1)) or
1 − exp(−5x): few labels are not learnt by heart before the unlabelled images have had their say.

What differs from the official code: this multi-label form is ours; the constants 1/2 are its number of
states, two. T = 0.4 works: in Semi-supervised-learning the target is made from probabilities by a branch
that returns them as they are, so that its T has no effect. The annealing asks for the probability of the
true label, as the paper and the authors' code; Semi-supervised-learning asks for the largest. The loss is
binary cross-entropy, whose gradient is that of the authors' KL divergence. ASL's smallest value for a soft
target t lies at a p above t, so that targets climb from step to step: with ``loss = "asl"`` training on
GlyphScenes-dev ends at 17.2 mAP, with "bce" at 57.1 (`results/field-dev`). It is summed over
entries, left-out ones count 0: Semi-supervised-learning takes the mean over all entries (its λ = 1 is
``unlabelled_weight`` = B_l/B_u), and the authors divide the labelled sum by the number of entries left in,
which would make the few that annealing keeps as heavy as all. The authors' mask is a strict >. Labelled
images have the strong view, and training starts from the warm-up with this loss, which is not annealed.

Expected score: none known under this protocol. Cost: one forward pass without gradients and one
forward and backward pass per unlabelled image and epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from methods.base import Batch, PseudoLabels
from methods.errors import check_range
from methods.parts.pseudo_labelling import CutoffHyper, PseudoLabelMethod
from methods.registry import register

TSA_SCALE = 5.0


@dataclass(frozen=True)
class UDAHyper(CutoffHyper):
    """As `CutoffHyper` with a cut-off of 0.8, a temperature and a schedule.

    Attributes:
        loss: "bce" by default: it is smallest where p is the soft target. That of "asl" is smallest above it.
        temperature: T of the targets; 1 leaves the probabilities as they are (official: 0.4).
        tsa: schedule of the annealing of labelled entries: "none" (Semi-supervised-learning's choice),
            "linear", "exp" (for many labels) or "log" (for few).
        positive: probability from which a positive is used (official: 0.8).
        negative: probability up to which a negative is used (official: 0.2).
    """

    loss: Literal["asl", "bce"] = "bce"
    temperature: float = field(default=0.4, metadata={"low": 0.1, "high": 1.0, "scale": "log"})
    tsa: Literal["none", "linear", "exp", "log"] = "none"
    positive: float = field(default=0.8, metadata={"low": 0.5, "high": 0.99, "scale": "linear"})
    negative: float = field(default=0.2, metadata={"low": 0.01, "high": 0.5, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("temperature", self.temperature, 0.01)


def tsa_bound(schedule: str, progress: float) -> float:
    """Probability of the true label above which a labelled entry is left out.

    Args:
        schedule: "none", "linear", "exp" or "log".
        progress: share of the training that is over, in [0, 1].

    Returns:
        f/2 + 1/2, or 1 (nothing is left out) for "none".

    >>> [tsa_bound(name, 0.5) for name in ("none", "linear")]
    [1.0, 0.75]
    """
    rise = {
        "none": 1.0,
        "linear": progress,
        "exp": math.exp(TSA_SCALE * (progress - 1)),
        "log": 1 - math.exp(-TSA_SCALE * progress),
    }[schedule]
    return rise / 2 + 0.5


@register
class UDA(PseudoLabelMethod):
    """Soft sharpened targets, annealed labels; see the module's docstring."""

    name = "uda"
    Hyper = UDAHyper
    hyper: UDAHyper

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Sharpened probabilities of the weak view, where the unsharpened ones are confident."""
        logits = self.predict(batch.weak_unlabelled)
        mask = self.hyper.pseudo_labels(torch.sigmoid(logits)).mask
        return PseudoLabels(torch.sigmoid(logits / self.hyper.temperature), mask)

    def labelled_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Summed loss of the labelled entries that are not known too well yet."""
        element = self.loss(logits, batch.targets)
        if self.hyper.tsa == "none":
            return element.sum()
        p = torch.sigmoid(logits.detach())
        known = torch.where(batch.targets > 0.5, p, 1 - p)
        bound = tsa_bound(self.hyper.tsa, batch.global_step / batch.total_steps)
        return (element * (known <= bound)).sum()

"""FreeMatch: each class's threshold on confidence follows the model's own mean confidence.

Source: Wang, Chen, Heng, Hou, Fan, Wu, Wang, Savvides, Shinozaki, Raj, Schiele, Xie, "FreeMatch:
Self-adaptive Thresholding for Semi-supervised Learning", ICLR 2023, arXiv 2205.07246; its code in github
microsoft/Semi-supervised-learning at 1ef4cbe (read). The binary form per class is that of github
mxbh/spatiotemporal-ssl at 47e6299 (read), used by the authors of arXiv 2404.18583 (ECAI 2024).
Golden test: `tests/methods/test_adaptive_thresholds.py`, numbers of running the latter.

What it does: with p the weak view's probabilities, c = max(p, 1 − p) and ŷ = 1[p ≥ .5], three running
means per class start at ½: τ of c, p̃ of p, h of ŷ. They are updated with the unlabelled images of the
step, over all processes, and then an entry is used if c ≥ τ·q / max(p̃, 1 − p̃), with q = p̃ for ŷ = 1
and 1 − p̃ for ŷ = 0: the rarer state of a class has the lower bar. A fairness term is added: with a = the
pair (p̃/h, (1 − p̃)/(1 − h)) and b = the same pair of the strong view's mean probability and share of
predicted positives over the used entries, each divided by its sum, the term of a class is Σ a·log b,
which is minimised, as in the paper and the code (1/0 counts as 0).

What differs from the code: the term is the mean over the classes with at least one used entry in the
step, where the code adds up all classes and gets NaN from one without (0/0). The binary cross-entropy is
summed over entries, where theirs is a mean over all entries, masked ones included: their weight λ = 1 is
``unlabelled_weight`` = B_l/B_u for B_l labelled and B_u unlabelled images in a step; the fairness term is
multiplied by ``unlabelled_weight``·B_u·K, so that its weight relative to the unlabelled loss is theirs.
Both parts of a pair are computed by themselves, and not as b and 1 − b, whose rounding the logarithm's
slope of 10¹² makes large where b = 1. Its first 2,000 to 5,000 labelled-only steps are the warm-up that
all pseudo-labelling methods with this loss share. Not here: a quantile instead of the mean confidence,
the clip of τ at .95.

Examined (`results/field-dev`, GlyphScenes-dev, 5 %): with ``momentum`` .9 it ends at 46.6 mAP, and at 9.0
with a rate of 1e-3. The fairness term has no lower bound, and with statistics that follow at once it
outweighs the other losses (−617 against 116) until no entry is predicted positive; at .999 p̃ and h stay
near their start and it does not. It is the method; where statistics move, give a smaller
``fairness_weight``.

Expected score: none known under this protocol. Cost: one forward pass without gradients and one forward
and backward pass per unlabelled image and epoch; one sum of 3K + 1 numbers over processes before a step
and one of 3K inside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from methods.backbones.base import Backbone
from methods.base import Batch, PseudoLabels, Task
from methods.errors import check_range
from methods.parts.pseudo_labelling import PseudoLabelMethod
from methods.parts.running import RunningHyper, running_mean
from methods.registry import register

EPSILON = 1e-12
"""Added to the arguments of the fairness term's logarithms."""


@dataclass(frozen=True)
class FreeMatchHyper(RunningHyper):
    """Hyper-parameters of FreeMatch: `RunningHyper` and the fairness term.

    Attributes:
        fairness_weight: weight of the fairness term beside an unlabelled loss that is a mean (code: .01 by
            default, .001 in its configurations; binary form: .001 on a sum over 43 classes, .043 here).
    """

    fairness_weight: float = field(default=0.01, metadata={"low": 1e-4, "high": 0.1, "scale": "log"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("fairness_weight", self.fairness_weight, 0)


@register
class FreeMatch(PseudoLabelMethod):
    """Self-adaptive thresholds and fairness per class; see the module's docstring."""

    name = "freematch"
    Hyper = FreeMatchHyper
    hyper: FreeMatchHyper
    confidence: Tensor
    probability: Tensor
    histogram: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: FreeMatchHyper) -> None:
        super().__init__(backbone, task, hyper)
        for name in ("confidence", "probability", "histogram"):
            self.register_state(name, torch.full((task.num_classes,), 0.5))

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Sums of the weak views' c, p and ŷ, and their number; p is kept for the step that follows."""
        self._weak = self.weak_probabilities(batch)
        p = self._weak.double()
        return {
            "confidence": torch.maximum(p, 1 - p).sum(dim=0),
            "probability": p.sum(dim=0),
            "histogram": (p >= 0.5).double().sum(dim=0),
            "images": torch.tensor(len(p), device=p.device),
        }

    def observe(self, statistics: dict[str, Tensor]) -> None:
        """Move τ, p̃ and h towards the means of the step's images."""
        for name in ("confidence", "probability", "histogram"):
            mean, total = getattr(self, name), statistics[name]
            setattr(self, name, running_mean(mean, total, statistics["images"], self.hyper.momentum))

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Labels at .5, used from the threshold of their class and state."""
        p, mean = self._weak, self.probability
        targets = (p >= 0.5).to(p)
        ratio = torch.where(targets > 0, mean, 1 - mean) / torch.maximum(mean, 1 - mean)
        return PseudoLabels(targets, (torch.maximum(p, 1 - p) >= self.confidence * ratio).to(p))

    def further_losses(self, batch: Batch, logits: Tensor, pseudo: PseudoLabels) -> dict[str, Tensor]:
        """The fairness term of the step; all processes compute it alike, and each counts its share."""
        p = torch.sigmoid(logits)
        predicted = (p.detach() >= 0.5).to(p)
        sums = torch.stack([(pseudo.mask * part).sum(dim=0) for part in (torch.ones_like(p), p, predicted)])
        used, probability, positive = batch.total(sums)
        images = used.clamp(min=1)
        term = fairness(self.probability, self.histogram, probability / images, positive / images)
        some = (used > 0).to(term)
        mean = (some * term).sum() / some.sum().clamp(min=1)
        entries = self.unlabelled_factor(batch) * batch.global_unlabelled * self.task.num_classes
        return {"fairness": batch.share * self.hyper.fairness_weight * entries * mean}


def fairness(mean: Tensor, share: Tensor, batch_mean: Tensor, batch_share: Tensor) -> Tensor:
    """The negative cross-entropy of two pairs of balanced probabilities, for each class.

    Args:
        mean: (K,) running mean of the probabilities.
        share: (K,) running share of predicted positives.
        batch_mean: (K,) mean probability of the step's used entries, with gradients.
        batch_share: (K,) their share of predicted positives.

    Returns:
        (K,) Σ over both states of a·log(b + ε).
    """
    one, zero = _balanced(mean, share)
    batch_one, batch_zero = _balanced(batch_mean, batch_share)
    return one * torch.log(batch_one + EPSILON) + zero * torch.log(batch_zero + EPSILON)


def _balanced(mean: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Both states' mean probabilities, divided by their shares of the predictions and then by their sum."""
    one, zero = mean * _inverse(share), (1 - mean) * _inverse(1 - share)
    whole = one + zero
    return one / whole, zero / whole


def _inverse(share: Tensor) -> Tensor:
    """1/x, and 0 for 1/0."""
    return torch.where(share > 0, 1 / torch.where(share > 0, share, 1), 0)

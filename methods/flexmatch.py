"""FlexMatch: the threshold of a class is lower as long as few images are confidently given to it.

Source: Zhang, Wang, Hou, Wu, Wang, Okumura, Shinozaki, "FlexMatch: Boosting Semi-Supervised Learning with
Curriculum Pseudo Labeling", NeurIPS 2021, arXiv 2110.08263; code read: github
microsoft/Semi-supervised-learning at 1ef4cbe (single-label; no multi-label version is known, this one is
ours).
Golden test: `tests/methods/test_adaptive_thresholds.py`, numbers of running it on soft-max rows, where
both have the same memory.

What it does: a memory S ∈ {0, 1}^(n_u × K) says which classes an unlabelled image was last confidently
given: an entry becomes 1 when the weak view has p ≥ τ, 0 when 1 − p ≥ τ, and else stays. With n_k the
column sums and a_k = n_k / max(n_1 … n_K, number of images without any class), a predicted positive (p ≥
.5) of class k is used from p ≥ τ·a_k/(2 − a_k), at least .5; a negative from 1 − p ≥ τ. Thresholds are
those of the steps before: S and the counts are updated after the step, with its images on all processes.

What differs from the code: an image can have several classes, so S has K bits for each image instead of
one class; negatives, which nearly all entries are, keep the fixed threshold, and a confident negative
takes the class from the image, where the code forgets a class when another one is confidently given. The
code has a memory of its own in each process, so that thresholds depend on the process and their number;
here it is one. It recounts the whole memory after each step; here counts change with the rows that
changed. The binary cross-entropy is summed over entries, where theirs is a mean over all entries, masked
ones included: their weight λ = 1 is ``unlabelled_weight`` = B_l/B_u for B_l labelled and B_u unlabelled
images in a step. It starts from the warm-up that all pseudo-labelling methods with this loss share. A
consequence of the rule for long-tailed labels: a rare class never has many images, so its positives are
used from .5 for good.

Examined (`results/field-dev`, GlyphScenes-dev, 5 %): with τ = .95 it ends at 44.9 mAP, with .8 at 55.7,
where a training that uses nothing of the pool ends at 59.1. A positive of a rare class is used from .5, a
negative from τ: what lies between 1 − τ and .5 is used as a positive or not at all, so that such classes
fill up (precision 11 % from the second epoch on; with .8 60 %). It is the threshold; a smaller rate helps
(58.2 at 1e-4, against 58.1).

Expected score: none known under this protocol. Cost: one forward pass without gradients and one forward
and backward pass per unlabelled image and epoch; n_u·K bytes of memory, in checkpoints too; the rows of a
batch are gathered over processes, and K + 1 counts added up, once per step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from methods.backbones.base import Backbone
from methods.base import Batch, PseudoLabels, StepOutput, Task
from methods.errors import check_range
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod
from methods.registry import register


@dataclass(frozen=True)
class FlexMatchHyper(PseudoLabelHyper):
    """Hyper-parameters of FlexMatch: `PseudoLabelHyper` and the threshold.

    Attributes:
        loss: "bce" by default, as in the official code: a label at .5 needs probabilities that mean shares of
            images. The p of "asl" is .5 where 3.6 % of the images show the class.
        threshold: τ in [.5, 1], of confident predictions (paper and code: .95).
        threshold_warmup: whether the number of images without any class bounds the counts (code: true);
            then thresholds rise from .5 while most images have none.
    """

    loss: Literal["asl", "bce"] = "bce"
    threshold: float = field(default=0.95, metadata={"low": 0.7, "high": 0.99, "scale": "linear"})
    threshold_warmup: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("threshold", self.threshold, 0.5, 1)


def flexible_thresholds(counts: Tensor, unselected: Tensor, threshold: float, warmup: bool = True) -> Tensor:
    """Thresholds of predicted positives: τ·a/(2 − a) with a = counts / the largest count, at least .5.

    Args:
        counts: (K,) int, images given to each class.
        unselected: () int, images given to none.
        threshold: τ.
        warmup: whether ``unselected`` is among the counts of which the largest is taken.

    Returns:
        (K,) float64.

    Example:
        >>> flexible_thresholds(torch.tensor([10, 8, 0]), torch.tensor(4), 0.9)
        tensor([0.9000, 0.6000, 0.5000], dtype=torch.float64)
    """
    largest = torch.maximum(counts.max(), unselected) if warmup else counts.max()
    reached = counts.double() / largest.clamp(min=1)
    return (threshold * reached / (2 - reached)).clamp(min=0.5)


@register
class FlexMatch(PseudoLabelMethod):
    """Curriculum thresholds for positives; see the module's docstring."""

    name = "flexmatch"
    Hyper = FlexMatchHyper
    hyper: FlexMatchHyper
    selected: Tensor
    counts: Tensor
    unselected: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: FlexMatchHyper) -> None:
        super().__init__(backbone, task, hyper)
        memory = torch.zeros(task.num_unlabelled, task.num_classes, dtype=torch.bool)
        self.register_state("selected", memory)
        self.register_state("counts", torch.zeros(task.num_classes, dtype=torch.int64))
        self.register_state("unselected", torch.tensor(task.num_unlabelled))

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Labels at .5; positives from their class's threshold, negatives from τ."""
        hyper, p = self.hyper, self.weak_probabilities(batch)
        bar = flexible_thresholds(self.counts, self.unselected, hyper.threshold, hyper.threshold_warmup)
        positive, confident = p >= 0.5, 1 - p >= hyper.threshold
        self._weak = p  # for the memory
        return PseudoLabels(positive.to(p), torch.where(positive, p >= bar, confident).to(p))

    def training_step(self, batch: Batch) -> StepOutput:
        """A step, and what it changes in the memory."""
        output = super().training_step(batch)
        p, tau = self._weak, self.hyper.threshold
        before = self.selected[batch.unlabelled]
        after = (p >= tau) | (before & (1 - p < tau))
        # All processes keep the whole memory, because an image comes to another one next time.
        self._rows = batch.gather(batch.unlabelled), batch.gather(after)
        change = {
            "counts": (after.long() - before.long()).sum(dim=0),
            "unselected": (before.any(dim=1).long() - after.any(dim=1).long()).sum(),
        }
        return output._replace(statistics=change)

    def observe_step(self, statistics: dict[str, Tensor]) -> None:
        """Write the step's rows of the memory and move its counts."""
        images, rows = self._rows
        self.selected[images] = rows
        self.counts = self.counts + statistics["counts"]
        self.unselected = self.unselected + statistics["unselected"]

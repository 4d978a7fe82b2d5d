"""AdaMatch: thresholds relative to the confidence on labelled images, after distribution alignment.

Source: Berthelot, Roelofs, Sohn, Carlini, Kurakin, "AdaMatch: A Unified Approach to Semi-Supervised
Learning and Domain Adaptation", ICLR 2022, arXiv 2106.04732; code read: github
microsoft/Semi-supervised-learning at 1ef4cbe (single-label; no multi-label version is known, this one is
ours).
Golden test: `tests/methods/test_adaptive_thresholds.py`, numbers of running it with the two classes
absent and present, which is one class here.

What it does: each class is a binary problem. The weak views' probabilities of the unlabelled images are
aligned (p̃, see `methods.parts.alignment`) to the running mean of the predictions on weak views of
labelled images. With c = max(p̃, 1 − p̃), an entry is labelled 1[p̃ ≥ .5] and used if c ≥ ρ·(mean
confidence of that class on the labelled images of this step); ρ = .95. All means are over the step's
images of all processes, and are taken before the step's predictions are aligned and used.

What differs from the code: two states per class instead of K classes, and a threshold for each class. The
labelled mean confidence is that of the step on all processes, where the code has each process's own. The
running mean of the labelled predictions starts at their smoothed frequencies and not at one half, which
would call half of the images positive. A step without a labelled image keeps the last thresholds. The
confidence on labelled images is that of their weak views, one more forward pass here, because the
labelled loss is on strong views. The binary cross-entropy is summed over entries, where theirs is a mean
over all entries, masked ones included: their weight λ = 1 is ``unlabelled_weight`` = B_l/B_u for B_l
labelled and B_u unlabelled images in a step. As in the code and unlike the paper, logits of labelled
images are not interpolated between two forward passes. It starts from the warm-up that all
pseudo-labelling methods with this loss share.

Expected score: none known under this protocol. Cost: one forward pass without gradients per image and
epoch, and one forward and backward pass; one sum of 3K + 2 numbers over processes before a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from methods.backbones.base import Backbone
from methods.base import Batch, PseudoLabels, Task
from methods.errors import check_range
from methods.parts.alignment import LABELLED_IMAGES, DistributionAlignment
from methods.parts.pseudo_labelling import PseudoLabelMethod
from methods.parts.running import RunningHyper
from methods.registry import register


@dataclass(frozen=True)
class AdaMatchHyper(RunningHyper):
    """Hyper-parameters of AdaMatch: `RunningHyper` and the threshold.

    Attributes:
        relative_threshold: ρ, share of the labelled images' mean confidence (code: .95).
    """

    relative_threshold: float = field(default=0.95, metadata={"low": 0.7, "high": 1.0, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("relative_threshold", self.relative_threshold, 0, 1)


@register
class AdaMatch(PseudoLabelMethod):
    """Relative thresholds on aligned predictions; see the module's docstring."""

    name = "adamatch"
    Hyper = AdaMatchHyper
    hyper: AdaMatchHyper
    threshold: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: AdaMatchHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.alignment = DistributionAlignment(self, hyper.momentum, follow_labelled=True)
        # As if labelled images were certain, until there are some.
        start = torch.full((task.num_classes,), hyper.relative_threshold, dtype=torch.float64)
        self.register_state("threshold", start)

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Sums of the weak views' probabilities, and of the labelled ones' confidences."""
        images = torch.cat([batch.weak_labelled, batch.weak_unlabelled])
        p = torch.sigmoid(self.predict(images))
        labelled, self._weak = p.split([len(batch.labelled), len(batch.unlabelled)])
        confidence = torch.maximum(labelled, 1 - labelled).double().sum(dim=0)
        return {**self.alignment.sums(self._weak, labelled), "confidence": confidence}

    def observe(self, statistics: dict[str, Tensor]) -> None:
        """Move the alignment's means; set the thresholds of the step."""
        self.alignment.update(statistics)
        images = statistics[LABELLED_IMAGES]
        threshold = self.hyper.relative_threshold * statistics["confidence"] / images.clamp(min=1)
        self.threshold = torch.where(images > 0, threshold, self.threshold.to(threshold))

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Labels at .5 of the aligned probabilities, used from the threshold of their class."""
        p = self.alignment(self._weak)
        return PseudoLabels((p >= 0.5).to(p), (torch.maximum(p, 1 - p) >= self.threshold).to(p))

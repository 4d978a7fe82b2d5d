"""SoftMatch: every pseudo-label is used, with a weight that falls below the mean confidence of its class.

Source: Chen, Tao, Fan, Wang, Wang, Schiele, Xie, Raj, Savvides, "SoftMatch: Addressing the
Quantity-Quality Trade-off in Semi-supervised Learning", ICLR 2023, arXiv 2301.10921; its code in github
microsoft/Semi-supervised-learning at 1ef4cbe (read). The binary form per class is that of github
mxbh/spatiotemporal-ssl at 47e6299 (read; its default, `per_class=False`), used by the authors of arXiv
2404.18583 (ECAI 2024).
Golden test: `tests/methods/test_adaptive_thresholds.py`, numbers of running the latter.

What it does: the weak view's probabilities p are aligned to the labelled frequencies (p̃, see
`methods.parts.alignment`). With c = max(p̃, 1 − p̃), a running mean μ (start ½) and variance σ² (start 1)
of c per class, updated with the unlabelled images of the step before they are used, an entry's weight is
exp(−min(c − μ, 0)²·n_σ² / (2σ²)). Its label is 1[p ≥ .5], of the probabilities before alignment, as in
the code: alignment decides how much a label counts, not what it is.

What differs from the code: μ and the unbiased σ² of a step are those of the images of all processes, from
sums (the code gathers by a function that its class lacks, and stops with more than one process); a step
with one unlabelled image leaves σ² alone (its variance is NaN there). The target of the alignment is the
labelled frequency smoothed by one image each way. The binary cross-entropy is summed over entries, where
theirs is a mean over all entries, masked ones included: their weight λ = 1 is ``unlabelled_weight`` =
B_l/B_u for B_l labelled and B_u unlabelled images in a step. Not here: `per_class=True`, one Gaussian for
each state of a class, whose mean goes to 0 for a state that batches lack, so that all of its entries get
weight 1. It starts from the warm-up that all pseudo-labelling methods with this loss share.

Expected score: none known under this protocol. Cost: one forward pass without gradients and one forward
and backward pass per unlabelled image and epoch; two sums of K + 1 and 3K + 1 numbers over processes
before a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from methods.backbones.base import Backbone
from methods.base import Batch, PseudoLabels, Task
from methods.errors import check_range
from methods.parts.alignment import UNLABELLED_IMAGES, DistributionAlignment
from methods.parts.pseudo_labelling import PseudoLabelMethod
from methods.parts.running import RunningHyper, running_mean
from methods.registry import register

SMALLEST_VARIANCE = 1e-12
"""Keeps the weight of the mean confidence itself at 1 where all confidences are equal."""


@dataclass(frozen=True)
class SoftMatchHyper(RunningHyper):
    """Hyper-parameters of SoftMatch: `RunningHyper` and the width of the weights.

    Attributes:
        n_sigma: n_σ; the Gaussian of the weights has the standard deviation σ/n_σ (paper and code: 2).
    """

    n_sigma: float = field(default=2.0, metadata={"low": 0.5, "high": 4.0, "scale": "log"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("n_sigma", self.n_sigma, 0)


@register
class SoftMatch(PseudoLabelMethod):
    """Truncated Gaussian weights per class; see the module's docstring."""

    name = "softmatch"
    Hyper = SoftMatchHyper
    hyper: SoftMatchHyper
    mean: Tensor
    variance: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: SoftMatchHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.alignment = DistributionAlignment(self, hyper.momentum)
        self.register_state("mean", torch.full((task.num_classes,), 0.5))
        self.register_state("variance", torch.ones(task.num_classes))

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Sums for the alignment, and of c − μ and its square; p and c are kept for the step that follows.

        The predictions are aligned with the running mean that has this step's images, so those of all
        processes are added up here already.
        """
        self._weak = self.weak_probabilities(batch)
        sums = self.alignment.sums(self._weak)
        whole = {name: batch.total(value) for name, value in sums.items()}
        aligned = self.alignment(self._weak, self.alignment.mean_after(whole))
        self._confidence = torch.maximum(aligned, 1 - aligned)
        shifted = self._confidence.double() - self.mean  # small numbers: their squares lose nothing
        return {**sums, "shifted": shifted.sum(dim=0), "squares": shifted.square().sum(dim=0)}

    def observe(self, statistics: dict[str, Tensor]) -> None:
        """Move the alignment's mean, μ and σ² towards those of the step's images."""
        self.alignment.update(statistics)
        images, momentum = statistics[UNLABELLED_IMAGES], self.hyper.momentum
        shift, squares = statistics["shifted"] / images.clamp(min=1), statistics["squares"]
        unbiased = (squares - images * shift.square()).clamp(min=0)  # times images − 1
        variance = running_mean(self.variance, unbiased, (images - 1).clamp(min=0), momentum)
        self.mean = running_mean(self.mean, images * (self.mean + shift), images, momentum)
        self.variance = variance

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Labels at .5 of the plain probabilities, weights of the aligned ones."""
        below = (self._confidence - self.mean).clamp(max=0)
        width = 2 * self.variance.clamp(min=SMALLEST_VARIANCE) / self.hyper.n_sigma**2
        targets = (self._weak >= 0.5).to(self._weak)
        weight = torch.exp(-below.square() / width).to(self._weak)
        return PseudoLabels(targets, torch.ones_like(targets), weight)

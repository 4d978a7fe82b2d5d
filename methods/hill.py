"""Hill: unlabelled images count as all negative, and a negative that looks positive pushes little.

Source: Zhang, Cheng, Huang, Wen, Feng, Li, Guo, "Simple and Robust Loss Design for Multi-Label Learning with
Missing Labels", arXiv 2112.07368 (2021); code read: github xinyu1205/robust-loss-mlml at dcfa4d5.
Golden test: `tests/methods/test_noisy_losses.py`, numbers of running it: losses and gradients.

What it does: on strong views, a positive costs -(1 - q)^γ log q with q = σ(z - m), a negative (λ - p)·p² with
p = σ(z). With λ = 1.5 the slope of the latter in z is 3p²(1 - p)²: it falls again where p is large, so that a
missed positive is not pushed down for good. Labelled images are known, all entries of unlabelled images are
negatives.

What differs from the official code: there each image has some of its positives, here an image has all its
labels or none; their setting is another task. The loss is theirs, sum and all, but stays finite for logits
below -88. It starts from the shared warm-up on labelled images. Optimiser, views and backbone are the
recipe's (theirs: ResNet-50 at 448 px, Adam 1e-4, batch 128, OneCycle over 80 epochs of which 30 are run, EMA
.9997).

Examined (`results/field-dev`, GlyphScenes-dev, 5 %): 56.2 mAP with the official sum (``unlabelled_weight``
= 1), 58.4 with 0.1, 59.1 with nothing of the pool used: in a step of 8 labelled and 56 unlabelled images
the loss of entries that are assumed negative outweighs the labels. It is the weight: these losses come from
data sets where every image has a positive label.

Expected score: none known under this protocol. Cost: one forward and backward pass per unlabelled image and
epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from methods.base import Batch, PseudoLabels, at_least_fp32
from methods.errors import check_range
from methods.losses import hill_loss
from methods.parts.noisy_labels import NoisyLabelHyper, NoisyLabelMethod
from methods.registry import register


@dataclass(frozen=True)
class HillHyper(NoisyLabelHyper):
    """As `NoisyLabelHyper`, with the parameters of the loss.

    Attributes:
        margin: m, subtracted from the logits of positives (official: 1; 0.5 to 1 recommended).
        gamma: γ, focusing exponent of positives (official: 2).
        hill: λ of negatives (official: 1.5, never changed there; below 1.5 sure negatives are pushed up).
    """

    margin: float = field(default=1.0, metadata={"low": 0.5, "high": 1.0, "scale": "linear"})
    gamma: float = field(default=2.0, metadata={"low": 0.0, "high": 4.0, "scale": "linear"})
    hill: float = field(default=1.5, metadata={"low": 1.2, "high": 2.0, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("margin", "gamma"):
            check_range(name, getattr(self, name), 0)
        check_range("hill", self.hill, 1)  # below, a negative could cost less than nothing


@register
class Hill(NoisyLabelMethod):
    """Hill loss; see the module's docstring."""

    name = "hill"
    version = 1
    Hyper = HillHyper
    hyper: HillHyper

    def known(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Hill loss of labelled images."""
        hyper = self.hyper
        return hill_loss(
            logits, targets, margin=hyper.margin, gamma=hyper.gamma, weight=hyper.hill, check=False
        )

    def unknown(self, logits: Tensor, batch: Batch) -> tuple[Tensor, PseudoLabels]:
        """Hill loss with every entry negative."""
        targets = torch.zeros_like(at_least_fp32(logits.detach()))
        return self.known(logits, targets), PseudoLabels(targets, torch.ones_like(targets))

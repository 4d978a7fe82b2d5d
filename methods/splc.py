"""SPLC: unlabelled images count as all negative, until the network itself is sure of a positive.

Source: Zhang, Cheng, Huang, Wen, Feng, Li, Guo, "Simple and Robust Loss Design for Multi-Label Learning with
Missing Labels", arXiv 2112.07368 (2021); code read: github xinyu1205/robust-loss-mlml at dcfa4d5.
Golden test: `tests/methods/test_noisy_losses.py`, numbers of running it: losses and gradients.

What it does: self-paced loss correction of the focal margin loss, on strong views. A positive costs
-(1 - q)^γ log q with q = σ(z - m), a negative -p^γ log(1 - p) with p = σ(z). Labelled images are known.
Entries of unlabelled images are negatives; those with p > τ are taken for positives that nobody wrote down
and cost -(1 - p)^γ log p.

What differs from the official code: (1) there each image has some of its positives, here an image has all its
labels or none. Their setting is another task. (2) A labelled negative is never corrected: it is known. (3)
The warm-up on labelled images stands for the first epoch, in which nothing is corrected (``change_epoch = 1``
for another one). The loss is theirs, sum and all; a corrected entry has no margin, as in the code, though the
paper's formula has one. Optimiser, views and backbone are the recipe's (theirs: ResNet-50 at 448 px, Adam
1e-4, batch 128, OneCycle over 80 epochs of which 30 are run, EMA .9997).

Examined (`results/field-dev`, GlyphScenes-dev, 5 %): 54.2 mAP with the official sum (``unlabelled_weight``
= 1), 59.1 with 0.1, 59.1 with nothing of the pool used: in a step of 8 labelled and 56 unlabelled images
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
from methods.losses import splc_loss
from methods.parts.noisy_labels import NoisyLabelHyper, NoisyLabelMethod
from methods.registry import register


@dataclass(frozen=True)
class SPLCHyper(NoisyLabelHyper):
    """As `NoisyLabelHyper`, with the parameters of the loss.

    Attributes:
        margin: m, subtracted from the logits of positives (official: 1).
        gamma: γ, focusing exponent (official: 2).
        threshold: τ, above which a negative is taken for a positive (official: 0.6; 0.65 where 75 % of the
            positives are known).
        change_epoch: epoch, from 0, from which negatives are corrected (official: 1, without a warm-up).
    """

    margin: float = field(default=1.0, metadata={"low": 0.5, "high": 1.0, "scale": "linear"})
    gamma: float = field(default=2.0, metadata={"low": 0.0, "high": 4.0, "scale": "linear"})
    threshold: float = field(default=0.6, metadata={"low": 0.5, "high": 0.9, "scale": "linear"})
    change_epoch: int = field(default=0, metadata={"low": 0, "high": 3, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("margin", "gamma", "change_epoch"):
            check_range(name, getattr(self, name), 0)
        # Below 1/2 a corrected entry would be one that the network holds for a negative.
        check_range("threshold", self.threshold, 0.5, 1)


@register
class SPLC(NoisyLabelMethod):
    """Self-paced loss correction; see the module's docstring."""

    name = "splc"
    version = 1
    Hyper = SPLCHyper
    hyper: SPLCHyper

    def known(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Focal margin loss."""
        return self._loss(logits, targets, correct=False)

    def unknown(self, logits: Tensor, batch: Batch) -> tuple[Tensor, PseudoLabels]:
        """Focal loss of negatives, corrected from ``change_epoch`` on."""
        correct = batch.epoch >= self.hyper.change_epoch
        present = torch.sigmoid(at_least_fp32(logits.detach()))
        taken = (present > self.hyper.threshold) if correct else torch.zeros_like(present)
        pseudo = PseudoLabels(taken.to(present), torch.ones_like(present))
        return self._loss(logits, torch.zeros_like(present), correct), pseudo

    def _loss(self, logits: Tensor, targets: Tensor, correct: bool) -> Tensor:
        hyper = self.hyper
        return splc_loss(
            logits,
            targets,
            correct,
            margin=hyper.margin,
            gamma=hyper.gamma,
            threshold=hyper.threshold,
            check=False,
        )

"""EM: nothing is assumed of unlabelled images but that the network should not be sure of them.

Source: Zhou, Chen, Wang, Chen, Heng, "Acknowledging the Unknown for Multi-Label Learning with Single Positive
Labels", ECCV 2022, arXiv 2203.16219, whose loss VLPL builds on: Xing, Xiong, Stylianou, Sastry, Gong, Jacobs,
"Vision-Language Pseudo-Labels for Single-Positive Multi-Label Learning", CVPR Workshops 2024, arXiv
2310.15985; code read: github mvrl/VLPL at ed09b59 (``loss_EM``).
Golden test: `tests/methods/test_noisy_losses.py`, numbers of running it, but for what it adds in logarithms.

What it does: entropy maximisation, on strong views. Entries of labelled images have binary cross-entropy;
entries of unlabelled images -α·H(p) with H the binary entropy of p = σ(z). Its slope in z is α·z·p(1 - p):
small where the network is unsure, and small again where it is sure, so that what labelled images taught is
not undone.

What differs from the official code: (1) there one positive of each image is observed and all else is unknown;
here labelled images have known negatives too, with -log(1 - p), and unlabelled images nothing. Their setting
is another task. (2) Losses are summed, not averaged: the same direction of a step. (3) Logarithms are exact;
there 1e-5 is added to their arguments. (4) The pseudo-positives that VLPL takes from CLIP are left out: they
are a method of their own. It starts from the shared warm-up on labelled images. Optimiser, views and backbone
are the recipe's (theirs: ResNet-50 at 448 px, Adam 1e-5, batch 8, 10 epochs).

Examined (`results/field-dev`, GlyphScenes-dev, 5 %): 54.7 mAP with the official sum (``unlabelled_weight``
= 1), 59.1 with 0.1, 59.1 with nothing of the pool used: in a step of 8 labelled and 56 unlabelled images
the loss of the pool's entries outweighs the labels. It is the weight: these losses come from data sets
where every image has a positive label.

Expected score: none known under this protocol; with one positive per image on COCO at 448 px: 70.7 mAP
(VLPL's README), another task. Cost: one forward and backward pass per unlabelled image and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from methods.base import Batch
from methods.errors import check_range
from methods.losses import binary_cross_entropy, binary_entropy
from methods.parts.noisy_labels import NoisyLabelHyper, NoisyLabelMethod
from methods.registry import register


@dataclass(frozen=True)
class EMHyper(NoisyLabelHyper):
    """As `NoisyLabelHyper`, with the weight of the entropy.

    Attributes:
        alpha: α, weight of an unknown entry's entropy (official: 0.1 for COCO and NUS-WIDE, 0.2 for VOC, 0.01
        for
            CUB).
    """

    alpha: float = field(default=0.1, metadata={"low": 0.01, "high": 0.5, "scale": "log"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha", self.alpha, 0)


@register
class EM(NoisyLabelMethod):
    """Entropy maximisation; see the module's docstring."""

    name = "em"
    version = 1
    Hyper = EMHyper
    hyper: EMHyper

    def known(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy."""
        return binary_cross_entropy(logits, targets)

    def unknown(self, logits: Tensor, batch: Batch) -> tuple[Tensor, None]:
        """The negative entropy, weighted."""
        return -self.hyper.alpha * binary_entropy(logits), None

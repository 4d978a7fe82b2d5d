"""CLAP: a linear probe that starts from the class texts and is held near them, class by class.

Source: Silva-Rodríguez, Hajimiri, Ben Ayed, Dolz, "A Closer Look at the Few-Shot Adaptation of Large
Vision-Language Models", CVPR 2024, arXiv 2312.12730; code read: github jusiro/CLAP, dbdf409.
Golden test: `tests/methods/test_cached_adapters.py`, logits, multipliers, constraint and its gradient of that
code; the multi-label loss and the steps by a literal loop.

What it does: logit_k = s · cos(f, w_k) + b_k on features f of the frozen tower, s the model's own scale. The
weights w_k start as the text features t_k, as the tower gives them, and are trained on the features of 20
augmented views of each labelled image, with mean_k α_k ‖w_k − t_k‖² added to the loss. α_k is how well
zero-shot scores know the class on the labelled images, so that a class that the texts know stays near its
text. With ``constraint = false`` this is the paper's zero-shot-initialised linear probe (ZS-LP).

What differs from the official code: it is single-label, the multi-label form is ours. Binary cross-entropy
and a bias in place of the soft-max cross-entropy, see `methods.parts.cached_views`. α_k is there the mean
soft-max probability of class k over its labelled images ("soft-recall"), which several classes of an image
have to share; the default here is the average precision of class k's cosines on the labelled images, in [0,
1] too. A class that no labelled image shows, which does not occur there, has α_k = 1, the largest. No first
epoch at a constant rate of 1e-5; the cosine schedule steps per optimiser step instead of per epoch. As in
the code's runs ("l2") and unlike the paper's general form, the multipliers stay what they are at the start:
the outer step of the augmented Lagrangian runs only under a name of the constraint that no script has. How
strong the constraint is depends on the size of the text features, which is near 10 for OpenAI's models.

Expected score: none known, the paper is single-label. Cost: ``views`` forward passes of the frozen
tower over the labelled images, once for all methods that ask for as many, one over the test images, then
seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from methods.backbones.clip import VisionLanguageModel
from methods.base import Task
from methods.parts.cached_views import CachedHyper, CachedMethod, average_precision, cosines
from methods.registry import register


@dataclass(frozen=True)
class ClapHyper(CachedHyper):
    """Hyper-parameters of CLAP; see `methods.parts.cached_views.CachedHyper` for the others.

    Attributes:
        constraint: whether the weights are held near the texts.
        multiplier: α_k: "average-precision" of zero-shot scores on the labelled images, or the official
            "soft-recall".
    """

    constraint: bool = True
    multiplier: Literal["average-precision", "soft-recall"] = "average-precision"


@register
class Clap(CachedMethod):
    """Text-initialised linear probe with a class-adaptive constraint; see the module's docstring.

    Attributes:
        weight: (K, d) parameter.
        multipliers: (K,) float32, α, after `fit`; zeros without constraint.
    """

    name = "clap"
    Hyper = ClapHyper
    hyper: ClapHyper

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: ClapHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.weight = nn.Parameter(self.texts.clone())
        self.multipliers = torch.zeros(task.num_classes)

    def prepare(self) -> None:
        """Compute the multipliers from the zero-shot logits of all views."""
        if not self.hyper.constraint:
            return
        logits = self.scale * cosines(self.views.flatten(0, 1), self.texts)
        labels = self.task.labels.repeat(len(self.views), 1)
        rule = soft_recall if self.hyper.multiplier == "soft-recall" else average_precision
        self.multipliers = torch.where(labels.any(dim=0), rule(logits, labels), torch.ones(()))

    def parameters(self) -> Sequence[nn.Parameter]:
        """The weights."""
        return [self.weight]

    def logits(self, features: Tensor) -> Tensor:
        """Return (B, K) logits of features (B, d)."""
        return self.scale * cosines(features, self.weight) + self.bias

    def distance(self) -> Tensor:
        """The constraint's scalar, mean_k α_k ‖w_k − t_k‖²."""
        return (self.multipliers * (self.weight - self.texts).square().sum(dim=1)).mean()

    def loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy plus the constraint."""
        return super().loss(features, targets) + self.distance()


def soft_recall(logits: Tensor, labels: Tensor) -> Tensor:
    """(K,) mean soft-max probability of each class over the images that show it; 0 for one that none shows.

    Args:
        logits: (n, K) float.
        labels: (n, K) float {0, 1}.
    """
    return (logits.softmax(dim=1) * labels).sum(dim=0) / labels.sum(dim=0).clamp(min=1)

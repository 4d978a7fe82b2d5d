"""MixMatch for multi-label images: guessed targets, and images that are mixed with others of the step.

Source: Berthelot, Carlini, Goodfellow, Papernot, Oliver, Raffel, "MixMatch: A Holistic Approach to
Semi-Supervised Learning", NeurIPS 2019, arXiv 1905.02249; code read: github
microsoft/Semi-supervised-learning at 1ef4cbe (single-label).
Golden test: `tests/methods/test_mixmatch.py`, by hand: official code draws λ and the permutation itself,
and has one soft-max row where this has K binary classes.

What it does: the target of an unlabelled image is the mean of the probabilities of its weak and its strong
view, sharpened at temperature T for each class, σ(z/T) at p = σ(z). Labelled images and both views of the
unlabelled ones are one set of the step; each is mixed with a partner by a permutation, λ·x + (1 − λ)·x',
and so are the targets, with λ ~ Beta(α, α), at least ½. The loss of the labelled part is binary
cross-entropy, that of the unlabelled part (p − t)², weighted and ramped up.

What differs from the official code: each class is a binary problem; sharpening over the classes would ask
for one label in all. λ and the permutation are functions of seed and step, and the permutation is over the
images of all processes, whose images and targets are gathered: the result does not depend on their number.
Labelled targets become soft by mixing, so the loss is BCE by default (ASL moves soft targets up, see
`methods.uda`). The second view is the strong one, where the paper has two weak ones. The unlabelled weight
multiplies B_l/B_u times a sum over both views divided by 2, which is the ratio of means of the official
code. It starts from the shared warm-up.

Expected score: none known under this protocol. Cost: two forward passes without gradients and two forward
and backward passes per unlabelled image and epoch; the step's images are gathered over processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from methods.base import Batch, PseudoLabels, StepOutput
from methods.errors import check_range
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod, mean_factor, ramp
from methods.registry import register


@dataclass(frozen=True)
class MixMatchHyper(PseudoLabelHyper):
    """As `PseudoLabelHyper`, with mixing; the weight has another meaning.

    Attributes:
        loss: of the labelled images: "bce" by default, because mixed targets are soft.
        unlabelled_weight: λ_u between means (official: 100, for soft-max distances over few classes).
        temperature: T of the targets (official: 0.5).
        alpha: α of Beta(α, α) (official: 0.5; paper: 0.75).
        ramp: share of the training over which the weight rises (official: 1/64).
    """

    loss: Literal["asl", "bce"] = "bce"
    unlabelled_weight: float = field(default=100.0, metadata={"low": 1.0, "high": 200.0, "scale": "log"})
    temperature: float = field(default=0.5, metadata={"low": 0.1, "high": 1.0, "scale": "log"})
    alpha: float = field(default=0.5, metadata={"low": 0.1, "high": 2.0, "scale": "log"})
    ramp: float = field(default=1 / 64, metadata={"low": 0.0, "high": 1.0, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("temperature", self.temperature, 0.01)
        check_range("alpha", self.alpha, 0.01)
        check_range("ramp", self.ramp, 0, 1)


@register
class MixMatch(PseudoLabelMethod):
    """Guessed targets and mixed images; see the module's docstring."""

    name = "mixmatch"
    Hyper = MixMatchHyper
    hyper: MixMatchHyper

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """The sharpened mean of both views, all used."""
        strong = torch.sigmoid(self.predict(batch.strong_unlabelled))
        mean = (self.weak_probabilities(batch) + strong) / 2
        targets = torch.sigmoid(torch.logit(mean, eps=1e-6) / self.hyper.temperature)
        return PseudoLabels(targets, torch.ones_like(targets))

    def training_step(self, batch: Batch) -> StepOutput:
        """Mix this process's images with partners of the whole step."""
        with torch.no_grad():
            pseudo = self.pseudo_labels(batch)
            images, targets = self._mixed(batch, pseudo.targets)
        logits = self.classifier(images)
        sizes = [len(batch.labelled), 2 * len(batch.unlabelled)]
        (labelled, unlabelled), (known, guessed) = logits.split(sizes), targets.split(sizes)
        distance = (torch.sigmoid(unlabelled) - guessed).square().sum() / 2
        weight = self.hyper.unlabelled_weight * ramp(batch, self.hyper.ramp) * mean_factor(batch)
        losses = {"labelled": self.loss(labelled, known).sum(), "unlabelled": weight * distance}
        return StepOutput(losses, pseudo)

    def _mixed(self, batch: Batch, guessed: Tensor) -> tuple[Tensor, Tensor]:
        """This process's labelled, weak and strong images and their targets, mixed."""
        views = (batch.strong_labelled, batch.weak_unlabelled, batch.strong_unlabelled)
        images = torch.cat([batch.gather(view) for view in views])
        guesses = batch.gather(guessed)
        targets = torch.cat([batch.gather(batch.targets), guesses, guesses])
        share, partners = mixing(self.task.seed, batch.global_step, len(images), self.hyper.alpha)
        everyone = [batch.gather(positions) for positions in (batch.labelled, batch.unlabelled)]
        known, pool = (len(each) for each in everyone)
        weak = known + _places(batch.unlabelled, everyone[1])
        places = torch.cat([_places(batch.labelled, everyone[0]), weak, pool + weak])
        other = torch.as_tensor(partners, device=images.device)[places]
        return (
            share * torch.cat(views) + (1 - share) * images[other],
            share * torch.cat([batch.targets, guessed, guessed]) + (1 - share) * targets[other],
        )


def mixing(seed: int, step: int, count: int, alpha: float) -> tuple[float, np.ndarray]:
    """λ and the partners of a step, functions of seed and step alone.

    Args:
        seed: of the run.
        step: global step of the training.
        count: images that are mixed, over all processes.
        alpha: α of the Beta distribution.

    Returns:
        λ in [½, 1], and a permutation of ``count`` positions.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step])))
    share = float(rng.beta(alpha, alpha))
    return max(share, 1 - share), rng.permutation(count)


def _places(own: Tensor, everyone: Tensor) -> Tensor:
    """Where images are among those of all processes; an image that is there twice has its first place."""
    if not len(own):
        return own
    return (own[:, None] == everyone).int().argmax(dim=1)

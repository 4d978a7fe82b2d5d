"""Large loss (LL-R, LL-Ct, LL-Cp): unlabelled images count as all negative, large losses are distrusted.

Source: Kim, Kim, Akata, Lee, "Large Loss Matters in Weakly Supervised Multi-Label Classification", CVPR 2022,
arXiv 2206.03740; code read: github snucml/LargeLossMatters at 5025d16, and its copy in github xiemk/SSMLL-CAP
at b7dd807.
Golden test: `tests/methods/test_noisy_methods.py` and `test_noisy_losses.py`, numbers of running the former:
losses, gradients, flips.

What it does: binary cross-entropy on strong views. Labelled images are observed. All entries of unlabelled
images are unobserved and assumed negative; a network learns clean labels first, so the entries whose loss is
large are probably missed positives. In epoch t = 1, 2, … the k largest losses among the unobserved entries of
a batch change, k = ceil(Δ·t·N) of its N unlabelled entries: scheme "R" rejects them, "Ct" takes the loss of a
positive in this step. "Cp" does so with k = ceil(Δ·N) in every step, and entries whose loss is larger than
the k-th largest are positive for good, which is a table of all unlabelled images.

What differs from the official code: (1) there each image has some observed labels, here an image has all or
none. Their setting of partial labels is another task, and k is a share of the unobserved entries; the code
counts observed ones too. (2) Losses are summed, not averaged: the same direction of a step. (3) "Cp" does
what its branch of the code is for. The code compares the scheme with `is`, which a text from the command line
never passes: its Cp is a second Ct. (4) The warm-up on labelled images stands for its first epoch, in which
nothing changes. (5) Observed entries never change; there they do once k exceeds the number of others. (6)
ceil is exact. The k largest are those of the global batch, on any number of processes. Optimiser, views and
backbone are the recipe's (theirs: ResNet-50 at 448 px, Adam 1e-5, head × 10, batch 16, 10 epochs).

Where it stands: an image of the papers keeps some of its positives, an unlabelled image none. Summed over
many of them, "all is absent" outweighs what the labelled images say: at ``unlabelled_weight`` = 1 a small
grid ends 6 to 7 points below `supervised` with every scheme and any Δ from 0 to 10, and at 0.1 beside it
(docs/log.md). The weight is what to search, before Δ.

Examined (`results/field-dev`, GlyphScenes-dev, 5 %): 51.9 mAP with the official sum (``unlabelled_weight``
= 1), 58.5 with 0.1, 59.1 with nothing of the pool used: in a step of 8 labelled and 56 unlabelled images
the loss of entries that are assumed negative outweighs the labels. It is the weight: these losses come from
data sets where every image has a positive label.

Expected score: none known under this protocol; LL-R with one positive per image on COCO at 448 px: 71.0 mAP
(VLPL's README), another task. Cost: one forward and backward pass per unlabelled image and epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from methods.backbones.base import Backbone
from methods.base import Batch, PseudoLabels, StepOutput, Task
from methods.errors import check_range
from methods.losses import LargeLossScheme, binary_cross_entropy, large_loss_changes
from methods.parts.noisy_labels import NoisyLabelHyper, NoisyLabelMethod
from methods.registry import register


@dataclass(frozen=True)
class LargeLossHyper(NoisyLabelHyper):
    """As `NoisyLabelHyper`, with scheme and pace.

    Attributes:
        scheme: what becomes of a large loss: "R" rejected, "Ct" corrected for this step, "Cp" for good.
        delta: Δ in percent: by how much the share of changed entries grows in each epoch; of "Cp", the
            share of each step (official: 0.1 to 0.5 in 10 epochs; shorter trainings need more).
    """

    scheme: LargeLossScheme = "R"
    delta: float = field(default=0.2, metadata={"low": 0.1, "high": 5.0, "scale": "log"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("delta", self.delta, 0, 100)


@register
class LargeLoss(NoisyLabelMethod):
    """Rejects or corrects the largest losses of assumed negatives; see the module's docstring."""

    name = "large_loss"
    version = 1
    Hyper = LargeLossHyper
    hyper: LargeLossHyper
    flipped: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: LargeLossHyper) -> None:
        super().__init__(backbone, task, hyper)
        remembered = task.num_unlabelled if hyper.scheme == "Cp" else 0
        self.register_state("flipped", torch.zeros(remembered, task.num_classes, dtype=torch.bool))

    def num_changed(self, batch: Batch) -> int:
        """How many entries of the global batch change: k."""
        entries = batch.global_unlabelled * self.task.num_classes
        epochs = 1 if self.hyper.scheme == "Cp" else batch.epoch + 1
        share = min(Fraction(1), Fraction(str(self.hyper.delta)) / 100 * epochs)
        return math.ceil(share * entries)

    def known(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy."""
        return binary_cross_entropy(logits, targets)

    def unknown(self, logits: Tensor, batch: Batch) -> tuple[Tensor, PseudoLabels]:
        """Binary cross-entropy with the labels that are left, or taken, after the change."""
        scheme = self.hyper.scheme
        observed = torch.zeros_like(logits, dtype=torch.bool)
        if scheme == "Cp":
            observed = self.flipped[batch.unlabelled]
        k = self.num_changed(batch)
        changed, flips = large_loss_changes(logits, observed, k, gather=batch.gather, check=False)
        # Every process remembers all images, because an image comes to another one next time.
        self._flips = (batch.gather(batch.unlabelled), batch.gather(flips)) if scheme == "Cp" else None
        if scheme == "R":
            pseudo = PseudoLabels(torch.zeros_like(logits.detach()), (~changed).to(logits))
        else:
            targets = (observed | changed).to(logits)
            pseudo = PseudoLabels(targets, torch.ones_like(targets))
        return pseudo.mask * binary_cross_entropy(logits, pseudo.targets), pseudo

    def training_step(self, batch: Batch) -> StepOutput:
        """As the base; `observe_step` has to be called after the optimiser's step, whatever the scheme."""
        output = super().training_step(batch)
        return output._replace(statistics={"steps": torch.ones((), device=batch.unlabelled.device)})

    def observe_step(self, statistics: dict[str, Tensor]) -> None:
        """Remember the entries that are positive from now on."""
        if self._flips is not None:
            images, flips = self._flips
            self.flipped[images] = self.flipped[images] | flips

"""Adsh for multi-label images: every class uses the same share of its predictions, not the same threshold.

Source: Guo, Li, "Class-Imbalanced Semi-Supervised Learning with Adaptive Thresholding", ICML 2022 (PMLR 162);
code read: github microsoft/Semi-supervised-learning at 1ef4cbe (its single-label form on FixMatch).
Golden test: `tests/methods/test_adsh.py`, numbers of running it where both have the same share, and in its
corners.

What it does: before each epoch the averaged model scores the weak views of the pool. In the majority class,
the one that most labelled images show, m of n predicted positives (p >= 0.5) reach the confidence 0.95: a
share ρ = m/n. Then every class k uses that share of its own: of its n_k predicted positives, sorted by p, the
max(⌈ρ n_k⌉, 1)-th gives the threshold τ⁺_k; of its predicted negatives, sorted by 1 − p, likewise τ⁻_k.
In the epoch an entry of the weak view is used where p >= 0.5 and p >= τ⁺_k, or p < 0.5 and 1 − p >= τ⁻_k; the
strong view is trained towards it. A rare class, of whose positives few reach 0.95, is not starved.

What differs from the official code: the multi-label form is ours (CAP and ABL report Adsh without code), the
mirrored negatives with it. The majority is found in the labels; the code takes class 0, whatever it is. The
code counts one passing image too few (ρ = (m − 1)/n) and rounds ranks down, so that m = 0 gives ρ = 1 and
m = 1 the last element of the list: in both, every prediction is used, where the fewest are trusted. Here the
surest prediction is used. A class without predictions of a state keeps that state's threshold; it starts at
infinity (nothing used), where the code starts at exp(−0.95) = 0.39. Losses are sums: see
`methods.parts.pseudo_labelling`; the code's λ = 1 is ``unlabelled_weight`` = B_l/B_u. Loss ASL by default.

Examined (`results/field-dev`, GlyphScenes-dev, 5 %): it ends below a training that uses nothing of the
pool, 57.2 against 59.1 mAP. With ASL it starts from wrong labels (precision 14 % in the first epoch: the p
of ASL is .5 where 3.6 % of the images show a class, so most predicted positives are wrong, and every class
uses a share of its own), then uses hardly any (0.2 % of the entries in the third); with binary
cross-entropy (57.0) it uses 0.04 % of them there. At a rate of 1e-3 wrong positives feed themselves (9.2).
On GlyphScenes, seeds 1 to 3, it ends at 15.1, 18.9 and 41.3 (`results/field`): half of the entries are used
in the first epoch, and 9 % of the positives are right. It is the threshold.

Expected score: none known under this protocol; COCO, ImageNet ResNet-50 at 224 pixels, p = 0.05: 61.5 mAP
with foreign images mixed into the pool (ABL, KDD 2024; best epoch on test). Cost: one forward pass over the
pool per epoch, and one without gradients and one forward and backward pass per unlabelled image and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from methods.backbones.base import Backbone
from methods.base import Batch, Pool, PseudoLabels, Task
from methods.errors import check_range
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod
from methods.registry import register


@dataclass(frozen=True)
class AdshHyper(PseudoLabelHyper):
    """As `PseudoLabelHyper`, with the majority's cut-off.

    Attributes:
        confidence: cut-off τ₁ that sets the share of the majority class (official: 0.95).
    """

    confidence: float = field(default=0.95, metadata={"low": 0.5, "high": 0.99, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("confidence", self.confidence, 0.5, 1)


def share_thresholds(probabilities: Tensor, majority: int, confidence: float, old: Tensor) -> Tensor:
    """Confidence from which each state of each class is used, at the majority's share.

    Args:
        probabilities: (N, K) in [0, 1], of the pool.
        majority: class whose positives set the share.
        confidence: cut-off of the majority's positives.
        old: (2, K), of positives and of negatives; kept for a state that is nowhere predicted.

    Returns:
        (2, K) like ``old``.

    Raises:
        ValueError: a probability is not a number.

    Example:
        One of the two positives of class 0 reaches 0.95, so half of every list is used.

        >>> p = torch.tensor([[0.96, 0.9], [0.7, 0.8], [0.4, 0.7], [0.1, 0.6]])
        >>> share_thresholds(p, 0, 0.95, torch.full((2, 2), torch.inf))
        tensor([[0.9600, 0.8000],
                [0.9000,    inf]])
    """
    if bool(torch.isnan(probabilities).any()):
        raise ValueError("probabilities contain values that are not a number; the model has diverged")
    if not len(probabilities):
        return old
    positive = probabilities >= 0.5
    passing = int((probabilities[:, majority] >= confidence).sum())
    predicted = int(positive[:, majority].sum())
    rows = []
    for state, sure, kept in ((positive, probabilities, old[0]), (~positive, 1 - probabilities, old[1])):
        counts = state.sum(dim=0)
        # In whole numbers: a product of rounded shares could miss a rank.
        ranks = -(-passing * counts // predicted) if predicted else torch.zeros_like(counts)
        ordered = torch.where(state, sure, -1.0).sort(dim=0, descending=True).values
        picked = ordered.gather(0, (ranks.clamp(min=1) - 1)[None])[0]
        rows.append(torch.where(counts > 0, picked.to(kept), kept))
    return torch.stack(rows)


@register
class Adsh(PseudoLabelMethod):
    """The same share of predictions from every class; see the module's docstring."""

    name = "adsh"
    Hyper = AdshHyper
    hyper: AdshHyper
    thresholds: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: AdshHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.majority = int(task.labels.sum(dim=0).argmax())
        self.register_state("thresholds", torch.full((2, task.num_classes), torch.inf))

    def wants_pool(self, epoch: int) -> bool:
        """Before every epoch."""
        return bool(self.task.num_unlabelled)

    def refresh(self, pool: Pool) -> None:
        """Take the thresholds of the coming epoch from the pool's scores."""
        p = torch.sigmoid(pool.scores)
        self.thresholds = share_thresholds(p, self.majority, self.hyper.confidence, self.thresholds)

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Entries of the weak view that reach the threshold of their state."""
        p = self.weak_probabilities(batch)
        positive = p >= 0.5
        used = torch.where(positive, p >= self.thresholds[0], 1 - p >= self.thresholds[1])
        return PseudoLabels(positive.to(p), used.to(p))

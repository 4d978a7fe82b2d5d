"""Tip-Adapter: class texts plus a cache of the labelled images; or Tip-Adapter-F, whose cache is trained.

Source: Zhang, Zhang, Fang, Gao, Li, Dai, Qiao, Li, "Tip-Adapter: Training-Free Adaption of CLIP for Few-Shot
Classification", ECCV 2022, arXiv 2207.09519; code read: github gaopengcuhk/Tip-Adapter, d0e2d6f.
Golden test: `tests/methods/test_cached_adapters.py`, keys, logits and their gradients of that code, on
one-hot labels.

What it does: every labelled image is a key, the unit mean of the features of its augmented views, with its
labels v_i as the value. logit_k = s · cos(f, t_k) + α Σ_i exp(−β (1 − ⟨f̄, key_i⟩)) v_ik + b_k. Nothing is
trained; α and β are chosen on labelled images. With ``epochs`` (official: 20) the keys are trained: the
form called Tip-Adapter-F.

What differs from the official code: it is single-label, the multi-label form is ours. The one-hot values
become multi-hot ones, not divided by the number of an image's classes: that others are there makes the class
no less present. They are divided by the number of a class's images (``values = "class-mean"``), because the
official sets have as many images of each class and these do not: with plain "multi-hot" values the text of a
frequent class would hardly
count. A class that no image shows keeps its text alone. Binary cross-entropy and a
bias in place of the soft-max cross-entropy, see `methods.parts.cached_views`. The official search is over
4,000 pairs on a validation set, the trained form's best epoch is that on the test set; here the search is
over 35 pairs by five-fold cross-validation on the labelled images, the trained form trains with the chosen
pair instead of being searched after its training, and its last epoch counts. Values and search were chosen on
GlyphScenes-dev. Templates are not averaged: "a photo of a {}."

Expected score: none known, the paper is single-label. Cost: ``views`` forward passes of the frozen tower over
the labelled images, once for all methods that ask for as many, one over the test images, then seconds for
thousands of labelled images; the time grows with their square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.clip import VisionLanguageModel
from methods.base import Task
from methods.errors import check_range
from methods.parts.cached_views import CachedHyper, CachedMethod, average_precision, cosines
from methods.registry import register

ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
BETAS = (1.0, 2.0, 5.0, 10.0, 20.0)
FOLDS = 5
ROWS = 1024
"""Images that are compared with the cache at a time."""


@dataclass(frozen=True)
class TipAdapterHyper(CachedHyper):
    """Hyper-parameters of Tip-Adapter; ``batch`` and the views' order are those of the trained form.

    Attributes:
        views: augmented views whose mean is a key (official: 10).
        alpha: weight of the cache (official start: 1 to 3), where it is not searched.
        beta: sharpness of the cache (official start: 1 to 5.5), where it is not searched.
        search: choose ``alpha`` and ``beta`` by cross-validation on the labelled images.
        values: "class-mean": a class's values add up to 1; or "multi-hot".
        epochs: of the keys' training; 0 for none.
        lr: of the keys (official: 0.001), with AdamW.
    """

    views: int = field(default=10, metadata={"low": 1, "high": 20, "scale": "linear"})
    alpha: float = field(default=1.0, metadata={"low": 0.1, "high": 100.0, "scale": "log"})
    beta: float = field(default=1.0, metadata={"low": 1.0, "high": 20.0, "scale": "log"})
    search: bool = True
    values: Literal["class-mean", "multi-hot"] = "class-mean"
    epochs: int = field(default=0, metadata={"low": 0, "high": 40, "scale": "linear"})
    lr: float = field(default=1e-3, metadata={"low": 1e-5, "high": 1e-1, "scale": "log"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha", self.alpha, 0)
        check_range("beta", self.beta, 0)


@register
class TipAdapter(CachedMethod):
    """Key-value cache beside the class texts; see the module's docstring.

    Attributes:
        keys: (n_l, d) parameter, after `fit`.
        values: (n_l, K) float32, after `fit`.
        alpha: scalar float32, chosen or given.
        beta: scalar float32, chosen or given.
        searched: mean average precision over folds and classes, in [0, 1], by (α, β), after `fit`.
    """

    name = "tip_adapter"
    Hyper = TipAdapterHyper
    hyper: TipAdapterHyper
    keys: nn.Parameter
    values: Tensor

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: TipAdapterHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.alpha, self.beta = torch.tensor(hyper.alpha), torch.tensor(hyper.beta)
        self.searched: dict[tuple[float, float], float] = {}

    def fit(self, features: Tensor, seed: int) -> None:
        """See `FitMethod.fit`; ``seed`` draws the folds."""
        self.keys = nn.Parameter(F.normalize(self.views.mean(dim=0), dim=-1))
        self.values = self._values(self.task.labels)
        if self.hyper.search:
            self._search(features.to(self.keys), seed)
        super().fit(features, seed)

    def parameters(self) -> Sequence[nn.Parameter]:
        """The keys."""
        return [self.keys]

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW as in the official code, with its ε of 1e-4."""
        return torch.optim.AdamW([*self.parameters(), self.bias], lr=self.hyper.lr, eps=1e-4)

    def logits(self, features: Tensor) -> Tensor:
        """Return (B, K) logits of features (B, d)."""
        parts = [
            self.scale * cosines(some, self.texts)
            + self.alpha * cached(some, self.keys, self.values, self.beta)
            for some in features.split(ROWS)
        ]
        return torch.cat(parts) + self.bias

    def _values(self, labels: Tensor) -> Tensor:
        if self.hyper.values == "multi-hot":
            return labels
        return labels / labels.sum(dim=0).clamp(min=1)

    @torch.no_grad()
    def _search(self, features: Tensor, seed: int) -> None:
        """Choose α and β: each fifth of the images is scored with the texts and the cache of the others."""
        labels = self.task.labels
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        found: dict[tuple[float, float], list[Tensor]] = {}
        for out in order.chunk(FOLDS) if len(labels) > 1 else ():
            kept = torch.ones(len(labels), dtype=torch.bool)
            kept[out] = False
            scored = labels[out].any(dim=0) & ~labels[out].all(dim=0)
            values = self._values(labels[kept])
            texts = self.scale * cosines(features[out], self.texts)
            for beta in BETAS:
                parts = [cached(some, self.keys[kept], values, beta) for some in features[out].split(ROWS)]
                cache = torch.cat(parts)
                for alpha in ALPHAS:
                    precision = average_precision(texts + alpha * cache, labels[out])
                    found.setdefault((alpha, beta), []).append(precision[scored])
        if not found or not len(torch.cat(next(iter(found.values())))):
            return  # no class has positives and negatives in a fold
        self.searched = {pair: float(torch.cat(values).mean()) for pair, values in found.items()}
        best = max(self.searched, key=self.searched.__getitem__)
        self.alpha, self.beta = map(torch.tensor, best)


def cached(features: Tensor, keys: Tensor, values: Tensor, beta: float | Tensor) -> Tensor:
    """(B, K) sums of the values, weighted by exp(−β (1 − affinity)).

    Args:
        features: (B, d), not normalised.
        keys: (n, d), unit length until they are trained.
        values: (n, K).
        beta: sharpness.
    """
    affinity = F.normalize(features, dim=-1) @ keys.T
    return (-beta * (1 - affinity)).exp() @ values.to(affinity)

"""Adapters of a frozen CLIP that are fitted to the cached features of augmented views.

A logit is scale · cosine + b_k, with the scale of the model itself, as the published adapters have it, and a
bias for each class, which they do not have. They are single-label: a soft-max over classes takes away what
all logits share, a sigmoid does not, and 100 times a cosine that is typically 0.2 would make every class
present. So b_k starts where the mean probability of class k over the labelled images is its frequency, and is
trained with the rest. It changes no ranking of images. In place of the cross-entropy over classes stands the
binary one, summed over the classes of an image: both have the gradient p − y with respect to the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.clip import VisionLanguageModel
from methods.base import FitMethod, Task
from methods.errors import check_range
from methods.losses import binary_cross_entropy
from methods.parts.linear import calibrated_bias
from methods.parts.prompts import SINGLE


@dataclass(frozen=True)
class CachedHyper:
    """Hyper-parameters of a fit to cached views; defaults are those of CLAP's code.

    Attributes:
        views: augmented views of each labelled image (official: 20).
        epochs: each takes as many views as there are labelled images, drawn from all of them (official: 300).
        batch: views of a step (official: 256); fewer where all views together are fewer.
        lr: learning rate (official: 0.1), with a cosine schedule down to 0.
    """

    views: int = field(default=20, metadata={"low": 1, "high": 20, "scale": "linear"})
    epochs: int = field(default=300, metadata={"low": 20, "high": 300, "scale": "log"})
    batch: int = field(default=256, metadata={"low": 32, "high": 1024, "scale": "log"})
    lr: float = field(default=0.1, metadata={"low": 1e-4, "high": 1.0, "scale": "log"})

    def __post_init__(self) -> None:
        check_range("views", self.views, 1)
        check_range("epochs", self.epochs, 0)
        check_range("batch", self.batch, 1)
        check_range("lr", self.lr, 0)


class CachedMethod(FitMethod):
    """Base of the adapters: a subclass defines `logits` and `parameters`, and may add to `loss`.

    Attributes:
        texts: (K, d) float32 features of "a photo of a {name}." as the text tower gives them.
        scale: factor of the cosines, the model's own.
        bias: (K,) parameter.
        views: (V, n_l, d) float32, between `take_views` and the end of `fit`.
    """

    needs_vlm = True
    score_scale = "logits"
    hyper: CachedHyper
    views: Tensor

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: CachedHyper) -> None:
        super().__init__(backbone, task, hyper)
        names = [SINGLE[0].format(name) for name in task.prompts]
        self.texts = backbone.encode_text(names).float().cpu()
        self.scale = backbone.logit_scale
        self.bias = nn.Parameter(torch.zeros(task.num_classes))

    @classmethod
    def cached_views(cls, hyper: CachedHyper) -> int:
        """See `FitMethod.cached_views`."""
        return hyper.views

    def take_views(self, views: Tensor) -> None:
        """See `FitMethod.take_views`."""
        self.views = views.float().cpu()

    def fit(self, features: Tensor, seed: int) -> None:
        """See `FitMethod.fit`; ``seed`` orders the views."""
        self.prepare()
        with torch.no_grad():
            logits = self.logits(self.views.flatten(0, 1))
            self.bias.add_(calibrated_bias(logits, self.task.frequencies))
        if self.hyper.epochs:
            train_on_views(self.loss, self.optimizer(), self.views, self.task.labels, self.hyper, seed)
        del self.views  # what a run keeps of a fitted method are its tensors

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Return (N, K) float32 logits."""
        return self.logits(features.float().cpu())

    def prepare(self) -> None:
        """Compute what depends on the views, before the fit; by default nothing."""

    def logits(self, features: Tensor) -> Tensor:
        """Return (B, K) logits of features (B, d), with the bias."""
        raise NotImplementedError

    def parameters(self) -> Sequence[nn.Parameter]:
        """What is trained besides the bias."""
        raise NotImplementedError

    def optimizer(self) -> torch.optim.Optimizer:
        """Stochastic gradient descent with momentum 0.9, as in CLAP's code."""
        return torch.optim.SGD([*self.parameters(), self.bias], lr=self.hyper.lr, momentum=0.9)

    def loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """The scalar that a step lowers: binary cross-entropy, summed over classes, mean over the views."""
        return binary_cross_entropy(self.logits(features), targets).sum(dim=1).mean()


def cosines(features: Tensor, weights: Tensor) -> Tensor:
    """(B, K) cosines of features (B, d) and weights (K, d)."""
    return F.normalize(features, dim=-1) @ F.normalize(weights, dim=-1).T


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """(K,) un-interpolated average precision, in [0, 1]; of equal scores the earlier image comes first.

    Args:
        scores: (n, K) float, higher = more present.
        labels: (n, K) float {0, 1}.

    Returns:
        0 for a class without positives.
    """
    order = scores.argsort(dim=0, descending=True, stable=True)
    hits = labels.gather(0, order).double()
    places = torch.arange(1, len(hits) + 1, dtype=torch.float64)[:, None]
    found = (hits * hits.cumsum(dim=0) / places).sum(dim=0)
    return (found / hits.sum(dim=0).clamp(min=1)).float()


def train_on_views(
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    views: Tensor,
    labels: Tensor,
    hyper: CachedHyper,
    seed: int,
) -> None:
    """Take the steps of a fit.

    An epoch is ⌊n_l / batch⌋ steps, at least one, over views in a new random order: as in CLAP's code, whose
    epochs count the images and not their views.

    Args:
        loss: scalar of features (B, d) and targets (B, K).
        optimizer: of what it depends on.
        views: (V, n_l, d).
        labels: (n_l, K) float {0, 1}.
        hyper: length, batch and the first learning rate.
        seed: of the orders.
    """
    count, images = views.shape[:2]
    rows, generator = views.flatten(0, 1), torch.Generator().manual_seed(seed)
    steps = max(1, images // hyper.batch)
    total = hyper.epochs * steps
    schedule: Any = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total))
    )
    for _ in range(hyper.epochs):
        order = torch.randperm(count * images, generator=generator)
        for some in order.split(hyper.batch)[:steps]:
            optimizer.zero_grad()
            loss(rows[some], labels[some % images]).backward()
            optimizer.step()
            schedule.step()

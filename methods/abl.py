"""ABL: a Beta distribution for each label, and less weight for images that are not known well.

Source: Liu, Xie, Zong, Huang, "Asymmetric Beta Loss for Evidence-Based Safe Semi-Supervised Multi-Label
Learning", KDD 2024; code: github hz681/AsymmetricBetaLoss at 2934e3d (read; its loss and its pseudo-labels
were run).
Golden test: `tests/methods/test_abl.py`, numbers of running that code.

What it does: two branches on the global feature, a clean one and a noisy one, each Linear, ReLU, Linear,
and Linear to 2K numbers; their exponentials plus 1 are α and β of a Beta distribution for each class, with
the mean α/(α + β). Labelled images train both branches with `methods.losses.beta_loss` (margin .2);
unlabelled images train the noisy branch alone (margin .05). Before each epoch the moving average scores the
weak views of the pool: the target of an entry is the product of both means, without a threshold, and the
weight of an image is 1 − û, where û is u = 2K/Σ_k α_k of the clean branch scaled to [0, 1] over the pool.
Scores are those of the noisy branch. The warm-up trains both branches on labelled images.

What differs from the official code: branches read the backbone's global feature, of whatever width, where
the code has a ResNet-50's; the last layer runs in float32 and its outputs are cut at 30, so that their
exponentials stay finite; the loss is computed in float32, where the code slips into float64. With all
images equally uncertain (a pool of one image too) weights are 1, where the code divides by 0. Its warm-up
has γ⁻ = 10 on VOC: give ``warmup_gamma_neg``, as the recipe `abl` does. It stops when the best epoch on the
TEST images is three epochs old; here training goes on to the last.

Expected score: COCO, ImageNet ResNet-50, 224 pixels, p = 0.05: 65.7 mAP (its Table 6: plain pools, one
seed, best epoch on test; its other tables mix foreign images into the pool). Its branches start at random,
which costs more than it gains where others start from class texts: on GlyphScenes-dev it has 53.0,
`supervised` 60.5, and 44.6 with a linear head that starts at random (results/field-dev). Cost: one forward
pass over the pool per epoch, one forward and backward pass per unlabelled image and epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.backbones.base import Backbone
from methods.base import (
    Batch,
    Pool,
    PseudoLabels,
    StepMethod,
    StepOutput,
    Task,
    at_least_fp32,
    full_precision,
    trainable,
)
from methods.errors import check_range
from methods.losses import beta_loss
from methods.parts.hypers import OptimizerHyper
from methods.parts.linear import rate_groups, set_training
from methods.registry import register

LARGEST = 30.0
"""Outputs above are cut: e³⁰ = 10¹³ pieces of evidence, and float32 ends at e⁸⁸."""


@dataclass(frozen=True)
class ABLHyper(OptimizerHyper):
    """Hyper-parameters of ABL.

    Attributes:
        gamma_neg: focusing exponent of negatives (official: 4).
        clip: margin of negatives of labelled images (official: 0.2).
        clip_unlabelled: margin of negatives of unlabelled images (official: 0.05).
        power: exponent of soft targets (official: 2).
        unlabelled_weight: factor λ_u of the unlabelled loss (official: 1).
        hidden: width of a branch's first layer (official: 2048).
        width: width of its second layer (official: 512).
        freeze_bn: keep batch normalisation at its pretraining statistics (official: False).
        lr_backbone: learning rate of the backbone; 0 freezes it (official: 1e-4).
        lr_head: learning rate of the branches (official: 1e-4).
        warmup_gamma_neg: ``gamma_neg`` of the warm-up (official on VOC: 10); None for the same.
    """

    later: ClassVar[Mapping[str, Any]] = {"warmup_gamma_neg": None}

    gamma_neg: int = field(default=4, metadata={"low": 0, "high": 10, "scale": "linear"})
    clip: float = field(default=0.2, metadata={"low": 0.0, "high": 0.3, "scale": "linear"})
    clip_unlabelled: float = field(default=0.05, metadata={"low": 0.0, "high": 0.3, "scale": "linear"})
    power: float = field(default=2.0, metadata={"low": 1.0, "high": 3.0, "scale": "linear"})
    unlabelled_weight: float = field(default=1.0, metadata={"low": 0.1, "high": 10.0, "scale": "log"})
    hidden: int = field(default=2048, metadata={"low": 256, "high": 4096, "scale": "log"})
    width: int = field(default=512, metadata={"low": 64, "high": 1024, "scale": "log"})
    freeze_bn: bool = True
    lr_backbone: float = field(default=1e-4, metadata={"low": 1e-6, "high": 1e-2, "scale": "log"})
    lr_head: float = field(default=1e-4, metadata={"low": 1e-5, "high": 1e-1, "scale": "log"})
    warmup_gamma_neg: int | None = field(default=None, metadata={"low": 0, "high": 10, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("clip", "clip_unlabelled"):
            check_range(name, getattr(self, name), 0, 0.99)
        for name in ("gamma_neg", "unlabelled_weight", "lr_backbone", "lr_head"):
            check_range(name, getattr(self, name), 0)
        for name in ("hidden", "width", "power"):
            check_range(name, getattr(self, name), 1)
        if self.warmup_gamma_neg is not None:
            check_range("warmup_gamma_neg", self.warmup_gamma_neg, 0)


class Evidence(nn.Module):
    """A branch: features (B, d) to α and β, each (B, K) float32, at least 1."""

    def __init__(self, dim: int, hidden: int, width: int, classes: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.evidence = nn.Linear(width, 2 * classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """α and β."""
        with full_precision(features):
            out = self.evidence(self.project(at_least_fp32(features)))
            alpha, beta = (out.clamp(max=LARGEST).exp() + 1).chunk(2, dim=1)
        return alpha, beta


@register
class ABL(StepMethod):
    """Clean and noisy evidence; see the module's docstring."""

    name = "abl"
    Hyper = ABLHyper

    hyper: ABLHyper
    pool_targets: Tensor
    image_weights: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: ABLHyper) -> None:
        super().__init__(backbone, task, hyper)
        set_training(backbone, hyper)
        self.backbone = backbone
        sizes = (backbone.dim, hyper.hidden, hyper.width, task.num_classes)
        self.clean, self.noisy = Evidence(*sizes), Evidence(*sizes)
        self.register_state("pool_targets", torch.zeros(task.num_unlabelled, task.num_classes))
        self.register_state("image_weights", torch.zeros(task.num_unlabelled))

    def param_groups(self) -> list[dict[str, Any]]:
        """Backbone and branches at their own learning rates."""
        branches = [*trainable(self.clean), *trainable(self.noisy)]
        hyper = self.hyper
        return rate_groups(
            hyper.weight_decay, (trainable(self.backbone), hyper.lr_backbone), (branches, hyper.lr_head)
        )

    def training_step(self, batch: Batch) -> StepOutput:
        """Labelled images train both branches, unlabelled ones the noisy branch."""
        hyper, labelled = self.hyper, len(batch.labelled)
        features = self.backbone.features(torch.cat([batch.strong_labelled, batch.strong_unlabelled]))
        alpha_clean, beta_clean = self.clean(features[:labelled])
        alpha, beta = self.noisy(features)
        known = beta_loss(alpha_clean, beta_clean, batch.targets, hyper.gamma_neg, hyper.clip)
        known = known + beta_loss(
            alpha[:labelled], beta[:labelled], batch.targets, hyper.gamma_neg, hyper.clip
        )
        losses = {"labelled": known.sum()}
        if not len(batch.unlabelled):
            return StepOutput(losses)
        targets = self.pool_targets[batch.unlabelled]
        weights = self.image_weights[batch.unlabelled][:, None].expand_as(targets)
        pseudo = PseudoLabels(targets, torch.ones_like(targets), weights)
        element = beta_loss(
            alpha[labelled:], beta[labelled:], targets, hyper.gamma_neg, hyper.clip_unlabelled, hyper.power
        )
        losses["unlabelled"] = hyper.unlabelled_weight * (pseudo.weighted_mask * element).sum()
        return StepOutput(losses, pseudo)

    def wants_pool(self, epoch: int) -> bool:
        """Before every epoch, if there are unlabelled images."""
        return bool(self.task.num_unlabelled)

    def score_pool(self, images: Tensor) -> Tensor:
        """(B, 2K + 1): log-odds of the noisy and of the clean means, and the clean Σ α."""
        features = self.backbone.features(images)
        alpha, beta = self.clean(features)
        return torch.cat(
            [_log_odds(*self.noisy(features)), _log_odds(alpha, beta), alpha.sum(dim=1, keepdim=True)], dim=1
        )

    def refresh(self, pool: Pool) -> None:
        """Targets and image weights of the whole pool."""
        clean, evidence = pool.extra[:, :-1], pool.extra[:, -1]
        self.pool_targets = torch.sigmoid(pool.scores) * torch.sigmoid(clean)
        self.image_weights = 1 - scaled_uncertainty(evidence, self.task.num_classes)

    def predict(self, images: Tensor) -> Tensor:
        """(B, K) float32 log-odds of the noisy branch's means."""
        return _log_odds(*self.noisy(self.backbone.features(images)))

    @classmethod
    def warmup_hyper(cls, hyper: ABLHyper) -> ABLHyper:
        """The same training without pseudo-labels; fields that only steer these take their defaults."""
        plain = {name: getattr(ABLHyper, name) for name in ("clip_unlabelled", "power", "unlabelled_weight")}
        gamma = hyper.gamma_neg if hyper.warmup_gamma_neg is None else hyper.warmup_gamma_neg
        return dataclasses.replace(hyper, **plain, gamma_neg=gamma, warmup_gamma_neg=None)


def scaled_uncertainty(evidence: Tensor, classes: int) -> Tensor:
    """U = 2K/Σ_k α_k of each image, scaled over the images to [0, 1].

    Args:
        evidence: (n,) Σ_k α_k, at least K.
        classes: K.

    Returns:
        (n,) (u − min u)/(max u − min u), or 0 where all are equal.

    >>> scaled_uncertainty(torch.tensor([4.0, 8.0, 16.0]), 2)
    tensor([1.0000, 0.3333, 0.0000])
    """
    u = 2 * classes / evidence
    span = u.amax() - u.amin()
    return torch.where(span > 0, (u - u.amin()) / torch.where(span > 0, span, 1), 0)


def _log_odds(alpha: Tensor, beta: Tensor) -> Tensor:
    """σ⁻¹ of the mean α/(α + β)."""
    return alpha.log() - beta.log()

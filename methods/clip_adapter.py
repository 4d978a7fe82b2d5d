"""CLIP-Adapter: a small network on the image feature, added to it, in front of the class texts.

Source: Gao, Geng, Zhang, Ma, Fang, Zhang, Li, Qiao, "CLIP-Adapter: Better Vision-Language Models with Feature
Adapters", IJCV 2024, arXiv 2110.04544; code read: github gaopengcuhk/CLIP-Adapter, 08d07f8, and its form on
cached features in github jusiro/CLAP, dbdf409.
Golden test: `tests/methods/test_cached_adapters.py`, logits and gradients of the first code.

What it does: f' = r · ReLU(W₂ ReLU(W₁ f)) + (1 − r) · f with W₁ to a quarter of the features' length, without
biases, and logit_k = s · cos(f', t_k) + b_k; the texts t_k and both towers stay as they are, s is the model's
own scale.

What differs from the official code: it is single-label, the multi-label form is ours: binary cross-entropy
and a bias in place of the soft-max cross-entropy, see `methods.parts.cached_views`. It is trained on the
cached features of augmented views with the steps of CLAP's code, because the official file gives no
optimiser, and its length is a quarter of the features' for every tower, where that code has 1024 and 256.

Expected score: none known, the paper is single-label. Cost: ``views`` forward passes of the frozen tower over
the labelled images, once for all methods that ask for as many, one over the test images, then seconds to
minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.clip import VisionLanguageModel
from methods.base import Task
from methods.errors import check_range
from methods.parts.cached_views import CachedHyper, CachedMethod, cosines
from methods.registry import register


@dataclass(frozen=True)
class ClipAdapterHyper(CachedHyper):
    """Hyper-parameters of CLIP-Adapter; see `methods.parts.cached_views.CachedHyper` for the others.

    Attributes:
        ratio: r, share of the adapted feature (official: 0.2).
        reduction: the features' length over that of the hidden layer (official: 4).
    """

    ratio: float = field(default=0.2, metadata={"low": 0.1, "high": 0.9, "scale": "linear"})
    reduction: int = field(default=4, metadata={"low": 1, "high": 8, "scale": "log"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("ratio", self.ratio, 0, 1)
        check_range("reduction", self.reduction, 1)


@register
class ClipAdapter(CachedMethod):
    """Residual two-layer network on the features; see the module's docstring.

    Attributes:
        first: (d / reduction, d) parameter W₁.
        second: (d, d / reduction) parameter W₂.
    """

    name = "clip_adapter"
    Hyper = ClipAdapterHyper
    hyper: ClipAdapterHyper

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: ClipAdapterHyper) -> None:
        super().__init__(backbone, task, hyper)
        width = max(1, backbone.dim // hyper.reduction)
        self.first, self.second = (
            nn.Parameter(nn.Linear(before, after, bias=False).weight.detach())
            for before, after in ((backbone.dim, width), (width, backbone.dim))
        )

    def parameters(self) -> Sequence[nn.Parameter]:
        """Both layers."""
        return [self.first, self.second]

    def logits(self, features: Tensor) -> Tensor:
        """Return (B, K) logits of features (B, d)."""
        ratio = self.hyper.ratio
        adapted = F.relu(F.linear(F.relu(F.linear(features, self.first)), self.second))
        mixed = ratio * adapted + (1 - ratio) * features
        return self.scale * cosines(mixed, self.texts) + self.bias

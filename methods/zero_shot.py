"""Zero-shot classification with a vision-language model: no label is used.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021. The class score is the cosine of the image's and the class name's feature.
Golden test: `tests/methods/test_zero_shot.py`, cosines and soft-max by hand; towers and templates against
open_clip in `tests/methods/backbones/`.

What differs from the official code: CLIP is single-label. Two scores are offered because they rank
the images of a class differently (``score``): the raw cosine treats classes independently; the
soft-max over classes couples them, so that an image that shows several classes shares its mass
among them. Scores of "softmax" are log-odds of the soft-max probability, which rank as it does
without underflow. A probability of 0.5 means nothing for "cosine", so F1 does not either.

Expected score: COCO val2014 at 224 pixels with 80 templates: 62.9 mAP with CLIP RN101, 64.9 with
ViT-B/16 (Xie et al., "Unlocking the
power of co-occurrence in CLIP"). Cost: one forward pass of the image tower per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.backbones.clip import VisionLanguageModel
from methods.base import FitMethod, Task
from methods.parts.prompts import templates_of, text_classifier
from methods.registry import register


@dataclass(frozen=True)
class ZeroShotHyper:
    """Hyper-parameters of zero-shot classification.

    Attributes:
        score: "cosine", or "softmax" over the classes at the model's own scale.
        templates: "single" ("a photo of a {}.", CLIP's for VOC), or the mean of the unit text
            features of CLIP's "simple7" or "imagenet80" ensembles.
    """

    score: Literal["cosine", "softmax"] = "cosine"
    templates: Literal["single", "simple7", "imagenet80"] = "single"


@register
class ZeroShot(FitMethod):
    """Cosine with the class name; see the module's docstring."""

    name = "zero_shot"
    Hyper = ZeroShotHyper
    needs_vlm = True

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: ZeroShotHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.scale = backbone.logit_scale
        self.texts = text_classifier(backbone, task.prompts, templates_of(hyper.templates))

    def fit(self, features: Tensor, seed: int) -> None:
        """Do nothing: the text features are the classifier."""

    def predict(self, features: Tensor) -> Tensor:
        """Return (N, K) cosines, or log-odds of the soft-max over classes."""
        cosine = F.normalize(features.float(), dim=-1) @ self.texts.to(features.device).T
        if self.hyper.score == "cosine" or cosine.shape[1] == 1:
            return cosine
        return _softmax_log_odds((self.scale * cosine).double()).float()


def _softmax_log_odds(logits: Tensor) -> Tensor:
    """(N, K) log-odds of the soft-max over K >= 2 classes, exact where 1 - p underflows."""
    total = logits.logsumexp(dim=1, keepdim=True)
    best = logits.argmax(dim=1, keepdim=True)
    # The sum over the other classes is the total less one's own share, which is at most one half
    # for all but the best class; for that one it is summed directly.
    others = total + torch.log1p(-torch.exp(logits - total))
    without_best = logits.scatter(1, best, -torch.inf).logsumexp(dim=1, keepdim=True)
    return logits - others.scatter(1, best, without_best)

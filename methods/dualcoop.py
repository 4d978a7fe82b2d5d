"""DualCoOp: a positive and a negative learnt prompt for every class, frozen CLIP.

Source: Sun, Hu, Saenko, "DualCoOp: Fast Adaptation to Multi-Label Recognition with Limited
Annotations", NeurIPS 2022; code read: github sunxm2357/DualCoOp, 49e71d7.
Golden test: `tests/methods/test_dualcoop.py`, logits, loss and gradients of that code's computation, written
out again there (a second implementation of ours).

What it does: only the context tokens of two prompts are trained. With s⁺ and s⁻ = 20·cos of every
location's feature with a class's positive and negative text, and w = softmax of s⁺ over locations,
the pair of logits is 5·Σ w·s⁺ and 5·Σ w·s⁻; the probability of presence is their soft-max. The
loss is an asymmetric loss on that pair (γ⁻ = 2, γ⁺ = 1, clip 0.05), summed over the batch and
weighted.

What differs from the official code: trained on the labelled share with every label known, where
the paper has partial labels of all images; no first epoch at a constant rate of 1e-5; the cosine
schedule steps per optimiser step instead of per epoch; a shared context is read once for all
classes, which is exact. As in the official code, and unlike the paper's formula and DualCoOp++, the
mean token and the positional embedding of the attention pool take part (``locations``); at another
resolution than the pretraining's that embedding is interpolated by plain bicubic, where open_clip's has
antialiasing; and the focal weight is detached from the graph.

Expected score: none known under this protocol; COCO val2014, CLIP RN101 at 224 pixels trained on
1 % of the images: 56.3 mAP (Xie et al., "Unlocking the power of co-occurrence in CLIP"). Cost: one
forward pass of the frozen image tower per labelled image and epoch, and the text tower over 2
contexts and 2K names per step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from methods.backbones.clip import VisionLanguageModel
from methods.backbones.open_clip_models import has_attention_pool
from methods.backbones.spec import BackboneSpec
from methods.base import Batch, StepMethod, StepOutput, Task, trainable
from methods.errors import UserError, check_range
from methods.losses import pair_asymmetric_loss
from methods.parts.hypers import AsymmetricHyper, Optimizer, OptimizerHyper, Schedule
from methods.parts.prompts import LearntPrompts, encode_together
from methods.parts.regions import region_logits
from methods.registry import register


@dataclass(frozen=True)
class DualCoOpHyper(OptimizerHyper, AsymmetricHyper):
    """Hyper-parameters of DualCoOp; defaults are the official ones unless stated otherwise.

    Attributes:
        context_length: learnt tokens in front of the class name.
        positive_words: words that the positive context starts from, as CoOp's CTX_INIT; their
            tokens replace ``context_length``; empty for the official N(0, 0.02²).
        negative_words: the same for the negative context; must differ, or both contexts start equal.
        class_specific: one context for each class; the authors advise shared contexts
            when labels are scarce.
        locations: "code": attention-pool locations with the mean token and the positional
            embedding, as the official code; "plain": neither, as DualCoOp++ and TaI-DPT, and the
            only choice for transformer towers.
        gamma_pos: focusing exponent of positives (official: 1).
        gamma_neg: focusing exponent of negatives (official: 2).
        loss_weight: factor of the summed loss (README: 0.03 at 50 % labels on COCO, larger for
            fewer).
        lr: learning rate of the contexts (COCO 0.002, VOC2007 0.001).
        weight_decay: of the contexts.
        optimizer: "sgd" (official, momentum 0.9), "adamw" or "adam".
        schedule: "cosine" (official), "onecycle" or "constant".
    """

    context_length: int = field(default=16, metadata={"low": 4, "high": 16, "scale": "linear"})
    positive_words: str = ""
    negative_words: str = ""
    class_specific: bool = False
    locations: Literal["code", "plain"] = "code"
    gamma_pos: float = field(default=1.0, metadata={"low": 0.0, "high": 2.0, "scale": "linear"})
    gamma_neg: float = field(default=2.0, metadata={"low": 0.0, "high": 6.0, "scale": "linear"})
    loss_weight: float = field(default=0.03, metadata={"low": 0.01, "high": 1.0, "scale": "log"})
    lr: float = field(default=2e-3, metadata={"low": 1e-4, "high": 1e-1, "scale": "log"})
    weight_decay: float = field(default=5e-4, metadata={"low": 1e-6, "high": 1e-1, "scale": "log"})
    optimizer: Optimizer = "sgd"
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        check_range("dualcoop.clip", self.clip, 0, 1)
        OptimizerHyper.__post_init__(self)
        AsymmetricHyper.__post_init__(self)
        check_range("dualcoop.loss_weight", self.loss_weight, 0)
        if self.positive_words and self.positive_words == self.negative_words:
            raise UserError(
                f"dualcoop: both contexts start from {self.positive_words!r} and would cancel; "
                "set other negative_words"
            )


@register
class DualCoOp(StepMethod):
    """Two learnt prompts per class over a frozen CLIP; see the module's docstring."""

    name = "dualcoop"
    version = 2  # plain bicubic positions
    Hyper = DualCoOpHyper
    needs_vlm = True
    uses_unlabelled = False

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: DualCoOpHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.vlm = backbone.requires_grad_(False)
        self.positive, self.negative = (
            LearntPrompts(
                backbone,
                task.prompts,
                length=hyper.context_length,
                class_specific=hyper.class_specific,
                seed=2 * task.seed + place,
                words=words,
            )
            for place, words in enumerate((hyper.positive_words, hyper.negative_words))
        )

    @classmethod
    def check_task(cls, hyper: DualCoOpHyper, num_classes: int, backbone: BackboneSpec) -> None:
        """Only an attention pool has what ``locations = "code"`` adds."""
        if hyper.locations == "code" and not has_attention_pool(backbone):
            raise UserError(
                f"dualcoop.locations = 'code' needs an attention-pool tower (RN50, RN101, glyphclip), "
                f"{backbone.name} has none; use 'plain'"
            )

    def param_groups(self) -> list[dict[str, Any]]:
        """The two contexts."""
        hyper = self.hyper
        return [{"params": trainable(self), "lr": hyper.lr, "weight_decay": hyper.weight_decay}]

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Positive and negative logits, each (B, K) float32, of images (B, 3, H, W) in [0, 1]."""
        official = self.hyper.locations == "code"
        with torch.no_grad():
            _, local = self.vlm.dense_features(
                images, positional_embedding=official, mean_token=official, antialias=False
            )
        positive, negative = encode_together([self.positive, self.negative])
        return region_logits(local, positive, negative)

    def training_step(self, batch: Batch) -> StepOutput:
        """Weighted sum of the pair loss over the strong views of the labelled images."""
        hyper = self.hyper
        positive, negative = self.logits(batch.strong_labelled)
        loss = pair_asymmetric_loss(
            positive, negative, batch.targets, hyper.gamma_pos, hyper.gamma_neg, hyper.clip
        )
        return StepOutput({"labelled": hyper.loss_weight * loss.sum()})

    def predict(self, images: Tensor) -> Tensor:
        """Return (B, K) positive minus negative logit: the log-odds of presence."""
        positive, negative = self.logits(images)
        return positive - negative

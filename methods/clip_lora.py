"""CLIP-LoRA: low-rank changes of the attention weights of both towers, in front of the class texts.

Source: Zanella, Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops 2024,
arXiv 2405.18541; code read: github MaxZanella/CLIP-LoRA, 358f0d7.
Golden test: `tests/methods/test_clip_lora.py`, an attention's output and the gradients of its matrices of
that code; the loss by hand.

What it does: every query, key and value projection W of the frozen towers becomes W + α/√r · B A, with rank
r = 2, A drawn and B zero at the start. logit_k = s · cos(f, t_k) + b_k with both features from the adapted
towers, s the model's own scale; the texts "a photo of a {name}." are encoded anew at every step.

What differs from the official code: it is single-label, the multi-label form is ours: binary cross-entropy,
summed over classes, in place of the soft-max cross-entropy, and a bias, because a sigmoid does not take away
what all logits share (see `methods.parts.cached_views`); it starts where the mean probability of a class is
its labelled frequency, and is trained at the rate of the matrices. No dropout in front of A (there 0.25),
because a step has to be a function of seed, epoch and sample alone. Learning rate and schedule end at 0
instead of 1e-6, and the length is the recipe's, where the code takes 500 steps for each image of a class.
The code is for transformer towers; here an attention pool is adapted too, which is all of a ResNet tower
that is.

Expected score: none known, the paper is single-label. Cost: one forward and backward pass of both towers per
step: the image tower over the labelled images, the text tower over K texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.clip import VisionLanguageModel
from methods.backbones.spec import BackboneSpec
from methods.base import Batch, StepMethod, StepOutput, Task, at_least_fp32, full_precision, trainable
from methods.errors import UserError, check_range
from methods.losses import binary_cross_entropy
from methods.parts.hypers import Optimizer, OptimizerHyper, Schedule
from methods.parts.linear import calibrated_bias, rate_groups
from methods.parts.lora import adapt, has_attention
from methods.parts.prompts import SINGLE
from methods.registry import register


@dataclass(frozen=True)
class ClipLoraHyper(OptimizerHyper):
    """Hyper-parameters of CLIP-LoRA; defaults are the official ones.

    Attributes:
        rank: r of each pair of matrices.
        alpha: α of their factor α/√r.
        encoder: which towers are adapted.
        lr: learning rate.
        weight_decay: of the matrices; the biases have none.
        optimizer: "adamw" (official), "adam" or "sgd".
        schedule: "cosine" (official), "onecycle" or "constant".
    """

    rank: int = field(default=2, metadata={"low": 2, "high": 16, "scale": "log"})
    alpha: float = field(default=1.0, metadata={"low": 0.5, "high": 4.0, "scale": "log"})
    encoder: Literal["vision", "text", "both"] = "both"
    lr: float = field(default=2e-4, metadata={"low": 1e-5, "high": 1e-2, "scale": "log"})
    weight_decay: float = field(default=1e-2, metadata={"low": 1e-6, "high": 1e-1, "scale": "log"})
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("rank", self.rank, 1)
        check_range("alpha", self.alpha, 0)
        check_range("lr", self.lr, 0)


@register
class ClipLora(StepMethod):
    """LoRA on the attentions of a frozen CLIP; see the module's docstring.

    Attributes:
        vlm: the adapted model; without its text tower where that is not adapted.
        bias: (K,) parameter.
        texts: (K, T, w) token embeddings of the texts; their features (K, d) where the text tower is not
            adapted.
        ends: (K,) int64 positions of the texts' end tokens.
    """

    name = "clip_lora"
    Hyper = ClipLoraHyper
    needs_vlm = True
    uses_unlabelled = False
    hyper: ClipLoraHyper
    texts: Tensor
    ends: Tensor

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: ClipLoraHyper) -> None:
        super().__init__(backbone, task, hyper)
        backbone.requires_grad_(False)
        self.factor, tower = hyper.alpha / math.sqrt(hyper.rank), backbone.text_tower
        names = [SINGLE[0].format(name) for name in task.prompts]
        if hyper.encoder == "vision":
            texts, ends = backbone.encode_text(names).float(), torch.zeros(len(names), dtype=torch.int64)
        else:
            if not tower.learnable:
                raise UserError(
                    f"{self.name}.encoder = {hyper.encoder!r}: the text tower of {backbone.description} "
                    "takes no gradients here; use 'vision'"
                )
            ids, ends = tower.tokenise(names)
            texts = tower.token_embedding(ids).detach()
            adapt(tower.transformer, hyper.rank, self.factor)
        if hyper.encoder != "text" and not adapt(backbone.visual, hyper.rank, self.factor):
            raise UserError(_no_attention(backbone.description))
        self.vlm = backbone.without_text() if hyper.encoder == "vision" else backbone
        self.scale = backbone.logit_scale
        self.register_buffer("texts", texts, persistent=False)
        self.register_buffer("ends", ends, persistent=False)
        self.bias = nn.Parameter(torch.zeros(task.num_classes))

    @classmethod
    def check_task(cls, hyper: ClipLoraHyper, num_classes: int, backbone: BackboneSpec) -> None:
        """A convolutional tower has no attention to adapt."""
        if hyper.encoder != "text" and backbone.is_vlm and not has_attention(backbone):
            raise UserError(_no_attention(backbone.name))

    def param_groups(self) -> list[dict[str, Any]]:
        """Matrices and biases at one rate; the biases without decay."""
        matrices = [parameter for parameter in trainable(self) if parameter is not self.bias]
        hyper = self.hyper
        return [
            *rate_groups(hyper.weight_decay, (matrices, hyper.lr)),
            *rate_groups(0.0, ([self.bias], hyper.lr)),
        ]

    def calibrate(self, logits: Tensor) -> None:
        """Shift the biases so that mean probabilities equal the labelled frequencies."""
        with torch.no_grad():
            self.bias.add_(calibrated_bias(logits, self.task.frequencies))

    def training_step(self, batch: Batch) -> StepOutput:
        """Binary cross-entropy of the strong views, summed over classes, mean over the step's images."""
        loss = binary_cross_entropy(self.predict(batch.strong_labelled), batch.targets)
        return StepOutput({"labelled": loss.sum() / max(1, batch.global_labelled)})

    def predict(self, images: Tensor) -> Tensor:
        """Return (B, K) float32 logits."""
        texts = self.texts
        if self.hyper.encoder != "vision":
            texts = self.vlm.encode_prompts(texts, self.ends)
        features = self.vlm.features(images)
        with full_precision(features):
            unit, classes = (F.normalize(at_least_fp32(x), dim=-1) for x in (features, texts))
            return self.scale * F.linear(unit, classes) + self.bias


def _no_attention(backbone: str) -> str:
    return (
        f"clip_lora adapts attention weights, and the image tower of {backbone} has none; use a transformer "
        "or an attention-pool ResNet (ViT-B-16, RN50, glyphclip), or encoder = 'text'"
    )

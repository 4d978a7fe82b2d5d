"""DualCoOp: a positive and a negative learnt prompt for every class, frozen CLIP.

Source: Sun, Hu, Saenko, "DualCoOp: Fast Adaptation to Multi-Label Recognition with Limited
Annotations", NeurIPS 2022; code read: github sunxm2357/DualCoOp, 49e71d7.
Golden test: `tests/methods/test_dualcoop.py`, logits, loss and gradients that running that code gave at 224
and 448 pixels, and its computation written out again there, at 160 pixels too.

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
from typing import Any

from torch import Tensor

from methods.backbones.clip import VisionLanguageModel
from methods.base import Task, trainable
from methods.errors import UserError
from methods.parts.pairs import PairHyper, PairMethod
from methods.parts.prompts import encode_together, prompt_pair
from methods.parts.regions import region_logits
from methods.registry import register


@dataclass(frozen=True)
class DualCoOpHyper(PairHyper):
    """Hyper-parameters of DualCoOp; defaults are the official ones unless stated otherwise.

    Attributes:
        context_length: learnt tokens in front of the class name.
        positive_words: words that the positive context starts from, as CoOp's CTX_INIT; their
            tokens replace ``context_length``; empty for the official N(0, 0.02²).
        negative_words: the same for the negative context; must differ, or both contexts start equal.
        class_specific: one context for each class; the authors advise shared contexts
            when labels are scarce.
        lr: learning rate of the contexts (COCO 0.002, VOC2007 0.001).
        weight_decay: of the contexts.
    """

    context_length: int = field(default=16, metadata={"low": 4, "high": 16, "scale": "linear"})
    positive_words: str = ""
    negative_words: str = ""
    class_specific: bool = False
    lr: float = field(default=2e-3, metadata={"low": 1e-4, "high": 1e-1, "scale": "log"})
    weight_decay: float = field(default=5e-4, metadata={"low": 1e-6, "high": 1e-1, "scale": "log"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positive_words and self.positive_words == self.negative_words:
            raise UserError(
                f"positive_words: both contexts start from {self.positive_words!r} and would cancel; "
                "set other negative_words"
            )


@register
class DualCoOp(PairMethod):
    """Two learnt prompts per class over a frozen CLIP; see the module's docstring."""

    name = "dualcoop"
    version = 2  # plain bicubic positions
    Hyper = DualCoOpHyper

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: DualCoOpHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.positive, self.negative = prompt_pair(
            backbone,
            task.prompts,
            task.seed,
            hyper.context_length,
            hyper.class_specific,
            (hyper.positive_words, hyper.negative_words),
        )

    def param_groups(self) -> list[dict[str, Any]]:
        """The two contexts."""
        hyper = self.hyper
        return [{"params": trainable(self), "lr": hyper.lr, "weight_decay": hyper.weight_decay}]

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Positive and negative logits, each (B, K) float32, of images (B, 3, H, W) in [0, 1]."""
        local = self.local(images)
        positive, negative = encode_together([self.positive, self.negative])
        return region_logits(local, positive, negative)

"""PositiveCoOp, NegativeCoOp and the vision-only baseline: which of DualCoOp's two prompts is worth its cost.

Source: Rawlekar, Bhatnagar, Ahuja, "PositiveCoOp: Rethinking Prompting Strategies for Multi-Label Recognition
with Partial Annotations", WACV 2025, arXiv 2409.08381; code read: github SamyakR99/PositiveCoOp, 58c9c51
(`vision_only` is its `baseline`).
Golden test: `tests/methods/test_prompt_methods.py`, logits, loss and gradients of that code's three forward
passes and its loss.

What it does: `dualcoop` with its texts replaced. `positivecoop`: the positive text of a class is a learnt
prompt's feature plus a learnt vector of its own (the residual), the negative text a learnt vector without the
text tower. `negativecoop`: the other way round. The logits are DualCoOp's, whose weights of locations follow
the positive scores. `vision_only`: no text; one linear layer on the features of each location, as they are,
gives s⁺ and s⁻, and each is averaged with its own soft-max over locations: 5·Σ softmax(s)·s. The loss is
DualCoOp's. The paper's "both" is `dualcoop`.

What differs from the official code: as for `dualcoop`, the labelled share with every label known, no first
epoch at a constant rate (there 5e-3), a schedule that steps per optimiser step. ``lr`` is 0.5, of the one
whole command in its README; the sentence above it, which is DualCoOp's, says .001 and .002, and at a
hundredth of that the contexts would stand still. ``class_specific`` is off, as the authors advise for few
labels; that command has it on. A trap: vectors start from N(0, 1), 22.6 long in 512 dimensions. The residual
hides the prompt, whose feature is 7 to 10 long; where it does not, the random vector on the other side makes
a pair of logits that are 20 and more apart, and a saturated soft-max has no gradient. ``start = "text"``
begins with equal logits.

Expected score: none known under this protocol; the paper's are of all images with a part of their labels.
Cost: as `dualcoop`, with half of its prompts; `vision_only` has no text tower at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.clip import VisionLanguageModel
from methods.base import Task, at_least_fp32, full_precision
from methods.parts.pairs import PairHyper, PairMethod
from methods.parts.prompts import LearntPrompts
from methods.parts.regions import SUM_SCALE, region_logits
from methods.registry import register


@dataclass(frozen=True)
class OneSidedHyper(PairHyper):
    """Hyper-parameters of the two methods with a prompt; defaults are the official ones unless noted.

    Attributes:
        context_length: learnt tokens in front of the class name.
        context_words: words that the context starts from; their tokens replace ``context_length``; empty
            for the official N(0, 0.02²).
        class_specific: one context for each class.
        start: of the learnt vectors. "random": N(0, 1), official. "text": the residual from 0 and the vector
            from the prompt's own feature, so that the two logits of a pair are equal at first.
        lr: learning rate of the learnt vectors.
        lr_context: learning rate of the context (official: a hundredth of ``lr``).
        weight_decay: of all that is learnt (official: 0).
    """

    context_length: int = field(default=16, metadata={"low": 4, "high": 16, "scale": "linear"})
    context_words: str = ""
    class_specific: bool = False
    start: Literal["random", "text"] = "random"
    lr: float = field(default=0.5, metadata={"low": 1e-3, "high": 1.0, "scale": "log"})
    lr_context: float = field(default=5e-3, metadata={"low": 1e-5, "high": 1e-1, "scale": "log"})
    weight_decay: float = field(default=0.0, metadata={"low": 0.0, "high": 1e-2, "scale": "linear"})


@dataclass(frozen=True)
class VisionOnlyHyper(PairHyper):
    """Hyper-parameters of the baseline without texts; defaults are the official ones.

    Attributes:
        lr: learning rate of the linear layer (official: a hundredth of the command's 0.5).
        weight_decay: of the linear layer (official: 0).
    """

    lr: float = field(default=5e-3, metadata={"low": 1e-4, "high": 1e-1, "scale": "log"})
    weight_decay: float = field(default=0.0, metadata={"low": 0.0, "high": 1e-2, "scale": "linear"})


class OneSided(PairMethod):
    """A learnt prompt on one side, a learnt vector on the other; see the module's docstring.

    Class attributes:
        side: which text comes from the prompt.
    """

    Hyper = OneSidedHyper
    side: ClassVar[Literal["positive", "negative"]]

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: OneSidedHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.prompt = LearntPrompts(
            backbone,
            task.prompts,
            length=hyper.context_length,
            class_specific=hyper.class_specific,
            seed=2 * task.seed + (self.side == "negative"),  # where `dualcoop` starts on this side
            words=hyper.context_words,
        )
        with torch.no_grad():
            text = self.prompt()
        residual, vector = torch.randn_like(text), torch.randn_like(text)
        if hyper.start == "text":
            residual, vector = torch.zeros_like(text), text.clone()
        self.residual, self.embedding = nn.Parameter(residual), nn.Parameter(vector)

    def param_groups(self) -> list[dict[str, Any]]:
        """The context, and the learnt vectors."""
        hyper = self.hyper
        return [
            {"params": [self.prompt.context], "lr": hyper.lr_context, "weight_decay": hyper.weight_decay},
            {
                "params": [self.residual, self.embedding],
                "lr": hyper.lr,
                "weight_decay": hyper.weight_decay,
            },
        ]

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Positive and negative logits, each (B, K) float32, of images (B, 3, H, W) in [0, 1]."""
        text = self.prompt() + self.residual
        texts = (text, self.embedding) if self.side == "positive" else (self.embedding, text)
        return region_logits(self.local(images), *texts)


@register
class PositiveCoOp(OneSided):
    """A prompt for presence, a vector for absence."""

    name = "positivecoop"
    version = 1
    side = "positive"


@register
class NegativeCoOp(OneSided):
    """A prompt for absence, a vector for presence."""

    name = "negativecoop"
    version = 1
    side = "negative"


@register
class VisionOnly(PairMethod):
    """A linear layer on the features of the locations, and no text."""

    name = "vision_only"
    version = 1
    Hyper = VisionOnlyHyper

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: VisionOnlyHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.layer = nn.Linear(backbone.dim, 2 * task.num_classes)

    def param_groups(self) -> list[dict[str, Any]]:
        """The linear layer."""
        hyper = self.hyper
        return [{"params": list(self.layer.parameters()), "lr": hyper.lr, "weight_decay": hyper.weight_decay}]

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Positive and negative logits, each (B, K) float32, of images (B, 3, H, W) in [0, 1]."""
        local = self.local(images)
        with full_precision(local):
            maps = F.linear(at_least_fp32(local), self.layer.weight, self.layer.bias)
            positive, negative = (SUM_SCALE * (maps.softmax(dim=1) * maps).sum(dim=1)).chunk(2, dim=1)
        return positive, negative

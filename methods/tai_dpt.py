"""TaI-DPT: prompts that are learnt from sentences in place of images.

Source: Guo, Dong, Ji, Bai, Guo, Zuo, "Texts as Images in Prompt Tuning for Multi-Label Image Recognition",
CVPR 2023, arXiv 2211.12739; code read: github guozix/TaI-DPT, 1333eca.
Golden test: `tests/methods/test_tai_dpt.py`, numbers of running its two forward passes, on a caption and on
an image, and its loss.

What it does: CLIP is frozen, and two contexts are learnt, a global and a local prompt for every class. In
training a sentence takes the image's place: 4·cos of its feature with the global texts, and, over its tokens,
4·Σ softmax(50·cos)·cos with the local ones. Each has a ranking loss: every absent class that does not lie 1
below a present one costs the difference; summed over such pairs, averaged over sentences. An image is scored
by half of 4·cos of its global feature and half of 4·Σ softmax(40·cos)·cos over its locations.

What differs from the official code: a data set here has no captions, in which that code looks for the names
of classes and their synonyms. Its sentences are made of the labelled images' label sets: the names in a
random order, as in "a photo of a dog, person and car.", anew in each epoch. So it sees which labels go
together in the labelled share, and neither a word beyond the names nor any image. Images without a label have
no sentence. The global feature of an image is CLIP's own; that code leaves the positional embedding out of
its attention pool. No first epoch at a constant rate of 1e-5; the schedule steps per optimiser step.

Expected score: none known under this protocol; the paper's are of prompts that were trained on captions.
Cost: the text tower over a sentence per labelled image and epoch, and over 2 contexts and 2K names per step;
images are read and augmented, and not looked at.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.backbones.clip import VisionLanguageModel
from methods.backbones.spec import BackboneSpec
from methods.base import Batch, StepMethod, StepOutput, Task, at_least_fp32, full_precision, trainable
from methods.errors import check_range
from methods.parts.hypers import Optimizer, OptimizerHyper, Schedule
from methods.parts.pairs import check_locations
from methods.parts.prompts import encode_together, prompt_pair, templates_of
from methods.registry import register


@dataclass(frozen=True)
class TaIDPTHyper(OptimizerHyper):
    """Hyper-parameters of TaI-DPT; defaults are the official ones for VOC and COCO.

    Attributes:
        templates: of the sentences: "single", "simple7" or "imagenet80"; one of them is drawn each time.
        context_length: learnt tokens in front of the class name.
        global_words: words that the global context starts from; their tokens replace ``context_length``;
            empty for the official N(0, 0.02²).
        local_words: the same for the local context.
        class_specific: one context for each class (official: no).
        scale: factor of all cosines.
        token_scale: sharpness of the soft-max over the tokens of a sentence.
        location_scale: sharpness of the soft-max over the locations of an image (NUS-WIDE 4).
        margin: by which a present class has to lie above an absent one.
        global_share: of the global logit in an image's score; the rest is the local one's.
        lr: learning rate of the contexts (NUS-WIDE 1e-3).
        weight_decay: of the contexts.
        optimizer: "sgd" (official, momentum 0.9), "adamw" or "adam".
        schedule: "cosine" (official), "onecycle" or "constant".
    """

    templates: Literal["single", "simple7", "imagenet80"] = "single"
    context_length: int = field(default=16, metadata={"low": 4, "high": 16, "scale": "linear"})
    global_words: str = ""
    local_words: str = ""
    class_specific: bool = False
    scale: float = field(default=4.0, metadata={"low": 1.0, "high": 50.0, "scale": "log"})
    token_scale: float = field(default=50.0, metadata={"low": 1.0, "high": 100.0, "scale": "log"})
    location_scale: float = field(default=40.0, metadata={"low": 1.0, "high": 100.0, "scale": "log"})
    margin: float = field(default=1.0, metadata={"low": 0.1, "high": 2.0, "scale": "linear"})
    global_share: float = field(default=0.5, metadata={"low": 0.0, "high": 1.0, "scale": "linear"})
    lr: float = field(default=1e-4, metadata={"low": 1e-5, "high": 1e-1, "scale": "log"})
    weight_decay: float = field(default=5e-4, metadata={"low": 1e-6, "high": 1e-1, "scale": "log"})
    optimizer: Optimizer = "sgd"
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("global_share", self.global_share, 0, 1)
        for name in ("scale", "token_scale", "location_scale", "margin"):
            check_range(name, getattr(self, name), 0)


def sentence(names: Sequence[str], templates: Sequence[str], draw: random.Random) -> str:
    """A sentence with all names, in a random order and template.

    Args:
        names: at least one.
        templates: each with a gap for a name.
        draw: decides.

    Example:
        >>> sentence(["dog", "cup", "car"], ["a photo of a {}."], random.Random(0))
        'a photo of a cup, car and dog.'
    """
    *rest, last = draw.sample(list(names), len(names))
    return draw.choice(list(templates)).format(f"{', '.join(rest)} and {last}" if rest else last)


def pooled_cosines(unit: Tensor, texts: Tensor, sharpness: float, used: Tensor | None = None) -> Tensor:
    """Σ softmax(sharpness·c)·c over places, with c the cosines with each text.

    Args:
        unit: (B, L, d) unit features of places.
        texts: (K, d) unit text features.
        sharpness: of the soft-max.
        used: (B, L) bool, places that count; all by default.

    Returns:
        (B, K).
    """
    cosines = unit @ texts.T
    weights = sharpness * cosines
    if used is not None:
        weights = weights.masked_fill(~used[:, :, None], -torch.inf)
    return (weights.softmax(dim=1) * cosines).sum(dim=1)


def ranking_loss(logits: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Sum over pairs of a present class p and an absent one a of max(0, margin − z_p + z_a).

    Args:
        logits: (B, K).
        targets: (B, K) in {0, 1}.
        margin: by which present classes have to lie above.

    Returns:
        (B,) losses.

    Example:
        >>> ranking_loss(torch.tensor([[2.0, 1.5, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]), 1.0)
        tensor([0.5000])
    """
    lacking = (margin - logits[:, :, None] + logits[:, None, :]).clamp(min=0)
    return (lacking * targets[:, :, None] * (1 - targets[:, None, :])).sum(dim=(1, 2))


@register
class TaIDPT(StepMethod):
    """Two prompts per class, learnt from sentences; see the module's docstring."""

    name = "tai_dpt"
    version = 1
    Hyper = TaIDPTHyper
    needs_vlm = True
    uses_unlabelled = False
    score_scale = "ranking"
    hyper: TaIDPTHyper

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: TaIDPTHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.vlm = backbone.requires_grad_(False)
        self.templates = templates_of(hyper.templates)
        self.whole, self.local = prompt_pair(
            backbone,
            task.prompts,
            task.seed,
            hyper.context_length,
            hyper.class_specific,
            (hyper.global_words, hyper.local_words),
        )

    @classmethod
    def check_task(cls, hyper: TaIDPTHyper, num_classes: int, backbone: BackboneSpec) -> None:
        """Images are scored at their locations."""
        check_locations(cls.name, backbone)

    def param_groups(self) -> list[dict[str, Any]]:
        """The two contexts."""
        hyper = self.hyper
        return [{"params": trainable(self), "lr": hyper.lr, "weight_decay": hyper.weight_decay}]

    def logits(
        self, whole: Tensor, parts: Tensor, sharpness: float, used: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Global and local logits, each (B, K) float32.

        Args:
            whole: (B, d) features of images or sentences.
            parts: (B, L, d) features of their locations or tokens.
            sharpness: of the soft-max over these.
            used: (B, L) bool, tokens that count; all by default.
        """
        texts = encode_together([self.whole, self.local])
        with full_precision(whole):
            features = whole, parts, *texts
            whole, parts, one, other = (F.normalize(at_least_fp32(found), dim=-1) for found in features)
            scale = self.hyper.scale
            return scale * whole @ one.T, scale * pooled_cosines(parts, other, sharpness, used)

    def sentences(self, batch: Batch) -> list[str]:
        """A sentence for each labelled image that shows a class, drawn by seed, epoch and image."""
        found = []
        rows = zip(batch.labelled.tolist(), batch.targets.tolist(), strict=True)
        for image, targets in rows:
            names = [name for name, present in zip(self.task.prompts, targets, strict=True) if present]
            if names:
                draw = random.Random(f"{self.task.seed}, {batch.epoch}, {image}")
                found.append(sentence(names, self.templates, draw))
        return found

    def training_step(self, batch: Batch) -> StepOutput:
        """Ranking losses of the sentences, averaged over the labelled images of the step."""
        hyper = self.hyper
        targets = batch.targets[batch.targets.any(dim=1)]
        with torch.no_grad():
            # One more, so that a process without a sentence computes the same of nothing.
            texts = [*self.sentences(batch), self.templates[0].format(self.task.prompts[0])]
            features, tokens, used = (found[:-1] for found in self.vlm.text_tower.encode_tokens(texts))
        losses = {
            name: ranking_loss(logits, targets.to(logits), hyper.margin).sum() / batch.global_labelled
            for name, logits in zip(
                ("global", "local"), self.logits(features, tokens, hyper.token_scale, used), strict=True
            )
        }
        return StepOutput(losses)

    def predict(self, images: Tensor) -> Tensor:
        """Return (B, K) weighted means of the global and the local logits."""
        with torch.no_grad():
            whole, local = self.vlm.dense_features(images)
        one, other = self.logits(whole, local, self.hyper.location_scale)
        share = self.hyper.global_share
        return share * one + (1 - share) * other

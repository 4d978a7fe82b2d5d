"""DualCoOp++: DualCoOp with a third prompt that says where to look, and one class for each location.

Source: Hu, Sun, Sclaroff, Saenko, "DualCoOp++: Fast and Effective Adaptation to Multi-Label Recognition with
Limited Annotations", TPAMI 2024, arXiv 2308.01890. The authors published no code of their own; read: github
kjmillerCURIS/dualcoopstarstar, df94f38, of their university, whose README calls its trainer
Caption_tri_wta_soft DualCoOp++.
Golden test: `tests/methods/test_prompt_methods.py`, logits, loss and gradients of that code's forward pass
and loss.

What it does: three contexts are trained, for the evidential, the positive and the negative text of a class.
With c⁺ and c⁻ the cosines of every location's feature with positive and negative texts, the weights of
locations are the soft-max of e^τ·cos with the evidential text, τ learnt from 3. Winner takes all: at each
location classes compete by u = softmax over classes of 200·m·c⁺, m the largest c⁺ there, and v = u / max u.
The logits are Σ w·v·s⁺ and Σ w·s⁻ with s = e³·c (e³ ≈ 20). The loss is DualCoOp's on that pair, times 0.02.

What differs from that code: trained on the labelled share with every label known, a cosine schedule that
steps per optimiser step, no first epoch at a constant rate of 1e-5, ``class_specific`` off, as DualCoOp's
authors advise for few labels (its job scripts have it on), and the views of the recipe. Of the code's five
modes this is `pos_norm`, which all its job scripts use; its scales of s⁺ and s⁻ look learnt and are not: its
optimiser gets the prompts and τ. Locations have neither mean token nor positional embedding, as there
(``locations`` = "code" adds DualCoOp's). Where all c⁺ of a location are below 0, m turns the competition
round; CLIP's cosines are above 0.

Expected score: none known under this protocol; the paper's are of all images with a part of their labels.
Cost: as `dualcoop`, with three texts per class instead of two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.clip import VisionLanguageModel
from methods.base import Task, at_least_fp32, full_precision
from methods.dualcoop import DualCoOp, DualCoOpHyper
from methods.errors import check_range
from methods.parts.prompts import LearntPrompts, encode_together
from methods.registry import register

LOG_SCALE = 3.0
"""Logarithm of the scale of all cosines; that of the evidential ones is learnt from there."""


@dataclass(frozen=True)
class DualCoOpPPHyper(DualCoOpHyper):
    """Hyper-parameters of DualCoOp++; defaults are of the code unless stated otherwise.

    Attributes:
        context_length: learnt tokens in front of the class name (job scripts: 21).
        evidence_words: words that the evidential context starts from, as ``positive_words``.
        locations: "plain" (the code's): attention-pool locations without positional embedding and mean
            token; "code": with both, as DualCoOp's.
        winner_scale: sharpness of the competition of classes for a location; 0 for none.
        loss_weight: factor of the summed loss.
        lr: learning rate of the contexts and of the evidential scale.
        weight_decay: of the same.
    """

    context_length: int = field(default=21, metadata={"low": 4, "high": 24, "scale": "linear"})
    evidence_words: str = ""
    locations: Literal["code", "plain"] = "plain"
    winner_scale: float = field(default=200.0, metadata={"low": 0.0, "high": 400.0, "scale": "linear"})
    loss_weight: float = field(default=0.02, metadata={"low": 0.01, "high": 1.0, "scale": "log"})
    lr: float = field(default=5e-3, metadata={"low": 1e-4, "high": 1e-1, "scale": "log"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("winner_scale", self.winner_scale, 0)


def evidence_logits(
    local: Tensor,
    evidence: Tensor,
    positive: Tensor,
    negative: Tensor,
    log_scale: Tensor,
    winner_scale: float,
) -> tuple[Tensor, Tensor]:
    """The pair of logits of DualCoOp++.

    Args:
        local: (B, L, d) features of locations.
        evidence: (K, d) evidential text features.
        positive: (K, d) positive ones.
        negative: (K, d) negative ones.
        log_scale: () logarithm of the scale of the evidential cosines.
        winner_scale: sharpness of the competition of classes; at 0 none loses.

    Returns:
        Two (B, K) float32 logits.
    """
    with full_precision(local):
        local = F.normalize(at_least_fp32(local), dim=-1)
        texts = F.normalize(at_least_fp32(torch.cat([evidence, positive, negative])), dim=-1)
        where, plus, minus = (local @ texts.T).chunk(3, dim=-1)
        weights = (log_scale.exp() * where).softmax(dim=1)
        # As a difference of exponents, softmax / max softmax needs no division by a small number.
        contest = winner_scale * plus * plus.amax(dim=2, keepdim=True)
        kept = (contest - contest.amax(dim=2, keepdim=True)).exp()
        scale = math.exp(LOG_SCALE)
        return scale * (weights * kept * plus).sum(dim=1), scale * (weights * minus).sum(dim=1)


@register
class DualCoOpPP(DualCoOp):
    """Three learnt prompts per class over a frozen CLIP; see the module's docstring."""

    name = "dualcoop_pp"
    version = 1
    Hyper = DualCoOpPPHyper
    smallest = 1e-8

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: DualCoOpPPHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.evidence = LearntPrompts(
            backbone,
            task.prompts,
            length=hyper.context_length,
            class_specific=hyper.class_specific,
            seed=2**20 + task.seed,  # apart from both of `dualcoop`
            words=hyper.evidence_words,
        )
        self.log_scale = nn.Parameter(torch.tensor(LOG_SCALE))

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Positive and negative logits, each (B, K) float32, of images (B, 3, H, W) in [0, 1]."""
        local = self.local(images)
        evidence, positive, negative = encode_together([self.evidence, self.positive, self.negative])
        return evidence_logits(local, evidence, positive, negative, self.log_scale, self.hyper.winner_scale)

"""Methods that give each class a pair of logits, "present" and "absent", over the locations of a frozen CLIP.

DualCoOp's form (github sunxm2357/DualCoOp, 49e71d7), which the methods after it keep: the probability of
presence is the soft-max of the pair, and the loss an asymmetric one on it, summed and weighted. A method says
what the two logits are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.backbones.clip import VisionLanguageModel
from methods.backbones.open_clip_models import has_attention_pool, has_dense_features
from methods.backbones.spec import BackboneSpec
from methods.base import Batch, StepMethod, StepOutput, Task
from methods.errors import UserError, check_range
from methods.losses import pair_asymmetric_loss
from methods.parts.hypers import AsymmetricHyper, Optimizer, OptimizerHyper, Schedule


@dataclass(frozen=True)
class PairHyper(OptimizerHyper, AsymmetricHyper):
    """Locations, loss and optimiser; defaults are DualCoOp's.

    Attributes:
        locations: "code": attention-pool locations with the mean token and the positional
            embedding, as DualCoOp's code; "plain": neither, as DualCoOp++ and TaI-DPT, and the
            only choice for transformer towers.
        gamma_pos: focusing exponent of positives (official: 1).
        gamma_neg: focusing exponent of negatives (official: 2).
        loss_weight: factor of the summed loss (DualCoOp's README: 0.03 at 50 % labels on COCO, larger for
            fewer).
        optimizer: "sgd" (official, momentum 0.9), "adamw" or "adam".
        schedule: "cosine" (official), "onecycle" or "constant".
    """

    locations: Literal["code", "plain"] = "code"
    gamma_pos: float = field(default=1.0, metadata={"low": 0.0, "high": 2.0, "scale": "linear"})
    gamma_neg: float = field(default=2.0, metadata={"low": 0.0, "high": 6.0, "scale": "linear"})
    loss_weight: float = field(default=0.03, metadata={"low": 0.01, "high": 1.0, "scale": "log"})
    optimizer: Optimizer = "sgd"
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        OptimizerHyper.__post_init__(self)
        AsymmetricHyper.__post_init__(self)
        check_range("loss_weight", self.loss_weight, 0)


def check_locations(method: str, backbone: BackboneSpec) -> None:
    """Raise `UserError` if an image tower has no features of locations, which ``method`` reads."""
    if not has_dense_features(backbone):
        raise UserError(
            f"{method} reads features of locations, which the tower of {backbone.name} does not have "
            "here; use an attention-pool ResNet (RN50, RN101, glyphclip) or a plain ViT"
        )


class PairMethod(StepMethod):
    """Base of such methods: a subclass builds its parameters, and defines `logits` and `param_groups`.

    Class attributes:
        smallest: least argument of the loss's logarithms.
    """

    needs_vlm = True
    uses_unlabelled = False
    smallest: ClassVar[float] = 1e-6

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: PairHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.vlm = backbone.requires_grad_(False)

    @classmethod
    def check_task(cls, hyper: PairHyper, num_classes: int, backbone: BackboneSpec) -> None:
        """Only an attention pool has what ``locations = "code"`` adds; some towers have no locations."""
        check_locations(cls.name, backbone)
        if hyper.locations == "code" and not has_attention_pool(backbone):
            raise UserError(
                f"{cls.name}.locations = 'code' needs an attention-pool tower (RN50, RN101, glyphclip), "
                f"{backbone.name} has none; use 'plain'"
            )

    @torch.no_grad()
    def local(self, images: Tensor) -> Tensor:
        """(B, L, d) features of the locations, not normalised, of images (B, 3, H, W) in [0, 1]."""
        official = self.hyper.locations == "code"
        _, local = self.vlm.dense_features(
            images, positional_embedding=official, mean_token=official, antialias=False
        )
        return local

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Positive and negative logits, each (B, K) float32, of images (B, 3, H, W) in [0, 1]."""
        raise NotImplementedError

    def training_step(self, batch: Batch) -> StepOutput:
        """Weighted sum of the pair loss over the strong views of the labelled images."""
        hyper = self.hyper
        positive, negative = self.logits(batch.strong_labelled)
        loss = pair_asymmetric_loss(
            positive,
            negative,
            batch.targets,
            hyper.gamma_pos,
            hyper.gamma_neg,
            hyper.clip,
            self.smallest,
        )
        return StepOutput({"labelled": hyper.loss_weight * loss.sum()})

    def predict(self, images: Tensor) -> Tensor:
        """Return (B, K) positive minus negative logit: the log-odds of presence."""
        positive, negative = self.logits(images)
        return positive - negative

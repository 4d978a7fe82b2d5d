"""The linear classifier over a backbone, and the base of the methods that train one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.backbones.base import Backbone
from methods.backbones.clip import VisionLanguageModel
from methods.base import StepMethod, Task, at_least_fp32, full_precision, trainable
from methods.errors import UserError, check_range
from methods.losses import asymmetric_loss, binary_cross_entropy
from methods.parts.prompts import text_classifier

TYPICAL_COSINE = 0.2  # between CLIP's image and text features, whether they match or not


def calibrated_bias(logits: Tensor, frequencies: Tensor) -> Tensor:
    """Shift of each class's logits that makes its mean probability equal its frequency.

    Cosines of CLIP features sit around 0.15 to 0.3, so scaled cosines without a bias call every
    class present. The shift is found by bisection; the mean probability rises with it.

    Args:
        logits: (N, K) of labelled images, N >= 1.
        frequencies: (K,) in [0, 1]; kept half an image away from 0 and 1.

    Returns:
        (K,) float32 to be added to the logits.
    """
    values = logits.detach().double()
    margin = 0.5 / (len(values) + 1)
    wanted = frequencies.to(values).clamp(margin, 1 - margin)
    centre = torch.logit(wanted)
    low, high = centre - values.amax(dim=0), centre - values.amin(dim=0)
    for _ in range(60):
        middle = (low + high) / 2
        over = torch.sigmoid(values + middle).mean(dim=0) > wanted
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return ((low + high) / 2).float()


class LinearClassifier(nn.Module):
    """One logit per class from the global feature of a trainable backbone.

    Vision-language backbone, ``init="text"`` (or "match"): logit_k = scale · ⟨f̄, W_k⟩ + b_k with f̄
    the unit feature and W_k started from the unit text feature of "a photo of a {name}."; training
    starts from zero-shot ranking. ``init="random"`` has the same form with W_k drawn as in
    `torch.nn.Linear`. Image-only backbone: logit_k = ⟨f √d / ‖f‖, W_k⟩ + b_k on pooled features f;
    networks differ in the size of their features by orders of magnitude (a Caffe SqueezeNet's norm
    is about 5,000), and one learning rate has to serve them all.

    b_k starts where an image with a typical cosine (0.2; image-only: logit 0) has the smoothed
    labelled frequency as its probability; `calibrated_bias` on real logits is better, see
    `LinearMethod.calibrate`. The text tower is not kept.

    Args:
        backbone: trained in place.
        task: classes and labels.
        init: "text", "random", or "match": text if the backbone has a text tower, else random.
        scale: factor of the cosines; not used for an image-only backbone.
    """

    def __init__(self, backbone: Backbone, task: Task, init: str = "match", scale: float = 20.0) -> None:
        super().__init__()
        self.cosine = isinstance(backbone, VisionLanguageModel)
        self.scale = scale if self.cosine else 1.0
        if init == "text" and not self.cosine:
            raise UserError(f"init='text' needs a text tower, {backbone.description} has none; use 'random'")
        weight = torch.empty(task.num_classes, backbone.dim)
        nn.init.uniform_(weight, -(backbone.dim**-0.5), backbone.dim**-0.5)
        typical = 0.0
        if isinstance(backbone, VisionLanguageModel):
            if init != "random":
                weight = text_classifier(backbone, task.prompts).cpu()
                typical = TYPICAL_COSINE
            self.backbone: Backbone = backbone.without_text()
        else:
            self.backbone = backbone
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.logit(task.prior).float() - self.scale * typical)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, K) float32 logits of images (B, 3, H, W) in [0, 1]."""
        return self.classify(self.backbone.features(images))

    def classify(self, features: Tensor) -> Tensor:
        """Return (B, K) float32 logits of features (B, d)."""
        with full_precision(features):
            features = F.normalize(at_least_fp32(features), dim=-1)
            if not self.cosine:
                features = features * features.shape[-1] ** 0.5
            return self.scale * F.linear(features, self.weight) + self.bias


@dataclass(frozen=True)
class LinearHyper:
    """Hyper-parameters shared by all methods that train a linear classifier.

    Attributes:
        loss: "asl" (gamma_pos, gamma_neg, clip below) or "bce".
        gamma_pos: focusing exponent of positives (CAP: 0).
        gamma_neg: focusing exponent of negatives (CAP: 4).
        clip: probability margin of negatives (CAP: 0.05).
        init: start of the classifier: "text" features of the class names, "random", or "match":
            text features when the backbone has a text tower, random otherwise.
        scale: factor of the cosines with a vision-language backbone.
        freeze_bn: keep batch normalisation at its pretraining statistics (CAP: False).
        lr_backbone: learning rate of the backbone; 0 freezes it.
        lr_head: learning rate of the classifier.
        weight_decay: of both.
        optimizer: "adamw" (CAP) or "sgd".
        schedule: "onecycle" (CAP), "cosine" or "constant".
    """

    loss: Literal["asl", "bce"] = "asl"
    gamma_pos: float = 0.0
    gamma_neg: float = 4.0
    clip: float = 0.05
    init: Literal["match", "text", "random"] = "match"
    scale: float = 20.0
    freeze_bn: bool = True
    lr_backbone: float = 1e-4
    lr_head: float = 1e-3
    weight_decay: float = 1e-4
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"

    def __post_init__(self) -> None:
        check_range("clip", self.clip, 0, 1)
        for field in ("scale", "lr_backbone", "lr_head", "weight_decay"):
            check_range(field, getattr(self, field), 0)

    def shared(self) -> dict[str, Any]:
        """The fields of this class, without those that a subclass added."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(LinearHyper)}


class LinearMethod(StepMethod):
    """A step method around a `LinearClassifier`; a subclass adds `training_step`."""

    hyper: LinearHyper

    def __init__(self, backbone: Backbone, task: Task, hyper: LinearHyper) -> None:
        super().__init__(backbone, task, hyper)
        backbone.freeze_bn = hyper.freeze_bn
        if not hyper.lr_backbone:
            backbone.requires_grad_(False)
        self.classifier = LinearClassifier(backbone, task, hyper.init, hyper.scale)

    def param_groups(self) -> list[dict[str, Any]]:
        """Backbone and head at their own learning rates."""
        head = [self.classifier.weight, self.classifier.bias]
        groups = [(trainable(self.classifier.backbone), self.hyper.lr_backbone)]
        groups.append((head, self.hyper.lr_head))
        return [
            {"params": parameters, "lr": lr, "weight_decay": self.hyper.weight_decay}
            for parameters, lr in groups
            if parameters
        ]

    def calibrate(self, logits: Tensor) -> None:
        """Shift the biases so that mean probabilities equal the labelled frequencies."""
        with torch.no_grad():
            self.classifier.bias.add_(calibrated_bias(logits, self.task.frequencies))

    def predict(self, images: Tensor) -> Tensor:
        """Return (B, K) float32 logits."""
        return self.classifier(images)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the (B, K) element-wise loss that the hyper-parameters name."""
        hyper = self.hyper
        if hyper.loss == "bce":
            return binary_cross_entropy(logits, targets)
        return asymmetric_loss(logits, targets, hyper.gamma_pos, hyper.gamma_neg, hyper.clip)

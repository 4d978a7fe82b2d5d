"""The base of the methods that train a backbone with a classifier.

That is a head of `methods.parts.heads`, or one of `methods.parts.prompt_classifiers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from methods.backbones.base import Backbone
from methods.backbones.clip import VisionLanguageModel
from methods.backbones.spec import BackboneSpec
from methods.base import StepMethod, Task, trainable
from methods.errors import UserError, check_choice, check_range
from methods.losses import asymmetric_loss, binary_cross_entropy
from methods.parts.heads import HEADS, Classifier, LinearClassifier
from methods.parts.hypers import AsymmetricHyper, ClassifierHyper, OptimizerHyper
from methods.parts.prompt_classifiers import AlignmentClassifier, AlignmentSpec, DualPromptClassifier

__all__ = [
    "LinearClassifier",
    "LinearHyper",
    "LinearMethod",
    "calibrated_bias",
    "rate_groups",
    "set_training",
]


def calibrated_bias(logits: Tensor, frequencies: Tensor) -> Tensor:
    """Find the shift of each class's logits that makes its mean probability equal its frequency.

    Cosines of CLIP features sit around 0.15 to 0.3, so scaled cosines without a bias call every
    class present. The shift is found by bisection; the mean probability rises with it.

    Args:
        logits: (N, K) float, of labelled images, N >= 1.
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


@dataclass(frozen=True)
class LinearHyper(OptimizerHyper, AsymmetricHyper, ClassifierHyper):
    """Hyper-parameters shared by all methods that train a backbone with a classifier.

    Attributes:
        loss: "asl", the asymmetric loss with ``gamma_pos``, ``gamma_neg`` and ``clip``, or "bce".
        init: start of the heads "match" and "cosine": "text" features of the class names, "random",
            or "match": text features when the backbone has a text tower, random otherwise. Other
            heads start at random and refuse it.
        scale: factor of the cosines: of the head "cosine", and of "match" with a vision-language
            backbone. Other heads refuse it.
        freeze_bn: keep batch normalisation at its pretraining statistics (CAP: False).
        lr_backbone: learning rate of the backbone; 0 freezes it.
        lr_head: learning rate of the head, or of the classifier's prompts, scale and biases.
        head: "match", "linear", "cosine" or "ml_decoder", see `methods.parts.heads`: the layer of the
            classifier "linear". Other classifiers refuse it, and ``init`` and ``scale``.

    Class attributes:
        later: fields that were added after the first results, with the value that those were made
            with. At that value they are left out of a run's identity, so that it stays what it was.
    """

    later: ClassVar[Mapping[str, Any]] = {"head": "match"}

    loss: Literal["asl", "bce"] = "asl"
    init: Literal["match", "text", "random"] = "match"
    scale: float = field(default=20.0, metadata={"low": 5.0, "high": 100.0, "scale": "log"})
    freeze_bn: bool = True
    lr_backbone: float = field(default=1e-4, metadata={"low": 1e-6, "high": 1e-2, "scale": "log"})
    lr_head: float = field(default=1e-3, metadata={"low": 1e-5, "high": 1e-1, "scale": "log"})
    head: Literal["match", "linear", "cosine", "ml_decoder"] = "match"

    def __post_init__(self) -> None:
        OptimizerHyper.__post_init__(self)
        AsymmetricHyper.__post_init__(self)
        ClassifierHyper.__post_init__(self)
        check_choice("head", self.head, HEADS)
        for name in ("head", "init", "scale"):
            default, value = getattr(LinearHyper, name), getattr(self, name)
            if value != default and self.classifier != "linear":
                raise UserError(
                    f"{name} = {value!r} belongs to the classifier 'linear'; "
                    f"leave it out with classifier = {self.classifier!r}"
                )
            if name != "head" and value != default and self.head not in ("match", "cosine"):
                raise UserError(
                    f"{name} = {value!r} belongs to the heads 'match' and 'cosine'; "
                    f"leave it out with head = {self.head!r}"
                )
        for name in ("scale", "lr_backbone", "lr_head"):
            check_range(name, getattr(self, name), 0)

    def shared(self) -> dict[str, Any]:
        """Return the fields of this class, without those that a subclass added."""
        return {found.name: getattr(self, found.name) for found in dataclasses.fields(LinearHyper)}


def rate_groups(
    weight_decay: float, *parts: tuple[list[nn.Parameter], float], decays_vectors: bool = True
) -> list[dict[str, Any]]:
    """Parameter groups of parts, each with its own learning rate; an empty group is left out.

    Args:
        weight_decay: of the parameters that decay.
        *parts: parameters and their learning rate.
        decays_vectors: whether parameters of one dimension and scalars do; else they are groups of their own.
    """
    groups = []
    for parameters, lr in parts:
        decayed = [parameter for parameter in parameters if decays_vectors or parameter.ndim > 1]
        others = [] if decays_vectors else [parameter for parameter in parameters if parameter.ndim <= 1]
        for group, decay in ((decayed, weight_decay), (others, 0.0)):
            if group:
                groups.append({"params": group, "lr": lr, "weight_decay": decay})
    return groups


def classifier_of(backbone: Backbone, task: Task, hyper: LinearHyper) -> Classifier:
    """Build the classifier that hyper-parameters name.

    Args:
        backbone: trained in place; parameters that only its global feature reads are frozen where the
            classifier reads local features.
        task: classes, labels and seed.
        hyper: the method's.

    Raises:
        UserError: the backbone has no text tower, no local features, or takes no learnt prompts.
    """
    if hyper.classifier == "linear":
        return HEADS[hyper.head](backbone, task, hyper.init, hyper.scale)
    if not isinstance(backbone, VisionLanguageModel):
        raise UserError(_no_texts(hyper, backbone.description))
    found: Classifier
    if hyper.classifier == "dualcoop":
        words = (hyper.context_words, hyper.negative_words)
        found = DualPromptClassifier(
            backbone, task.prompts, task.seed, hyper.context_length, hyper.class_specific, words
        )
    else:
        spec = AlignmentSpec(
            features=hyper.features,
            temperature=hyper.spatial_temperature,
            context_length=hyper.context_length,
            context_words=hyper.context_words,
            class_specific=hyper.class_specific,
        )
        found = AlignmentClassifier(backbone, task.prompts, spec, task.seed)
    if found.reads_map:
        backbone.freeze_pooling()
    return found


def _no_texts(hyper: LinearHyper, backbone: str) -> str:
    return (
        f"classifier = {hyper.classifier!r} needs a vision-language backbone, {backbone} has no text tower; "
        "use 'linear'"
    )


def set_training(backbone: Backbone, hyper: Any) -> None:
    """Prepare a backbone for training as ``freeze_bn`` and ``lr_backbone`` of hyper-parameters say.

    Args:
        backbone: its batch normalisation keeps its statistics with ``freeze_bn``; it is frozen at a rate of
            0.
        hyper: has both fields.
    """
    backbone.freeze_bn = hyper.freeze_bn
    if not hyper.lr_backbone:
        backbone.requires_grad_(False)


class LinearMethod(StepMethod):
    """A step method around a backbone with a classifier; a subclass adds `training_step`.

    Attributes:
        classifier: maps images (B, 3, H, W) in [0, 1] to (B, K) float32 logits.
    """

    hyper: LinearHyper

    def __init__(self, backbone: Backbone, task: Task, hyper: LinearHyper) -> None:
        super().__init__(backbone, task, hyper)
        set_training(backbone, hyper)
        self.classifier = classifier_of(backbone, task, hyper)

    @classmethod
    def check_task(cls, hyper: LinearHyper, num_classes: int, backbone: BackboneSpec) -> None:
        """``init = "text"``, and classifiers of texts, need a text tower."""
        if hyper.classifier != "linear" and not backbone.is_vlm:
            raise UserError(_no_texts(hyper, backbone.name))
        if hyper.init == "text" and not backbone.is_vlm:
            raise UserError(f"init = 'text' needs a text tower, {backbone.name} has none; use 'random'")

    def param_groups(self) -> list[dict[str, Any]]:
        """Backbone and head at their own learning rates."""
        return self.groups_with([])

    def groups_with(self, others: list[nn.Parameter]) -> list[dict[str, Any]]:
        """`param_groups` with further parameters, which have the head's learning rate."""
        return rate_groups(
            self.hyper.weight_decay,
            (trainable(self.classifier.backbone), self.hyper.lr_backbone),
            ([*self.classifier.head_parameters(), *others], self.hyper.lr_head),
            decays_vectors=self.classifier.decays_vectors,
        )

    def calibrate(self, logits: Tensor) -> None:
        """Shift the biases so that mean probabilities equal the labelled frequencies, if it asks."""
        if not self.classifier.calibrated:
            return
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

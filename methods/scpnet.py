"""SCPNet: texts refined over a graph of their similarity, top-k pseudo-labels, and smoothed probabilities.

Source: Ding, Wang, Chen, Zhang, Liu, Bao, Yan, Han, "Exploring Structured Semantic Prior for Multi Label
Recognition with Incomplete Labels", CVPR 2023, arXiv 2303.13223; code read: github jameslahm/SCPNet, d56341a.
Golden test: `tests/methods/test_scpnet.py`, numbers of running it: graphs, logits, losses, their gradients
and its memory over two steps.

What it does: CLIP's image tower is fine-tuned, its text tower frozen. One shared context is learnt, from "a
photo of a". The classes are nodes of a graph whose edges are cosines of their texts: each class keeps its
nearest ones, which get .2 of its weight together. Three layers of graph convolution on it are added to the
texts, and a logit is 10·cos of image and refined text. Labelled images cost SPLC's focal margin loss. In the
weak view of an unlabelled image the k most probable classes are its positives, each from τ·a/(2 − a) on, with
a as in FlexMatch: how many images have the class, among those that were given any, at least 1/K. Images with
a positive are used: on the strong view, binary cross-entropy with these labels and, for the same images, with
the weak view's probabilities averaged over each class's neighbours (soft-max of the graph at temperature .2).

What differs from the official code: there every image has one known positive, and is used in both parts. Here
the labelled part has whole label sets, so that nothing is corrected in it, and the other has images without a
known label, where a memory row may stay empty. The graph is built here, of CLIP's texts "a photo of a {}.";
the official files hold such cosines too (symmetric, 1 on the diagonal), of unknown texts. Cosines below 0
count as 0. It starts from a labelled-only training, as all methods with pseudo-labels here; batch
normalisation keeps its statistics (``freeze_bn``); the views are those of the recipe (``views = "scpnet"``
for its own). Losses are sums as there; its weight .125 is for as many images with as without a loss of labels
in a step.

Expected score: none known under this protocol; with one positive label for each image, CLIP RN50 at 224
pixels, COCO 76.4, VOC2012 91.2, NUS-WIDE 62.0 mAP (its README; best epoch on the test images). Cost: as
`fixmatch`, and the text tower over a context and K names per step; n_u·K bytes of memory.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from methods.backbones.clip import VisionLanguageModel
from methods.base import Batch, PseudoLabels, StepMethod, StepOutput, Task, trainable
from methods.errors import UserError, check_range
from methods.losses import binary_cross_entropy, splc_loss
from methods.parts.hypers import Optimizer, OptimizerHyper
from methods.parts.linear import rate_groups, set_training
from methods.parts.relations import RelationClassifier
from methods.registry import register


@dataclass(frozen=True)
class SCPNetHyper(OptimizerHyper):
    """Hyper-parameters of SCPNet; defaults are the official ones for COCO.

    Attributes:
        context_words: words that the learnt context starts from.
        scale: factor of the cosines (NUS-WIDE: CLIP's own, 100).
        kept: share of the classes that are a class's neighbours, itself among them (62 of 80; VOC all 20,
            NUS-WIDE 50 of 81).
        neighbours: weight of a class's neighbours together; the rest is its own.
        temperature: of the soft-max over neighbours that averages probabilities (VOC 0.3).
        k: pseudo-positives of an image at most (COCO 2, VOC 5, NUS-WIDE 6).
        threshold: τ, of a class with as many images as any.
        unlabelled_weight: factor of all that unlabelled images cost; 0 uses none.
        relation_weight: factor of the averaged probabilities' part of it (COCO, NUS-WIDE 1, VOC 2).
        margin: of the focal margin loss, subtracted from the logits of positives.
        gamma: its focusing exponent.
        freeze_bn: keep batch normalisation at its pretraining statistics (official: False).
        lr_backbone: learning rate of the image tower (VOC 4e-5).
        lr_context: learning rate of the context (official: that of the image tower).
        lr_graph: learning rate of the graph convolution (VOC 2e-4, NUS-WIDE 1e-4).
        weight_decay: of all but vectors.
        optimizer: "adam" (official), "adamw" or "sgd".
    """

    context_words: str = "a photo of a"
    scale: float = field(default=10.0, metadata={"low": 5.0, "high": 100.0, "scale": "log"})
    kept: float = field(default=0.775, metadata={"low": 0.25, "high": 1.0, "scale": "linear"})
    neighbours: float = field(default=0.2, metadata={"low": 0.0, "high": 0.5, "scale": "linear"})
    temperature: float = field(default=0.2, metadata={"low": 0.1, "high": 1.0, "scale": "log"})
    k: int = field(default=2, metadata={"low": 1, "high": 6, "scale": "linear"})
    threshold: float = field(default=0.95, metadata={"low": 0.7, "high": 0.99, "scale": "linear"})
    unlabelled_weight: float = field(default=0.125, metadata={"low": 0.01, "high": 1.0, "scale": "log"})
    relation_weight: float = field(default=1.0, metadata={"low": 0.0, "high": 2.0, "scale": "linear"})
    margin: float = field(default=1.0, metadata={"low": 0.5, "high": 1.0, "scale": "linear"})
    gamma: float = field(default=2.0, metadata={"low": 0.0, "high": 4.0, "scale": "linear"})
    freeze_bn: bool = True
    lr_backbone: float = field(default=3e-5, metadata={"low": 1e-6, "high": 1e-2, "scale": "log"})
    lr_context: float = field(default=3e-5, metadata={"low": 1e-6, "high": 1e-2, "scale": "log"})
    lr_graph: float = field(default=1e-5, metadata={"low": 1e-6, "high": 1e-2, "scale": "log"})
    optimizer: Optimizer = "adam"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kept", "neighbours", "threshold"):
            check_range(name, getattr(self, name), 0, 1)
        names = ("scale", "unlabelled_weight", "relation_weight", "margin", "gamma", "lr_backbone")
        for name in (*names, "lr_context", "lr_graph"):
            check_range(name, getattr(self, name), 0)
        if self.temperature <= 0 or self.k < 1 or not self.context_words:
            raise UserError(
                f"temperature = {self.temperature}, k = {self.k}, context_words = {self.context_words!r}: "
                "a temperature is above 0, k at least 1, and the context starts from words"
            )


@register
class SCPNet(StepMethod):
    """Structured prior of texts for top-k pseudo-labels; see the module's docstring."""

    name = "scpnet"
    version = 1
    Hyper = SCPNetHyper
    needs_vlm = True
    hyper: SCPNetHyper
    selected: Tensor
    counts: Tensor

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: SCPNetHyper) -> None:
        super().__init__(backbone, task, hyper)
        set_training(backbone, hyper)
        self.classifier = RelationClassifier(
            backbone,
            task.prompts,
            task.seed,
            words=hyper.context_words,
            scale=hyper.scale,
            kept=hyper.kept,
            neighbours=hyper.neighbours,
            temperature=hyper.temperature,
        )
        images = task.num_unlabelled if hyper.unlabelled_weight else 0
        self.register_state("selected", torch.zeros(images, task.num_classes, dtype=torch.bool))
        self.register_state("counts", torch.zeros(task.num_classes, dtype=torch.int64))

    def param_groups(self) -> list[dict[str, Any]]:
        """Image tower, context and graph convolution at their own learning rates."""
        hyper, classifier = self.hyper, self.classifier
        return rate_groups(
            hyper.weight_decay,
            (trainable(classifier.vlm), hyper.lr_backbone),
            ([classifier.prompt.context], hyper.lr_context),
            (list(classifier.layers), hyper.lr_graph),
            decays_vectors=False,
        )

    def predict(self, images: Tensor) -> Tensor:
        """Return (B, K) float32 logits."""
        return self.classifier(images)

    def thresholds(self) -> Tensor:
        """(K,) float64 probabilities from which a class may be a pseudo-positive."""
        counts, hyper = self.counts, self.hyper
        unselected = hyper.k * len(self.selected) - counts.sum()
        reached = counts.double() / torch.maximum(counts.max(), unselected).clamp(min=1)
        reached = reached.clamp(min=1 / len(counts))
        return hyper.threshold * reached / (2 - reached)

    def pseudo_labels(self, probabilities: Tensor) -> PseudoLabels:
        """Top-k labels of (B, K) weak probabilities; all entries of images that have one are used."""
        k = min(self.hyper.k, probabilities.shape[1])
        top = torch.zeros_like(probabilities).scatter(1, probabilities.topk(k, dim=1).indices, 1)
        targets = top * (probabilities >= self.thresholds())
        return PseudoLabels(targets, targets.amax(dim=1, keepdim=True).expand_as(targets))

    def training_step(self, batch: Batch) -> StepOutput:
        """Focal margin loss of labelled images; both losses of unlabelled ones."""
        hyper, use_pool = self.hyper, bool(self.hyper.unlabelled_weight)
        images = batch.strong_labelled
        if use_pool:
            images = torch.cat([images, batch.strong_unlabelled])
        logits = self.predict(images)
        known, others = logits[: len(batch.labelled)], logits[len(batch.labelled) :]
        loss = splc_loss(known, batch.targets, False, margin=hyper.margin, gamma=hyper.gamma, check=False)
        losses = {"labelled": loss.sum()}
        if not use_pool:
            return StepOutput(losses, statistics={"counts": torch.zeros_like(self.counts)})
        with torch.no_grad():
            weak = torch.sigmoid(self.predict(batch.weak_unlabelled))
            pseudo = self.pseudo_labels(weak)
            smooth = weak @ self.classifier.smoothing.T
        parts = (("unlabelled", pseudo.targets, 1.0), ("relation", smooth, hyper.relation_weight))
        for name, targets, weight in parts:
            entries = pseudo.mask * binary_cross_entropy(others, targets)
            losses[name] = hyper.unlabelled_weight * weight * entries.sum()
        before = self.selected[batch.unlabelled]
        after = torch.where(pseudo.mask.bool(), pseudo.targets.bool(), before)
        self._rows = batch.gather(batch.unlabelled), batch.gather(after)
        return StepOutput(losses, pseudo, {"counts": (after.long() - before.long()).sum(dim=0)})

    def observe_step(self, statistics: dict[str, Tensor]) -> None:
        """Write the step's rows of the memory and move its counts."""
        if self.hyper.unlabelled_weight:
            images, rows = self._rows
            self.selected[images] = rows
        self.counts = self.counts + statistics["counts"]

    @classmethod
    def warmup_hyper(cls, hyper: SCPNetHyper) -> SCPNetHyper:
        """The labelled-only training: fields that only steer the use of unlabelled images have no say."""
        unread = ("temperature", "k", "threshold", "relation_weight")
        defaults = {name: getattr(SCPNetHyper(), name) for name in unread}
        return dataclasses.replace(hyper, unlabelled_weight=0.0, **defaults)

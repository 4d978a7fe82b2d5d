"""CSAA: context-based semantic-aware alignment (Fan et al., AAAI 2025, arXiv 2412.18842).

What it does: (1) every label has two prompts; the semantic-aware one gathers a label-specific image
feature from CLIP's local features, which is matched with the label's text; (2) unlabelled images
get pseudo-labels by class-distribution-aware thresholds on an EMA teacher's scores; (3) an
auxiliary task identifies contexts, clusters of co-occurring labels, on labelled and unlabelled
images.

What differs from the official code: there is none that we could find, and the full text was not
available either. `csaa/README.md` lists statement by statement what comes from the paper and what
is our reading; each open choice is a field of `CSAAHyper`. Pseudo-labels and their schedule follow
the same authors' CAP code (github xiemk/SSMLL-CAP), the local features DualCoOp's re-formulation of
the attention pool (github sunxm2357/DualCoOp).

Golden test: none against official code, there is none; `tests/csaa/` holds its parts against slow
references.

Expected score: none is known. Cost: one trainable forward and backward pass of the image tower per
step, the text tower over two contexts and 2·K names, and one scoring pass over the pool per epoch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csaa.contexts import Affinity, check_num_contexts, context_targets, label_contexts
from methods.backbones.clip import VisionLanguageModel
from methods.backbones.spec import BackboneSpec
from methods.base import Batch, Pool, PseudoLabels, StepMethod, StepOutput, Task, at_least_fp32
from methods.errors import UserError
from methods.losses import asymmetric_loss, binary_cross_entropy
from methods.parts.hypers import AsymmetricHyper, OptimizerHyper
from methods.parts.linear import calibrated_bias
from methods.parts.prompt_classifiers import AlignmentClassifier, AlignmentSpec, Features, Reading
from methods.registry import register
from methods.thresholds import class_distribution_pseudo_labels, fixed_pseudo_labels


@dataclass(frozen=True)
class CSAAHyper(OptimizerHyper, AsymmetricHyper):
    """Hyper-parameters; [P] fixed by the paper, [G] its group's code, [I] our reading.

    Attributes:
        reading: the roles of the prompts, see `AlignmentClassifier` [I; two per label is P].
        features: "label-specific" [P] or "global" (ablation).
        temperature: τ of the spatial softmax [I, DualCoOp's value].
        context_length: learnt tokens of a prompt [I, DualCoOp's value].
        context_words: words the learnt tokens start from; empty for N(0, 0.02²) [I].
        class_specific: own learnt tokens for every label [I: shared].
        pseudo_labels: "class-distribution" [P, after G], "fixed" thresholds, or "none" (labelled
            images only).
        eta_pos: share of the expected positives that is used [G].
        eta_neg: share of the expected negatives that is used [G: 1.0 clipped to 0.998].
        fixed_pos: probability above which a fixed threshold says positive.
        fixed_neg: probability below which it says negative.
        unlabelled_weight: weight of the pseudo-label loss [G: 1].
        context_weight: λ; 0 removes contexts altogether [I].
        num_contexts: M; 0 means min(10, K). 10 suits COCO, 3–4 VOC [I].
        affinity: affinity of the label graph [I; spectral clustering of co-occurrence is P].
        context_images: images the auxiliary task is trained on [P: both].
        context_feature: input of the context head: the "global" image feature or the mean of the
            "label-specific" ones [I].
        context_labels: context pseudo-labels from the context "head" by the same thresholding, or
            from the class "pseudo-labels" by the max rule [I].
        freeze_visual: train prompts and heads only; needs context_feature="label-specific" to let
            the auxiliary task reach the classifier [I: False].
        lr_prompts: learning rate of prompts, scale and bias [I].
        lr_head: learning rate of the context head [I].
        lr_backbone: learning rate of the image tower [I].

    The asymmetric loss, the optimiser, its schedule and the weight decay are the group's [G]; biases
    and the scale do not decay.
    """

    reading: Reading = "semantic+class"
    features: Features = "label-specific"
    temperature: float = field(default=20.0, metadata={"low": 1.0, "high": 50.0, "scale": "log"})
    context_length: int = field(default=16, metadata={"low": 4, "high": 16, "scale": "linear"})
    context_words: str = ""
    class_specific: bool = False
    pseudo_labels: Literal["class-distribution", "fixed", "none"] = "class-distribution"
    eta_pos: float = field(default=1.0, metadata={"low": 0.5, "high": 1.0, "scale": "linear"})
    eta_neg: float = field(default=0.998, metadata={"low": 0.5, "high": 1.0, "scale": "linear"})
    fixed_pos: float = field(default=0.95, metadata={"low": 0.5, "high": 0.99, "scale": "linear"})
    fixed_neg: float = field(default=0.05, metadata={"low": 0.01, "high": 0.5, "scale": "linear"})
    unlabelled_weight: float = field(default=1.0, metadata={"low": 0.1, "high": 10.0, "scale": "log"})
    context_weight: float = field(default=1.0, metadata={"low": 0.0, "high": 10.0, "scale": "linear"})
    num_contexts: int = 0
    affinity: Affinity = "conditional"
    context_images: Literal["labelled+unlabelled", "labelled"] = "labelled+unlabelled"
    context_feature: Features = "global"
    context_labels: Literal["head", "pseudo-labels"] = "head"
    freeze_visual: bool = False
    lr_prompts: float = field(default=1e-3, metadata={"low": 1e-5, "high": 1e-1, "scale": "log"})
    lr_head: float = field(default=1e-3, metadata={"low": 1e-5, "high": 1e-1, "scale": "log"})
    lr_backbone: float = field(default=1e-5, metadata={"low": 1e-6, "high": 1e-2, "scale": "log"})

    def __post_init__(self) -> None:
        OptimizerHyper.__post_init__(self)
        AsymmetricHyper.__post_init__(self)
        if self.freeze_visual and self.context_weight and self.context_feature == "global":
            raise UserError(
                "csaa: with freeze_visual the context head cannot reach the classifier "
                "through the global feature; set context_feature = 'label-specific' or "
                "context_weight = 0"
            )

    def alignment(self) -> AlignmentSpec:
        """Return the part that says how the classifier is built."""
        names = [found.name for found in dataclasses.fields(AlignmentSpec)]
        return AlignmentSpec(**{name: getattr(self, name) for name in names})


def with_contexts(hyper: CSAAHyper, num_classes: int) -> CSAAHyper:
    """Replace the automatic number of contexts by min(10, K)."""
    if hyper.num_contexts or not hyper.context_weight:
        return hyper
    return dataclasses.replace(hyper, num_contexts=min(10, num_classes))


@register
class CSAA(StepMethod):
    """Context-based semantic-aware alignment; see the module's docstring."""

    name = "csaa"
    version = 2
    Hyper = CSAAHyper
    needs_vlm = True
    uses_unlabelled = True

    hyper: CSAAHyper
    contexts: Tensor
    frequencies: Tensor

    def __init__(self, backbone: VisionLanguageModel, task: Task, hyper: CSAAHyper) -> None:
        classes = len(task.classes)
        hyper = with_contexts(hyper, classes)
        super().__init__(backbone, task, hyper)
        if hyper.freeze_visual:
            backbone.requires_grad_(False)
        self.classifier = AlignmentClassifier(backbone, task.prompts, hyper.alignment(), task.seed)
        self.register_buffer("frequencies", task.labels.mean(dim=0))
        for part, width in (("class", classes), ("context", hyper.num_contexts)):
            size = task.num_unlabelled if self.teaches(part) else 0
            for kind in ("targets", "mask"):
                self.register_state(f"{part}_{kind}", torch.zeros(size, width, dtype=torch.bool))
        if hyper.context_weight:
            contexts = torch.from_numpy(
                label_contexts(task.labels, hyper.num_contexts, task.seed, hyper.affinity)
            )
            self.register_buffer("contexts", contexts)
            self.context_head = nn.Linear(backbone.dim, hyper.num_contexts)
            nn.init.zeros_(self.context_head.bias)

    def teaches(self, part: str) -> bool:
        """Whether unlabelled images get pseudo-labels for a part: "class" or "context"."""
        if self.hyper.pseudo_labels == "none" or not self.task.num_unlabelled:
            return False
        return part == "class" or bool(
            self.hyper.context_weight and self.hyper.context_images == "labelled+unlabelled"
        )

    def _context_targets(self, targets: Tensor) -> Tensor:
        return context_targets(targets, self.contexts, self.hyper.num_contexts)

    def _context_logits(self, whole: Tensor, specific: Tensor) -> Tensor:
        feature = whole if self.hyper.context_feature == "global" else specific.mean(dim=1)
        scale = self.classifier.log_scale.detach().exp()  # the classifier's range of logits
        return self.context_head(scale * F.normalize(at_least_fp32(feature), dim=-1))

    def param_groups(self) -> list[dict[str, Any]]:
        """Prompts and classifier, context head, image tower; no decay on biases and the scale."""
        rates = {"classifier.vlm": self.hyper.lr_backbone, "context_head": self.hyper.lr_head}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, value in self.named_parameters():
            if value.requires_grad:
                rate = next(
                    (rate for part, rate in rates.items() if name.startswith(part)),
                    self.hyper.lr_prompts,
                )
                decay = self.hyper.weight_decay if value.ndim > 1 else 0.0
                groups.setdefault((rate, decay), []).append(value)
        return [
            {"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()
        ]

    def training_step(self, batch: Batch) -> StepOutput:
        """Alignment loss on labelled and pseudo-labelled strong views, and the context task."""
        use_pool = self.teaches("class") and len(batch.unlabelled) > 0
        images = batch.strong_labelled
        if use_pool:
            images = torch.cat([images, batch.strong_unlabelled])
        labelled = len(batch.labelled)
        logits, whole, specific = self.classifier.described(images)
        losses = {"labelled": self._asl(logits[:labelled], batch.targets).sum()}
        pseudo = None
        if use_pool:
            pseudo = self._pseudo("class", batch.unlabelled)
            element = self._asl(logits[labelled:], pseudo.targets) * pseudo.mask
            losses["unlabelled"] = self.hyper.unlabelled_weight * element.sum()
        if self.hyper.context_weight:
            scores = self._context_logits(whole, specific)
            targets = self._context_targets(batch.targets)
            element = binary_cross_entropy(scores[:labelled], targets)
            losses["context"] = self.hyper.context_weight * element.sum()
            if use_pool and self.teaches("context"):
                guess = self._pseudo("context", batch.unlabelled)
                element = binary_cross_entropy(scores[labelled:], guess.targets) * guess.mask
                losses["context_unlabelled"] = self.hyper.context_weight * element.sum()
        return StepOutput(losses, pseudo)

    def _asl(self, logits: Tensor, targets: Tensor) -> Tensor:
        hyper = self.hyper
        return asymmetric_loss(logits, targets, hyper.gamma_pos, hyper.gamma_neg, hyper.clip)

    def _pseudo(self, part: str, positions: Tensor) -> PseudoLabels:
        targets, mask = (getattr(self, f"{part}_{kind}")[positions] for kind in ("targets", "mask"))
        return PseudoLabels(targets.float(), mask.float())

    def calibrate(self, logits: Tensor) -> None:
        """Set b so that each label's mean probability is its labelled frequency.

        Args:
            logits: (n_l, K) of the labelled images with the present bias.
        """
        with torch.no_grad():
            self.classifier.bias.add_(calibrated_bias(logits, self.frequencies))

    def wants_pool(self, epoch: int) -> bool:
        """Request pool scores before every epoch: pseudo-labels are recomputed then, as in CAP."""
        return self.teaches("class")

    def score_pool(self, images: Tensor) -> Tensor:
        """Return (B, K [+ M]) class logits, and context logits if they become pseudo-labels."""
        logits, whole, specific = self.classifier.described(images)
        if not (self.teaches("context") and self.hyper.context_labels == "head"):
            return logits
        return torch.cat([logits, self._context_logits(whole, specific)], dim=1)

    def refresh(self, pool: Pool) -> None:
        """Pseudo-labels of classes and contexts from the EMA teacher's scores."""
        labels = self.task.labels
        classes = self._threshold(pool.scores, labels)
        self._keep("class", classes)
        if self.teaches("context"):
            if self.hyper.context_labels == "head":
                contexts = self._threshold(pool.extra, self._context_targets(labels.to(self.contexts.device)))
            else:
                targets = self._context_targets(classes.targets)
                contexts = PseudoLabels(targets, torch.ones_like(targets))
            self._keep("context", contexts)

    def _threshold(self, scores: Tensor, labelled: Tensor) -> PseudoLabels:
        """Pseudo-labels of scores (N, C), where the labelled images have the targets (n_l, C)."""
        hyper = self.hyper
        if hyper.pseudo_labels == "fixed":
            return fixed_pseudo_labels(scores.sigmoid(), hyper.fixed_pos, hyper.fixed_neg)
        return class_distribution_pseudo_labels(
            scores, labelled.sum(dim=0), hyper.eta_pos, hyper.eta_neg, total=len(labelled)
        )

    def _keep(self, part: str, pseudo: PseudoLabels) -> None:
        getattr(self, f"{part}_targets").copy_(pseudo.targets.bool())
        getattr(self, f"{part}_mask").copy_(pseudo.mask.bool())

    def predict(self, images: Tensor) -> Tensor:
        """(B, K) float32 logits."""
        return self.classifier.described(images)[0]

    @classmethod
    def resolve_hyper(cls, hyper: CSAAHyper, num_classes: int, backbone: BackboneSpec) -> CSAAHyper:
        """The number of contexts of the task."""
        return with_contexts(hyper, num_classes)

    @classmethod
    def check_task(cls, hyper: CSAAHyper, num_classes: int, backbone: BackboneSpec) -> None:
        """Contexts are a partition of the labels into at least 2 parts."""
        if hyper.context_weight:
            check_num_contexts(hyper.num_contexts, num_classes)

    @classmethod
    def warmup_hyper(cls, hyper: CSAAHyper) -> CSAAHyper:
        """The labelled-only training that the warm-up stage runs: no pseudo-labels.

        Fields that only steer the use of unlabelled images take their defaults, so that every
        variant with the same classifier and context task starts from the same checkpoint.
        """
        default = CSAAHyper()
        unread = (
            "eta_pos",
            "eta_neg",
            "fixed_pos",
            "fixed_neg",
            "unlabelled_weight",
            "context_images",
            "context_labels",
        )
        kept = {name: getattr(default, name) for name in unread}
        if not hyper.context_weight:
            unused = ("num_contexts", "affinity", "context_feature", "lr_head")
            kept |= {name: getattr(default, name) for name in unused}
        return dataclasses.replace(hyper, pseudo_labels="none", **kept)

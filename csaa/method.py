"""CSAA: context-based semantic-aware alignment (Fan et al., AAAI 2025, arXiv 2412.18842).

What it does: (1) every label has two prompts; the semantic-aware one gathers a label-specific image
feature from CLIP's local features, which is matched with the label's text; (2) unlabelled images
get pseudo-labels by class-distribution-aware thresholds on an EMA teacher's scores; (3) an
auxiliary task identifies contexts, clusters of co-occurring labels, on labelled and unlabelled
images.

What differs from the official code: there is none that we could find, and the full text was not
available either. `csaa/README.md` lists statement by statement what comes from the paper and what
is our reading; each open choice is a field of `csaa.hyper.CSAAHyper`. Pseudo-labels and their schedule follow
the same authors' CAP code (github xiemk/SSMLL-CAP), the local features DualCoOp's re-formulation of
the attention pool (github sunxm2357/DualCoOp).

Golden test: none against official code, there is none; `tests/csaa/` holds its parts against slow
references.

Expected score: none is known. Cost: one trainable forward and backward pass of the image tower per
step, the text tower over two contexts and 2·K names, and one scoring pass over the pool per epoch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csaa.contexts import check_num_contexts, context_targets, label_contexts, noisy_or
from csaa.hyper import CSAAHyper, with_contexts
from csaa.refinement import Refinement, conditional_graph, context_graph
from methods.backbones.clip import VisionLanguageModel
from methods.backbones.spec import BackboneSpec
from methods.base import Batch, Pool, PseudoLabels, StepMethod, StepOutput, Task, at_least_fp32
from methods.losses import asymmetric_loss, binary_cross_entropy
from methods.parts.linear import calibrated_bias
from methods.parts.prompt_classifiers import AlignmentClassifier
from methods.registry import register
from methods.thresholds import class_distribution_pseudo_labels, fixed_pseudo_labels

CALIBRATIONS = 20
"""Rounds in which biases and refined scores are fitted to each other."""


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
        if hyper.context_scores == "noisy-or" and self.classifier.reads_map:
            backbone.freeze_pooling()  # nothing reads the global feature
        self.register_buffer("frequencies", task.labels.mean(dim=0))
        for part, width in (("class", classes), ("context", hyper.num_contexts)):
            size = task.num_unlabelled if self.teaches(part) else 0
            for kind in ("targets", "mask"):
                self.register_state(f"{part}_{kind}", torch.zeros(size, width, dtype=torch.bool))
        if hyper.has_contexts:
            contexts = torch.from_numpy(
                label_contexts(task.labels, hyper.num_contexts, task.seed, hyper.affinity)
            )
            self.register_buffer("contexts", contexts)
        if hyper.has_head:
            self.context_head = nn.Linear(backbone.dim, hyper.num_contexts)
            nn.init.zeros_(self.context_head.bias)
            if hyper.context_bias == "frequency":
                shown = self._context_targets(task.labels).double().sum(dim=0)
                smoothed = (shown + 0.5) / (len(task.labels) + 1)  # as `Task.prior`
                self.context_head.bias.data.copy_(torch.logit(smoothed))
        if hyper.refinement != "none":
            by_context = hyper.refinement == "context"
            graph = context_graph(self.contexts) if by_context else conditional_graph(task.labels)
            self.refinement = Refinement(graph, hyper.refinement_start, hyper.refined_scores == "all")

    def teaches(self, part: str) -> bool:
        """Whether unlabelled images get pseudo-labels for a part: "class" or "context"."""
        if self.hyper.pseudo_labels == "none" or not self.task.num_unlabelled:
            return False
        return part == "class" or bool(
            self.hyper.context_weight and self.hyper.context_images == "labelled+unlabelled"
        )

    def _context_targets(self, targets: Tensor) -> Tensor:
        return context_targets(targets, self.contexts, self.hyper.num_contexts)

    def _context_logits(self, logits: Tensor, whole: Tensor, specific: Tensor) -> Tensor:
        """(B, M) logits of contexts, from class logits before their refinement, or from features."""
        if not self.hyper.has_head:
            return noisy_or(logits, self.contexts, self.hyper.num_contexts)
        feature = whole if self.hyper.context_feature == "global" else specific.mean(dim=1)
        scale = self.classifier.log_scale.detach().exp()  # the classifier's range of logits
        return self.context_head(scale * F.normalize(at_least_fp32(feature), dim=-1))

    def _refined(self, logits: Tensor, teaching: bool = False) -> Tensor:
        """(B, K) class scores of class logits; ``teaching``: for pseudo-labels."""
        if self.hyper.refinement != "none" and (teaching or self.hyper.refined_scores == "all"):
            return self.refinement(logits)
        return logits

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
        scores = self._refined(logits)
        losses = {"labelled": self._asl(scores[:labelled], batch.targets).sum()}
        pseudo = None
        if use_pool:
            pseudo = self._pseudo("class", batch.unlabelled)
            element = self._asl(scores[labelled:], pseudo.targets) * pseudo.mask
            losses["unlabelled"] = self.hyper.unlabelled_weight * element.sum()
        if self.hyper.context_weight:
            loss = self._asl if self.hyper.context_loss == "asl" else binary_cross_entropy
            contexts = self._context_logits(logits, whole, specific)
            element = loss(contexts[:labelled], self._context_targets(batch.targets))
            losses["context"] = self.hyper.context_weight * element.sum()
            if use_pool and self.teaches("context"):
                guess = self._pseudo("context", batch.unlabelled)
                element = loss(contexts[labelled:], guess.targets) * guess.mask
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
            logits: (n_l, K) of the labelled images with the present bias, as `predict` gives them.
        """
        with torch.no_grad():
            bias = self.classifier.bias
            if self.hyper.refinement == "none" or self.hyper.refined_scores == "teacher":
                bias.add_(calibrated_bias(logits, self.frequencies))
                return
            plain = self.refinement.inverse(logits).to(logits)
            shift = torch.zeros_like(plain[0])
            for _ in range(CALIBRATIONS):  # what a class gains from others depends on their shifts
                shift = shift + calibrated_bias(self.refinement(plain + shift), self.frequencies).to(shift)
            bias.add_(shift)

    def wants_pool(self, epoch: int) -> bool:
        """Request pool scores before every epoch: pseudo-labels are recomputed then, as in CAP."""
        return self.teaches("class")

    def score_pool(self, images: Tensor) -> Tensor:
        """Return (B, K [+ M]) class logits, and context logits if they become pseudo-labels."""
        logits, whole, specific = self.classifier.described(images)
        scores = self._refined(logits, teaching=True)
        if not (self.teaches("context") and self.hyper.context_labels == "head"):
            return scores
        return torch.cat([scores, self._context_logits(logits, whole, specific)], dim=1)

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
        return self._refined(self.classifier.described(images)[0])

    @classmethod
    def resolve_hyper(cls, hyper: CSAAHyper, num_classes: int, backbone: BackboneSpec) -> CSAAHyper:
        """The number of contexts of the task."""
        return with_contexts(hyper, num_classes)

    @classmethod
    def check_task(cls, hyper: CSAAHyper, num_classes: int, backbone: BackboneSpec) -> None:
        """Contexts are a partition of the labels into at least 2 parts."""
        if hyper.has_contexts:
            check_num_contexts(hyper.num_contexts, num_classes)

    @classmethod
    def warmup_hyper(cls, hyper: CSAAHyper) -> CSAAHyper:
        """The labelled-only training that the warm-up stage runs: no pseudo-labels.

        Fields that only steer the use of unlabelled images take their defaults, so that every
        variant with the same classifier and context task starts from the same checkpoint.
        """
        default = CSAAHyper()
        unread: tuple[str, ...] = ("eta_pos", "eta_neg", "fixed_pos", "fixed_neg", "unlabelled_weight")
        unread += ("context_images", "context_labels")
        if hyper.refined_scores == "teacher":
            unread += ("refinement", "refinement_start", "refined_scores")
        kept = {name: getattr(default, name) for name in unread}
        hyper = dataclasses.replace(hyper, pseudo_labels="none", **kept)
        unused: tuple[str, ...] = () if hyper.has_head else ("context_feature", "lr_head")
        if not hyper.has_contexts:
            unused += ("num_contexts", "affinity")
        return dataclasses.replace(hyper, **{name: getattr(default, name) for name in unused})

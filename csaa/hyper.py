"""CSAA's hyper-parameters: what the paper fixes, what its group's code does, and our readings by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from csaa.contexts import Affinity
from csaa.refinement import Graph
from methods.errors import UserError, check_range
from methods.parts.hypers import AsymmetricHyper, OptimizerHyper
from methods.parts.prompt_classifiers import AlignmentSpec, Features, Reading


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
        context_labels: context pseudo-labels from the context scores, "head", by the same thresholding, or
            from the class "pseudo-labels" by the max rule [I].
        context_scores: scores of contexts: "head", a linear layer on ``context_feature``; "noisy-or", read
            from the label-specific scores: a context is absent where all its classes are, see
            `csaa.contexts.noisy_or` [I].
        context_loss: of the auxiliary task: "bce", or "asl" with the classes' exponents and clip [I].
        context_bias: start of the context head's biases: "zero", or "frequency": the logit of each context's
            smoothed labelled frequency [I].
        refinement: graph over which class scores are refined by other classes', see `csaa.refinement`:
            "none"; "context": the other classes of the context; "conditional": all others, by P(k | j)
            [I; *graph convolution* is among a review's key-words].
        refinement_start: γ at the start, in [0, 1]; it is learnt, unless only the teacher refines.
        refined_scores: "all": the refined scores are the method's; "teacher": they make pseudo-labels of
            classes and nothing else [I].
        freeze_visual: train prompts and heads only; needs context_feature="label-specific" to let
            the auxiliary task reach the classifier [I: False].
        lr_prompts: learning rate of prompts, scale and bias [I].
        lr_head: learning rate of the context head [I].
        lr_backbone: learning rate of the image tower [I].

    The asymmetric loss, the optimiser, its schedule and the weight decay are the group's [G]; biases
    and the scale do not decay. γ has the rate of the prompts, and does not either.

    Class attributes:
        later: fields that were added after the first results, with the value that those were made with.
    """

    later: ClassVar[Mapping[str, Any]] = {
        "context_scores": "head",
        "context_loss": "bce",
        "context_bias": "zero",
        "refinement": "none",
        "refinement_start": 0.25,
        "refined_scores": "all",
    }

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
    context_scores: Literal["head", "noisy-or"] = "head"
    context_loss: Literal["bce", "asl"] = "bce"
    context_bias: Literal["zero", "frequency"] = "zero"
    refinement: Graph = "none"
    refinement_start: float = field(
        default=0.25, metadata={"low": 0.05, "high": 1.0, "scale": "log", "with": {"refinement": "context"}}
    )
    refined_scores: Literal["all", "teacher"] = "all"
    freeze_visual: bool = False
    lr_prompts: float = field(default=1e-3, metadata={"low": 1e-5, "high": 1e-1, "scale": "log"})
    lr_head: float = field(default=1e-3, metadata={"low": 1e-5, "high": 1e-1, "scale": "log"})
    lr_backbone: float = field(default=1e-5, metadata={"low": 1e-6, "high": 1e-2, "scale": "log"})

    def __post_init__(self) -> None:
        OptimizerHyper.__post_init__(self)
        AsymmetricHyper.__post_init__(self)
        check_range("csaa.refinement_start", self.refinement_start, 0, 1)
        if self.freeze_visual and self.has_head and self.context_feature == "global":
            raise UserError(
                "csaa: with freeze_visual the context head cannot reach the classifier "
                "through the global feature; set context_feature = 'label-specific' or "
                "context_weight = 0"
            )
        if not self.context_weight:
            for name in ("context_scores", "context_loss", "context_bias"):
                self._refuse(name, "the context task", "context_weight = 0, which removes it")
        elif not self.has_head:
            for name in ("context_feature", "context_bias"):
                self._refuse(name, "the context head", "context_scores = 'noisy-or', which has none")
        if self.refinement == "none":
            for name in ("refinement_start", "refined_scores"):
                self._refuse(name, "a refinement", "refinement = 'none'")
        if self.pseudo_labels == "none":
            self._refuse("refined_scores", "pseudo-labels", "pseudo_labels = 'none'")

    def _refuse(self, name: str, owner: str, setting: str) -> None:
        """Raise `UserError` where a field has another value than its default and no effect."""
        if (value := getattr(self, name)) != getattr(CSAAHyper, name):
            raise UserError(f"csaa: {name} = {value!r} belongs to {owner}; leave it out with {setting}")

    @property
    def has_head(self) -> bool:
        """Whether there is a context head."""
        return bool(self.context_weight) and self.context_scores == "head"

    @property
    def has_contexts(self) -> bool:
        """Whether the labels are partitioned into contexts."""
        return bool(self.context_weight) or self.refinement == "context"

    def alignment(self) -> AlignmentSpec:
        """Return the part that says how the classifier is built."""
        names = [found.name for found in dataclasses.fields(AlignmentSpec)]
        return AlignmentSpec(**{name: getattr(self, name) for name in names})


def with_contexts(hyper: CSAAHyper, num_classes: int) -> CSAAHyper:
    """Replace the automatic number of contexts by min(10, K)."""
    if hyper.num_contexts or not hyper.has_contexts:
        return hyper
    return dataclasses.replace(hyper, num_contexts=min(10, num_classes))

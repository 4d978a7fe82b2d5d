"""Hyper-parameters that most trained methods have, as dataclasses to derive from.

A subclass that needs another default declares the field again; names and values are what a run's
identity holds, the order of fields is not. A number says beside its default where a search is sensible:
``metadata={"low": …, "high": …, "scale": "linear" or "log"}``. What is refused stands in
``__post_init__``, and is wider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from methods.errors import UserError, check_choice, check_range

Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["onecycle", "cosine", "constant"]
ClassifierName = Literal["linear", "aligned", "dualcoop"]


@dataclass(frozen=True)
class OptimizerHyper:
    """The optimiser and its schedule; learning rates are the method's own fields.

    Attributes:
        weight_decay: of every parameter group, if the method does not say otherwise.
        optimizer: "adamw" (CAP), "adam" or "sgd".
        schedule: "onecycle" (CAP), "cosine" or "constant".
    """

    weight_decay: float = field(default=1e-4, metadata={"low": 1e-6, "high": 1e-1, "scale": "log"})
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "onecycle"

    def __post_init__(self) -> None:
        check_range("weight_decay", self.weight_decay, 0)


@dataclass(frozen=True)
class AsymmetricHyper:
    """The asymmetric loss, see `methods.losses.asymmetric_loss`.

    Attributes:
        gamma_pos: focusing exponent of positives (CAP: 0).
        gamma_neg: focusing exponent of negatives (CAP: 4).
        clip: probability margin of negatives (CAP: 0.05).
    """

    gamma_pos: float = field(default=0.0, metadata={"low": 0.0, "high": 2.0, "scale": "linear"})
    gamma_neg: float = field(default=4.0, metadata={"low": 0.0, "high": 6.0, "scale": "linear"})
    clip: float = field(default=0.05, metadata={"low": 0.0, "high": 0.2, "scale": "linear"})

    def __post_init__(self) -> None:
        check_range("gamma_pos", self.gamma_pos, 0)
        check_range("gamma_neg", self.gamma_neg, 0)
        check_range("clip", self.clip, 0, 1)


@dataclass(frozen=True)
class ClassifierHyper:
    """What turns features into logits; see `methods.parts.heads` and `methods.parts.prompt_classifiers`.

    Attributes:
        classifier: "linear": the layer that ``head`` names, on the features of any backbone; "aligned":
            CSAA's, a label-specific feature for each class, matched with the text of its learnt prompt;
            "dualcoop": a pair of learnt prompts for each class, whose logit is the positive minus the
            negative one. The last two need a vision-language backbone.
        features: of "aligned": "label-specific", or "global": every text is matched with the image's one
            feature.
        spatial_temperature: of "aligned": τ of the soft-max over locations.
        context_length: learnt tokens in front of a class name.
        context_words: words that the learnt tokens start from, of "dualcoop" the positive prompt's; their
            tokens replace ``context_length``; empty for N(0, 0.02²).
        negative_words: of "dualcoop": the same for the negative prompt.
        class_specific: own learnt tokens for every class instead of shared ones.
    """

    later: ClassVar[Mapping[str, Any]] = {
        "classifier": "linear",
        "features": "label-specific",
        "spatial_temperature": 20.0,
        "context_length": 16,
        "context_words": "",
        "negative_words": "",
        "class_specific": False,
    }

    classifier: ClassifierName = "linear"
    features: Literal["label-specific", "global"] = "label-specific"
    spatial_temperature: float = field(
        default=20.0, metadata={"low": 1.0, "high": 50.0, "scale": "log", "with": {"classifier": "aligned"}}
    )
    context_length: int = field(
        default=16, metadata={"low": 4, "high": 16, "scale": "linear", "with": {"classifier": "aligned"}}
    )
    context_words: str = ""
    negative_words: str = ""
    class_specific: bool = False

    def __post_init__(self) -> None:
        check_choice("classifier", self.classifier, get_args(ClassifierName))
        for name, owners in _OWNERS.items():
            value = getattr(self, name)
            if value != getattr(ClassifierHyper, name) and self.classifier not in owners:
                kinds = "classifiers" if len(owners) > 1 else "classifier"
                raise UserError(
                    f"{name} = {value!r} belongs to the {kinds} {' and '.join(map(repr, owners))}; "
                    f"leave it out with classifier = {self.classifier!r}"
                )
        check_choice("features", self.features, ("label-specific", "global"))
        check_range("spatial_temperature", self.spatial_temperature, 0)
        check_range("context_length", self.context_length, 1)
        if self.classifier == "dualcoop" and self.context_words and self.context_words == self.negative_words:
            raise UserError(
                f"both contexts start from {self.context_words!r} and would cancel; set other negative_words"
            )


_OWNERS = {
    "features": ("aligned",),
    "spatial_temperature": ("aligned",),
    "context_length": ("aligned", "dualcoop"),
    "context_words": ("aligned", "dualcoop"),
    "negative_words": ("dualcoop",),
    "class_specific": ("aligned", "dualcoop"),
}
"""Which classifiers read a field of `ClassifierHyper`."""

"""Hyper-parameters that most trained methods have, as dataclasses to derive from.

A subclass that needs another default declares the field again; names and values are what a run's
identity holds, the order of fields is not. A number says beside its default where a search is sensible:
``metadata={"low": …, "high": …, "scale": "linear" or "log"}``. What is refused stands in
``__post_init__``, and is wider.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from methods.errors import check_range

Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["onecycle", "cosine", "constant"]


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

"""Hyper-parameters that most trained methods have, as dataclasses to derive from.

A subclass that needs another default declares the field again; names and values are what a run's
identity holds, the order of fields is not.
"""

from __future__ import annotations

from dataclasses import dataclass
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

    weight_decay: float = 1e-4
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

    gamma_pos: float = 0.0
    gamma_neg: float = 4.0
    clip: float = 0.05

    def __post_init__(self) -> None:
        check_range("clip", self.clip, 0, 1)

"""The training recipe: its fields, their valid values, and which fields each kind of method reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from methods.errors import UserError, nearest
from methods.fields import Wording, build, identified

Kind = Literal["fit", "labelled", "semi"]
STRATEGIES = ("ddp", "zero1", "zero2")
_WORDING = Wording(
    wrong="{where}: field {name!r} is {value!r}, a {given}; it must be a {kind}, such as {default!r}",
    choice="{where}: {name} = {value!r}{near}",
)
_REFUSED = {
    "zero0": "stage 0 shares nothing; use 'ddp'",
    "zero3": "stage 3 spreads the weights, and their moving average (EMA) needs them whole; use 'zero2'",
    "fsdp": "it spreads the weights, and their moving average (EMA) needs them whole; use 'zero2'",
}

_DDP_ONLY = {
    "fp16": "whose loss scaling only the strategy 'ddp' has",
    "fp64": "because DeepSpeed keeps its weights in float32",
}


def check_strategy(name: str, precision: str, where: str) -> None:
    """Check a strategy, the way of spreading a step over processes.

    Raises:
        UserError: an unknown or unsupported strategy, or ZeRO with fp16 or fp64.
    """
    if name in _REFUSED:
        raise UserError(f"{where}: {name!r} is not supported: {_REFUSED[name]}")
    if name not in STRATEGIES:
        raise UserError(f"{where}: no strategy {name!r}{nearest(name, STRATEGIES)}")
    if name != "ddp" and precision in _DDP_ONLY:
        raise UserError(
            f"{where}: {name!r} does not go with precision {precision!r}, {_DDP_ONLY[precision]}; "
            "use 'bf16' or 'fp32'"
        )


def ema_decay(step: int, decay: float, warmup: bool) -> float:
    """Decay of the moving average at a step: ``decay``, or with a warm-up min(decay, (1 + t) / (10 + t)).

    The warm-up is that of TensorFlow's `ExponentialMovingAverage` with `num_updates`.

    Args:
        step: t, counted from 0 over all epochs of a training.
        decay: the decay in the long run, in [0, 1).
        warmup: whether it is smaller at first.
    """
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


def starting_share(steps: int, decay: float, warmup: bool) -> float:
    """Weight of the starting values in the moving average after some steps: the product of the decays."""
    if not warmup:
        return decay**steps
    # (1 + t) / (10 + t) reaches the decay at this step; up to there the product is 9! t! / (t + 9)!.
    reached = math.ceil((10 * decay - 1) / (1 - decay)) if decay > 0.1 else 0
    first = min(steps, reached)
    return math.exp(math.lgamma(10) + math.lgamma(first + 1) - math.lgamma(first + 10)) * decay ** (
        steps - first
    )


@dataclass(frozen=True)
class Recipe:
    """How a run is trained and evaluated; the same for every method of a table.

    Attributes:
        resolution: side of the square images in pixels.
        warmup_epochs: passes over the labelled images of the shared warm-up.
        epochs: semi-supervised epochs after the warm-up, one pass over the unlabelled pool each.
        schedule_epochs: epochs for which the learning-rate schedule of the semi-supervised part is
            built; 0 means `epochs`. CAP builds it for 40 epochs and runs 28 of them.
        labelled_epochs: passes over the labelled images of a method that uses nothing else.
        batch_labelled: labelled images of a semi-supervised step, over all processes.
        batch_unlabelled: unlabelled images of a semi-supervised step, over all processes.
        batch_warmup: images of a labelled-only step, over all processes.
        views: family of views, see `benchmarks.data.views.views.FAMILIES`.
        warmup_view: view of the "cap" family whose loss is taken when only labels are used; CAP
            warms up with cutout off. The other families name theirs.
        warmup_weights: which weights of the warm-up the semi-supervised part starts from.
        ema_decay: decay d of the exponential moving average (EMA) of the weights, per step; 0 means that none
            is kept, and the raw weights are reported.
        ema_warmup: whether the decay of step t (from 0) is min(d, (1 + t) / (10 + t)), so that a training of
            any length forgets its starting weights; false where a protocol with a fixed decay is followed.
        clip_norm: largest gradient norm; 0 switches clipping off. Never "auto".
        precision: arithmetic of forward and backward passes; with "fp16" and "bf16" weights stay
            float32. With "fp64" all is float64, where rounding is too small to be seen in a
            prediction: for checks that two ways to compute a run are the same.
        strategy: how a step is spread over processes, see `benchmarks.training.strategy`: "ddp", or
            DeepSpeed's "zero1" or "zero2". The number of processes is no part of a run's identity.
        eval_every: epochs between evaluations on the test images; the last is always evaluated.
        evaluate: weights that are evaluated along the way. The reported rule "last" needs "ema" only; "both"
            adds the raw weights to the "oracle" rule, as the CAP family does. After the last epoch both are.
        eval_batch: images of a forward pass without gradients.
        val_share: share of the labelled images held out for the "val" selection rule.

    Class attributes:
        later: see `methods.fields.later_fields`.
    """

    later: ClassVar[Mapping[str, Any]] = {"strategy": "ddp", "views": "cap"}

    resolution: int = 224
    warmup_epochs: int = 12
    epochs: int = 28
    schedule_epochs: int = 0
    labelled_epochs: int = 40
    batch_labelled: int = 4
    batch_unlabelled: int = 60
    batch_warmup: int = 16
    views: Literal["cap", "dualcoop", "scpnet"] = "cap"
    warmup_view: Literal["weak", "strong", "strong-no-cutout"] = "strong-no-cutout"
    warmup_weights: Literal["model", "ema"] = "model"
    ema_decay: float = 0.9997
    ema_warmup: bool = True
    clip_norm: float = 0.0
    precision: Literal["fp32", "fp16", "bf16", "fp64"] = "fp32"
    strategy: str = "ddp"
    eval_every: int = 1
    evaluate: Literal["ema", "both"] = "ema"
    eval_batch: int = 256
    val_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("resolution", "batch_labelled", "batch_warmup", "eval_every", "eval_batch"):
            if getattr(self, name) < 1:
                raise UserError(f"recipe.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("epochs", "labelled_epochs", "batch_unlabelled"):
            if getattr(self, name) < 1:
                raise UserError(f"recipe.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("warmup_epochs", "schedule_epochs", "clip_norm"):
            if getattr(self, name) < 0:
                raise UserError(f"recipe.{name} is {getattr(self, name)}; it must not be negative")
        if self.schedule_epochs and self.schedule_epochs < self.epochs:
            raise UserError(
                f"recipe.schedule_epochs is {self.schedule_epochs}, shorter than the {self.epochs} "
                "epochs that are run; use 0 for the same length"
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise UserError(f"recipe.ema_decay is {self.ema_decay}; it must lie in [0, 1)")
        if self.views != "cap" and self.warmup_view != "strong-no-cutout":
            raise UserError(
                f"recipe.warmup_view = {self.warmup_view!r} belongs to views = 'cap'; the views "
                f"{self.views!r} have their own: leave it out"
            )
        check_strategy(self.strategy, self.precision, "recipe.strategy")
        if not 0.0 <= self.val_share < 1.0:
            raise UserError(f"recipe.val_share is {self.val_share}; it must lie in [0, 1)")

    def relevant(self, kind: Kind) -> dict[str, Any]:
        """Return the fields that can change the number of a method of this kind."""
        values = self._deciding()
        del values["eval_batch"]  # batching of a forward pass without gradients
        if kind == "fit":
            return {name: values[name] for name in ("resolution", "precision", "val_share")}
        unread = (
            ("labelled_epochs",)
            if kind == "semi"
            else (
                "warmup_epochs",
                "epochs",
                "schedule_epochs",
                "batch_labelled",
                "batch_unlabelled",
                "warmup_weights",
            )
        )
        return {name: value for name, value in values.items() if name not in unread}

    def warmup_part(self) -> dict[str, Any]:
        """Return the fields that the shared warm-up depends on."""
        names = (
            "resolution",
            "warmup_epochs",
            "batch_warmup",
            "warmup_view",
            "ema_decay",
            "ema_warmup",
            "clip_norm",
            "precision",
            "val_share",
        )
        values = self._deciding()
        return {name: values[name] for name in (*names, *self.later) if name in values}

    def _deciding(self) -> dict[str, Any]:
        """Return the fields but for those that choose between averages where none is kept."""
        values = identified(self)
        if not self.ema_decay:  # the average is the weights themselves
            del values["ema_warmup"], values["warmup_weights"]
        return values


def recipe_of(values: Mapping[str, Any], where: str) -> Recipe:
    """Build the recipe from a table of a file.

    Raises:
        UserError: an unknown field, or a value that is not allowed.
    """
    return build(Recipe, values, where, _WORDING)

"""Which evaluation of a training is reported under each selection rule.

last: the last epoch, EMA weights; nothing has to be chosen. val: the epoch with the best mAP on the
held-out labelled images. oracle: the best mAP on the test images themselves, of any epoch and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Summarise = Callable[[Tensor], dict[str, Any]]
"""From (N, K) scores to a JSON-able summary with the key "mAP"."""


class Selection:
    """Keeps the best evaluation so far under the rules that choose one.

    Args:
        summarise: summary of test scores.
        summarise_held_out: summary of scores of the held-out labelled images.
        averaged: whether the recipe keeps a moving average; else the weights that stand in its place are the
            raw ones, and are called so.

    Attributes:
        oracle: summary of the best evaluation on test, with "epoch" (from 0, as in all of the training) and
            "weights"; None before the first.
        val: test summary of the epoch that was best on the held-out images, with "epoch" and "val_mAP";
            None when nothing was held out.
    """

    def __init__(self, summarise: Summarise, summarise_held_out: Summarise, averaged: bool = True) -> None:
        self.summarise, self.summarise_held_out, self.averaged = summarise, summarise_held_out, averaged
        self.oracle: dict[str, Any] | None = None
        self.val: dict[str, Any] | None = None

    def consider(
        self, epoch: int, ema: Tensor, model: Tensor | None = None, held_out: Tensor | None = None
    ) -> dict[str, float]:
        """Compare one evaluation with the best so far; the earlier of two equal ones is kept.

        Args:
            epoch: the epoch that has ended.
            ema: (n_test, K) test scores of the EMA weights.
            model: (n_test, K) test scores of the raw weights, where they are evaluated too.
            held_out: (n_v, K) scores of the held-out images by the EMA weights, where there are some.

        Returns:
            Entries of the epoch's row: "mAP_ema"; "mAP_model" and "mAP_val" if their scores were given.
        """
        summary = self.summarise(ema)
        candidates = {"ema": summary}
        if model is not None:
            candidates["model"] = self.summarise(model)
        for weights, candidate in candidates.items():
            if self.oracle is None or candidate["mAP"] > self.oracle["mAP"]:
                chosen = weights if self.averaged else "model"
                self.oracle = {**candidate, "epoch": epoch, "weights": chosen}
        row = {f"mAP_{weights}": candidate["mAP"] for weights, candidate in candidates.items()}
        if held_out is not None:
            row["mAP_val"] = score = self.summarise_held_out(held_out)["mAP"]
            if self.val is None or score > self.val["val_mAP"]:
                self.val = {**summary, "epoch": epoch, "val_mAP": score}
        return row

    def state(self) -> dict[str, Any]:
        """The choices so far, for a checkpoint."""
        return {"oracle": self.oracle, "val": self.val}

    def load(self, state: dict[str, Any]) -> None:
        """Continue with the choices that `state` returned."""
        self.oracle, self.val = state["oracle"], state["val"]

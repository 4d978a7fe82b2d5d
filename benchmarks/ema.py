"""Exponential moving average of a method's weights, kept outside `accelerator.prepare`."""

from __future__ import annotations

import copy

import torch

from methods.base import StepMethod


class Ema:
    """e ← d·e + (1−d)·m after every step, over the state dict (CAP).

    Integer and boolean entries are copied. Frozen parameters are shared with the method instead of
    being averaged: their average is themselves, and a frozen CLIP is not held twice.

    Args:
        method: the method to follow; copied once.
        decay: d, per optimiser step.
    """

    def __init__(self, method: StepMethod, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(method).eval()
        for theirs, ours in zip(method.parameters(), self.module.parameters(), strict=True):
            if not theirs.requires_grad:
                ours.data = theirs.data
            ours.requires_grad_(False)

    @torch.no_grad()
    def update(self, method: StepMethod) -> None:
        """Take one step of the average towards the method's present weights."""
        frozen = {name for name, value in method.named_parameters() if not value.requires_grad}
        average, source = [], []
        # The state dict leaves constants such as attention masks out: an average of -inf is NaN.
        for (name, theirs), ours in zip(
            method.state_dict().items(), self.module.state_dict().values(), strict=True
        ):
            if name in frozen:
                continue
            if torch.is_floating_point(theirs):
                average.append(ours)
                source.append(theirs)
            else:
                ours.copy_(theirs)
        torch._foreach_lerp_(average, source, 1.0 - self.decay)

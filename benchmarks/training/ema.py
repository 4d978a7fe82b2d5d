"""Exponential moving average of a method's weights, kept outside `accelerator.prepare`."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.plan.recipe import ema_decay
from methods.base import StepMethod


class Ema:
    """e ← d·e + (1−d)·m after every step, over the state dict (CAP); d may depend on the step.

    Integer and boolean entries are copied. Frozen parameters are shared with the method instead of
    being averaged: their average is themselves, and a frozen CLIP is not held twice. The method's
    own state (`StepMethod.register_state`) is shared too: there is one of it.

    Build it when the method is on its device: what moves there later is no longer shared.

    Args:
        method: the method to follow; copied once.
        decay: d; 0 keeps no average: the module then has the method's weights.
        warmup: whether d is smaller in the first steps, see `benchmarks.plan.recipe.ema_decay`.

    Attributes:
        steps: steps taken so far; who continues a training sets it.
    """

    def __init__(self, method: StepMethod, decay: float, warmup: bool = False) -> None:
        self.decay, self.warmup, self.steps = decay, warmup, 0
        self.module = copy.deepcopy(method).eval()
        self.module.share_state(method)
        for theirs, ours in zip(method.parameters(), self.module.parameters(), strict=True):
            if not theirs.requires_grad:
                ours.data = theirs.data
            ours.requires_grad_(False)
        # Looked up once: walking through both state dicts takes longer than the average itself.
        self._parameters = [
            (theirs, ours)
            for theirs, ours in zip(method.parameters(), self.module.parameters(), strict=True)
            if theirs.requires_grad
        ]
        # By owner and name: a buffer may be replaced by another tensor. Those that the state dict
        # leaves out are constants such as attention masks: an average of -inf is NaN.
        self._buffers = [
            (theirs, ours, name)
            for theirs, ours in zip(method.modules(), self.module.modules(), strict=True)
            for name in theirs._buffers
            if name not in theirs._non_persistent_buffers_set
            and not (theirs is method and name in method.state_names)
        ]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of the average: its training state without what it shares."""
        state = self.module.training_state()
        return {name: value for name, value in state.items() if name not in self.module.state_names}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` returned; the method's own state is loaded with the method.

        Checkpoints from before there was such state hold copies of it, which are left out.
        """
        shared = {name: getattr(self.module, name) for name in self.module.state_names}
        self.module.load_training_state({**state, **shared})

    @torch.no_grad()
    def update(self) -> None:
        """Take one step of the average towards the method's present weights."""
        pairs: list[tuple[Tensor, Tensor]] = [*self._parameters]
        for theirs, ours, name in self._buffers:
            source, average = theirs._buffers[name], ours._buffers[name]
            if source is None or average is None:
                continue
            if torch.is_floating_point(source):
                pairs.append((source, average))
            else:
                average.copy_(source)
        towards = 1.0 - ema_decay(self.steps, self.decay, self.warmup)
        self.steps += 1
        torch._foreach_lerp_([ours for _, ours in pairs], [theirs for theirs, _ in pairs], towards)

"""FixMatch for multi-label images: a fixed cut-off on the confidence of the weak view.

Source: Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence",
NeurIPS 2020, arXiv 2001.07685; code read: github microsoft/Semi-supervised-learning at 1ef4cbe
(single-label), github mxbh/spatiotemporal-ssl at 47e6299 (its multi-label form, arXiv 2404.18583).
Golden test: `tests/methods/test_fixmatch.py`, numbers of running the latter.

What it does: each class is a binary problem with p = σ(z) of the weak view. The pseudo-label is
p >= 0.5; an entry is used where its confidence max(p, 1 − p) reaches a cut-off (``confidence``), or
where p lies outside a pair of cut-offs (``positive``, ``negative``). The strong view is trained
towards it. The default pair (0.95, 0.05) is the cut-off 0.95, FixMatch's own. With ``alignment`` the
probabilities are first moved so that each class's running mean over unlabelled images (decay 0.999) is its
smoothed labelled frequency, see `methods.parts.alignment`, and p is the aligned one throughout: FixMatch with
distribution alignment, which its authors call necessary for multi-label images (ML-FixMatch, CVPR
workshops 2024, abstract; no code found).

What differs from the official code: the loss is ASL by default (``loss = "bce"`` is theirs), summed over
entries where theirs is a mean over all entries, masked ones included: their weight λ = 1 is
``unlabelled_weight`` = B_l/B_u for B_l labelled and B_u unlabelled images in a step. Labelled images have
the strong view. It starts from the warm-up that all pseudo-labelling methods share. Pseudo-labels come
from the present model, not from an average, as there, by a forward pass of their own. The pair shipped
for BigEarthNet is (0.70, 0.05): positives are rare and less confident.

Expected score: none known under this protocol. Cost: one forward pass without gradients and one
forward and backward pass per unlabelled image and epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from methods.backbones.base import Backbone
from methods.base import Batch, PseudoLabels, Task
from methods.parts.alignment import DistributionAlignment
from methods.parts.pseudo_labelling import CutoffHyper, PseudoLabelMethod
from methods.registry import register

ALIGNMENT_DECAY = 0.999


@dataclass(frozen=True)
class FixMatchHyper(CutoffHyper):
    """As `CutoffHyper`, with a switch.

    Attributes:
        alignment: whether the probabilities of the weak views are aligned with the labelled frequencies.
    """

    later: ClassVar[Mapping[str, Any]] = {"alignment": False}

    alignment: bool = False


@register
class FixMatch(PseudoLabelMethod):
    """Fixed cut-offs on the present model's weak view; see the module's docstring."""

    name = "fixmatch"
    version = 2
    Hyper = FixMatchHyper
    hyper: FixMatchHyper

    def __init__(self, backbone: Backbone, task: Task, hyper: FixMatchHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.alignment = DistributionAlignment(self, ALIGNMENT_DECAY) if hyper.alignment else None

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Sums of the weak views' probabilities, if they are to be aligned."""
        if self.alignment is None:
            return {}
        self._weak = self.weak_probabilities(batch)  # for the step that follows
        return self.alignment.sums(self._weak)

    def observe(self, statistics: dict[str, Tensor]) -> None:
        """Move the running mean, before it is used."""
        if self.alignment is not None:
            self.alignment.update(statistics)

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Confident entries of the weak view."""
        if self.alignment is None:
            return self.hyper.pseudo_labels(self.weak_probabilities(batch))
        return self.hyper.pseudo_labels(self.alignment(self._weak))

"""NAME of the method in one line: what makes its pseudo-labels, or what it trains.

Copy this file to ``methods/<name>.py`` (a built-in method), or anywhere (named in a grid by
``modules = ["<name>.py"]``), and replace everything in capitals. The checklist is in CONTRIBUTING.md.

Source: AUTHORS, "TITLE", VENUE YEAR, arXiv NUMBER, github OWNER/REPOSITORY at COMMIT (read; or: not
available).

What it does: ONE PARAGRAPH, with the formula of what is new.

What differs from the official code: EVERY DIFFERENCE AND WHY; which variant of the paper this is.

Expected score: NUMBER mAP on DATASET at RATIO with BACKBONE at RESOLUTION (SOURCE, its selection rule);
or: none known under this protocol. Cost: FORWARD AND BACKWARD PASSES per image and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from methods.base import Batch, PseudoLabels
from methods.errors import check_range
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod
from methods.registry import register


@dataclass(frozen=True)
class TemplateHyper(PseudoLabelHyper):
    """Hyper-parameters of TEMPLATE; those of `PseudoLabelHyper` are left out here.

    Attributes:
        positive: probability from which an entry is pseudo-positive (paper: VALUE; code: VALUE).
    """

    positive: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("positive", self.positive, 0, 1)


@register
class Template(PseudoLabelMethod):
    """ONE LINE; see the module's docstring."""

    name = "template"
    version = 1  # raise it with every change of the code that can change a number
    Hyper = TemplateHyper
    hyper: TemplateHyper

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Return the pseudo-labels (B_u, K) of the batch's unlabelled images; no gradients here."""
        probabilities = self.weak_probabilities(batch)  # (B_u, K), of the present model
        targets = (probabilities >= self.hyper.positive).float()
        return PseudoLabels(targets, mask=torch.ones_like(targets))

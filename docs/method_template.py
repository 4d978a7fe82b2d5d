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

from dataclasses import dataclass, field

import torch

from methods.base import Batch, PseudoLabels
from methods.errors import check_range
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod
from methods.registry import register


@dataclass(frozen=True)
class TemplateHyper(PseudoLabelHyper):
    """Hyper-parameters of TEMPLATE; those of `PseudoLabelHyper` are left out here.

    Attributes:
        confidence: an entry is used where max(p, 1 − p) reaches it (paper: VALUE; code: VALUE).
    """

    # Where a search is sensible; what is refused stands below, and is wider.
    confidence: float = field(default=0.5, metadata={"low": 0.5, "high": 0.99, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("confidence", self.confidence, 0.5, 1)


@register
class Template(PseudoLabelMethod):
    """ONE LINE; see the module's docstring."""

    name = "template"
    version = 1  # raise it with every change of the code that can change a number
    Hyper = TemplateHyper
    hyper: TemplateHyper

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Return the pseudo-labels (B_u, K) of the batch's unlabelled images; no gradients here."""
        p = self.weak_probabilities(batch)  # (B_u, K), of the present model
        used = torch.maximum(p, 1 - p) >= self.hyper.confidence
        # Label at 0.5, filter by confidence: see methods/parts/pseudo_labelling.py.
        return PseudoLabels(targets=(p >= 0.5).to(p), mask=used.to(p))

"""Deprecated: import from `methods.parts.linear` and `methods.parts.pseudo_labelling` instead."""

from methods.parts.linear import LinearClassifier, LinearHyper, LinearMethod, calibrated_bias
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod

__all__ = [
    "LinearClassifier",
    "LinearHyper",
    "LinearMethod",
    "PseudoLabelHyper",
    "PseudoLabelMethod",
    "calibrated_bias",
]

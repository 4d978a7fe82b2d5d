"""Image and text towers and their weights.

`BackboneSpec` and `load_backbone` are imported on first use. Neither import needs torch; calling
`load_backbone` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.backbones.load import load_backbone
    from methods.backbones.spec import BackboneSpec

__all__ = ["BackboneSpec", "load_backbone"]

_LAZY = {"BackboneSpec": "spec", "load_backbone": "load"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"methods.backbones.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'methods.backbones' has no attribute {name!r}")

"""Image and text towers and their weights.

`BackboneSpec` and `load_backbone` are imported on first use, because they import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.backbones.base import BackboneSpec, load_backbone

__all__ = ["BackboneSpec", "load_backbone"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from methods.backbones import base

        return getattr(base, name)
    raise AttributeError(f"module 'methods.backbones' has no attribute {name!r}")

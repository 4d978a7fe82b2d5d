"""Methods for semi-supervised multi-label learning, and the parts that they are built from.

`available`, `get`, `hyper` and `create` find and build methods by name; `register` adds one.
`methods.losses` and `methods.thresholds` are imported on first use, because they import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from methods.registry import available, create, get, hyper, register

if TYPE_CHECKING:
    from methods import losses, thresholds

__all__ = ["available", "create", "get", "hyper", "losses", "register", "thresholds"]

_LAZY = ("losses", "thresholds")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"methods.{name}")
    raise AttributeError(f"module 'methods' has no attribute {name!r}")

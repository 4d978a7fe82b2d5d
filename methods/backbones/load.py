"""Load the backbone of a specification, or hash its weights without building it.

Towers are imported inside the functions that build them: hashing and planning must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.backbones.digests import file_digest
from methods.backbones.spec import BackboneSpec

if TYPE_CHECKING:
    from methods.backbones.base import Backbone

RANDOM_WEIGHTS = "random"


def load_backbone(spec: BackboneSpec, resolution: int) -> Backbone:
    """Build a backbone with its weights, in evaluation mode, float32, on the CPU.

    Args:
        spec: the backbone.
        resolution: side in pixels of the square images that it will be given.

    Raises:
        UserError: unknown model, absent or unfitting weights, or an impossible resolution.
    """
    if spec.is_vlm:
        from methods.backbones.clip import load_open_clip

        return load_open_clip(spec, resolution).eval()
    from methods.backbones.image import load_image_network

    return load_image_network(spec, resolution).eval()


def weights_digest(spec: BackboneSpec) -> str:
    """Return the SHA-256 (hex) of the weights file, or "random"; the model is not built.

    Raises:
        UserError: the file is absent, or a tag cannot be fetched.
    """
    if spec.file is not None:
        return file_digest(spec.file)
    if spec.weights:
        from methods.backbones.clip import tag_file

        return file_digest(tag_file(spec))
    return RANDOM_WEIGHTS

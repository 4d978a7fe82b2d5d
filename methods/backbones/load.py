"""Load the backbone of a specification, or hash its weights without building it.

Towers are imported inside the functions that build them: hashing and planning must not import torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from methods.backbones.digests import file_digest
from methods.backbones.formats import weights_format
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
        UserError: the file is absent or no weights file, or a tag cannot be fetched.
    """
    file = weights_file(spec)
    if file is None:
        return RANDOM_WEIGHTS
    weights_format(file)  # before a grid starts: an HTML page has a hash too
    return file_digest(file)


def weights_file(spec: BackboneSpec) -> Path | None:
    """Return the file of the weights, fetched first where a tag names it; None for random weights.

    Raises:
        UserError: a tag cannot be fetched.
    """
    if spec.file is not None or not spec.weights:
        return spec.file
    from methods.backbones.open_clip_models import tag_file

    return tag_file(spec)


def bring(spec: BackboneSpec) -> None:
    """Have the weights of a backbone and what it needs from the hub here, fetched where they are not.

    What is needed from the hub is loaded, too, as a run will: that it is here does not say that it loads.

    Raises:
        UserError: something cannot be fetched or loaded, or is not what it should be.
    """
    from methods.backbones.hub import parts

    weights_digest(spec)
    for part in parts(spec):
        part.fetch()

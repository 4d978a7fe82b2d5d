"""Image networks without a text tower: torchvision and timm."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from methods.backbones.base import Backbone
from methods.backbones.conventions import conventions
from methods.backbones.spec import BackboneSpec
from methods.base import seeded_rng
from methods.errors import UserError, first_line
from methods.weights import load_weights, read_state_dict


class ImageNetwork(Backbone):
    """A convolutional or transformer network without text: trunk, pooling, no head.

    Args:
        trunk: module from (B, 3, H, W) to a (B, C, h, w) map, or a timm model that returns (B, C)
            pooled features.
        pool: how a map is pooled, see `BackboneSpec`; not used for pooled features.
        **options: see `Backbone`.
    """

    def __init__(self, trunk: nn.Module, pool: str, **options: Any) -> None:
        super().__init__(dim=0, **options)
        self.trunk = trunk.to(memory_format=torch.channels_last)
        self.pool = pool
        self.dim = self._measure()

    def _features(self, images: Tensor) -> Tensor:
        output = self.trunk(self.normalise(images))
        if output.ndim == 2:
            return output
        pooled = []
        if self.pool in ("avg", "mean+max"):
            pooled.append(output.mean(dim=(2, 3)))
        if self.pool in ("max", "mean+max"):
            pooled.append(output.amax(dim=(2, 3)))
        return torch.cat(pooled, dim=1)

    def _feature_map(self, images: Tensor) -> Tensor:
        """The last map of a convolutional network, or the patch tokens of a transformer.

        Of a timm model, what its ``forward_features`` returns: after the last block, and after the
        final norm where that comes before the pooling.
        """
        images = self.normalise(images)
        unpooled = getattr(self.trunk, "forward_features", self.trunk)
        found = unpooled(images)
        if isinstance(found, Tensor) and found.ndim == 3:
            return found[:, getattr(self.trunk, "num_prefix_tokens", 0) :]
        if isinstance(found, Tensor) and found.ndim == 4:
            if getattr(self.trunk, "output_fmt", "NCHW") == "NHWC":
                return found.flatten(1, 2)
            return found.flatten(2).transpose(1, 2)
        raise UserError(
            f"{self.description} has no single map of local features; choose a network that pools "
            "one map or one sequence of patches"
        )

    def _measure(self) -> int:
        """Return the output length from one forward pass, which also detects impossible resolutions."""
        self.eval()
        try:
            with torch.no_grad():
                return self.features(torch.zeros(1, 3, self.resolution, self.resolution)).shape[1]
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self.description} does not work at {self.resolution} pixels: {reason}"
            ) from error


def load_image_network(spec: BackboneSpec, resolution: int) -> ImageNetwork:
    """Build the torchvision or timm network that ``spec`` names.

    Raises:
        UserError: unknown model, absent or unfitting weights, or an impossible resolution.
    """
    demands = conventions(spec)
    with seeded_rng(0):  # random weights must be the same in every process
        build = {"torchvision": _torchvision_trunk, "timm": _timm_trunk}[spec.family]
        trunk = build(spec, resolution)
    weights = spec.weights or "random weights"
    return ImageNetwork(
        trunk,
        spec.pool,
        resolution=resolution,
        mean=demands.mean,
        std=demands.std,
        scale=spec.scale,
        channels=spec.channels,
        description=f"{spec.name} ({weights})",
    )


def _torchvision_trunk(spec: BackboneSpec, resolution: int) -> nn.Module:
    import torchvision.models

    # These two initialise their weights very slowly, and warn that this will change, unless it is said.
    options = {"init_weights": False} if spec.model in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(spec.model, weights=None, **options)
    if hasattr(model, "layer4") and hasattr(model, "fc"):
        parts = dict(model.named_children())
        heads = [name for name in parts if name in ("avgpool", "fc")]
        trunk = nn.Sequential(OrderedDict((k, v) for k, v in parts.items() if k not in heads))
    elif isinstance(getattr(model, "features", None), nn.Sequential):
        trunk = model.features
        if "densenet" in spec.model:  # its forward method applies the last activation
            trunk = nn.Sequential(trunk, nn.ReLU(inplace=True))
    else:
        raise UserError(
            f"torchvision model {spec.model!r} has neither 'layer4' nor 'features' to take feature "
            f"maps from; use timm/<model> for it"
        )
    if spec.file is not None:
        kept = ("features.",) if hasattr(model, "features") else None
        prefixes = {name.partition(".")[0] + "." for name in model.state_dict()}
        ignored = prefixes - set(kept) if kept else {"fc."}
        load_weights(model, read_state_dict(spec.file), str(spec.file), ignored)
    return trunk


def _timm_trunk(spec: BackboneSpec, resolution: int) -> nn.Module:
    import timm

    options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    if spec.pool != "avg":
        options["global_pool"] = {"max": "max", "mean+max": "catavgmax"}[spec.pool]
    try:
        try:
            model = timm.create_model(spec.model, img_size=resolution, **options)
        except TypeError:  # convolutional networks take no image size
            model = timm.create_model(spec.model, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(
            f"timm model {spec.model!r} with pool={spec.pool!r} at {resolution} pixels: {reason}"
        ) from error
    if spec.file is not None:
        cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        # The classifier's name differs by family, and some have two.
        heads = cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        load_weights(model, read_state_dict(spec.file), str(spec.file), [f"{head}." for head in heads])
    return model

"""Image towers by name: GlyphCLIP, open_clip models, torchvision and timm networks.

A backbone takes images in [0, 1] and normalises them itself, so that the rest of the harness knows
one kind of image.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import seeded_rng
from methods.errors import UserError, check_choice, nearest
from methods.weights import file_digest, load_weights, read_state_dict

FAMILIES = ("glyphclip", "open_clip/<model>", "torchvision/<model>", "timm/<model>")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GLYPHCLIP = Path(__file__).parent / "glyphclip"
RANDOM_WEIGHTS = "random"


@dataclass(frozen=True)
class BackboneSpec:
    """Which backbone, and how it wants its input.

    Attributes:
        name: "glyphclip", "open_clip/<model>", "torchvision/<model>" or "timm/<model>".
        weights: a file (safetensors or a torch state dict); for open_clip also a pretrained tag,
            for glyphclip "" means the embedded file. "" elsewhere: random weights, drawn from a
            fixed seed.
        channels: "rgb", or "bgr" for networks that came from Caffe.
        mean: per channel, in the order of ``channels``, subtracted after scaling; None: what the
            model was trained with (open_clip, timm) or ImageNet's (torchvision). CAP and D2L do not
            normalise: mean (0, 0, 0), std (1, 1, 1).
        std: per channel, divides after ``mean``; None as for ``mean``.
        scale: multiplies the [0, 1] input first; 255 for networks that came from Caffe.
        pool: pooling of the last feature map of a torchvision or timm network: "avg", "max" or
            "mean+max" (both, concatenated: twice the dimension). "avg" of a timm transformer means
            the pooling it was trained with.
    """

    name: str
    weights: str = ""
    channels: str = "rgb"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    scale: float = 1.0
    pool: str = "avg"

    def __post_init__(self) -> None:
        family, _, model = self.name.partition("/")
        if family not in {name.partition("/")[0] for name in FAMILIES}:
            raise UserError(f"unknown backbone {self.name!r}{nearest(self.name, FAMILIES)}")
        if (family == "glyphclip") == bool(model):
            raise UserError(f"backbone {self.name!r}: write one of {', '.join(FAMILIES)}")
        check_choice("backbone.channels", self.channels, ("rgb", "bgr"))
        check_choice("backbone.pool", self.pool, ("avg", "max", "mean+max"))
        if self.pool != "avg" and self.is_vlm:
            raise UserError(f"backbone {self.name!r} has its own pooling; remove pool={self.pool!r}")
        if (self.mean is None) != (self.std is None) or (self.scale != 1 and self.mean is None):
            raise UserError("backbone: give mean and std together, and both when scale is given")
        for field in ("mean", "std"):
            value = getattr(self, field)
            if value is not None and len(value) != 3:
                raise UserError(f"backbone.{field}: three numbers are needed, got {value}")

    @property
    def family(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    @property
    def model(self) -> str:
        """The part of the name after the slash; "glyphclip" for GlyphCLIP."""
        return self.name.partition("/")[2] or self.name

    @property
    def is_vlm(self) -> bool:
        """Whether the backbone has a text tower."""
        return self.family in ("glyphclip", "open_clip")

    @property
    def file(self) -> Path | None:
        """The weights file, or None if there is none or it is named by a tag."""
        if self.name == "glyphclip":
            return Path(self.weights) if self.weights else GLYPHCLIP / "glyphclip.safetensors"
        if not self.weights or (self.family == "open_clip" and not _looks_like_file(self.weights)):
            return None
        return Path(self.weights)


class Backbone(nn.Module):
    """An image tower that takes images in [0, 1].

    Batch normalisation: labelled batches are tiny, so while ``freeze_bn`` is True (the default) the
    running statistics of the pretraining stay in use during training; scale and shift are still
    trained. With False, statistics are those of each process's batch. A backbone without any
    trainable parameter stays in evaluation mode altogether.

    Attributes:
        dim: length d of `features`.
        resolution: side of the square images that it takes.
        is_vlm: whether it has a text tower.
        freeze_bn: see above.
        description: for messages and provenance.
    """

    mean: Tensor
    std: Tensor
    is_vlm = False

    def __init__(
        self,
        *,
        dim: int,
        resolution: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: float = 1.0,
        channels: str = "rgb",
        description: str = "",
    ) -> None:
        super().__init__()
        self.dim, self.resolution = dim, resolution
        self.freeze_bn = True
        self.description = description
        self._flip = channels == "bgr"
        # (scale x - mean) / std, with the scale folded in.
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(mean).view(shape) / scale, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(shape) / scale, persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) images in [0, 1] as the network wants them, channels last."""
        if self._flip:
            images = images.flip(1)
        # Convolutions are about 1.6 times faster in this memory format, on CPUs too.
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """Return (B, d) features, not normalised, of images (B, 3, H, W) in [0, 1]."""
        if len(images) == 0:
            # A process without images in a step still takes part in it, with zero gradients.
            return self._features(self._placeholder(images))[:0]
        return self._features(images)

    def _features(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def _placeholder(self, images: Tensor) -> Tensor:
        return images.new_zeros(1, 3, self.resolution, self.resolution)

    def forward(self, images: Tensor) -> Tensor:
        """Call `features`."""
        return self.features(images)

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; see the class for batch normalisation and frozen backbones."""
        super().train(mode and any(p.requires_grad for p in self.parameters()))
        if self.freeze_bn:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


class ImageNetwork(Backbone):
    """A convolutional or transformer network without text: trunk, pooling, no head.

    Args:
        trunk: module from (B, 3, H, W) to a (B, C, h, w) map or to (B, C) pooled features.
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

    def _measure(self) -> int:
        """Output length, from one forward pass; also finds resolutions that do not work."""
        self.eval()
        try:
            with torch.no_grad():
                return self.features(torch.zeros(1, 3, self.resolution, self.resolution)).shape[1]
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self.description} does not work at {self.resolution} pixels: {reason}"
            ) from error


def load_backbone(spec: BackboneSpec, resolution: int) -> Backbone:
    """Build a backbone with its weights, in evaluation mode, float32, on the CPU.

    Args:
        spec: which one.
        resolution: side in pixels of the square images that it will be given.

    Raises:
        UserError: unknown model, absent or unfitting weights, or an impossible resolution.
    """
    if spec.is_vlm:
        from methods.backbones.clip import load_open_clip

        return load_open_clip(spec, resolution).eval()
    with seeded_rng(0):  # random weights, where they are asked for, are the same in every process
        build = {"torchvision": _torchvision_trunk, "timm": _timm_trunk}[spec.family]
        trunk, mean, std = build(spec, resolution)
    weights = spec.weights or "random weights"
    return ImageNetwork(
        trunk,
        spec.pool,
        resolution=resolution,
        mean=spec.mean or mean,
        std=spec.std or std,
        scale=spec.scale,
        channels=spec.channels,
        description=f"{spec.name} ({weights})",
    ).eval()


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


def _looks_like_file(weights: str) -> bool:
    path = Path(weights)
    return path.is_file() or len(path.parts) > 1 or path.suffix in (".safetensors", ".pt", ".pth", ".bin")


def _torchvision_trunk(spec: BackboneSpec, resolution: int) -> tuple[nn.Module, tuple, tuple]:
    import torchvision.models

    names = torchvision.models.list_models(module=torchvision.models)
    if spec.model not in names:
        raise UserError(f"unknown torchvision model {spec.model!r}{nearest(spec.model, names)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inception and GoogLeNet warn about initial weights
        model = torchvision.models.get_model(spec.model, weights=None)
    if hasattr(model, "layer4") and hasattr(model, "fc"):
        parts = dict(model.named_children())
        heads = [name for name in parts if name in ("avgpool", "fc")]
        trunk = nn.Sequential(OrderedDict((k, v) for k, v in parts.items() if k not in heads))
    elif isinstance(getattr(model, "features", None), nn.Sequential):
        trunk = model.features
        if "densenet" in spec.model:  # its last activation lives in the model's forward
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
    return trunk, IMAGENET_MEAN, IMAGENET_STD


def _timm_trunk(spec: BackboneSpec, resolution: int) -> tuple[nn.Module, tuple, tuple]:
    import timm

    if not timm.is_model(spec.model):
        raise UserError(f"unknown timm model {spec.model!r}{nearest(spec.model, timm.list_models())}")
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    if spec.pool != "avg":
        options["global_pool"] = {"max": "max", "mean+max": "catavgmax"}[spec.pool]
    try:
        try:
            model = timm.create_model(spec.model, img_size=resolution, **options)
        except TypeError:  # convolutional networks know no image size
            model = timm.create_model(spec.model, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"timm model {spec.model!r} with pool={spec.pool!r} at {resolution} pixels: {reason}"
        ) from error
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    if spec.file is not None:
        # The classifier's name differs by family, and some have two.
        heads = cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        load_weights(model, read_state_dict(spec.file), str(spec.file), [f"{head}." for head in heads])
    return model, cfg.get("mean", IMAGENET_MEAN), cfg.get("std", IMAGENET_STD)

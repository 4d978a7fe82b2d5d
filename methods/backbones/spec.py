"""The specification of a backbone, as a grid gives it; nothing here imports torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from methods.errors import UserError, check_choice, nearest

FAMILIES = ("glyphclip", "open_clip/<model>", "torchvision/<model>", "timm/<model>")
GLYPHCLIP = Path(__file__).parent / "glyphclip"


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone, its weights and the input format that it expects.

    Attributes:
        name: "glyphclip", "open_clip/<model>", "torchvision/<model>" or "timm/<model>".
        weights: a file (safetensors or a torch state dict); for open_clip also a pretrained tag,
            for glyphclip "" means the embedded file. "" elsewhere: random weights, drawn from a
            fixed seed.
        channels: "rgb", or "bgr" for networks that came from Caffe.
        mean: per channel, in the order of ``channels``, subtracted after scaling; None: what the
            weights were trained with, see `conventions`. CAP and D2L do not normalise: mean (0, 0, 0),
            std (1, 1, 1).
        std: per channel, divides after ``mean``; None as for ``mean``.
        scale: multiplies the [0, 1] input first; 255 for networks that came from Caffe.
        pool: pooling of the last feature map of a torchvision or timm network: "avg", "max" or
            "mean+max" (both, concatenated: twice the dimension). "avg" of a timm transformer means
            the pooling it was trained with.
        quick_gelu: whether the transformers of a CLIP model use QuickGELU instead of GELU; None: as the
            weights were trained, see `conventions`.
    """

    name: str
    weights: str = ""
    channels: str = "rgb"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    scale: float = 1.0
    pool: str = "avg"
    quick_gelu: bool | None = None

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
        """The weights file; None for random weights and for a pretrained tag."""
        if self.name == "glyphclip":
            return Path(self.weights) if self.weights else GLYPHCLIP / "glyphclip.safetensors"
        if not self.weights or (self.family == "open_clip" and not looks_like_file(self.weights)):
            return None
        return Path(self.weights)


def looks_like_file(weights: str) -> bool:
    """Whether weights of open_clip are a file's path, and no pretrained tag, whatever is on the disk."""
    return (
        "/" in weights or os.sep in weights or Path(weights).suffix in (".safetensors", ".pt", ".pth", ".bin")
    )

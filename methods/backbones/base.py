"""The interface of all image towers: features and normalisation of images in [0, 1].

A backbone takes images in [0, 1] and normalises them itself, so that the rest of the harness handles
one kind of image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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

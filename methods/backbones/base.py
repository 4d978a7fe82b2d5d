"""The interface of all image towers: global and local features of images in [0, 1].

A backbone takes images in [0, 1] and normalises them itself, so that the rest of the harness handles
one kind of image.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn


class Backbone(nn.Module):
    """An image tower that takes images in [0, 1].

    Batch normalisation: labelled batches are tiny, so while ``freeze_bn`` is True (the default) the
    running statistics of the pretraining stay in use during training; scale and shift are still
    trained. With False, statistics are those of each process's batch. A backbone without any
    trainable parameter stays in evaluation mode altogether.

    Attributes:
        dim: length d of a vector of `features`.
        resolution: side in pixels of the square images that it takes.
        is_vlm: whether it has a text tower.
        freeze_bn: see above.
        description: name and weights, for messages and provenance.
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
        """Normalise images (B, 3, H, W) in [0, 1] for the network; the memory format is channels last."""
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

    def feature_map(self, images: Tensor) -> Tensor:
        """Return (B, L, C) local features, not normalised, of images (B, 3, H, W) in [0, 1].

        L counts the locations row by row; tokens that stand for no location (class token, registers)
        are left out. C is `map_dim`, which need not be ``dim``.

        Raises:
            UserError: the network has no local features.
        """
        if len(images) == 0:
            return self._feature_map(self._placeholder(images))[:0]
        return self._feature_map(images)

    def _feature_map(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    @functools.cached_property
    def map_dim(self) -> int:
        """Length C of the local features; the first access runs one forward pass."""
        mode = self.training
        self.eval()
        with torch.no_grad():
            found = self._feature_map(self._placeholder(self.mean))
        self.train(mode)
        return found.shape[2]

    def freeze_pooling(self) -> None:
        """Freeze the parameters that `features` reads and `feature_map` does not.

        For methods that only read the map: a parameter that never gets a gradient would stop
        DistributedDataParallel.
        """
        mode = self.training
        self.eval()
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if trained:
            with torch.enable_grad():
                found = self._feature_map(self._placeholder(self.mean)).sum()
                gradients = torch.autograd.grad(found, trained, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.requires_grad_(gradient is not None)
        self.train(mode)

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

"""A feature for each class of an image, and InfoNCE between the features of two views."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.backbones.base import Backbone
from methods.base import Task, at_least_fp32, full_precision
from methods.errors import UserError
from methods.parts.heads import Classifier, MLDecoder

HEADS = 8
"""Of the decoder's attention, among which a feature is divided."""
LEFT_OUT = -1e30
"""Product of a candidate that is left out: finite, so that a step without any has gradients of 0."""


class ClassFeatures(Classifier):
    """An ML-Decoder with a query and a feature for each class; a logit is linear in its class's feature.

    Parameters that only the backbone's own pooling reads are frozen. Biases start at 0.

    Args:
        backbone: trained in place.
        task: classes and seed.
        width: length of a feature, a multiple of 8.

    Raises:
        UserError: the backbone has no local features.
    """

    reads_map = True
    calibrated = False

    def __init__(self, backbone: Backbone, task: Task, width: int) -> None:
        super().__init__(backbone)
        classes = task.num_classes
        self.decoder = MLDecoder(
            backbone.map_dim, classes, groups=classes, dim=width, heads=HEADS, seed=task.seed
        )
        self.bias = nn.Parameter(torch.zeros(classes))

    def described(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) float32 logits and (B, K, width) float32 features of images (B, 3, H, W) in [0, 1]."""
        features = self.decoder.queried(self.backbone.feature_map(images))
        with full_precision(features):
            features = at_least_fp32(features)
            logits = torch.einsum("bkd,kd->bk", features, self.decoder.group_weight[:, :, 0]) + self.bias
        return logits, features

    def forward(self, images: Tensor) -> Tensor:
        """(B, K) float32 logits."""
        return self.described(images)[0]


def check_width(width: int) -> None:
    """Raise `UserError` unless ``width`` can be the length of a feature of `ClassFeatures`."""
    if width < HEADS or width % HEADS:
        raise UserError(f"width: {width} is not allowed; it must be a positive multiple of {HEADS}")


def info_nce(
    queries: Tensor, keys: Tensor, used: Tensor, candidates: Tensor, allowed: Tensor, temperature: float
) -> Tensor:
    """InfoNCE of entries, an entry being a class of an image, summed; inner products are not normalised.

    An entry costs −log softmax of the product of its query and its key among those of its query and all
    allowed candidates, divided by the temperature. On a device products of all pairs are made and masked, so
    that nothing is read from it; on a CPU, where reading costs nothing, those of the entries that count.

    Args:
        queries: (B, K, d).
        keys: (B, K, d), of the same entries, among the candidates.
        used: (B, K) {0, 1}: entries that count.
        candidates: (N, K, d), such as the keys of all processes, in any order.
        allowed: (N, K) {0, 1}; where an entry is used, its key is allowed.
        temperature: positive.

    Returns:
        A scalar, float32 or more; 0 where no entry is used.

    >>> one = torch.eye(2)[:, None]
    >>> info_nce(one, one, torch.ones(2, 1), one, torch.ones(2, 1), 1.0)  # twice log(1 + 1/e)
    tensor(0.6265)
    """
    with full_precision(queries):
        queries, keys, candidates = (at_least_fp32(each) for each in (queries, keys, candidates))
        own = (queries * keys).sum(dim=-1).flatten() / temperature
        queries, candidates = queries.flatten(0, 1), candidates.flatten(0, 1)
        counts, allowed = used.flatten(), allowed.flatten() > 0.5
        if _reading_is_free(queries):
            entries = counts > 0.5
            if not entries.any():
                return (own * counts).sum()
            queries, own, counts = queries[entries], own[entries], counts[entries]
            candidates, allowed = candidates[allowed], allowed[allowed]
        products = (queries @ candidates.T / temperature).masked_fill(~allowed, LEFT_OUT)
        return (counts * (products.logsumexp(dim=1) - own)).sum()


def _reading_is_free(tensor: Tensor) -> bool:
    """Whether a value can be read without waiting for a device."""
    return tensor.device.type == "cpu"

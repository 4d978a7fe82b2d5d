"""Top-k: the k most probable classes of each unlabelled image are positive, all others negative.

Source: a baseline of Xie et al., "Class-Distribution-Aware Pseudo-Labeling for Semi-Supervised Multi-Label
Learning" (CAP), NeurIPS 2023, arXiv 2305.02795; with k = 1, its Top-1. Code: not published; github
xiemk/SSMLL-CAP at b7dd807 has a table of k that nothing reads: 2 for VOC, 3 for COCO, 2 for NUS-WIDE, which
is the mean number of labels of an image, rounded.
Golden test: none, there is no code to run; `tests/methods/test_pool_thresholds.py` has the rule in loops.

What it does: before each epoch the moving average scores the weak views of all unlabelled images. Each image
has exactly k pseudo-positives, and every entry is used. The loss is CAP's: ASL on strong views, summed over
labelled and over unlabelled images. Only the rule differs from `cap`, so the two show what thresholds for
classes are worth against numbers for images.

What differs from the official code: there is none; that pseudo-labels are remade once per epoch from the
moving average is CAP's way, and our reading for this baseline. Of tied classes the one with the lower index
is taken.

Expected score: none known for certain under this protocol. Cost: as `cap`, one forward pass over the pool for
its scores, and one forward and backward pass per unlabelled image and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from methods.backbones.spec import BackboneSpec
from methods.base import Pool, PseudoLabels
from methods.errors import UserError, check_range
from methods.parts.linear import LinearHyper
from methods.parts.pool_labelling import PoolLabelMethod
from methods.parts.pseudo_labelling import PseudoLabelHyper
from methods.registry import register
from methods.thresholds import top_k_pseudo_labels


@dataclass(frozen=True)
class TopKHyper(PseudoLabelHyper):
    """As `PseudoLabelHyper`, with the number of positives.

    Attributes:
        k: pseudo-positives of each image (CAP's table: 2 for VOC and NUS-WIDE, 3 for COCO; its Top-1: 1).
    """

    k: int = field(default=2, metadata={"low": 1, "high": 5, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("k", self.k, 1)


@register
class TopK(PoolLabelMethod):
    """The same number of pseudo-positives for every image; see the module's docstring."""

    name = "top_k"
    version = 1
    Hyper = TopKHyper
    hyper: TopKHyper

    @classmethod
    def check_task(cls, hyper: LinearHyper, num_classes: int, backbone: BackboneSpec) -> None:
        """There must be a class left to be negative."""
        super().check_task(hyper, num_classes, backbone)
        assert isinstance(hyper, TopKHyper)
        if hyper.k >= num_classes:
            raise UserError(
                f"top_k.k: {hyper.k} of {num_classes} classes would make every class of every image "
                "positive; it must be smaller than the number of classes"
            )

    def label_pool(self, pool: Pool) -> PseudoLabels:
        """The k highest scores of each image."""
        return top_k_pseudo_labels(pool.scores, self.hyper.k)

"""CAP: as many pseudo-positives of each class as its labelled frequency says.

Source: Xie, Xiao, Liu, Niu, Sugiyama, Huang, "Class-Distribution-Aware Pseudo-Labeling for Semi-Supervised
Multi-Label Learning", NeurIPS 2023, arXiv 2305.02795; code read: github xiemk/SSMLL-CAP at b7dd807.
Golden test: `tests/methods/test_pool_methods.py` and `test_pool_thresholds.py`, numbers of running it:
pseudo-labels, masks, loss, gradient.

What it does: before each epoch the moving average scores the weak views of all n_u unlabelled images. With
π_k the labelled frequency of class k, the floor(π_k·n_u) images with the highest scores of class k are its
pseudo-positives, the others its pseudo-negatives. Used are the floor(η⁺·π_k·n_u) highest and the
floor(η⁻·(1 − π_k)·n_u) lowest scores of each class. The loss is ASL on the strong views, summed over labelled
images, plus the same on unlabelled images, masked: L = Σ ASL(z, y) + Σ m·ASL(z, ŷ).

What differs from the official code: (1) a class for which floor(π_k·n_u) is 0, such as one that no labelled
image shows, gets no pseudo-positive; there the index -1 picks the smallest score, and every image becomes
positive. (2) π_k·n_u is computed from counts, so a product that is a whole number is never rounded down by
one. (3) Scores are float32 logits; there they are probabilities in half precision, of which some tie at the
thresholds. η⁻ = 0.998 is what the code uses: it asks for 1.0 and clips it. Loaders shuffle; there they keep
the order of files, and the warm-up passes weak views through the batch normalisation too. All else of the
protocol is the recipe `cap-rn50`.

Expected score: COCO 2014 at 5 %, ImageNet ResNet-50 at 224 px: 58.3 mAP for the warm-up alone (`supervised`
there), 62.4 for CAP (the repository's README; 63.5 in the ABL paper of the same group, 62.9 in DiCaP's); at
10 % 63.5 and 65.2 (67.5 and 67.2 elsewhere, so the README may have a misprint), at 15 % 66.2 and 69.1, at 20
% 67.6 and 70.4. All of them: best epoch on the test images, the better of average and raw weights, seed 1:
`--grid cap-rn50`, then `tables --rule oracle`. Cost: one forward pass over the pool for its scores, and one
forward and backward pass per unlabelled image and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from methods.base import Pool, PseudoLabels
from methods.errors import check_range
from methods.parts.pool_labelling import PoolLabelMethod
from methods.parts.pseudo_labelling import PseudoLabelHyper
from methods.registry import register
from methods.thresholds import ETA_NEG, ETA_POS, class_distribution_pseudo_labels


@dataclass(frozen=True)
class CAPHyper(PseudoLabelHyper):
    """As `PseudoLabelHyper`, with the shares that are used.

    Attributes:
        eta_pos: η⁺, share of the pseudo-positives of a class that is used, the surest first (official: 1).
        eta_neg: η⁻, share of its pseudo-negatives (official: 1, clipped to 0.998 by the code).
    """

    eta_pos: float = field(default=ETA_POS, metadata={"low": 0.5, "high": 1.0, "scale": "linear"})
    eta_neg: float = field(default=ETA_NEG, metadata={"low": 0.5, "high": 1.0, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eta_pos", "eta_neg"):
            check_range(name, getattr(self, name), 0, 1)


@register
class CAP(PoolLabelMethod):
    """Class-distribution-aware pseudo-labels; see the module's docstring."""

    name = "cap"
    version = 1
    Hyper = CAPHyper
    hyper: CAPHyper

    def label_pool(self, pool: Pool) -> PseudoLabels:
        """Thresholds from the numbers of labelled images that show each class."""
        labels, hyper = self.task.labels, self.hyper
        return class_distribution_pseudo_labels(
            pool.scores, labels.sum(dim=0), hyper.eta_pos, hyper.eta_neg, total=len(labels)
        )

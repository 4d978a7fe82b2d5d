"""IAT: each unlabelled image has as many pseudo-positives as its probabilities lead to expect.

Source: "instance-adaptive thresholding", a baseline of Xie et al., "Class-Distribution-Aware Pseudo-Labeling
for Semi-Supervised Multi-Label Learning" (CAP), NeurIPS 2023, arXiv 2305.02795. Code: not published (github
xiemk/SSMLL-CAP at b7dd807 was read and has none).
Golden test: none, there is no code to run; `tests/methods/test_pool_thresholds.py` has the rule in loops.

What it does: before each epoch the moving average scores the weak views of all unlabelled images. The
positives of an image are its n most probable classes, n = Σ_k p_k rounded, at least 1 (with a single class at
least 0). Every entry is used. The loss is CAP's: ASL on strong views, summed over labelled and over
unlabelled images.

What differs from the official code: the rule is our reading of the name, an approximation: CAP does not
publish how the threshold of an image is found. Σ_k p_k is the expected number of labels only where
probabilities are calibrated. ASL does not calibrate them, it leaves negatives at up to its ``clip``
unpunished, and with many classes that adds up to positives that are not there; ``loss = "bce"`` has no such
offset.

Examined (`results/field-dev`, GlyphScenes-dev, 5 %): with ASL it ends at 55.9 mAP, with binary
cross-entropy at 57.9, where a training that uses nothing of the pool ends at 59.1: with ASL the sums Σ p
call nearly everything present (recall 99 %, precision 9 % in the third epoch). It is the threshold.

Expected score: none known under this protocol. Cost: as `cap`, one forward pass over the pool for its scores,
and one forward and backward pass per unlabelled image and epoch.
"""

from __future__ import annotations

import torch

from methods.base import Pool, PseudoLabels
from methods.parts.pool_labelling import PoolLabelMethod
from methods.parts.pseudo_labelling import PseudoLabelHyper
from methods.registry import register
from methods.thresholds import instance_adaptive_pseudo_labels


@register
class IAT(PoolLabelMethod):
    """A number of pseudo-positives for each image; see the module's docstring."""

    name = "iat"
    version = 1
    Hyper = PseudoLabelHyper

    def label_pool(self, pool: Pool) -> PseudoLabels:
        """As many positives as the image's probabilities add up to."""
        return instance_adaptive_pseudo_labels(torch.sigmoid(pool.scores))

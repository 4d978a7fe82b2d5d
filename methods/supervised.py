"""Supervised baseline: a linear classifier trained on the labelled images only.

What it does: fine-tunes backbone and linear classifier on the strong views of the labelled images
with the asymmetric loss (Ridnik et al., ICCV 2021) or binary cross-entropy. These are the rows
"ASL" and "BCE" of semi-supervised tables, and, stopped early, the warm-up of the pseudo-labelling
methods (`run_warmup.py` of CAP, Xie et al., NeurIPS 2023, github xiemk/SSMLL-CAP).
Golden test: `tests/methods/test_losses.py`, the formula of the loss entry by entry.

What differs from CAP's warm-up: batch normalisation keeps its pretraining statistics by default
(labelled batches are tiny; ``freeze_bn = false`` is CAP's way); the classifier has a learning rate
of its own and starts with biases at the labelled frequencies; the features of an image-only network are
scaled to unit root mean square (``head = "linear"`` is CAP's way, without either); the loader shuffles;
the weak view does not pass through the network, which changes the batch statistics where they are in use.
The recipe `cap-rn50` is CAP's way in all but the last two.

Expected score: COCO, ImageNet ResNet-50 at 224 pixels, p = 0.05: 57.9 to 58.3 mAP with ASL, 57.1
with BCE (reports of CAP and DiCaP; best epoch on test). None known for a CLIP backbone under this
protocol. Cost: one forward and backward pass of the backbone per labelled image and epoch.
"""

from __future__ import annotations

from methods.base import Batch, StepOutput
from methods.parts.linear import LinearHyper, LinearMethod
from methods.registry import register


@register
class Supervised(LinearMethod):
    """Labelled images only; see the module's docstring."""

    name = "supervised"
    version = 2
    Hyper = LinearHyper
    uses_unlabelled = False

    def training_step(self, batch: Batch) -> StepOutput:
        """Summed loss on the strong views of the labelled images."""
        logits = self.classifier(batch.strong_labelled)
        return StepOutput({"labelled": self.loss(logits, batch.targets).sum()})

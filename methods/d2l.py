r"""D2L with metric-adaptive thresholds (Xiao et al., "Dual Decoupling Learning", ECCV 2024).

Official code: github JiahaoXxX/SSMLL-D2L_MAT at 50c9a1c (read; its loss of a step, its thresholds and its
predictions were run).
Golden test: `tests/methods/test_d2l.py`, numbers of running that code.

What it does: four heads on one backbone. Correlative features come from the whole image, discriminative
ones from 2 × 2 patches of it, whose logits of a class are joined by :math:`\sum_r \mathrm{softmax}_r(z_r)
z_r` (first decoupling); labelled images train one pair of heads, unlabelled images another pair, so that
wrong pseudo-labels do not reach the heads that make them (second decoupling). The score of an image is the
mean of the logits of the labelled pair. Before each epoch the moving average scores weak views of the
labelled images and each class gets the threshold that is best on them
(`methods.thresholds.metric_adaptive_thresholds`, β = .5); in each step the moving average's probabilities
on the weak views of the unlabelled images are compared with these; all entries are used. The loss is the
sum of four asymmetric losses. The warm-up trains the labelled pair on labelled images; then the other pair
starts from it.

What differs from the official code: patches are cut from the cached image (see
`benchmarks.data.views.patches`); both labelled heads start from the same values where the code draws each;
a class without a labelled positive has no pseudo-positive, where the code makes every image one. It stops
when the best epoch on the TEST images is more than five epochs old; here training goes on to the last.

Expected score: COCO, ImageNet ResNet-50 with an ML-Decoder, 224 pixels, p = 0.05: 69.3 mAP, VOC 2012: 79.3
(tables of DiCaP, AAAI 2026, from third-party notes; best epoch on test; its own paper's were not read). Cost:
five forward passes without gradients and five forward and backward passes per unlabelled image and epoch;
scores cost five passes too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from methods.backbones.base import Backbone
from methods.base import Batch, Pool, PseudoLabels, StepOutput, Task, trainable
from methods.errors import check_choice, check_range
from methods.parts.heads import Classifier
from methods.parts.linear import LinearMethod, calibrated_bias
from methods.parts.pseudo_labelling import PseudoLabelHyper
from methods.registry import register
from methods.thresholds import metric_adaptive_thresholds

PAIRS = ("decoupled", "shared")
THRESHOLDS = ("mat", "half")


@dataclass(frozen=True)
class D2LHyper(PseudoLabelHyper):
    """As `PseudoLabelHyper`, with the parts of the method, each of which can be switched off.

    Attributes:
        grid: patches a side (official: 2); 0 for the whole image alone.
        pairs: "decoupled": unlabelled images train heads of their own; "shared": those of the labelled
            images.
        thresholds: "mat", metric-adaptive; "half", .5 for every class.
        beta: β of the thresholds' F-measure, as the code has it (official script: 0.5).
    """

    grid: int = field(default=2, metadata={"low": 0, "high": 4, "scale": "linear"})
    pairs: Literal["decoupled", "shared"] = "decoupled"
    thresholds: Literal["mat", "half"] = "mat"
    beta: float = field(default=0.5, metadata={"low": 0.1, "high": 2.0, "scale": "log"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("pairs", self.pairs, PAIRS)
        check_choice("thresholds", self.thresholds, THRESHOLDS)
        check_range("grid", self.grid, 0, 8)
        check_range("beta", self.beta, 0)


@register
class D2L(LinearMethod):
    """Whole images and patches, heads for labels and for pseudo-labels; see the module's docstring.

    Attributes:
        classifier: the backbone with the head of whole labelled images.
        patch_head: head of the patches of labelled images; a classifier without its backbone, as the next
            two.
        pool_head: head of whole unlabelled images.
        pool_patch_head: head of the patches of unlabelled images.
    """

    name = "d2l"
    Hyper = D2LHyper
    wants_teacher = True
    pool_wants = frozenset({"labelled"})
    scores_pool = False

    hyper: D2LHyper
    thresholds: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: D2LHyper) -> None:
        super().__init__(backbone, task, hyper)
        heads = [self.classifier.head() for _ in range(3)]
        self.patch_head = heads[0] if hyper.grid else None
        self.pool_head = heads[1] if hyper.pairs == "decoupled" else None
        self.pool_patch_head = heads[2] if hyper.grid and hyper.pairs == "decoupled" else None
        self.register_state("thresholds", torch.full((task.num_classes,), 0.5))

    @classmethod
    def patches(cls, hyper: D2LHyper) -> int:
        """The hyper-parameter ``grid``."""
        return hyper.grid

    def heads(self) -> list[nn.Module]:
        """The heads beside that of `classifier`."""
        found = (self.patch_head, self.pool_head, self.pool_patch_head)
        return [head for head in found if head is not None]

    def param_groups(self) -> list[dict[str, Any]]:
        """Backbone and heads at their own learning rates."""
        others = [parameter for head in self.heads() for parameter in trainable(head)]
        return self.groups_with(others)

    def calibrate(self, logits: Tensor) -> None:
        """Shift the biases of all heads: the joined logits, and so their mean, are shifted as much."""
        if self.classifier.calibrated:
            shift = calibrated_bias(logits, self.task.frequencies)
            with torch.no_grad():
                for head in (self.classifier, *self.heads()):
                    cast(Classifier, head).bias.add_(shift.to(head.bias))  # type: ignore[arg-type]

    def training_step(self, batch: Batch) -> StepOutput:
        """Labelled images train the labelled pair of heads, unlabelled ones the other."""
        targets = batch.targets[:0]
        if len(batch.unlabelled):  # a warm-up has no pseudo-labels
            with torch.no_grad():
                p = torch.sigmoid(self.teacher.predict(batch.weak_unlabelled))
            targets = (p >= self.thresholds).to(p)
        pseudo = PseudoLabels(targets, torch.ones_like(targets)) if len(targets) else None
        logits = self._logits(
            torch.cat([batch.strong_labelled, batch.strong_unlabelled]), len(batch.labelled)
        )
        losses = {}
        for view, (labelled, unlabelled) in logits.items():
            losses[f"labelled_{view}"] = self.loss(labelled, batch.targets).sum()
            losses[f"unlabelled_{view}"] = self.hyper.unlabelled_weight * self.loss(unlabelled, targets).sum()
        return StepOutput(losses, pseudo)

    def _logits(self, images: Tensor, labelled: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Logits of the whole images, and of the patches, each of the labelled and of the unlabelled images.

        Whole images and patches pass the backbone one after the other, as in the code: batch normalisation
        sees them apart.
        """
        whole, parts = self._split(images)
        views = {"whole": (self._features(whole), self.classifier, self.pool_head or self.classifier)}
        if self.patch_head is not None:
            patches = self._features(parts.flatten(0, 1)).unflatten(0, parts.shape[:2])
            views["patches"] = (patches, self.patch_head, self.pool_patch_head or self.patch_head)
        return {
            view: (_joined(first, features[:labelled]), _joined(second, features[labelled:]))
            for view, (features, first, second) in views.items()
        }

    def predict(self, images: Tensor) -> Tensor:
        """(B, K) float32: the mean of the labelled pair's logits, of images (B, 1 + P, 3, H, W)."""
        found = [labelled for labelled, _ in self._logits(images, len(images)).values()]
        return torch.stack(found).mean(dim=0)

    def _split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Whole images (B, 3, H, W) and patches (B, P, 3, H, W)."""
        return (images[:, 0], images[:, 1:]) if self.hyper.grid else (images, images[:, None])

    def _features(self, images: Tensor) -> Tensor:
        """What the heads read: global features (B, d), or local ones (B, L, C)."""
        backbone = self.classifier.backbone
        return backbone.feature_map(images) if self.classifier.reads_map else backbone.features(images)

    def wants_pool(self, epoch: int) -> bool:
        """Before every epoch with unlabelled images, for thresholds of its own."""
        return bool(self.task.num_unlabelled) and self.hyper.thresholds == "mat"

    def refresh(self, pool: Pool) -> None:
        """Thresholds that are best on the labelled images."""
        assert pool.labelled is not None  # it is in `pool_wants`
        scores = torch.sigmoid(pool.labelled)
        self.thresholds = metric_adaptive_thresholds(scores, self.task.labels.to(scores), self.hyper.beta)

    @classmethod
    def warmup_hyper(cls, hyper: D2LHyper) -> D2LHyper:
        """The same training without unlabelled images; what only steers these takes its default."""
        steers = ("unlabelled_weight", "pairs", "thresholds", "beta")
        return dataclasses.replace(hyper, **{name: getattr(D2LHyper, name) for name in steers})

    def load_warmup(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights; the heads of unlabelled images start from those of labelled ones."""
        super().load_warmup(state)
        for ours, theirs in ((self.pool_head, self.classifier), (self.pool_patch_head, self.patch_head)):
            if ours is not None and theirs is not None:
                values = theirs.state_dict()
                ours.load_state_dict({name: values[name] for name in ours.state_dict()})


def _joined(head: Classifier, features: Tensor) -> Tensor:
    """(B, K) logits of features (B, …) of images, or of (B, P, …) of their patches, joined over these."""
    shape = 3 if head.reads_map else 2
    if features.ndim == shape:
        return head.classify(features)
    logits = head.classify(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    return (torch.softmax(logits, dim=1) * logits).sum(dim=1)

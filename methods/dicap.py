"""DiCaP: pseudo-labels weighted by how often such predictions were right on labelled images kept for it.

Source: Han, Li, Wang, Hou, Liu, Hou, Jia, "DiCaP: Distribution-Calibrated Pseudo-labeling for
Semi-Supervised Multi-Label Learning", AAAI 2026, arXiv 2511.20225. Code: the official repository
(hb-studying/DiCaP) is not available; its fork github xxjustintwxx/DiCaP_PCLab was read at 1261d0d; its step,
thresholds and losses were run.
Golden test: `tests/methods/test_dicap.py` and, for the bins, `tests/methods/test_calibration.py`: numbers of
running that code.

What it does: a share of the labelled images (.2), the estimation images, leaves the labelled batches and
joins the pool. An ML-Decoder gives each class a feature of 512 numbers, in which its logit is linear. Three
phases:

1. Warm-up: the asymmetric loss on labelled images, and .1 times InfoNCE over all entries (an entry is a
   class of an image) of labelled images and pool images: the moving average's features of the weak view are
   the queries, the features of the strong view the keys.
2. Main: the moving average labels the weak view. An entry is positive where p ≥ .5 and p ≥ τ⁺, negative
   where p ≤ .5 and p ≤ τ⁻; its weight is r or 1 − r, where r is the share of positives among the estimation
   images' predictions in the bin of p, all classes together, measured before each epoch. τ⁺ and τ⁻ of a
   class are the middle between the least and the greatest score of its positives and of its negatives, over
   labelled and estimation images; .5 in the first epoch. Entries between them are trained by InfoNCE alone,
   from weak to strong view and back. InfoNCE has inner products, not normalised, divided by .1, and is a
   mean over its entries; the other losses are sums.
3. Fine-tuning: the decoder alone, 20 epochs of the estimation images with their labels, from the average.

Each part can be left out: ``weighting = "uniform"`` (or "confidence", the paper's other comparison),
``dual_thresholds = false`` (.5 throughout, so that no entry is left for InfoNCE), ``contrastive_weight =
0``, ``warmup_contrastive = 0``, ``finetune_epochs = 0``. The paper adds them one by one (mAP, mean of COCO
and NUS-WIDE over its ratios): labelled only 55.82, weights 58.73, thresholds 59.91, InfoNCE 60.25, InfoNCE
in the warm-up 60.40, fine-tuning 60.81.

At the edges: the estimation images are the last of the labelled ones, but for an image that is the only one
left of a class, which stays; a share that takes none, or more than can leave, is refused. Bins need no
positive of each class, and thresholds see both kinds. A class without a positive, or without a negative, in
both keeps .5 there, where the code takes the least of nothing and stops. At p = .5 exactly an entry is
negative, as in the code. With a repair of the bins, as in the code, a last bin with no positive in it, such
as an empty one (no prediction of .95 or more), makes r = 0 in all: pseudo-positives then have no weight in
that epoch. ``repair = "none"`` leaves the other bins as they are.

What differs from the official code: the decoder is `methods.parts.heads.MLDecoder`: a ReLU after the layer
that reads the local features, queries without a layer of their own, no dropout (.1 there). Phases start from
the model (main) and the average (fine-tuning), where the code takes the one that was better on the test
images; fine-tuning ends with a learning rate of 0, where the code lays it out for 40 epochs, and batch
normalisation keeps its statistics in it. Candidates of InfoNCE are those of the step over all processes. The
code has 25 labelled images in a step of the main phase at every ratio (⌊.8 · 32⌋), and in the warm-up ⌊.8 ·
b⌋ with 128 − b of the pool (b = 16, 32, 48, 64 from 5 to 20 %); here the recipe says how many are labelled.
As it is stored there, its main script stops at an argument that its parser lacks (the seed of the split).
The paper interpolates r between bins; the code, and this, look it up.

Expected score: COCO, ImageNet ResNet-50 with a decoder of this kind, 224 pixels, p = .05: 70.1 mAP;
VOC2012: 83.5 (`published --method dicap`: its main table, known from others' notes on it only; another
split, best epoch on test). On GlyphScenes-dev it has 53.4, `supervised` with an ML-Decoder 55.6: of 200
labelled images the estimation takes 40 (results/field-dev). Cost: per epoch a forward pass over the pool
and the labelled images; per pool image a forward pass of the average and a forward and a backward pass; and
products of all pairs of entries of a step, (B_u · K)² on a device, where they are masked, so that nothing
is read from it: 92 MB in float32, a few times, for 60 images of 80 classes; on a CPU only those of the
entries between the thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from methods.backbones.base import Backbone
from methods.base import Batch, Phase, Pool, PseudoLabels, StepMethod, StepOutput, Task, trainable
from methods.calibration import bin_index, bin_reliability, margin_loss, middles
from methods.errors import UserError, check_range
from methods.losses import asymmetric_loss
from methods.parts.class_features import ClassFeatures, check_width, info_nce
from methods.parts.hypers import AsymmetricHyper, OptimizerHyper
from methods.parts.linear import rate_groups, set_training
from methods.registry import register


@dataclass(frozen=True)
class DiCaPHyper(OptimizerHyper, AsymmetricHyper):
    """Hyper-parameters of DiCaP.

    Attributes:
        estimation_share: share of the labelled images kept for estimation, in (0, 1) (official: 0.2).
        bins: bins of equal width that probabilities are sorted into (official: 20).
        repair: of the bins, see `methods.calibration.bin_reliability` (official: "monotone"; VOC: "cubic").
        weighting: "calibrated", or "confidence" for max(p, 1 − p), or "uniform" for 1.
        dual_thresholds: whether thresholds follow the scores of labelled images, or stay .5; then no entry is
            left for InfoNCE in the main phase.
        unlabelled_weight: factor λ_u of the pseudo-labels' loss (official: 1).
        contrastive_weight: factor of InfoNCE in the main phase (official: 1); 0 leaves it out.
        warmup_contrastive: factor of InfoNCE in the warm-up (official: 0.1); 0 leaves it and the pool out.
        temperature: of InfoNCE (official: 0.1).
        warmup_unlabelled: pool images of a step of the warm-up (official: 112, 96, 80, 64 from 5 to 20 %).
        finetune_epochs: epochs of fine-tuning (official: 20); 0 leaves it out.
        finetune_batch: images of a step of fine-tuning (official: 64).
        width: length of a class's feature, a multiple of 8 (official: 512).
        freeze_bn: keep batch normalisation at its pretraining statistics (official: False).
        lr_backbone: learning rate of the backbone; 0 freezes it (official: 1e-4).
        lr_head: learning rate of the decoder (official: 1e-4).
    """

    estimation_share: float = field(default=0.2, metadata={"low": 0.1, "high": 0.5, "scale": "linear"})
    bins: int = field(default=20, metadata={"low": 5, "high": 50, "scale": "log"})
    repair: Literal["none", "monotone", "cubic"] = "monotone"
    weighting: Literal["calibrated", "confidence", "uniform"] = "calibrated"
    dual_thresholds: bool = True
    unlabelled_weight: float = field(default=1.0, metadata={"low": 0.1, "high": 10.0, "scale": "log"})
    contrastive_weight: float = field(default=1.0, metadata={"low": 0.1, "high": 10.0, "scale": "log"})
    warmup_contrastive: float = field(default=0.1, metadata={"low": 0.01, "high": 1.0, "scale": "log"})
    temperature: float = field(default=0.1, metadata={"low": 0.05, "high": 1.0, "scale": "log"})
    warmup_unlabelled: int = field(default=112, metadata={"low": 16, "high": 256, "scale": "log"})
    finetune_epochs: int = field(default=20, metadata={"low": 5, "high": 40, "scale": "linear"})
    finetune_batch: int = field(default=64, metadata={"low": 8, "high": 128, "scale": "log"})
    width: int = field(default=512, metadata={"low": 64, "high": 1024, "scale": "log"})
    freeze_bn: bool = True
    lr_backbone: float = field(default=1e-4, metadata={"low": 1e-6, "high": 1e-2, "scale": "log"})
    lr_head: float = field(default=1e-4, metadata={"low": 1e-5, "high": 1e-1, "scale": "log"})

    def __post_init__(self) -> None:
        OptimizerHyper.__post_init__(self)
        AsymmetricHyper.__post_init__(self)
        if not 0 < self.estimation_share < 1:
            raise UserError(
                f"estimation_share: {self.estimation_share:g} is not allowed; it must lie in (0, 1)"
            )
        check_range("temperature", self.temperature, 0.001)
        for name in ("unlabelled_weight", "contrastive_weight", "warmup_contrastive", "finetune_epochs"):
            check_range(name, getattr(self, name), 0)
        for name, low in (("lr_backbone", 0), ("lr_head", 0), ("bins", 1), ("warmup_unlabelled", 1)):
            check_range(name, getattr(self, name), low)
        check_range("finetune_batch", self.finetune_batch, 1)
        check_width(self.width)


@register
class DiCaP(StepMethod):
    """Calibrated pseudo-labels in three phases; see the module's docstring."""

    name = "dicap"
    Hyper = DiCaPHyper
    wants_teacher = True
    pool_wants = frozenset({"labelled"})

    hyper: DiCaPHyper
    reliability: Tensor
    present: Tensor
    absent: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: DiCaPHyper) -> None:
        super().__init__(backbone, task, hyper)
        if task.estimation is None or not len(task.estimation):
            share = f"estimation_share: {hyper.estimation_share:g}"
            raise UserError(f"{share} takes no image out of {len(task.labels)} labelled ones; raise it")
        self.estimation = task.estimation
        self.labelling = True
        set_training(backbone, hyper)
        self.classifier = ClassFeatures(backbone, task, hyper.width)
        self.register_state("reliability", torch.zeros(hyper.bins))
        for name in ("present", "absent"):
            self.register_state(name, torch.full((task.num_classes,), 0.5))

    @classmethod
    def estimation_share(cls, hyper: DiCaPHyper) -> float:
        """The hyper-parameter of this name."""
        return hyper.estimation_share

    @classmethod
    def phases(cls, hyper: DiCaPHyper) -> tuple[Phase, ...]:
        """Warm-up, main phase, fine-tuning."""
        pool = hyper.warmup_unlabelled if hyper.warmup_contrastive else None
        first = Phase("warmup", "warmup", pool=bool(pool), batch_unlabelled=pool, epoch_over="labelled")
        if not hyper.finetune_epochs:
            return first, Phase("main")
        epochs, size = hyper.finetune_epochs, hyper.finetune_batch
        last = Phase("finetune", "main", "estimation", False, epochs, batch_labelled=size, start="ema")
        return first, Phase("main"), last

    def begin_phase(self, name: str) -> None:
        """Fine-tuning freezes the backbone; the main phase alone makes pseudo-labels."""
        self.labelling = name == "main"
        for key, parameter in self.named_parameters():
            if key.startswith("classifier.backbone.") and key not in self.frozen_names:
                parameter.requires_grad_(name != "finetune")
        self.train(self.training)  # the mode of a backbone follows whether anything in it is trained

    def param_groups(self) -> list[dict[str, Any]]:
        """Backbone and decoder at their own learning rates."""
        hyper, head = self.hyper, self.classifier.head_parameters()
        backbone = trainable(self.classifier.backbone)
        return rate_groups(hyper.weight_decay, (backbone, hyper.lr_backbone), (head, hyper.lr_head))

    def wants_pool(self, epoch: int) -> bool:
        """Before every epoch of the main phase."""
        return self.labelling

    def refresh(self, pool: Pool) -> None:
        """Measure the reliability of the bins, and the thresholds."""
        assert pool.labelled is not None  # `pool_wants` asks for them
        scores = torch.sigmoid(pool.scores[-len(self.estimation) :])
        known = self.estimation.to(scores)
        self.reliability = bin_reliability(scores, known, self.hyper.bins, self.hyper.repair)
        if self.hyper.dual_thresholds and pool.epoch:
            scores = torch.cat([torch.sigmoid(pool.labelled), scores])
            self.present, self.absent = middles(scores, torch.cat([self.task.labels.to(known), known]))

    def pseudo_labels(self, logits: Tensor) -> PseudoLabels:
        """Label (B, K) logits of the teacher; weights say how far a label is to be trusted."""
        scores = torch.sigmoid(logits)
        absent = (scores <= 0.5) & (scores <= self.absent)
        present = (scores >= 0.5) & (scores >= self.present) & ~absent
        right = self.reliability[bin_index(scores, self.hyper.bins)]
        right = right if self.hyper.weighting == "calibrated" else scores
        weight = torch.where(present, right, 1 - right)
        if self.hyper.weighting == "uniform":
            weight = torch.ones_like(weight)
        return PseudoLabels(present.to(scores), (present | absent).to(scores), weight)

    def training_step(self, batch: Batch) -> StepOutput:
        """The labelled loss, and what the phase adds to it."""
        hyper, first = self.hyper, batch.phase == "warmup"
        images = torch.cat([batch.strong_labelled, batch.strong_unlabelled])
        logits, strong = self.classifier.described(images)
        known, unknown = logits.split([len(batch.labelled), len(batch.unlabelled)])
        loss = asymmetric_loss(known, batch.targets, hyper.gamma_pos, hyper.gamma_neg, hyper.clip)
        losses = {"labelled": loss.sum()}
        if batch.phase == "finetune" or (first and not hyper.warmup_contrastive):
            return StepOutput(losses)
        with torch.no_grad():
            views = [batch.weak_labelled, batch.weak_unlabelled] if first else [batch.weak_unlabelled]
            guessed, weak = cast("DiCaP", self.teacher).classifier.described(torch.cat(views))
        if first:
            found = self._contrast(batch, weak, strong, torch.ones_like(guessed))
            return StepOutput({**losses, "contrastive": hyper.warmup_contrastive * found})
        pseudo = self.pseudo_labels(guessed)
        element = margin_loss(unknown, pseudo.targets, hyper.gamma_pos, hyper.gamma_neg, hyper.clip)
        losses["unlabelled"] = hyper.unlabelled_weight * (pseudo.weighted_mask * element).sum()
        if hyper.contrastive_weight and hyper.dual_thresholds:
            strong, used = strong[len(batch.labelled) :], 1 - pseudo.mask
            found = self._contrast(batch, weak, strong, used) + self._contrast(batch, strong, weak, used)
            losses["contrastive"] = hyper.contrastive_weight * found
        return StepOutput(losses, pseudo)

    def _contrast(self, batch: Batch, queries: Tensor, keys: Tensor, used: Tensor) -> Tensor:
        """This process's part of the mean of InfoNCE over the used entries of the step."""

        def everyone(rows: Tensor) -> Tensor:
            labelled = len(rows) - len(batch.unlabelled)  # the warm-up has them, too
            parts = [rows[:labelled], rows[labelled:]] if batch.phase == "warmup" else [rows]
            return torch.cat([batch.gather(part) for part in parts])

        found = info_nce(queries, keys, used, everyone(keys), everyone(used), self.hyper.temperature)
        return found / batch.total(used.sum()).clamp(min=1)

    def predict(self, images: Tensor) -> Tensor:
        """(B, K) float32 logits."""
        return self.classifier(images)

"""Small methods that ask for all that the harness can give: of the pool, and in phases and patches.

They reproduce no paper. The tests of the contract train them on several processes, and so can the
examination:

    python -m benchmarks.checks.invariance --modules benchmarks/checks/sample_methods.py \
        --methods agreeing_teacher phased_tagger
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from methods.backbones.base import Backbone
from methods.base import Batch, Phase, Pool, PseudoLabels, StepOutput, Task
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod
from methods.registry import register


@register
class AgreeingTeacher(PseudoLabelMethod):
    """The moving average's probabilities are targets, weighted by its confidence and its agreement."""

    name = "agreeing_teacher"
    Hyper = PseudoLabelHyper
    wants_teacher = True
    pool_wants = frozenset({"labelled", "model_scores", "model_labelled"})
    threshold: Tensor
    agreement: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: PseudoLabelHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.register_state("threshold", torch.full((task.num_classes,), 0.5))
        self.register_state("agreement", torch.ones(task.num_classes))

    def wants_pool(self, epoch: int) -> bool:
        """Once per epoch."""
        return bool(self.task.num_unlabelled)

    def refresh(self, pool: Pool) -> None:
        """Threshold between labelled positives and negatives; agreement of teacher and student."""
        assert pool.labelled is not None  # all are in `pool_wants`
        assert pool.model_scores is not None
        assert pool.model_labelled is not None
        labels = self.task.labels.to(pool.labelled)
        p = (torch.sigmoid(pool.labelled) + torch.sigmoid(pool.model_labelled)) / 2
        high = (p * labels).sum(dim=0) / labels.sum(dim=0).clamp(min=1)
        low = (p * (1 - labels)).sum(dim=0) / (1 - labels).sum(dim=0).clamp(min=1)
        self.threshold = (high + low) / 2
        self.agreement = ((pool.scores > 0) == (pool.model_scores > 0)).to(p.dtype).mean(dim=0)

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Soft targets of the teacher, all of them used, with weights."""
        soft = torch.sigmoid(self.teacher.predict(batch.weak_unlabelled))
        weight = (soft - self.threshold).abs().clamp(max=1) * self.agreement
        return PseudoLabels(soft, torch.ones_like(soft), weight)

    def unlabelled_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Squared distance to the teacher's probabilities."""
        return (torch.sigmoid(logits) - targets).square()


@dataclass(frozen=True)
class PhasedHyper(PseudoLabelHyper):
    """As `PseudoLabelHyper`, with the sizes of phases.

    Attributes:
        share: of the labelled images that become estimation images.
        patches: a side.
        tuning: epochs of the last phase.
    """

    share: float = field(default=0.25, metadata={"low": 0.1, "high": 0.5, "scale": "linear"})
    patches: int = field(default=2, metadata={"low": 0, "high": 3, "scale": "linear"})
    tuning: int = field(default=3, metadata={"low": 1, "high": 9, "scale": "linear"})


@register
class PhasedTagger(PseudoLabelMethod):
    """Three phases: views agree, then pseudo-labels, then the head alone on the estimation images.

    The probability from which an entry is used is the best estimation image's mean, which is worth nothing.
    """

    name = "phased_tagger"
    Hyper = PhasedHyper
    hyper: PhasedHyper
    wants_teacher = True
    confident: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: PhasedHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.register_state("confident", torch.zeros(()))
        self.phase = ""

    @classmethod
    def phases(cls, hyper: PhasedHyper) -> tuple[Phase, ...]:
        """Of three kinds."""
        return (
            Phase("agree", "warmup", epoch_over="labelled", batch_unlabelled=5),
            Phase("main", start="ema"),
            Phase("tune", labelled="estimation", pool=False, epochs=hyper.tuning, batch_labelled=2),
        )

    @classmethod
    def estimation_share(cls, hyper: PhasedHyper) -> float:
        """The hyper-parameter."""
        return hyper.share

    @classmethod
    def patches(cls, hyper: PhasedHyper) -> int:
        """The hyper-parameter."""
        return hyper.patches

    @classmethod
    def warmup_hyper(cls, hyper: Any) -> Any:
        """None: the first phase is one."""
        return None

    def begin_phase(self, name: str) -> None:
        """The last phase trains the head alone."""
        self.phase = name
        if name == "tune":
            self.classifier.backbone.requires_grad_(False)

    def wants_pool(self, epoch: int) -> bool:
        """In the second phase."""
        return self.phase == "main"

    def refresh(self, pool: Pool) -> None:
        """The estimation images are the pool's last."""
        assert self.task.estimation is not None
        p = torch.sigmoid(pool.scores[-len(self.task.estimation) :])
        self.confident = (p * self.task.estimation.to(p)).mean(dim=1).amax()

    def predict(self, images: Tensor) -> Tensor:
        """The mean over whole image and patches."""
        if images.ndim == 4:
            return self.classifier(images)
        return self.classifier(images.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(dim=1)

    def training_step(self, batch: Batch) -> StepOutput:
        """By the phase."""
        logits = self.predict(torch.cat([batch.strong_labelled, batch.strong_unlabelled]))
        labelled, unlabelled = logits.split([len(batch.labelled), len(batch.unlabelled)])
        losses = {"labelled": self.loss(labelled, batch.targets).sum()}
        if batch.phase == "tune":
            return StepOutput(losses)
        with torch.no_grad():
            soft = torch.sigmoid(self.teacher.predict(batch.weak_unlabelled))
        losses["unlabelled"] = (torch.sigmoid(unlabelled) - soft).square().sum()
        used = (torch.maximum(soft, 1 - soft) >= self.confident).to(soft)
        return StepOutput(losses, PseudoLabels(soft, used) if batch.phase == "main" else None)

"""Three small methods that use what the contract offers beyond a single step's own images.

They stand for families of methods and reproduce none of them: FreeMatch (statistics before the
step), FlexMatch (statistics after it, a table of all images) and MeanTeacher (a teacher's soft
targets, scores of labelled images). The examinations and tests train them on several processes:

    python -m benchmarks.checks.invariance --modules benchmarks/checks/sample_methods.py \
        --methods freematch_style flexmatch_style meanteacher_style
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.backbones.base import Backbone
from methods.base import Batch, Pool, PseudoLabels, StepOutput, Task
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod
from methods.registry import register


@dataclass(frozen=True)
class FreeMatchHyper(PseudoLabelHyper):
    """As `PseudoLabelHyper`, and the statistics.

    Attributes:
        momentum: of the running means.
        fairness: weight of the term that keeps the mean prediction near its running mean.
    """

    momentum: float = 0.9
    fairness: float = 1.0


@register
class FreeMatchStyle(PseudoLabelMethod):
    """Thresholds are running means of confidences, updated before they are used."""

    name = "freematch_style"
    Hyper = FreeMatchHyper
    hyper: FreeMatchHyper
    confidence: Tensor
    positive: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: FreeMatchHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.register_state("confidence", torch.full((task.num_classes,), 0.5))
        self.register_state("positive", torch.full((task.num_classes,), 0.5))

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Sums of the weak views' confidences and probabilities, and their number."""
        self._weak = self.weak_probabilities(batch)  # for the step that follows
        p = self._weak.double()
        sure = torch.maximum(p, 1 - p).sum(dim=0)
        return {"confidence": sure, "positive": p.sum(dim=0), "images": torch.tensor(len(p), device=p.device)}

    def observe(self, statistics: dict[str, Tensor]) -> None:
        """Move the running means towards those of the step's images, if it has any."""
        images = statistics["images"]
        momentum = torch.where(images > 0, self.hyper.momentum, 1.0)
        for name in ("confidence", "positive"):
            mean = statistics[name] / images.clamp(min=1)
            setattr(self, name, momentum * getattr(self, name) + (1 - momentum) * mean)

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Entries at least as confident as the running mean; the rarer state has a lower bar."""
        p, mean = self._weak, self.positive
        targets = (p >= 0.5).to(p.dtype)
        ratio = torch.where(targets > 0, mean, 1 - mean) / torch.maximum(mean, 1 - mean)
        return PseudoLabels(targets, (torch.maximum(p, 1 - p) >= self.confidence * ratio).to(p.dtype))

    def training_step(self, batch: Batch) -> StepOutput:
        """Means over the step's images and used entries, and one term of the whole step."""
        with torch.no_grad():
            pseudo = self.pseudo_labels(batch)
        logits = self.classifier(torch.cat([batch.strong_labelled, batch.strong_unlabelled]))
        labelled, unlabelled = logits.split([len(batch.labelled), len(batch.unlabelled)])
        used = batch.total(pseudo.mask.sum()).clamp(min=1)
        mean = batch.total(torch.sigmoid(unlabelled).sum(dim=0)) / max(1, batch.global_unlabelled)
        losses = {
            "labelled": self.loss(labelled, batch.targets).sum() / batch.global_labelled,
            "unlabelled": (pseudo.mask * self.loss(unlabelled, pseudo.targets)).sum() / used,
            # Every process computes it alike: each counts its share of it.
            "fairness": batch.share * self.hyper.fairness * (mean - self.positive).square().sum(),
        }
        return StepOutput(losses, pseudo)


@register
class FlexMatchStyle(PseudoLabelMethod):
    """Positive thresholds fall for classes that few images were confidently given so far."""

    name = "flexmatch_style"
    Hyper = PseudoLabelHyper
    selected: Tensor
    counts: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: PseudoLabelHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.register_state("selected", torch.zeros(task.num_unlabelled, task.num_classes, dtype=torch.bool))
        self.register_state("counts", torch.zeros(task.num_classes, dtype=torch.int64))

    def training_step(self, batch: Batch) -> StepOutput:
        """A step with the thresholds of the steps before, and what it selects."""
        with torch.no_grad():
            p = self.weak_probabilities(batch)
            share = self.counts / self.counts.max().clamp(min=1)
            threshold = (0.9 * share / (2 - share)).clamp(min=0.5)
            positive = p >= threshold
            pseudo = PseudoLabels(positive.to(p.dtype), (positive | (p <= 0.1)).to(p.dtype))
            selected = p >= 0.7
            change = selected.long() - self.selected[batch.unlabelled].long()
            # Every process keeps the whole table, because an image comes to another one next time.
            self._seen = batch.gather(batch.unlabelled), batch.gather(selected)
        logits = self.classifier(torch.cat([batch.strong_labelled, batch.strong_unlabelled]))
        labelled, unlabelled = logits.split([len(batch.labelled), len(batch.unlabelled)])
        losses = {
            "labelled": self.loss(labelled, batch.targets).sum(),
            "unlabelled": (pseudo.mask * self.loss(unlabelled, pseudo.targets)).sum(),
        }
        return StepOutput(losses, pseudo, {"counts": change.sum(dim=0)})

    def observe_step(self, statistics: dict[str, Tensor]) -> None:
        """Write the step's rows of the table and add up its counts."""
        images, selected = self._seen
        self.selected[images] = selected
        self.counts += statistics["counts"]


@register
class MeanTeacherStyle(PseudoLabelMethod):
    """The moving average's probabilities are targets, weighted by its confidence."""

    name = "meanteacher_style"
    Hyper = PseudoLabelHyper
    wants_teacher = True
    pool_wants = frozenset({"labelled", "model_scores"})
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
        assert pool.labelled is not None  # both are in `pool_wants`
        assert pool.model_scores is not None
        labels = self.task.labels.to(pool.labelled)
        p = torch.sigmoid(pool.labelled)
        high = (p * labels).sum(dim=0) / labels.sum(dim=0).clamp(min=1)
        low = (p * (1 - labels)).sum(dim=0) / (1 - labels).sum(dim=0).clamp(min=1)
        self.threshold = (high + low) / 2
        self.agreement = ((pool.scores > 0) == (pool.model_scores > 0)).to(p.dtype).mean(dim=0)

    def training_step(self, batch: Batch) -> StepOutput:
        """Squared distance to the teacher's probabilities."""
        with torch.no_grad():
            soft = torch.sigmoid(self.teacher.predict(batch.weak_unlabelled))
            weight = (soft - self.threshold).abs().clamp(max=1) * self.agreement
            pseudo = PseudoLabels(soft, torch.ones_like(soft), weight)
        logits = self.classifier(torch.cat([batch.strong_labelled, batch.strong_unlabelled]))
        labelled, unlabelled = logits.split([len(batch.labelled), len(batch.unlabelled)])
        element = (torch.sigmoid(unlabelled) - pseudo.targets).square()
        losses = {
            "labelled": self.loss(labelled, batch.targets).sum(),
            "unlabelled": (pseudo.weighted_mask * element).sum(),
        }
        return StepOutput(losses, pseudo)

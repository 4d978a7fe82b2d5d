"""A small method that asks for all that a method can be given of the pool; no built-in method does.

It reproduces no paper. The tests of the contract train it on several processes, and so can the examination:

    python -m benchmarks.checks.invariance --modules benchmarks/checks/sample_methods.py \
        --methods agreeing_teacher
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.backbones.base import Backbone
from methods.base import Batch, Pool, PseudoLabels, Task
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

"""The base of methods whose pseudo-labels are made once per epoch, of scores of the whole pool."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.backbones.base import Backbone
from methods.base import Batch, Pool, PseudoLabels, Task
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod


class PoolLabelMethod(PseudoLabelMethod):
    """Pseudo-labels from the moving average's scores of weak views, made before each epoch and kept.

    A subclass adds `label_pool`. What it returns is a table of all unlabelled images, the same in every
    process and in checkpoints.
    """

    pool_targets: Tensor
    pool_mask: Tensor

    def __init__(self, backbone: Backbone, task: Task, hyper: PseudoLabelHyper) -> None:
        super().__init__(backbone, task, hyper)
        for name in ("pool_targets", "pool_mask"):
            size = (task.num_unlabelled, task.num_classes)
            self.register_state(name, torch.zeros(size, dtype=torch.bool))

    def label_pool(self, pool: Pool) -> PseudoLabels:
        """Return hard pseudo-labels (n_u, K) without weights; called without gradients."""
        raise NotImplementedError

    def wants_pool(self, epoch: int) -> bool:
        """Before every epoch, if there are unlabelled images."""
        return bool(self.task.num_unlabelled)

    def refresh(self, pool: Pool) -> None:
        """Label the pool anew."""
        with torch.no_grad():
            pseudo = self.label_pool(pool)
        self.pool_targets, self.pool_mask = pseudo.targets.bool(), pseudo.mask.bool()

    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """The rows of the batch's images."""
        targets, mask = self.pool_targets[batch.unlabelled], self.pool_mask[batch.unlabelled]
        return PseudoLabels(targets.float(), mask.float())

"""The hidden labels of the unlabelled pool, and how good a method's pseudo-labels are by them.

The hidden labels are here and nowhere else: no other code takes them from the dataset. The trainer
hands over the pseudo-labels that a method used; the method never sees the answer.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.plan.jobs import Job
from benchmarks.training.metrics import pseudo_label_quality
from methods.base import PseudoLabels

NAMES = ("tp", "fp", "fn", "tn", "used")


class HiddenLabels:
    """Scores an epoch's pseudo-labels against the hidden labels, by counts per class.

    Args:
        hidden: (n_u, K) {0, 1} true labels of the unlabelled pool.
        accelerator: sums the counts over processes.
    """

    def __init__(self, hidden: Tensor, accelerator: Accelerator) -> None:
        self.hidden = hidden.bool().to(accelerator.device)
        self.accelerator = accelerator
        self.reset()

    @classmethod
    def of(cls, job: Job, accelerator: Accelerator) -> HiddenLabels:
        """The hidden labels of a run's pool."""
        labels = job.prepared.dataset.train.labels[job.split.unlabelled]
        return cls(torch.from_numpy(labels), accelerator)

    def reset(self) -> None:
        """Start a new epoch."""
        shape = (len(NAMES), self.hidden.shape[1])
        self.counts = torch.zeros(shape, dtype=torch.int64, device=self.hidden.device)

    def update(self, positions: Tensor, pseudo: PseudoLabels) -> None:
        """Count one step: (B,) positions in the pool and what the method used for them."""
        truth, used = self.hidden[positions], pseudo.mask.bool()
        positive = pseudo.targets.bool() & used
        # A true label that was left out is a miss, as in CAP's recall over the whole pool.
        self.counts += torch.stack(
            [
                positive & truth,
                positive & ~truth,
                truth & ~positive,
                used & ~positive & ~truth,
                used,
            ]
        ).sum(dim=1)

    def summary(self) -> dict[str, Any] | None:
        """OP, OR, OF1, CP, CR, CF1 and coverage of the epoch; None when nothing was counted."""
        counts = self.accelerator.reduce(self.counts.clone(), reduction="sum")
        seen = int(counts[[0, 1, 2, 3]].sum())
        if seen == 0:
            return None
        return pseudo_label_quality(
            {name: row.cpu().numpy() for name, row in zip(NAMES, counts, strict=True)}
            | {"total": len(self.hidden)}
        )

    def state(self) -> dict[str, Tensor]:
        """The running epoch's counts over all processes, for a checkpoint; all of them call."""
        return {"counts": self.accelerator.reduce(self.counts.clone(), reduction="sum").cpu()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue the running epoch of a checkpoint, in one process."""
        self.counts = state["counts"].to(self.hidden.device)

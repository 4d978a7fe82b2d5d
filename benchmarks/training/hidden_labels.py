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
UNIT = 2**20
"""What an entry of weight 1 adds to a count. Weights are rounded to whole parts of it: integers add
up to the same sum in any order, so on any number of processes; and a power of two leaves quotients
of counts as they would be without it, to the bit."""


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
    def of(cls, job: Job, unlabelled: Tensor, accelerator: Accelerator) -> HiddenLabels:
        """The hidden labels of a run's pool.

        Args:
            job: the run.
            unlabelled: (n_u,) positions of the pool in the training images, estimation images included.
            accelerator: sums the counts over processes.
        """
        labels = job.prepared.dataset.train.labels[unlabelled.numpy()]
        return cls(torch.from_numpy(labels), accelerator)

    def reset(self) -> None:
        """Start a new epoch."""
        shape = (len(NAMES), self.hidden.shape[1])
        self.counts = torch.zeros(shape, dtype=torch.int64, device=self.hidden.device)

    def update(self, positions: Tensor, pseudo: PseudoLabels) -> None:
        """Count one step: (B,) positions in the pool and what the method used for them.

        A target of .5 or more is a positive. An entry counts with its weight; a true label that was
        left out is a miss, as in CAP's recall over the whole pool, and one that was used with
        weight w is a miss with weight 1 − w.
        """
        truth, used = self.hidden[positions], pseudo.mask.bool()
        positive = (pseudo.targets >= 0.5) & used
        entries = torch.stack([positive & truth, positive & ~truth, used & ~positive & ~truth, used])
        if pseudo.weight is None:
            counts = UNIT * entries.sum(dim=1)
        else:
            counts = (entries * (pseudo.weight.double() * UNIT).round().long()).sum(dim=1)
        hits, false, correct_negatives, weights = counts
        misses = UNIT * truth.sum(dim=0) - hits
        self.counts += torch.stack([hits, false, misses, correct_negatives, weights])

    def summary(self) -> dict[str, Any] | None:
        """OP, OR, OF1, CP, CR, CF1 and coverage of the epoch; None when nothing was counted."""
        counts = self.accelerator.reduce(self.counts.clone(), reduction="sum")
        seen = int(counts[[0, 1, 2, 3]].sum())
        if seen == 0:
            return None
        return pseudo_label_quality(
            {name: row.cpu().numpy() / UNIT for name, row in zip(NAMES, counts, strict=True)}
            | {"total": len(self.hidden)}
        )

    def state(self) -> dict[str, Tensor]:
        """The running epoch's counts over all processes, for a checkpoint; all of them call."""
        return {"units": self.accelerator.reduce(self.counts.clone(), reduction="sum").cpu()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue the running epoch of a checkpoint, in one process."""
        # Checkpoints from before there were weights hold numbers of entries.
        counts = state["units"] if "units" in state else UNIT * state["counts"]
        self.counts = counts.to(self.hidden.device)

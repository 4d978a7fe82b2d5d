"""Batches of a semi-supervised epoch, as a pure function of (seed, epoch, step)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.rng import permutation

Positions = NDArray[np.int64]


class SemiSampler:
    """Global batches of labelled and unlabelled positions.

    With a pool, an epoch is one pass over the unlabelled images in a new random order; the last batch is
    smaller, never dropped. The labelled images come from one endless stream, the concatenation of their
    permutations, which continues across epochs: at any moment each image has been drawn n or n + 1 times.
    Without a pool, an epoch is one pass over the labelled images.

    Args:
        num_labelled: labelled images.
        num_unlabelled: unlabelled images; 0 for none.
        batch_labelled: labelled images of a step, over all processes.
        batch_unlabelled: unlabelled images of a step, over all processes; 0 for none.
        seed: seed of the orders.
    """

    def __init__(
        self,
        num_labelled: int,
        num_unlabelled: int,
        batch_labelled: int,
        batch_unlabelled: int,
        seed: int,
    ) -> None:
        if num_labelled < 1 or batch_labelled < 1:
            raise ValueError(f"{num_labelled} labelled images in batches of {batch_labelled}")
        if num_unlabelled < 0 or batch_unlabelled < 0:
            raise ValueError(f"{num_unlabelled} unlabelled images in batches of {batch_unlabelled}")
        self.num_labelled, self.num_unlabelled = num_labelled, num_unlabelled
        self.batch_labelled, self.batch_unlabelled = batch_labelled, batch_unlabelled
        self.seed = seed
        self._has_pool = bool(num_unlabelled and batch_unlabelled)
        self._orders: dict[str, tuple[int, Positions]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        if self._has_pool:
            return -(-self.num_unlabelled // self.batch_unlabelled)
        return -(-self.num_labelled // self.batch_labelled)

    def batch(self, epoch: int, step: int) -> tuple[Positions, Positions]:
        """The global batch of a step.

        Args:
            epoch: 0 or more.
            step: 0 … `steps_per_epoch` − 1.

        Returns:
            Positions in the labelled set (b_l,) and in the unlabelled pool (b_u,), int64.
        """
        if epoch < 0 or not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"epoch {epoch} step {step} of {self.steps_per_epoch} steps")
        passes, places = self._labelled(epoch, step)
        labelled = np.empty(len(places), dtype=np.int64)
        for one in np.unique(passes):
            here = passes == one
            labelled[here] = self._order("labelled", int(one))[places[here]]
        if not self._has_pool:
            return labelled, np.empty(0, dtype=np.int64)
        start = step * self.batch_unlabelled
        pool = self._order("unlabelled", epoch)[start : start + self.batch_unlabelled]
        return labelled, pool.copy()

    def passes(self, epoch: int, step: int) -> Positions:
        """The number of the pass over the labelled images for each labelled position of a step.

        Returns:
            (b_l,) int64, aligned with the first array of `batch`. An image occurs once in a pass, so
            (pass, image) is unique for each of its views, also when it occurs twice in an epoch.
        """
        return self._labelled(epoch, step)[0]

    @staticmethod
    def shard(positions: Positions, rank: int, world: int) -> Positions:
        """The part of a global batch that process `rank` of `world` processes."""
        return positions[rank::world]

    def _labelled(self, epoch: int, step: int) -> tuple[Positions, Positions]:
        """Pass, and position in the pass, of each labelled sample of a step."""
        if not self._has_pool:
            start = step * self.batch_labelled
            places = np.arange(start, min(start + self.batch_labelled, self.num_labelled))
            return np.full_like(places, epoch), places
        start = (epoch * self.steps_per_epoch + step) * self.batch_labelled
        stream = np.arange(start, start + self.batch_labelled, dtype=np.int64)
        return stream // self.num_labelled, stream % self.num_labelled

    def _order(self, stream: str, number: int) -> Positions:
        """One permutation of a stream; the latest is cached, so that a batch costs O(batch)."""
        kept = self._orders.get(stream)
        if kept is None or kept[0] != number:
            size = self.num_labelled if stream == "labelled" else self.num_unlabelled
            kept = (number, permutation(self.seed, number, size, f"order/{stream}"))
            self._orders[stream] = kept
        return kept[1]

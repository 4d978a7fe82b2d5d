"""Batches of a semi-supervised epoch, as a pure function of (seed, epoch, step)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.rng import permutation

Positions = NDArray[np.int64]


class SemiSampler:
    """Global batches of labelled and unlabelled positions.

    With a pool, an epoch is one pass over the unlabelled images in a new random order (or over the labelled
    ones, see ``over``); the last batch is smaller, never dropped. The labelled images come from one endless
    stream, the concatenation of their permutations, which continues across epochs: at any moment each image
    has been drawn n or n + 1 times. Without a pool, an epoch is one pass over the labelled images.

    Args:
        num_labelled: labelled images.
        num_unlabelled: unlabelled images; 0 for none.
        batch_labelled: labelled images of a step, over all processes.
        batch_unlabelled: unlabelled images of a step, over all processes; 0 for none.
        seed: seed of the orders.
        over: what an epoch is one pass over where there is a pool: "pool", or "labelled"; then the unlabelled
            images come from an endless stream instead.
    """

    def __init__(
        self,
        num_labelled: int,
        num_unlabelled: int,
        batch_labelled: int,
        batch_unlabelled: int,
        seed: int,
        over: str = "pool",
    ) -> None:
        if num_labelled < 1 or batch_labelled < 1:
            raise ValueError(f"{num_labelled} labelled images in batches of {batch_labelled}")
        if num_unlabelled < 0 or batch_unlabelled < 0:
            raise ValueError(f"{num_unlabelled} unlabelled images in batches of {batch_unlabelled}")
        self.num_labelled, self.num_unlabelled = num_labelled, num_unlabelled
        self.batch_labelled, self.batch_unlabelled = batch_labelled, batch_unlabelled
        self.seed = seed
        self._has_pool = bool(num_unlabelled and batch_unlabelled)
        self._over_pool = self._has_pool and over == "pool"
        self._orders: dict[str, tuple[int, Positions]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        if self._over_pool:
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
        return tuple(  # type: ignore[return-value] # it has two parts
            self._drawn(stream, *place)
            for stream, place in zip(("labelled", "unlabelled"), self._places(epoch, step), strict=True)
        )

    def passes(self, epoch: int, step: int) -> Positions:
        """The number of the pass over the labelled images for each labelled position of a step.

        Returns:
            (b_l,) int64, aligned with the first array of `batch`. An image occurs once in a pass, so
            (pass, image) is unique for each of its views, also when it occurs twice in an epoch.
        """
        return self._places(epoch, step)[0][0]

    def pool_passes(self, epoch: int, step: int) -> Positions:
        """The same of the unlabelled images, (b_u,) int64: the epoch, where it is a pass over them."""
        return self._places(epoch, step)[1][0]

    @staticmethod
    def shard(positions: Positions, rank: int, world: int) -> Positions:
        """The part of a global batch that process `rank` of `world` processes."""
        return positions[rank::world]

    def _places(self, epoch: int, step: int) -> tuple[tuple[Positions, Positions], ...]:
        """Passes, and positions in the pass, of the labelled and of the unlabelled images of a step."""
        labelled = (self.num_labelled, self.batch_labelled, not self._over_pool)
        pool = (self.num_unlabelled, self.batch_unlabelled if self._has_pool else 0, self._over_pool)
        return tuple(
            self._once(epoch, step, size, batch) if once else self._endless(epoch, step, size, batch)
            for size, batch, once in (labelled, pool)
        )

    def _once(self, epoch: int, step: int, size: int, batch: int) -> tuple[Positions, Positions]:
        """Of images that an epoch passes over once."""
        places = np.arange(step * batch, min((step + 1) * batch, size), dtype=np.int64)
        return np.full_like(places, epoch), places

    def _endless(self, epoch: int, step: int, size: int, batch: int) -> tuple[Positions, Positions]:
        """Of images whose passes continue across epochs."""
        start = (epoch * self.steps_per_epoch + step) * batch
        stream = np.arange(start, start + batch, dtype=np.int64)
        return stream // max(size, 1), stream % max(size, 1)

    def _drawn(self, stream: str, passes: Positions, places: Positions) -> Positions:
        """The images at some places of some passes."""
        found = np.empty(len(places), dtype=np.int64)
        for one in np.unique(passes):
            here = passes == one
            found[here] = self._order(stream, int(one))[places[here]]
        return found

    def _order(self, stream: str, number: int) -> Positions:
        """One permutation of a stream; the latest is cached, so that a batch costs O(batch)."""
        kept = self._orders.get(stream)
        if kept is None or kept[0] != number:
            size = self.num_labelled if stream == "labelled" else self.num_unlabelled
            kept = (number, permutation(self.seed, number, size, f"order/{stream}"))
            self._orders[stream] = kept
        return kept[1]

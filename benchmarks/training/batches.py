"""Each step's batch: which images, gathered and made into views.

Everything random here is a pure function of (seed, epoch, step, image), so a batch depends neither on
the number of processes nor on where a training was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.data.loader import Loader
from benchmarks.data.rng import uniforms
from benchmarks.data.sampler import SemiSampler
from benchmarks.data.views.patches import make_views
from benchmarks.data.views.views import FAMILIES
from benchmarks.training.collectives import processes_of
from benchmarks.training.schedule import Schedule, TrainData
from benchmarks.training.strategy import Strategy
from methods.base import Batch


@dataclass(frozen=True)
class StepIndices:
    """This process's part of a step's global batch, by positions.

    Attributes:
        epoch: epoch, from 0.
        step: step of the epoch, from 0.
        labelled: (b_l,) int64 positions in the labelled set.
        passes: (b_l,) int64, which pass over the labelled images each belongs to.
        unlabelled: (b_u,) int64 positions in the pool.
        pool_passes: (b_u,) int64, which pass over the pool each belongs to.
        global_labelled: labelled images of the step over all processes.
        global_unlabelled: unlabelled images of the step over all processes.
    """

    epoch: int
    step: int
    labelled: Tensor
    passes: Tensor
    unlabelled: Tensor
    pool_passes: Tensor
    global_labelled: int
    global_unlabelled: int


class Batches:
    """The batches of a training.

    Args:
        data: images and labels.
        schedule: sizes of the batches and the view of the labelled images.
        family: name of the family of views, see `benchmarks.data.views.views.FAMILIES`.
        seed: seed of batches and views.
        strategy: device, processes and precision.
        patches: of the views, see `benchmarks.data.views.patches.make_views`.

    Attributes:
        sampler: draws the global batches.
        views: the family of views.
        targets: (n_l, K) labels of the labelled images, on the device.
        processes: what batches ask for totals and rows of the whole step.
    """

    def __init__(
        self,
        data: TrainData,
        schedule: Schedule,
        family: str,
        seed: int,
        strategy: Strategy,
        patches: int = 0,
    ) -> None:
        self.data, self.schedule, self.seed, self.strategy = data, schedule, seed, strategy
        self.patches = patches
        self.views = FAMILIES[family]
        self.sampler = SemiSampler(
            len(data.labelled),
            len(data.unlabelled) if schedule.batch_unlabelled else 0,
            schedule.batch_labelled,
            schedule.batch_unlabelled,
            seed,
            schedule.epoch_over,
        )
        device = strategy.accelerator.device
        self.targets = data.targets.to(device, strategy.dtype)
        self.loader = Loader(data.prepared, device)
        self.processes = processes_of(strategy.group)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        return self.sampler.steps_per_epoch

    @contextmanager
    def stream(self, epoch: int, first: int, end: int) -> Iterator[Iterator[tuple[StepIndices, Tensor]]]:
        """Open the steps `first` … `end` − 1 of an epoch; leaving the context ends the read-ahead.

        Yields:
            An iterator over pairs: the indices of a step, and its images, (b_l + b_u, 3, S, S) uint8 on
            the device, labelled before unlabelled.
        """
        # All indices are drawn before the first image is read: the loader may read ahead in a thread.
        steps = [self._indices(epoch, step) for step in range(first, end)]
        images = self.loader.stream("train", map(self._images, steps))
        with closing(images):  # type: ignore[type-var] # an iterator, always with `close` here
            yield zip(steps, images, strict=True)

    def batch(self, indices: StepIndices, images: Tensor) -> Batch:
        """Make the views of a step's images and put them together with their labels.

        Args:
            indices: of the step.
            images: what `stream` yields beside them.
        """
        count = len(indices.labelled)
        labelled = self.data.labelled[indices.labelled]
        # A labelled image can come up more than once in an epoch: its draws are numbered by the pass
        # over the labelled images, so that each time is another view.
        images_in_all = len(self.data.prepared.train)
        counters = labelled + indices.passes * images_in_all
        weak_l, strong_l = (
            self._view(images[:count], counters, policy, 0)
            for policy in (self.views.weak, self.schedule.labelled_view)
        )
        if self.schedule.batch_unlabelled:
            counters, epoch = self.data.unlabelled[indices.unlabelled], indices.epoch
            if self.schedule.epoch_over != "pool":  # passes over the pool are no epochs then
                counters, epoch = counters + indices.pool_passes * images_in_all, 0
            weak_u, strong_u = (
                self._view(images[count:], counters, policy, epoch)
                for policy in (self.views.weak, self.schedule.unlabelled_view or self.views.strong)
            )
        else:
            weak_u, strong_u = weak_l[:0], strong_l[:0]
        on_device = indices.labelled.to(self.targets.device)
        return Batch(
            epoch=indices.epoch,
            step=indices.step,
            labelled=on_device,
            weak_labelled=weak_l,
            strong_labelled=strong_l,
            targets=self.targets[on_device],
            unlabelled=indices.unlabelled.to(self.targets.device),
            weak_unlabelled=weak_u,
            strong_unlabelled=strong_u,
            global_labelled=indices.global_labelled,
            global_unlabelled=indices.global_unlabelled,
            processes=self.processes,
            global_step=indices.epoch * self.steps_per_epoch + indices.step,
            total_steps=self.schedule.epochs * self.steps_per_epoch,
            phase=self.schedule.phase,
        )

    def torch_seed(self, epoch: int, step: int) -> int:
        """Seed of torch's generator for a step, of this process alone."""
        draw = uniforms(self.seed, epoch, np.array([step]), "torch", 1)
        return int(draw[0, 0] * 2**52) + self.strategy.group.rank

    def _indices(self, epoch: int, step: int) -> StepIndices:
        group = self.strategy.group
        labelled, pool = self.sampler.batch(epoch, step)
        passes = self.sampler.passes(epoch, step), self.sampler.pool_passes(epoch, step)
        own, own_passes, own_pool, own_pool_passes = (
            torch.from_numpy(self.sampler.shard(part, group.rank, group.world))
            for part in (labelled, passes[0], pool, passes[1])
        )
        return StepIndices(epoch, step, own, own_passes, own_pool, own_pool_passes, len(labelled), len(pool))

    def _images(self, indices: StepIndices) -> Tensor:
        return torch.cat((self.data.labelled[indices.labelled], self.data.unlabelled[indices.unlabelled]))

    def _view(self, images: Tensor, counters: Tensor, policy: str, epoch: int) -> Tensor:
        view = make_views(images, counters, policy=policy, seed=self.seed, epoch=epoch, patches=self.patches)
        return view.to(self.strategy.dtype)

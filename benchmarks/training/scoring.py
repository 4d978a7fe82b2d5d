"""Scoring images with a model, sharded over processes and gathered without duplicates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.data.cache.prepared import Prepared
from benchmarks.data.loader import Loader
from benchmarks.data.views.patches import make_views
from benchmarks.training.schedule import TrainData
from benchmarks.training.strategy import Strategy
from methods.base import Pool, StepMethod, at_least_fp32, pool_of


class OutOfMemory(RuntimeError):  # noqa: N818 - it is an outcome of a run before it is an error
    """The device's memory is too small; says which knob to turn."""


@contextmanager
def memory_advice(knob: str) -> Iterator[None]:
    """Turn torch's out-of-memory error into one line that names the knob to turn."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise OutOfMemory(
            f"out of memory with {knob}: lower it, or recipe.resolution; or share the batch with "
            f"more GPUs (--processes N); precision = 'bf16' halves activations ({reason})"
        ) from error


class Scorer:
    """Forward passes without gradients over many images.

    Every process scores its stride of the images and the results are gathered as (position, score)
    pairs, so that padding never counts twice and a lost image is an error instead of a wrong mean.

    Args:
        prepared: the resized images.
        strategy: device, processes and precision.
        batch: images of a forward pass, per process.
        seed: seed of the views.
        patches: of the views, see `benchmarks.data.views.patches.make_views`.
    """

    def __init__(
        self, prepared: Prepared, strategy: Strategy, batch: int, seed: int, patches: int = 0
    ) -> None:
        self.prepared, self.strategy, self.batch, self.seed = prepared, strategy, batch, seed
        self.patches = patches
        self.accelerator = strategy.accelerator

    @torch.no_grad()
    def scores(
        self,
        forward: Callable[[Tensor], Tensor],
        split: str,
        indices: Tensor,
        policy: str,
        epoch: int,
    ) -> Tensor:
        """Scores of some images, in their order.

        Args:
            forward: (B, 3, H, W) images in [0, 1], or (B, 1 + P, 3, H, W) with P patches, to (B, C) scores.
            split: "train" or "test".
            indices: (n,) int64 positions in the split.
            policy: the view, see `benchmarks.data.views.views`.
            epoch: epoch of the view's draws.

        Returns:
            (n, C) float32, under precision "fp64" float64, on the CPU, the same on every process.

        Raises:
            OutOfMemory: the device is too small for a batch.
        """
        group = self.strategy.group
        rank, world = group.rank, group.world
        group.watch.mark(f"scoring of {len(indices)} {split} images")
        mine = torch.arange(len(indices))[rank::world]
        chunks = mine.split(self.batch)
        rows = []
        loader = Loader(self.prepared, self.accelerator.device)
        stream = loader.stream(split, (indices[some] for some in chunks))
        for some, images in zip(chunks, stream, strict=True):
            view = make_views(
                images,
                indices[some],
                policy=policy,
                seed=self.seed,
                epoch=epoch,
                patches=self.patches,
            )
            view = view.to(self.strategy.dtype)
            with self.strategy.autocast(), memory_advice(f"recipe.eval_batch = {self.batch}"):
                rows.append(at_least_fp32(forward(view)))
            group.watch.heartbeat()
        group.watch.mark("gathering of the scores")
        if world == 1:
            return torch.cat(rows).cpu()
        return self._gather(mine, torch.cat(rows) if rows else None, len(indices)).cpu()

    def pool(self, method: StepMethod, average: StepMethod, data: TrainData, policy: str, epoch: int) -> Pool:
        """The scores that `StepMethod.refresh` is given; those it does not ask for cost nothing.

        Args:
            method: the method in training; left in eval mode if its own scores are asked for.
            average: its moving average.
            data: the images.
            policy: the weak view.
            epoch: the epoch about to begin.
        """

        def score(module: StepMethod, images: Tensor) -> Tensor:
            found = self.scores(module.score_pool, "train", images, policy, epoch)
            return found.to(self.accelerator.device)

        kinds = {
            "scores": lambda: score(average, data.unlabelled),
            "labelled": lambda: score(average, data.labelled),
            "model_scores": lambda: score(method.eval(), data.unlabelled),
            "model_labelled": lambda: score(method.eval(), data.labelled),
        }
        return pool_of(method, epoch, lambda kind: kinds[kind]())

    def _gather(self, mine: Tensor, scores: Tensor | None, total: int) -> Tensor:
        device = self.accelerator.device
        width = torch.tensor([scores.shape[1] if scores is not None else 0], device=device)
        columns = int(self.accelerator.gather(width).max())
        longest = -(-total // self.strategy.group.world)
        positions = torch.full((longest,), -1, dtype=torch.int64, device=device)
        padded = torch.zeros((longest, columns), dtype=self.strategy.dtype, device=device)
        positions[: len(mine)] = mine.to(device)
        if scores is not None:
            padded[: len(mine)] = scores
        all_positions = self.accelerator.gather(positions)
        all_scores = self.accelerator.gather(padded)
        real = all_positions >= 0
        if not torch.equal(all_positions[real].sort().values.cpu(), torch.arange(total)):
            raise RuntimeError(
                f"gathered {int(real.sum())} scores for {total} images: a process lost its share"
            )
        gathered = padded.new_empty((total, columns))
        gathered[all_positions[real]] = all_scores[real]
        return gathered

"""The method interface: inputs (Task, Batch, Pool) and outputs (StepOutput, PseudoLabels).

Nothing here can hold a label of the unlabelled pool. New fields come last and have defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from methods.errors import UserError


@dataclass(frozen=True)
class Task:
    """What a method knows of a run when it is built.

    Attributes:
        classes: K class names as in the dataset.
        prompts: K words or phrases that stand for the classes in a text prompt.
        labels: (n_l, K) float {0, 1}, the labels of the labelled images, on the CPU.
        num_unlabelled: size n_u of the unlabelled pool.
        seed: seed of the run; parameters are drawn under it.
        estimation: (n_e, K) float {0, 1}, the labels of the images that `StepMethod.estimation_share` took
            out of the labelled ones. They are the last n_e images of the pool. None where there are none.
    """

    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    labels: Tensor
    num_unlabelled: int
    seed: int
    estimation: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.classes) == len(self.prompts) == self.labels.shape[1]:
            raise UserError(
                f"task: {len(self.classes)} classes, {len(self.prompts)} prompts and "
                f"{self.labels.shape[1]} label columns; the three must agree"
            )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def frequencies(self) -> Tensor:
        """(K,) float64, share of the labelled images that show each class."""
        return self.labels.double().mean(dim=0)

    @property
    def prior(self) -> Tensor:
        """(K,) float64 strictly inside (0, 1): frequencies smoothed by half an image each way."""
        count = self.labels.double().sum(dim=0)
        return (count + 0.5) / (len(self.labels) + 1.0)


class Processes(Protocol):
    """The processes that train together, as a method sees them: through `Batch`."""

    def total(self, value: Tensor) -> Tensor:
        """Sum ``value`` over the processes; see `Batch.total`."""

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes; see `Batch.gather`."""


class Alone:
    """`Processes` of a training in one process: what it has is all there is."""

    def total(self, value: Tensor) -> Tensor:
        """Return ``value``."""
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """Return ``rows``."""
        return rows


ALONE = Alone()


@dataclass
class Batch:
    """One step's data for one process.

    Images are float in [0, 1], shape (B, 3, H, W); of a method with `StepMethod.patches`
    (B, 1 + P, 3, H, W), the whole image before its P patches.

    A step is computed by one process or by several, each with its share of the images, possibly
    none of a kind. What a method computes must not depend on how many there are: `total` and
    `gather` give it the whole step, and are differentiable.

    >>> import torch
    >>> none, images = torch.arange(0), torch.zeros(2, 3, 8, 8)
    >>> batch = Batch(0, 0, torch.arange(2), images, images, torch.ones(2, 4),
    ...               none, images[:0], images[:0], global_labelled=2, global_unlabelled=0)
    >>> batch.total(torch.tensor(3.0)), batch.gather(batch.labelled), batch.share
    (tensor(3.), tensor([0, 1]), 1.0)

    Attributes:
        epoch: epoch counted from 0.
        step: step of the epoch counted from 0.
        labelled: (B_l,) int64 positions in the labelled set.
        weak_labelled: weakly augmented labelled images.
        strong_labelled: strongly augmented labelled images.
        targets: (B_l, K) float {0, 1}.
        unlabelled: (B_u,) int64 positions in the unlabelled pool.
        weak_unlabelled: weakly augmented unlabelled images.
        strong_unlabelled: strongly augmented unlabelled images.
        global_labelled: labelled images of this step over all processes.
        global_unlabelled: unlabelled images of this step over all processes.
        processes: what `total` and `gather` ask.
        global_step: step of this training counted from 0 over all its epochs; a warm-up and the run that
            starts from it are two trainings.
        total_steps: steps of this training from its first epoch to its last, at least 1, for ramps:
            ``global_step / total_steps`` is in [0, 1).
        phase: name of the `Phase` that the step belongs to; "" of a method without phases. Each phase is a
            training: ``epoch`` and ``global_step`` begin anew in it. In a phase on the estimation images
            ``labelled`` are positions in `Task.estimation`.
    """

    epoch: int
    step: int
    labelled: Tensor
    weak_labelled: Tensor
    strong_labelled: Tensor
    targets: Tensor
    unlabelled: Tensor
    weak_unlabelled: Tensor
    strong_unlabelled: Tensor
    global_labelled: int
    global_unlabelled: int
    processes: Processes = ALONE
    global_step: int = 0
    total_steps: int = 1
    phase: str = ""

    def total(self, value: Tensor) -> Tensor:
        """Sum a tensor over the processes that share the step; with one, return it as it is.

        Gradients flow back to every process. Every process calls it, in the same order, and uses
        the result in its losses in the same way; a process without images gives zeros that hang on
        its parameters, such as ``logits[:0].sum()``.

        Losses add up over processes, so a loss that all compute alike from totals has to be
        divided among them: multiply it by `share`. A masked mean over the step, for example::

            used = batch.total(pseudo.mask.sum()).clamp(min=1)
            losses["unlabelled"] = (pseudo.mask * element).sum() / used     # a sum of shares
            mean = batch.total(torch.sigmoid(logits).sum(0)) / batch.global_unlabelled
            losses["fairness"] = batch.share * fairness(mean)               # the same everywhere

        Args:
            value: a number tensor of any shape, the same on every process; not bool.

        Returns:
            The sum, of the same shape, dtype and device; half precision is added in float32.
        """
        return self.processes.total(value)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of the step's global batch.

        Gradients flow back to the process that a row came from. As for `total`, every process
        calls it, and a loss that all compute alike from the result is multiplied by `share`.

        Args:
            rows: (B, …), a row for each of this process's labelled images, or for each of its
                unlabelled images, in their order; (0, …) for none.

        Returns:
            (N, …) with N = `global_labelled` or `global_unlabelled`; with one process, ``rows``.
        """
        return self.processes.gather(rows)

    @property
    def share(self) -> float:
        """This process's part of the step's images, in [0, 1]; the parts add up to 1."""
        own = len(self.labelled) + len(self.unlabelled)
        return own / (self.global_labelled + self.global_unlabelled)


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels of a set of images, as used by a loss and as scored against hidden labels.

    >>> import torch
    >>> soft = PseudoLabels(torch.tensor([[0.9, 0.2]]), torch.ones(1, 2), torch.tensor([[0.8, 0.6]]))
    >>> soft.weighted_mask
    tensor([[0.8000, 0.6000]])

    Attributes:
        targets: (B, K) float in [0, 1]; for the figures of pseudo-labels .5 and more is positive.
        mask: (B, K) float {0, 1}; 1 = the entry takes part in the loss.
        weight: (B, K) float in [0, 1], factor of the entry's loss, or None for 1 everywhere.
    """

    targets: Tensor
    mask: Tensor
    weight: Tensor | None = None

    @property
    def weighted_mask(self) -> Tensor:
        """(B, K) factor of each entry's loss: the mask, times the weight if there is one."""
        return self.mask if self.weight is None else self.mask * self.weight

    def __getitem__(self, index: Tensor) -> PseudoLabels:
        """Return the rows at ``index``."""
        weight = None if self.weight is None else self.weight[index]
        return PseudoLabels(self.targets[index], self.mask[index], weight)


class StepOutput(NamedTuple):
    """What `StepMethod.training_step` returns.

    A tuple, because DistributedDataParallel has to find the losses in what it wraps: in any other
    object it does not see them, and leaves the exchange of the first gradients out.

    Attributes:
        losses: named scalars, each a SUM over this process's samples (the reduction of CAP and
            its relatives). The trainer adds them up; a method that wants a mean divides by
            ``batch.global_labelled`` or ``batch.global_unlabelled``.
        pseudo_labels: what was used for the unlabelled images of the batch, or None.
        statistics: named sums over this process's samples, for `StepMethod.observe_step`; None for
            a method that does not have it.
    """

    losses: dict[str, Tensor]
    pseudo_labels: PseudoLabels | None = None
    statistics: dict[str, Tensor] | None = None


@dataclass
class Pool:
    """Scores from the EMA model on weak views, for `StepMethod.refresh`.

    The last three are computed for methods that name them in `StepMethod.pool_wants`, else None.

    Attributes:
        epoch: the epoch about to begin.
        scores: (n_u, K) float32, the first K columns of `StepMethod.score_pool`, in pool order.
        extra: (n_u, …) float32, its further columns; no columns if it returns K.
        labelled: (n_l, K + extra) float32, `StepMethod.score_pool` of the labelled images, in the
            order of `Task.labels`.
        model_scores: (n_u, K + extra) float32, as `scores` and `extra` together, but from the
            trained model itself instead of its average.
        model_labelled: (n_l, K + extra) float32, as `labelled`, but from the trained model itself.
    """

    epoch: int
    scores: Tensor
    extra: Tensor
    labelled: Tensor | None = None
    model_scores: Tensor | None = None
    model_labelled: Tensor | None = None

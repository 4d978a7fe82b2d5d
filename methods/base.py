"""What a method is told, what it is handed at each step, and what it gives back.

Two kinds of method stand behind one registry. A `StepMethod` is trained by the shared trainer; a
`FitMethod` is fitted once to features of the frozen backbone. A method gets tensors and gives
tensors: it never opens a file, places itself on a device or talks to other processes, and nothing
that it is handed contains the labels of the unlabelled pool.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from methods.errors import UserError, check_choice

Scale = Literal["logits", "probabilities", "ranking"]
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("onecycle", "cosine", "constant")


@dataclass(frozen=True)
class Task:
    """All that a method is told when it is built.

    Attributes:
        classes: K class names as in the dataset.
        prompts: K words or phrases that stand for the classes in a text prompt.
        labels: (n_l, K) float {0, 1}, the labels of the labelled images, on the CPU.
        num_unlabelled: size n_u of the unlabelled pool.
        seed: seed of the run; parameters are drawn under it.
    """

    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    labels: Tensor
    num_unlabelled: int
    seed: int

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


@dataclass
class Batch:
    """One step's data for one process. Images are float in [0, 1], shape (B, 3, H, W).

    Attributes:
        epoch: epoch counted from 0.
        step: optimiser step counted from 0 over the whole run.
        labelled: (B_l,) int64 positions in the labelled set.
        weak_labelled: weakly augmented labelled images.
        strong_labelled: strongly augmented labelled images.
        targets: (B_l, K) float {0, 1}.
        unlabelled: (B_u,) int64 positions in the unlabelled pool.
        weak_unlabelled: weakly augmented unlabelled images.
        strong_unlabelled: strongly augmented unlabelled images.
        global_labelled: labelled images of this step over all processes.
        global_unlabelled: unlabelled images of this step over all processes.
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


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels of a set of images, as used by a loss and as scored by the trainer's probe.

    Attributes:
        targets: (B, K) float32 {0, 1}.
        mask: (B, K) float32 {0, 1}; 1 = the entry takes part in the loss.
    """

    targets: Tensor
    mask: Tensor

    def __getitem__(self, index: Tensor) -> PseudoLabels:
        """Return the rows at ``index``."""
        return PseudoLabels(self.targets[index], self.mask[index])


class StepOutput(NamedTuple):
    """What `StepMethod.training_step` returns.

    A tuple, because DistributedDataParallel has to find the losses in what it wraps: in any other
    object it does not see them, and leaves the exchange of the first gradients out.

    Attributes:
        losses: named scalars, each a SUM over this process's samples (the reduction of CAP and
            its relatives). The trainer adds them up; a method that wants a mean divides by
            ``batch.global_labelled`` or ``batch.global_unlabelled``.
        pseudo_labels: what was used for the unlabelled images of the batch, or None.
    """

    losses: dict[str, Tensor]
    pseudo_labels: PseudoLabels | None = None


@dataclass
class Pool:
    """Scores of the unlabelled pool, from the EMA model on weak views, for `StepMethod.refresh`.

    Attributes:
        epoch: the epoch about to begin.
        scores: (n_u, K) float32, the first K columns of `StepMethod.score_pool`, in pool order.
        extra: (n_u, …) float32, its further columns; no columns if it returns K.
    """

    epoch: int
    scores: Tensor
    extra: Tensor


class StepMethod(nn.Module):
    """A method that the shared trainer trains step by step.

    A subclass calls ``super().__init__(backbone, task, hyper)``, then registers the backbone (or
    the part of it that it uses) and builds its own parameters. `methods.registry.create` builds it
    under a random generator seeded with ``task.seed``.

    Frozen tensors: a parameter with ``requires_grad=False`` never changes after construction, so
    moving averages and checkpoints may leave it out; ``frozen_names``, set by
    `methods.registry.create`, lists them.

    Class attributes:
        name: the registered name.
        version: raised whenever a change of the code can change a number; part of a run's identity.
        Hyper: frozen dataclass of hyper-parameters; has at least ``optimizer`` and ``schedule``.
        needs_vlm: whether the backbone must have a text tower.
        uses_unlabelled: False for a method that reads nothing but the labelled images.
        warmup_name: method whose training makes the warm-up; "" for the method itself.
        score_scale: what a score of `predict` is: "logits" (positive above 0), "probabilities"
            (above 0.5), or "ranking" (no threshold has a meaning, so no F1 is reported).
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Hyper: ClassVar[type]
    needs_vlm: ClassVar[bool] = False
    uses_unlabelled: ClassVar[bool] = True
    warmup_name: ClassVar[str] = ""
    score_scale: ClassVar[Scale] = "logits"

    def __init__(self, backbone: nn.Module, task: Task, hyper: Any) -> None:
        super().__init__()
        self.task = task
        self.hyper = hyper
        self.frozen_names: frozenset[str] = frozenset()
        check_choice(f"{type(self).name}.optimizer", hyper.optimizer, OPTIMIZERS)
        check_choice(f"{type(self).name}.schedule", hyper.schedule, SCHEDULES)

    @property
    def optimizer(self) -> str:
        """One of `OPTIMIZERS`."""
        return self.hyper.optimizer

    @property
    def schedule(self) -> str:
        """One of `SCHEDULES`."""
        return self.hyper.schedule

    def param_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters: ``[{"params": [...], "lr": float, "weight_decay": float}]``."""
        raise NotImplementedError

    def calibrate(self, logits: Tensor) -> None:
        """Set starting values that depend on the images, such as biases; by default nothing.

        The trainer calls it once, before the first step of a training that starts without a
        warm-up, with the same values in every process.

        Args:
            logits: (n_l, K) float32, `predict` of test views of the labelled images, in order.
        """

    def training_step(self, batch: Batch) -> StepOutput:
        """Return the losses of one step; each is a sum over the samples of this process."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> StepOutput:
        """Call `training_step`; this is what DistributedDataParallel wraps."""
        return self.training_step(batch)

    def wants_pool(self, epoch: int) -> bool:
        """Return True if `refresh` is to be called before ``epoch``."""
        return False

    def refresh(self, pool: Pool) -> None:
        """Take the scores of the whole pool; what is derived from them is kept in buffers."""
        raise NotImplementedError

    def predict(self, images: Tensor) -> Tensor:
        """Return (B, K) float32 logits for images (B, 3, H, W) in [0, 1]; higher = more present."""
        raise NotImplementedError

    def score_pool(self, images: Tensor) -> Tensor:
        """Return (B, K + extra) float32 for weak views of the pool; see `Pool`."""
        return self.predict(images)

    @classmethod
    def warmup_hyper(cls, hyper: Any) -> Any | None:
        """Hyper-parameters of the labelled-only training that is the warm-up; None for no warm-up.

        They are those of the method named by `warmup_name`. Methods whose warm-up name and
        hyper-parameters are equal start from the same checkpoint, which is computed once.
        """
        return None

    def training_state(self) -> dict[str, Tensor]:
        """Return ``state_dict`` without the frozen parameters: all that training can change.

        The names are those frozen at construction, so a copy whose parameters were all set to
        ``requires_grad=False``, such as a moving average, has the same state.
        """
        state = self.state_dict()
        return {name: value for name, value in state.items() if name not in self.frozen_names}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `training_state` returned, of this very method.

        Raises:
            ValueError: a name is unknown, or one that is not a frozen parameter is missing.
        """
        missing, unknown = self.load_state_dict(state, strict=False)
        missing = [name for name in missing if name not in self.frozen_names]
        if missing or unknown:
            raise ValueError(
                f"the saved state does not fit {type(self).name!r}: missing {missing[:3]}, "
                f"unknown {unknown[:3]}"
            )

    def load_warmup(self, state: Mapping[str, Tensor]) -> None:
        """Take the `training_state` of the trained warm-up.

        Raises:
            ValueError: it lacks a trainable parameter of this method.
        """
        own = self.state_dict()
        fitting = {
            name: value
            for name, value in state.items()
            # Buffers that hold pseudo-labels have no counterpart in a labelled-only training.
            if name in own and own[name].shape == value.shape
        }
        needed = {name for name, value in self.named_parameters() if value.requires_grad}
        if missing := sorted(needed - set(fitting)):
            raise ValueError(
                f"the warm-up of {type(self).name!r} lacks {len(missing)} parameters "
                f"or has them in another shape: {', '.join(missing[:3])}"
            )
        self.load_state_dict(fitting, strict=False)


class FitMethod:
    """A method that is fitted once to the features of the frozen backbone.

    Features are what ``backbone.features`` returns (not normalised), float32.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Hyper: ClassVar[type]
    needs_vlm: ClassVar[bool] = False
    score_scale: ClassVar[Scale] = "ranking"

    def __init__(self, backbone: nn.Module, task: Task, hyper: Any) -> None:
        self.task = task
        self.hyper = hyper

    def fit(self, features: Tensor, seed: int) -> None:
        """Fit to the labelled images: ``features`` (n_l, d), rows as in ``task.labels``."""
        raise NotImplementedError

    def predict(self, features: Tensor) -> Tensor:
        """Return (N, K) float32 scores for features (N, d); higher = more present."""
        raise NotImplementedError


@contextlib.contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """Run a block under torch's CPU generator seeded with ``seed``; restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of ``module`` that receive gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Return half precision as float32; float32, and float64 under precision "fp64", as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(tensor: Tensor) -> torch.autocast:
    """Return a context in which autocast is off on the tensor's device.

    Scores are compared with thresholds and ranked, so the last matrix product of a head runs in
    float32 even when the trunk runs in half precision: bfloat16 scores would tie.
    """
    return torch.autocast(device_type=tensor.device.type, enabled=False)

"""The two kinds of method, and what the harness calls of them.

Two kinds of method stand behind one registry. A `StepMethod` is trained by the shared trainer; a
`FitMethod` is fitted once to features of the frozen backbone. A method gets tensors and gives
tensors: it never opens a file, places itself on a device or talks to other processes, and nothing
that it is handed contains the labels of the unlabelled pool. What goes to and fro is defined in
`methods.exchange`; its names can be imported from here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from methods.errors import check_choice
from methods.exchange import ALONE, Batch, Pool, Processes, PseudoLabels, StepOutput, Task
from methods.phases import Phase
from methods.planned import Planned

__all__ = [
    "ALONE",
    "OPTIMIZERS",
    "POOL_EXTRAS",
    "SCHEDULES",
    "Batch",
    "FitMethod",
    "Phase",
    "Pool",
    "Processes",
    "PseudoLabels",
    "Scale",
    "StepMethod",
    "StepOutput",
    "Task",
    "at_least_fp32",
    "full_precision",
    "pool_of",
    "seeded_rng",
    "trainable",
]

Scale = Literal["logits", "probabilities", "ranking"]
OPTIMIZERS = ("adamw", "adam", "sgd")
"""Weight decay is decoupled in "adamw" and a part of the gradient in "adam" and "sgd"."""
SCHEDULES = ("onecycle", "cosine", "constant")
POOL_EXTRAS = ("labelled", "model_scores", "model_labelled")
"""Fields of `Pool` that cost a pass over images, and are filled for methods that ask."""


class _Teacher:
    """Holds a method's teacher out of sight of `nn.Module`; a copy or pickle of it is empty."""

    def __init__(self, module: StepMethod | None = None) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Teacher:
        return _Teacher()

    def __reduce__(self) -> tuple[type[_Teacher], tuple[()]]:
        return _Teacher, ()


class StepMethod(Planned, nn.Module):
    """A method that the shared trainer trains step by step.

    A subclass calls ``super().__init__(backbone, task, hyper)``, then registers the backbone (or
    the part of it that it uses) and builds its own parameters. `methods.registry.create` builds it
    under a random generator seeded with ``task.seed``.

    Frozen tensors: a parameter with ``requires_grad=False`` never changes after construction, so
    moving averages and checkpoints may leave it out; ``frozen_names``, set by
    `methods.registry.create`, lists them.

    State: what a method remembers of the images it saw, such as running thresholds or a table of
    pseudo-labels, is kept in buffers made by `register_state`. They are saved in checkpoints and
    must be the same in every process; so they are computed from global values only: `observe`,
    `observe_step`, `refresh`, `Batch.total` and `Batch.gather`.

    A step, in this order: ``prepare(batch)``, its sums over processes to ``observe``,
    ``training_step(batch)``, the optimiser's step, then the sums over processes of
    ``StepOutput.statistics`` to ``observe_step``.

    Class attributes:
        name: the registered name.
        version: raised whenever a change of the code can change a number; part of a run's identity.
        Hyper: frozen dataclass of hyper-parameters; has at least ``optimizer`` and ``schedule``.
        needs_vlm: whether the backbone must have a text tower.
        uses_unlabelled: False for a method that reads nothing but the labelled images.
        warmup_name: method whose training makes the warm-up; "" for the method itself.
        score_scale: what a score of `predict` is: "logits" (positive above 0), "probabilities"
            (above 0.5), or "ranking" (no threshold has a meaning, so no F1 is reported).
        wants_teacher: whether `teacher` is used.
        pool_wants: which of `POOL_EXTRAS` are to be filled in the `Pool` given to `refresh`.
        scores_pool: False for a method whose `refresh` reads ``Pool.labelled`` alone: the pool is not scored,
            and ``Pool.scores`` and ``extra`` have no rows. It names something in ``pool_wants``.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Hyper: ClassVar[type]
    needs_vlm: ClassVar[bool] = False
    uses_unlabelled: ClassVar[bool] = True
    warmup_name: ClassVar[str] = ""
    score_scale: ClassVar[Scale] = "logits"
    wants_teacher: ClassVar[bool] = False
    pool_wants: ClassVar[frozenset[str]] = frozenset()
    scores_pool: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, task: Task, hyper: Any) -> None:
        super().__init__()
        self.task = task
        self.hyper = hyper
        self.frozen_names: frozenset[str] = frozenset()
        self.state_names: frozenset[str] = frozenset()
        self._teacher = _Teacher()
        for extra in sorted(self.pool_wants):
            check_choice(f"{type(self).name}.pool_wants", extra, POOL_EXTRAS)
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

    def begin_phase(self, name: str) -> None:
        """Prepare for a phase, such as by freezing parameters; by default nothing.

        Called once, on a method that was built anew, before its weights are loaded and `param_groups` is
        asked; also when a phase is continued.

        Args:
            name: of one of its `phases`.
        """

    def calibrate(self, logits: Tensor) -> None:
        """Set starting values that depend on the images, such as biases; by default nothing.

        The trainer calls it once, before the first step of a training that starts without a
        warm-up, with the same values in every process.

        Args:
            logits: (n_l, K) float32, `predict` of test views of the labelled images, in order.
        """

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Return sums over this process's samples that `observe` needs before the step.

        Called without gradients, in training mode, with the batch of the coming `training_step`;
        what it computes may be kept in a plain attribute for that step. By default nothing, which
        costs nothing.

        Returns:
            Named number tensors (not bool) of any dtype and shape. Names, dtypes and shapes are
            the same at every step and in every process, also where the process has no image of a
            kind: it gives zeros. Count the samples in a sum of their own. If there are none, in every step
            and process, `observe` is not called.
        """
        return {}

    def observe(self, statistics: dict[str, Tensor]) -> None:
        """Take the sums of `prepare` over all processes, before `training_step`; update state.

        Args:
            statistics: names, shapes and dtypes as given. The sum is made in float64, so integers
                below 2⁵³ are exact.
        """

    def training_step(self, batch: Batch) -> StepOutput:
        """Return the losses of one step; each is a sum over the samples of this process."""
        raise NotImplementedError

    def observe_step(self, statistics: dict[str, Tensor]) -> None:
        """Take the sums of `StepOutput.statistics` over all processes, after the optimiser's step.

        A method that overrides it returns statistics in every step; names, shapes and dtypes are
        as constant as those of `prepare`.
        """

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

    # -- state and teacher ---------------------------------------------------------------------

    def register_state(self, name: str, value: Tensor) -> None:
        """Make a buffer that holds the method's own state.

        It goes into `training_state`, once: the moving average does not average or copy it, but
        reads the method's. Floating state has the precision of the run. Assigning to it writes into
        the buffer, so ``self.mean = 0.9 * self.mean + 0.1 * new`` keeps dtype and device.

        Args:
            name: attribute of this method, a valid identifier.
            value: its start, the same in every process.
        """
        self.register_buffer(name, value)
        self.state_names |= {name}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("state_names", ()):
            self._write_state(name, value)
        else:
            super().__setattr__(name, value)

    def _write_state(self, name: str, value: Any) -> None:
        state: Tensor = getattr(self, name)
        label = f"{type(self).name}.{name}"
        if not isinstance(value, Tensor):
            raise TypeError(f"{label} is state: assign a tensor, not {type(value).__name__}")
        if value.shape != state.shape:
            raise ValueError(f"{label} has shape {tuple(state.shape)}, not {tuple(value.shape)}")
        if not torch.can_cast(value.dtype, state.dtype):
            raise TypeError(f"{label} holds {state.dtype} and cannot take {value.dtype}")
        with torch.no_grad():
            state.copy_(value)

    def share_state(self, other: StepMethod) -> None:
        """Use the state buffers of ``other``, a method of the same kind, as one's own."""
        for name in self.state_names:
            self._buffers[name] = other._buffers[name]

    @property
    def teacher(self) -> StepMethod:
        """The moving average of this method: any of its functions, in eval mode, no gradients.

        It is no submodule: not saved, moved or trained with the method.

        Raises:
            RuntimeError: there is none, because the class does not say ``wants_teacher = True`` or
                the method is not being trained.
        """
        if self._teacher.module is None:
            reason = "is not being trained" if self.wants_teacher else "does not set wants_teacher = True"
            raise RuntimeError(f"method {type(self).name!r} has no teacher: it {reason}")
        return self._teacher.module

    def set_teacher(self, teacher: StepMethod) -> None:
        """Set what `teacher` returns; the trainer does, before the first step."""
        self._teacher = _Teacher(teacher)

    # -- saved state ---------------------------------------------------------------------------

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
            # State is of the images that were seen; this training sees others.
            if name in own and name not in self.state_names and own[name].shape == value.shape
        }
        needed = {name for name, value in self.named_parameters() if value.requires_grad}
        if missing := sorted(needed - set(fitting)):
            raise ValueError(
                f"the warm-up of {type(self).name!r} lacks {len(missing)} parameters "
                f"or has them in another shape: {', '.join(missing[:3])}"
            )
        self.load_state_dict(fitting, strict=False)


class FitMethod(Planned):
    """A method that is fitted once to the features of the frozen backbone.

    Features are what ``backbone.features`` returns (not normalised), float32. What a method is given, in
    this order: `take_views`, if `cached_views` asks for some; then `fit`.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Hyper: ClassVar[type]
    needs_vlm: ClassVar[bool] = False
    score_scale: ClassVar[Scale] = "ranking"

    def __init__(self, backbone: nn.Module, task: Task, hyper: Any) -> None:
        self.task = task
        self.hyper = hyper

    @classmethod
    def cached_views(cls, hyper: Any) -> int:
        """How many augmented views of each labelled image `take_views` is given the features of; 0 for none.

        Their features are computed once for each split and seed, and shared by the methods that ask for as
        many. Which view: mirrored or not, then a random resized crop ("scpnet-weak" in
        `benchmarks.data.views.views`).
        """
        return 0

    def take_views(self, views: Tensor) -> None:
        """Take the features of augmented views, before `fit`.

        Args:
            views: (V, n_l, d) float32, V = `cached_views`; columns as in ``task.labels``. Drawn anew for
                each seed of a run.
        """
        raise NotImplementedError

    def fit(self, features: Tensor, seed: int) -> None:
        """Fit to the labelled images: ``features`` (n_l, d), rows as in ``task.labels``."""
        raise NotImplementedError

    def predict(self, features: Tensor) -> Tensor:
        """Return (N, K) float32 scores for features (N, d); higher = more present."""
        raise NotImplementedError


def pool_of(method: StepMethod, epoch: int, rows: Callable[[str], Tensor]) -> Pool:
    """The `Pool` that a method asks for, by ``scores_pool`` and ``pool_wants``.

    Args:
        method: whose `StepMethod.refresh` it is for.
        epoch: the epoch about to begin.
        rows: gives (n, K + extra) scores by name: "scores", or one of `POOL_EXTRAS`; called for those that
            are asked for, in the order in which these stand there.
    """
    found = {"scores": rows("scores")} if method.scores_pool else {}
    found |= {name: rows(name) for name in POOL_EXTRAS if name in method.pool_wants}
    scores = found.pop("scores", None)
    if scores is None:
        scores = next(iter(found.values()))[:0]
    classes = method.task.num_classes
    return Pool(epoch, scores[:, :classes], scores[:, classes:], **found)


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

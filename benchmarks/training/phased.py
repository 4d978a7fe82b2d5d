"""The trainings of a run, one after another: one for most methods, or one for each phase of a method's own.

Each phase has a trainer, optimiser, schedule and checkpoints of its own, and a method that was built anew,
so that nothing of the phase before can stay by accident; it starts from the weights that this left. A run
that was interrupted goes on in the last phase that has a checkpoint: a finished phase without a successor's
checkpoint ends at once and the next one starts again from the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from benchmarks.plan.jobs import Job
from benchmarks.plan.stages import Stage
from benchmarks.training.build import build_trainer, phases_of, schedule_of
from benchmarks.training.checkpoint import Checkpoints
from benchmarks.training.host import TrainingHost
from benchmarks.training.schedule import Outcome
from benchmarks.training.strategy import Strategy
from benchmarks.training.trainer import Trainer
from benchmarks.workspace import Workspace


class Training:
    """All trainings of a run, or the one of its warm-up.

    Building it builds the trainer that goes on: that of the first phase, or of an interrupted one, with the
    state of its newest checkpoint. All processes of a group build it together.

    Args:
        job: the run.
        stage: its warm-up stage, to train that; None for the run.
        strategy: device, processes and precision.
        checkpoints: makes the checkpoints of a folder, whose name is empty for the first training and named
            "phase-2" and so on for the next ones, below that of the first.
        workspace: where the run's warm-up lies.
        host: the program around the training.

    Attributes:
        trainer: of the phase that goes on, or of the last one once `fit` has returned.
        resumed: whether there was a checkpoint.
    """

    def __init__(
        self,
        job: Job,
        stage: Stage | None,
        strategy: Strategy,
        *,
        checkpoints: Callable[[str], Checkpoints],
        workspace: Workspace,
        host: TrainingHost | None = None,
    ) -> None:
        self.job, self.stage, self.strategy = job, stage, strategy
        self.workspace, self.host = workspace, host
        self.phases = phases_of(job, stage)
        folders = ["", *(f"phase-{k + 1}" for k in range(1, len(self.phases)))]
        self.places = [checkpoints(name) for name in folders]
        self.place = self._begun()
        self.trainer = self._build()
        self.resumed = self.trainer.resume()

    @staticmethod
    def epochs(job: Job, stage: Stage | None) -> int:
        """Epochs of all trainings together."""
        return sum(schedule_of(job, stage, phase).epochs for phase in phases_of(job, stage))

    @property
    def epoch(self) -> int:
        """The present epoch, from 0, counted over all phases."""
        return self.trainer.schedule.first_epoch + self.trainer.epoch

    def fit(self) -> Outcome:
        """Train to the end of the last phase and return its reported scores."""
        while True:
            last = self.place + 1 == len(self.phases)
            outcome = self.trainer.fit(score=last)
            if last:
                return outcome
            self._next()

    def clear(self) -> None:
        """Remove the checkpoints of all phases."""
        for place in reversed(self.places):  # the folder of the first holds the others
            place.clear()

    def _begun(self) -> int:
        """Number of the last phase that has a checkpoint; 0 for none."""
        group = self.strategy.group
        found = (k for k in reversed(range(len(self.places))) if self.places[k].newest())
        return group.broadcast(next(found, 0) if group.is_main else 0)[0]

    def _next(self) -> None:
        """Build the trainer of the next phase, from what the present one left."""
        self.place += 1
        phase, before = self.phases[self.place], self.trainer
        assert phase is not None  # only phases follow one another
        left = before.method if phase.start == "model" else before.ema.module
        self.trainer = self._build(left.training_state())
        self.trainer.follow(before)

    def _build(self, start: Mapping[str, Tensor] | None = None) -> Trainer:
        # A later phase that is continued has all its values in its checkpoint.
        fresh = self.place == 0
        return build_trainer(
            self.job,
            self.stage,
            self.strategy,
            checkpoints=self.places[self.place],
            workspace=self.workspace if fresh else None,
            host=self.host,
            phase=self.phases[self.place],
            start=start,
        )

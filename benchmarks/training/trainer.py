"""The one training loop, for every step method, on `accelerate`.

The loop knows no method by name: it draws batches, makes views, asks for named losses, steps the
optimiser, keeps the moving average, and offers the pool's scores once per epoch. Everything random
is a pure function of (seed, epoch, sample), so continuing after an interruption is "set the step".
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.plan.recipe import Recipe
from benchmarks.training.batches import Batches, StepIndices
from benchmarks.training.checkpoint import Checkpoints, Place
from benchmarks.training.collectives import StepStatistics
from benchmarks.training.ema import Ema
from benchmarks.training.epoch_losses import EpochLosses
from benchmarks.training.hidden_labels import HiddenLabels
from benchmarks.training.host import TrainingHost
from benchmarks.training.schedule import Outcome, Schedule, TrainData, build_optimizer
from benchmarks.training.scoring import Scorer, memory_advice
from benchmarks.training.selection import Selection
from benchmarks.training.strategy import Strategy
from methods.base import StepMethod, at_least_fp32
from results.errors import LeaseLostError

GO_ON, SAVE, STOP, LOST = range(4)
"""What a process requests after a step. All processes follow the highest request."""


class Interrupted(BaseException):
    """The process was asked to stop; the state has been saved."""


class Trainer:
    """Trains one step method; see the module's docstring.

    Args:
        method: the method, built, with its starting values.
        data: its images and labels.
        recipe: the shared recipe.
        schedule: which part of the recipe this training is.
        seed: seed of batches and views.
        strategy: device, processes and precision.
        checkpoints: where the state is kept.
        selection: chooses the reported evaluations.
        hidden_labels: scores the pseudo-labels; None without a pool.
        host: the program around the training.
    """

    def __init__(
        self,
        method: StepMethod,
        data: TrainData,
        recipe: Recipe,
        schedule: Schedule,
        seed: int,
        *,
        strategy: Strategy,
        checkpoints: Checkpoints,
        selection: Selection,
        hidden_labels: HiddenLabels | None = None,
        host: TrainingHost | None = None,
    ) -> None:
        self.data, self.recipe, self.schedule, self.seed = data, recipe, schedule, seed
        self.strategy, self.group = strategy, strategy.group
        self.accelerator = strategy.accelerator
        self.checkpoints, self.selection, self.hidden_labels = checkpoints, selection, hidden_labels
        self.host = host or TrainingHost()
        self.code: tuple[str, ...] = (self.host.code,)  # and before it, of processes that it continues
        method.to(self.accelerator.device, strategy.dtype)
        patches = method.patches(method.hyper)
        self.batches = Batches(data, schedule, recipe.views, seed, strategy, patches)
        optimizer, self.scheduler = build_optimizer(method, schedule, self.steps_per_epoch)
        self.ema = Ema(method, recipe.ema_decay, recipe.ema_warmup)
        if method.wants_teacher:
            method.set_teacher(self.ema.module)
        self.statistics = StepStatistics(method, self.group)
        sampler = self.batches.sampler
        self.model, self.optimizer = strategy.prepare(
            method,
            optimizer,
            batch=sampler.batch_labelled + sampler.batch_unlabelled,
            clip=recipe.clip_norm,
        )
        self.method = method  # what `model` wraps
        self.scorer = Scorer(data.prepared, strategy, recipe.eval_batch, seed, patches)
        self.epoch, self.step, self.images_seen, self.seconds = 0, 0, 0, 0.0
        self.losses = EpochLosses(method.name, data, self.group)

    def follow(self, before: Trainer) -> None:
        """Go on counting where the training of the phase before ended."""
        self.images_seen, self.seconds, self.code = before.images_seen, before.seconds, before.code
        self.selection.load(before.selection.state())

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        return self.batches.steps_per_epoch

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that a continued run needs: tensors and plain values only.

        Called by all processes together, because sums are taken over them.
        """
        scaler = self.accelerator.scaler
        return {
            "model": self.method.training_state(),
            "ema": self.ema.state(),
            **self.strategy.optimizer_state(self.optimizer),
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "counts": self.hidden_labels.state() if self.hidden_labels else {},
            "progress": {
                "epoch": self.epoch,
                "step": self.step,
                "images_seen": self.images_seen,
                "seconds": self.seconds,
                "losses": self.losses.total(),
                "code": list(self.code),
                **self.selection.state(),
            },
        }

    def save(self) -> None:
        """Write a checkpoint of the present state; all processes call it."""
        self.group.watch.mark("checkpoint")
        self.checkpoints.save_together(self.state(), self.epoch, self.step, self.strategy)

    def resume(self) -> bool:
        """Continue from the newest sound checkpoint, if there is one.

        It may have been written by another number of processes.
        """
        newest = self.checkpoints.newest() if self.group.is_main else None
        generation, epoch, step = self.group.broadcast(*(newest or (-1, -1, -1)))
        if epoch < 0:
            return False
        device = self.accelerator.device
        # accelerate's "cpu:0" is no place that torch.load knows.
        where = device if device.type != "cpu" else "cpu"
        state = self.checkpoints.load(Place(generation, epoch, step), map_location=where)
        self.method.load_training_state(state["model"])
        self.ema.load(state["ema"])
        self.strategy.load_optimizer(self.optimizer, state)
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        progress = state["progress"]
        self.epoch, self.step = progress["epoch"], progress["step"]
        self.ema.steps = self.epoch * self.steps_per_epoch + self.step
        self.images_seen, self.seconds = progress["images_seen"], progress["seconds"]
        before = progress.get("code", ["not recorded"])  # those of earlier versions do not say it
        self.code = (*(code for code in before if code != self.host.code), self.host.code)
        self.selection.load(progress)
        self.losses.load(progress["losses"], self.group.is_main)
        if self.group.is_main and self.hidden_labels:
            self.hidden_labels.load(state["counts"])
        return True

    # -- the loop ------------------------------------------------------------------------------

    def fit(self, score: bool = True) -> Outcome:
        """Train to the end and return the reported scores.

        Args:
            score: whether they are needed where all epochs are done already, by another process; where this
                one does the last epoch they are there.
        """
        scores = raw = None
        self._tell(self.seconds)
        while self.epoch < self.schedule.epochs:
            started = time.monotonic()
            if self.step == 0:
                self._begin_epoch()
            self._train_until(self.steps_per_epoch, started)
            scores, raw = self._finish_epoch()
        if scores is None and score and self.schedule.evaluate:  # resumed after the last epoch's checkpoint
            scores = self._test_scores(self.ema.module)
            raw = self._raw_scores(scores)
        selection = self.selection
        return Outcome(scores, raw, selection.oracle, selection.val, self.images_seen, self.seconds)

    def run_steps(self, epoch: int, first: int, count: int) -> None:
        """Train some steps of an epoch and nothing else; for measurements.

        What is done once per epoch (the pool's scores, evaluation, checkpoint) is left out. The losses
        have been read when this returns.

        Args:
            epoch: the epoch, from 0.
            first: the first step.
            count: number of steps.
        """
        self.epoch, self.step = epoch, first
        self._train_until(first + count, time.monotonic())

    def _begin_epoch(self) -> None:
        self.losses.reset()
        if self.hidden_labels:
            self.hidden_labels.reset()
        if self.method.wants_pool(self.epoch):
            self._refresh()

    def _train_until(self, end: int, started: float) -> None:
        """Train from the present step to the step `end` of the epoch; time counts from `started`."""
        self.model.train()
        with self.batches.stream(self.epoch, self.step, end) as steps:
            for indices, images in steps:
                self._train_step(indices, images)
                self.step += 1
                self._tell(self.seconds + time.monotonic() - started)
                self.group.watch.mark("agreement")
                request = self.group.start_max(self._request(self.step < end))
                if request or self.step == end:  # no request may stay under way
                    request = max(request, self.group.finish_max())
                if request == LOST:
                    raise LeaseLostError(f"{self.checkpoints.directory.parent}: another process has it now")
                if request == STOP or (request == SAVE and self.step < end):  # an epoch ends with a save
                    self.seconds += time.monotonic() - started
                    started = time.monotonic()
                    self.save()
                if request == STOP:
                    raise Interrupted
        self.seconds += time.monotonic() - started
        self.losses.read()

    def _tell(self, seconds: float) -> None:
        """Tell the program around the training where it is."""
        self.host.on_step(self.schedule.first_epoch + self.epoch, self.step, self.steps_per_epoch, seconds)

    def _request(self, inside: bool) -> int:
        """What this process requests after a step: go on, save (inside an epoch), stop, or give up."""
        if self.host.is_lost():
            return LOST
        if self.host.should_stop():
            return STOP
        return SAVE if inside and self.checkpoints.due() else GO_ON

    def _train_step(self, indices: StepIndices, images: Tensor) -> None:
        self.group.watch.mark(f"{self._place()}, views")
        batch = self.batches.batch(indices, images)
        # Dropout and the like draw from torch's generator: seeding it per step keeps a continued
        # run on the same draws without storing generator states.
        torch.manual_seed(self.batches.torch_seed(self.epoch, self.step))
        self.group.watch.mark(f"{self._place()}, forward pass")
        with memory_advice(self._batch_knob()):
            self.statistics.before_step(batch, self.strategy.autocast())
            with self.strategy.autocast():
                output = self.model(batch)
            losses = torch.stack([at_least_fp32(loss) for loss in output.losses.values()])
            self.group.watch.mark(f"{self._place()}, backward pass")
            # Losses are sums over this process's samples and gradients are averaged over
            # processes: the factor makes the step follow the gradient of the sum over the global
            # batch.
            self.accelerator.backward(losses.sum() * self.group.world)
        # Reading a loss waits for the device: the last step's are read while it computes this one.
        self.losses.add(batch, list(output.losses), losses.detach())
        if self.recipe.clip_norm:
            self.strategy.clip(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        self.ema.update()
        self.statistics.after_step(output)
        if self.hidden_labels and output.pseudo_labels is not None:
            self.hidden_labels.update(batch.unlabelled, output.pseudo_labels)
        self.images_seen += batch.global_labelled + batch.global_unlabelled

    def _place(self) -> str:
        """The present step in words, which count from 1."""
        return f"epoch {self.epoch + 1} step {self.step + 1}"

    def _batch_knob(self) -> str:
        schedule = self.schedule
        name = "recipe.batch_unlabelled" if schedule.batch_unlabelled else "recipe.batch_warmup"
        size = schedule.batch_unlabelled or schedule.batch_labelled
        return f"{name} = {size} over {self.group.world} processes"

    # -- between epochs ------------------------------------------------------------------------

    def _refresh(self) -> None:
        weak = self.batches.views.weak
        self.method.refresh(self.scorer.pool(self.method, self.ema.module, self.data, weak, self.epoch))

    def _finish_epoch(self) -> tuple[Tensor | None, Tensor | None]:
        """Evaluate, report and save a finished epoch.

        Returns:
            Test scores of the EMA and of the raw weights if it was the last epoch.
        """
        epoch, steps = self.epoch, self.steps_per_epoch
        row: dict[str, Any] = {
            "epoch": self.schedule.first_epoch + epoch + 1,  # people read the rows, and count from 1
            "lr": [float(group["lr"]) for group in self.optimizer.param_groups],
            "losses": {name: value / steps for name, value in self.losses.total().items()},
            "mAP_ema": None,
            "mAP_model": None,
            "pseudo_labels": self.hidden_labels.summary() if self.hidden_labels else None,
        }
        scores = raw = None
        last = epoch + 1 == self.schedule.epochs
        if self.schedule.evaluate and (last or (epoch + 1) % self.recipe.eval_every == 0):
            scores = self._test_scores(self.ema.module)
            both = self.recipe.evaluate == "both"
            raw = self._raw_scores(scores) if both or last else None
            counted, kept = self.schedule.first_epoch + epoch, self._held_out_scores()
            row |= self.selection.consider(counted, scores, raw if both else None, kept)
        row["seconds"] = self.seconds
        self.epoch, self.step = epoch + 1, 0
        self._tell(self.seconds)
        if self.accelerator.is_main_process:
            self.host.on_epoch(row)
        self.save()
        return (scores, raw) if last else (None, None)

    def _test_scores(self, module: StepMethod) -> Tensor:
        """(n_test, K) float32, as they are stored."""
        everything = torch.arange(len(self.data.prepared.test))
        return self.scorer.scores(module.predict, "test", everything, "test", 0).float()

    def _raw_scores(self, scores: Tensor) -> Tensor:
        """Test scores of the raw weights; the given ones of the EMA where it is no average."""
        return self._test_scores(self.method.eval()) if self.recipe.ema_decay else scores

    def _held_out_scores(self) -> Tensor | None:
        """(n_v, K) scores of the held-out labelled images by the EMA weights, if there are some."""
        if not len(self.data.held_out):
            return None
        return self.scorer.scores(self.ema.module.predict, "train", self.data.held_out, "test", 0)

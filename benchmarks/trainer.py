"""The one training loop, for every step method, on `accelerate`.

The loop knows no method by name: it draws batches, makes views, asks for named losses, steps the
optimiser, keeps the moving average, and offers the pool's scores once per epoch. Everything random
is a pure function of (seed, epoch, sample), so continuing after an interruption is "set the step".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.checkpoint import Checkpoints
from benchmarks.data.cache import Prepared
from benchmarks.data.rng import uniforms
from benchmarks.data.sampler import SemiSampler
from benchmarks.data.views import make_view
from benchmarks.ema import Ema
from benchmarks.evaluation import Scorer
from benchmarks.probe import PseudoLabelProbe
from benchmarks.spec import Recipe
from methods.base import Batch, Pool, StepMethod
from methods.errors import UserError


class Diverged(RuntimeError):  # noqa: N818 - it is an outcome of a run before it is an error
    """A loss stopped being finite; carries the step and the images of its batch."""


class Interrupted(BaseException):
    """The process was asked to stop; the state has been saved."""


@dataclass(frozen=True)
class TrainData:
    """The images of a run and the labels a method may see.

    Attributes:
        prepared: the resized images.
        labelled: (n_l,) int64 positions in the training images.
        unlabelled: (n_u,) int64 positions in the training images; empty for labelled-only methods.
        targets: (n_l, K) float32 labels of the labelled images.
        held_out: (n_v,) int64 positions of the labelled images kept for the "val" rule.
    """

    prepared: Prepared
    labelled: Tensor
    unlabelled: Tensor
    targets: Tensor
    held_out: Tensor


@dataclass(frozen=True)
class Schedule:
    """How long a training runs and what its steps are made of.

    Attributes:
        epochs: epochs to run.
        schedule_epochs: epochs over which the learning rate is laid out.
        batch_labelled: labelled images per step, over all processes.
        batch_unlabelled: unlabelled images per step, over all processes; 0 for none.
        labelled_view: the strong view of the labelled images.
        evaluate: whether to score the test images along the way.
    """

    epochs: int
    schedule_epochs: int
    batch_labelled: int
    batch_unlabelled: int
    labelled_view: str
    evaluate: bool

    @classmethod
    def semi_supervised(cls, recipe: Recipe) -> Schedule:
        """The semi-supervised part of a run."""
        return cls(recipe.epochs, recipe.schedule_epochs or recipe.epochs, recipe.batch_labelled,
                   recipe.batch_unlabelled, "strong", True)  # fmt: skip

    @classmethod
    def labelled_only(cls, recipe: Recipe) -> Schedule:
        """A method that reads nothing but the labelled images."""
        return cls(recipe.labelled_epochs, recipe.labelled_epochs, recipe.batch_warmup, 0,
                   recipe.warmup_view, True)  # fmt: skip

    @classmethod
    def warmup(cls, recipe: Recipe) -> Schedule:
        """The shared warm-up; it never sees the test images."""
        return cls(recipe.warmup_epochs, recipe.warmup_epochs, recipe.batch_warmup, 0,
                   recipe.warmup_view, False)  # fmt: skip


@dataclass
class Outcome:
    """What a finished training leaves.

    Attributes:
        scores: (n_test, K) float32 of the last epoch's EMA weights; None when not evaluated.
        oracle: summary of the best evaluation on test, with "epoch" and "weights"; None likewise.
        val: summary under the held-out rule, or None when nothing was held out.
        images_seen: views that went through a training step.
        seconds: training time, over all attempts.
    """

    scores: Tensor | None
    oracle: dict[str, Any] | None
    val: dict[str, Any] | None
    images_seen: int
    seconds: float


def build_optimizer(method: StepMethod, schedule: Schedule, steps_per_epoch: int) -> tuple[
    torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler
]:  # fmt: skip
    """The optimiser and the per-step schedule that the method's hyper-parameters name."""
    groups = method.param_groups()
    if not groups or not any(group["params"] for group in groups):
        raise UserError(f"method {method.name!r} has no trainable parameter")
    optimizer: torch.optim.Optimizer
    if method.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=1e-4)
    elif method.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9)
    else:
        raise UserError(f"method {method.name!r} asks for optimiser {method.optimizer!r}; "
                        "use 'adamw' or 'sgd'")  # fmt: skip
    total = schedule.schedule_epochs * steps_per_epoch
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if method.schedule == "onecycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=[group["lr"] for group in groups], total_steps=total, pct_start=0.2
        )
    elif method.schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    elif method.schedule == "constant":
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    else:
        raise UserError(f"method {method.name!r} asks for schedule {method.schedule!r}; "
                        "use 'onecycle', 'cosine' or 'constant'")  # fmt: skip
    return optimizer, scheduler


class Trainer:
    """Trains one step method; see the module's docstring.

    Args:
        method: the method, built and warmed up.
        data: its images and labels.
        recipe: the shared recipe.
        schedule: which part of the recipe this training is.
        seed: seed of batches and views.
        accelerator: device, processes and precision.
        probe: scores the pseudo-labels against the hidden labels; None without a pool.
        summarise: (N, K) test scores to a JSON-able summary with the key "mAP".
        summarise_val: the same for the held-out labelled images.
        checkpoints: where the state is kept.
        on_epoch: called on the main process with the row of each finished epoch.
        should_stop: asked after every step; True makes the loop save and raise `Interrupted`.
    """

    def __init__(
        self,
        method: StepMethod,
        data: TrainData,
        recipe: Recipe,
        schedule: Schedule,
        seed: int,
        *,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        summarise: Callable[[Tensor], dict[str, Any]],
        summarise_val: Callable[[Tensor], dict[str, Any]],
        probe: PseudoLabelProbe | None = None,
        on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.data, self.recipe, self.schedule, self.seed = data, recipe, schedule, seed
        self.accelerator, self.checkpoints, self.probe = accelerator, checkpoints, probe
        self.summarise, self.summarise_val = summarise, summarise_val
        self.on_epoch, self.should_stop = on_epoch, should_stop
        device = accelerator.device
        method.to(device)
        self.sampler = SemiSampler(
            len(data.labelled), len(data.unlabelled) if schedule.batch_unlabelled else 0,
            schedule.batch_labelled, schedule.batch_unlabelled, seed,
        )  # fmt: skip
        optimizer, self.scheduler = build_optimizer(method, schedule, self.sampler.steps_per_epoch)
        self.ema = Ema(method, recipe.ema_decay)
        self.model, self.optimizer = accelerator.prepare(method, optimizer)
        self.method: StepMethod = accelerator.unwrap_model(self.model)
        self.targets = data.targets.to(device)
        self.scorer = Scorer(data.prepared, accelerator, recipe.eval_batch, seed)
        self.epoch, self.step, self.images_seen, self.seconds = 0, 0, 0, 0.0
        self.oracle: dict[str, Any] | None = None
        self.val: dict[str, Any] | None = None
        self.losses: dict[str, float] = {}

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that a continued run needs: tensors and plain values only."""
        scaler = self.accelerator.scaler
        return {
            "model": self.method.training_state(),
            "ema": self.ema.module.training_state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "probe": self.probe.state() if self.probe else {},
            "progress": {
                "epoch": self.epoch, "step": self.step, "images_seen": self.images_seen,
                "seconds": self.seconds, "losses": dict(self.losses),
                "oracle": self.oracle, "val": self.val,
            },
        }  # fmt: skip

    def resume(self) -> bool:
        """Continue from the newest sound checkpoint, if there is one."""
        state = self.checkpoints.load(map_location=self.accelerator.device)
        if state is None:
            return False
        self.method.load_training_state(state["model"])
        self.ema.module.load_training_state(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.probe:
            self.probe.load(state["probe"])
        progress = state["progress"]
        self.epoch, self.step = progress["epoch"], progress["step"]
        self.images_seen, self.seconds = progress["images_seen"], progress["seconds"]
        self.losses, self.oracle, self.val = (
            dict(progress["losses"]), progress["oracle"], progress["val"]
        )  # fmt: skip
        return True

    # -- the loop ------------------------------------------------------------------------------

    def fit(self) -> Outcome:
        """Train to the end and return the reported scores."""
        scores = None
        while self.epoch < self.schedule.epochs:
            self._train_epoch()
            scores = self._finish_epoch()
        if scores is None and self.schedule.evaluate:  # resumed after the last epoch's checkpoint
            scores = self._test_scores(self.ema.module)
        return Outcome(scores, self.oracle, self.val, self.images_seen, self.seconds)

    def _train_epoch(self) -> None:
        started = time.monotonic()
        if self.step == 0:
            self.losses = {}
            if self.probe:
                self.probe.reset()
            if self.method.wants_pool(self.epoch):
                self._refresh()
        self.model.train()
        total = self.sampler.steps_per_epoch
        while self.step < total:
            self._train_step()
            self.step += 1
            stop = self.should_stop()
            if stop or (self.step < total and self.checkpoints.due()):
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                self._save()
            if stop:
                raise Interrupted
        self.seconds += time.monotonic() - started

    def _train_step(self) -> None:
        batch = self._batch(self.epoch, self.step)
        # Dropout and the like draw from torch's generator: seeding it per step keeps a continued
        # run on the same draws without storing generator states.
        torch.manual_seed(self._step_seed())
        output = self.model(batch)
        total = torch.stack([loss.float() for loss in output.losses.values()]).sum()
        # Losses are sums over this process's samples and gradients are averaged over processes:
        # the factor makes the step follow the gradient of the sum over the global batch.
        self.accelerator.backward(total * self.accelerator.num_processes)
        losses = torch.stack([loss.detach().float() for loss in output.losses.values()]).tolist()
        values = dict(zip(output.losses, losses, strict=True))
        if not all(map(_finite, values.values())):
            raise Diverged(
                f"loss not finite at epoch {self.epoch} step {self.step}: "
                + ", ".join(f"{name}={value:g}" for name, value in values.items())
                + f"; labelled images {self.data.labelled[batch.labelled.cpu()].tolist()[:8]}"
                + (f", unlabelled {self.data.unlabelled[batch.unlabelled.cpu()].tolist()[:8]}"
                   if len(batch.unlabelled) else "")
            )  # fmt: skip
        for name, value in values.items():
            self.losses[name] = self.losses.get(name, 0.0) + value
        if self.recipe.clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        self.ema.update(self.method)
        if self.probe and output.pseudo_labels is not None:
            self.probe.update(batch.unlabelled, output.pseudo_labels)
        self.images_seen += batch.global_labelled + batch.global_unlabelled

    def _step_seed(self) -> int:
        draw = uniforms(self.seed, self.epoch, torch.tensor([self.step]).numpy(), "torch", 1)
        return int(draw[0, 0] * 2**52) + self.accelerator.process_index

    def _batch(self, epoch: int, step: int) -> Batch:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        positions, pool = self.sampler.batch(epoch, step)
        # A labelled image can come up more than once in an epoch: its draws are numbered by the
        # pass over the labelled images, so that each time is another view.
        passes = torch.from_numpy(self.sampler.passes(epoch, step))
        mine, my_pool = map(torch.from_numpy, (
            self.sampler.shard(positions, rank, world), self.sampler.shard(pool, rank, world)
        ))  # fmt: skip
        my_passes = passes[rank::world]
        device = self.accelerator.device
        weak_l, strong_l = self._views(
            self.data.labelled[mine], my_passes, 0, self.schedule.labelled_view
        )
        if self.schedule.batch_unlabelled:
            weak_u, strong_u = self._views(
                self.data.unlabelled[my_pool], torch.zeros_like(my_pool), epoch, "strong"
            )
        else:
            weak_u, strong_u = weak_l[:0], strong_l[:0]
        return Batch(
            epoch=epoch, step=step, labelled=mine.to(device), weak_labelled=weak_l,
            strong_labelled=strong_l, targets=self.targets[mine.to(device)],
            unlabelled=my_pool.to(device), weak_unlabelled=weak_u, strong_unlabelled=strong_u,
            global_labelled=len(positions), global_unlabelled=len(pool),
        )  # fmt: skip

    def _views(
        self, indices: Tensor, passes: Tensor, epoch: int, strong: str
    ) -> tuple[Tensor, Tensor]:
        images = self.data.prepared.images("train", indices).to(
            self.accelerator.device, non_blocking=True
        )
        counters = indices + passes * len(self.data.prepared.train)
        weak, hard = (
            make_view(images, counters, policy=policy, seed=self.seed, epoch=epoch)
            for policy in ("weak", strong)
        )
        return weak, hard

    # -- between epochs ------------------------------------------------------------------------

    def _refresh(self) -> None:
        scores = self.scorer.scores(
            self.ema.module.score_pool, "train", self.data.unlabelled, "weak", self.epoch
        ).to(self.accelerator.device)
        classes = self.targets.shape[1]
        self.method.refresh(Pool(self.epoch, scores[:, :classes], scores[:, classes:]))

    def _test_scores(self, module: StepMethod) -> Tensor:
        everything = torch.arange(len(self.data.prepared.test))
        return self.scorer.scores(module.predict, "test", everything, "test", 0)

    def _finish_epoch(self) -> Tensor | None:
        epoch, steps = self.epoch, self.sampler.steps_per_epoch
        row: dict[str, Any] = {
            "epoch": epoch, "lr": [float(group["lr"]) for group in self.optimizer.param_groups],
            "losses": {name: value / steps for name, value in self.losses.items()},
            "mAP_ema": None, "mAP_model": None,
            "pseudo_labels": self.probe.summary() if self.probe else None,
        }  # fmt: skip
        scores = None
        last = epoch + 1 == self.schedule.epochs
        if self.schedule.evaluate and (last or (epoch + 1) % self.recipe.eval_every == 0):
            scores = self._evaluate(row, epoch)
        row["seconds"] = self.seconds
        self.epoch, self.step = epoch + 1, 0
        if self.accelerator.is_main_process:
            self.on_epoch(row)
        self._save()
        return scores if last else None

    def _evaluate(self, row: dict[str, Any], epoch: int) -> Tensor:
        scores = self._test_scores(self.ema.module)
        summary = self.summarise(scores)
        row["mAP_ema"] = summary["mAP"]
        candidates = [("ema", summary)]
        if self.recipe.evaluate == "both":
            self.method.eval()
            candidates.append(("model", self.summarise(self._test_scores(self.method))))
            row["mAP_model"] = candidates[-1][1]["mAP"]
        for weights, found in candidates:
            if self.oracle is None or found["mAP"] > self.oracle["mAP"]:
                self.oracle = {**found, "epoch": epoch, "weights": weights}
        if len(self.data.held_out):
            held = self.scorer.scores(
                self.ema.module.predict, "train", self.data.held_out, "test", 0
            )
            score = self.summarise_val(held)["mAP"]
            row["mAP_val"] = score
            if self.val is None or score > self.val["val_mAP"]:
                self.val = {**summary, "epoch": epoch, "val_mAP": score}
        return scores

    def _save(self) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.checkpoints.save(self.state(), self.epoch, self.step)
        self.accelerator.wait_for_everyone()


def _finite(value: float) -> bool:
    return value - value == 0.0

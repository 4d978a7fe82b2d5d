"""The one training loop, for every step method, on `accelerate`.

The loop knows no method by name: it draws batches, makes views, asks for named losses, steps the
optimiser, keeps the moving average, and offers the pool's scores once per epoch. Everything random
is a pure function of (seed, epoch, sample), so continuing after an interruption is "set the step".
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.data.loader import Loader
from benchmarks.data.rng import uniforms
from benchmarks.data.sampler import SemiSampler
from benchmarks.data.views.views import FAMILIES, make_view
from benchmarks.plan.recipe import Recipe
from benchmarks.training.checkpoint import Checkpoints
from benchmarks.training.ema import Ema
from benchmarks.training.hidden_labels import PseudoLabelProbe
from benchmarks.training.schedule import Outcome, Schedule, TrainData, build_optimizer
from benchmarks.training.scoring import Scorer, memory_advice
from benchmarks.training.strategy import Strategy
from methods.base import Batch, Pool, StepMethod, at_least_fp32

GO_ON, SAVE, STOP = range(3)
"""What a process wishes after a step; the largest wish of all is done."""


class Diverged(RuntimeError):  # noqa: N818 - it is an outcome of a run before it is an error
    """A loss stopped being finite; carries the step and the images of its batch."""


class Interrupted(BaseException):
    """The process was asked to stop; the state has been saved."""


@dataclass(frozen=True)
class Drawn:
    """This process's share of a step's batch, before its images are there.

    Attributes:
        labelled: (b_l,) int64 positions in the labelled set.
        passes: (b_l,) int64, which pass over the labelled images each belongs to.
        unlabelled: (b_u,) int64 positions in the pool.
        global_labelled: labelled images of the step over all processes.
        global_unlabelled: unlabelled images likewise.
    """

    labelled: Tensor
    passes: Tensor
    unlabelled: Tensor
    global_labelled: int
    global_unlabelled: int


class Trainer:
    """Trains one step method; see the module's docstring.

    Args:
        method: the method, built and warmed up.
        data: its images and labels.
        recipe: the shared recipe.
        schedule: which part of the recipe this training is.
        seed: seed of batches and views.
        strategy: device, processes and precision.
        probe: scores the pseudo-labels against the hidden labels; None without a pool.
        summarise: (N, K) test scores to a JSON-able summary with the key "mAP".
        summarise_val: the same for the held-out labelled images.
        checkpoints: where the state is kept.
        on_epoch: called on the main process with the row of each finished epoch.
        on_step: called with epoch, step, steps of an epoch and training time in seconds before the
            first step, after every step and after every epoch; it must take no time.
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
        strategy: Strategy,
        checkpoints: Checkpoints,
        summarise: Callable[[Tensor], dict[str, Any]],
        summarise_val: Callable[[Tensor], dict[str, Any]],
        probe: PseudoLabelProbe | None = None,
        on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
        on_step: Callable[[int, int, int, float], None] = lambda epoch, step, steps, seconds: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.data, self.recipe, self.schedule, self.seed = data, recipe, schedule, seed
        self.strategy, self.group = strategy, strategy.group
        self.accelerator = strategy.accelerator
        self.checkpoints, self.probe = checkpoints, probe
        self.summarise, self.summarise_val = summarise, summarise_val
        self.on_epoch, self.on_step, self.should_stop = on_epoch, on_step, should_stop
        device = self.accelerator.device
        method.to(device, strategy.dtype)
        self.sampler = SemiSampler(
            len(data.labelled),
            len(data.unlabelled) if schedule.batch_unlabelled else 0,
            schedule.batch_labelled,
            schedule.batch_unlabelled,
            seed,
        )
        optimizer, self.scheduler = build_optimizer(method, schedule, self.sampler.steps_per_epoch)
        self.ema = Ema(method, recipe.ema_decay)
        self.model, self.optimizer = strategy.prepare(
            method,
            optimizer,
            batch=self.sampler.batch_labelled + self.sampler.batch_unlabelled,
            clip=recipe.clip_norm,
        )
        self.method = method  # what `model` wraps
        self.targets = data.targets.to(device, strategy.dtype)
        self.views = FAMILIES[recipe.views]
        self.loader = Loader(data.prepared, device)
        self._drawn: deque[Drawn] = deque()
        self.scorer = Scorer(data.prepared, strategy, recipe.eval_batch, seed)
        self.epoch, self.step, self.images_seen, self.seconds = 0, 0, 0, 0.0
        self.oracle: dict[str, Any] | None = None
        self.val: dict[str, Any] | None = None
        self.losses: dict[str, float] = {}  # sums over this process's part of the epoch
        self._unread: tuple[int, Tensor, Tensor, list[str], Tensor] | None = None

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that a continued run needs: tensors and plain values only.

        Called by all processes together, because sums are taken over them.
        """
        scaler = self.accelerator.scaler
        return {
            "model": self.method.training_state(),
            "ema": self.ema.module.training_state(),
            **self.strategy.optimizer_state(self.optimizer),
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "counts": self.probe.state() if self.probe else {},
            "progress": {
                "epoch": self.epoch,
                "step": self.step,
                "images_seen": self.images_seen,
                "seconds": self.seconds,
                "losses": self._total_losses(),
                "oracle": self.oracle,
                "val": self.val,
            },
        }

    def resume(self) -> bool:
        """Continue from the newest sound checkpoint, if there is one.

        It may have been written by another number of processes.
        """
        found = self.checkpoints.newest() if self.group.is_main else None
        epoch, step = self.group.told(*(found or (-1, -1)))
        if epoch < 0:
            return False
        device = self.accelerator.device
        # accelerate's "cpu:0" is no place that torch.load knows.
        place = device if device.type != "cpu" else "cpu"
        state = self.checkpoints.load(epoch, step, map_location=place)
        self.method.load_training_state(state["model"])
        self.ema.module.load_training_state(state["ema"])
        self.strategy.load_optimizer(self.optimizer, state)
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        progress = state["progress"]
        self.epoch, self.step = progress["epoch"], progress["step"]
        self.images_seen, self.seconds = progress["images_seen"], progress["seconds"]
        self.oracle, self.val = progress["oracle"], progress["val"]
        # Sums over all processes: one of them goes on with them, the others from nothing.
        self.losses = dict.fromkeys(progress["losses"], 0.0)
        if self.group.is_main:
            self.losses |= progress["losses"]
            if self.probe:
                self.probe.load(state["counts"])
        return True

    # -- the loop ------------------------------------------------------------------------------

    def fit(self) -> Outcome:
        """Train to the end and return the reported scores."""
        scores = None
        self.on_step(self.epoch, self.step, self.sampler.steps_per_epoch, self.seconds)
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
        self._drawn.clear()
        images = self.loader.stream("train", self._positions(self.epoch, self.step, total))
        with closing(images):  # type: ignore[type-var] # an iterator, always with `close` here
            self._train_steps(images, total, started)
        self._read_losses()

    def _train_steps(self, images: Iterator[Tensor], total: int, started: float) -> None:
        while self.step < total:
            self._train_step(next(images))
            self.step += 1
            self.on_step(self.epoch, self.step, total, self.seconds + time.monotonic() - started)
            self.group.at("agreement")
            wish = self.group.agree_soon(self._wish(self.step < total))
            if wish or self.step == total:  # nothing is left on its way
                wish = max(wish, self.group.settle())
            if wish == STOP or (wish == SAVE and self.step < total):  # an epoch ends with a save
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                self._save()
            if wish == STOP:
                raise Interrupted
        self.seconds += time.monotonic() - started

    def _wish(self, inside: bool) -> int:
        """What this process would do after a step: go on, save (inside an epoch), or stop."""
        if self.should_stop():
            return STOP
        return SAVE if inside and self.checkpoints.due() else GO_ON

    def _train_step(self, images: Tensor) -> None:
        self.group.at(f"epoch {self.epoch} step {self.step}, views")
        batch = self._batch(images, self._drawn.popleft())
        # Dropout and the like draw from torch's generator: seeding it per step keeps a continued
        # run on the same draws without storing generator states.
        torch.manual_seed(self._step_seed())
        self.group.at(f"epoch {self.epoch} step {self.step}, forward pass")
        with memory_advice(self._batch_knob()):
            with self.strategy.autocast():
                output = self.model(batch)
            losses = torch.stack([at_least_fp32(loss) for loss in output.losses.values()])
            self.group.at(f"epoch {self.epoch} step {self.step}, backward pass")
            # Losses are sums over this process's samples and gradients are averaged over
            # processes: the factor makes the step follow the gradient of the sum over the global
            # batch.
            self.accelerator.backward(losses.sum() * self.group.world)
        # Reading a loss waits for the device: the last step's are read while it computes this one.
        self._read_losses()
        names = list(output.losses)
        self._unread = (self.step, batch.labelled, batch.unlabelled, names, losses.detach())
        if self.recipe.clip_norm:
            self.strategy.clip(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        self.ema.update()
        if self.probe and output.pseudo_labels is not None:
            self.probe.update(batch.unlabelled, output.pseudo_labels)
        self.images_seen += batch.global_labelled + batch.global_unlabelled

    def _read_losses(self) -> None:
        """Add up the losses of the last step; stop the run if one is not finite."""
        if self._unread is None:
            return
        step, labelled, unlabelled, names, losses = self._unread
        self._unread = None
        values = dict(zip(names, losses.tolist(), strict=True))
        if not all(map(_finite, values.values())):
            raise Diverged(
                f"loss of {self.method.name} not finite at epoch {self.epoch} step {step}: "
                + ", ".join(f"{name}={value:g}" for name, value in values.items())
                + f"; labelled images {self.data.labelled[labelled.cpu()].tolist()}"
                + (
                    f", unlabelled {self.data.unlabelled[unlabelled.cpu()].tolist()}"
                    if len(unlabelled)
                    else ""
                )
            )
        for name, value in values.items():
            self.losses[name] = self.losses.get(name, 0.0) + value

    def _total_losses(self) -> dict[str, float]:
        """The epoch's losses so far, summed over processes; they go on from the first one's."""
        self._read_losses()
        if self.group.world == 1 or not self.losses:
            return dict(self.losses)
        device = self.accelerator.device
        own = torch.tensor(list(self.losses.values()), dtype=torch.float64, device=device)
        return dict(zip(self.losses, self.accelerator.reduce(own).tolist(), strict=True))

    def _batch_knob(self) -> str:
        schedule = self.schedule
        name = "recipe.batch_unlabelled" if schedule.batch_unlabelled else "recipe.batch_warmup"
        size = schedule.batch_unlabelled or schedule.batch_labelled
        return f"{name} = {size} over {self.group.world} processes"

    def _step_seed(self) -> int:
        draw = uniforms(self.seed, self.epoch, torch.tensor([self.step]).numpy(), "torch", 1)
        return int(draw[0, 0] * 2**52) + self.group.rank

    def _positions(self, epoch: int, first: int, total: int) -> Iterator[Tensor]:
        """The images of the steps ahead, labelled before unlabelled, for the loader.

        What was drawn for each step is left in `_drawn`, because the loader runs ahead.
        """
        rank, world = self.group.rank, self.group.world
        for step in range(first, total):
            positions, pool = self.sampler.batch(epoch, step)
            # A labelled image can come up more than once in an epoch: its draws are numbered by
            # the pass over the labelled images, so that each time is another view.
            passes = self.sampler.passes(epoch, step)
            mine, my_pool, my_passes = (
                torch.from_numpy(self.sampler.shard(part, rank, world)) for part in (positions, pool, passes)
            )
            self._drawn.append(Drawn(mine, my_passes, my_pool, len(positions), len(pool)))
            yield torch.cat((self.data.labelled[mine], self.data.unlabelled[my_pool]))

    def _batch(self, images: Tensor, drawn: Drawn) -> Batch:
        device, count = self.accelerator.device, len(drawn.labelled)
        labelled = self.data.labelled[drawn.labelled]
        counters = labelled + drawn.passes * len(self.data.prepared.train)
        weak_l, strong_l = (
            self._view(images[:count], counters, policy, 0)
            for policy in (self.views.weak, self.schedule.labelled_view)
        )
        if self.schedule.batch_unlabelled:
            counters = self.data.unlabelled[drawn.unlabelled]
            weak_u, strong_u = (
                self._view(images[count:], counters, policy, self.epoch)
                for policy in (self.views.weak, self.views.strong)
            )
        else:
            weak_u, strong_u = weak_l[:0], strong_l[:0]
        mine = drawn.labelled.to(device)
        return Batch(
            epoch=self.epoch,
            step=self.step,
            labelled=mine,
            weak_labelled=weak_l,
            strong_labelled=strong_l,
            targets=self.targets[mine],
            unlabelled=drawn.unlabelled.to(device),
            weak_unlabelled=weak_u,
            strong_unlabelled=strong_u,
            global_labelled=drawn.global_labelled,
            global_unlabelled=drawn.global_unlabelled,
        )

    def _view(self, images: Tensor, counters: Tensor, policy: str, epoch: int) -> Tensor:
        view = make_view(images, counters, policy=policy, seed=self.seed, epoch=epoch)
        return view.to(self.strategy.dtype)

    # -- between epochs ------------------------------------------------------------------------

    def _refresh(self) -> None:
        scores = self.scorer.scores(
            self.ema.module.score_pool, "train", self.data.unlabelled, self.views.weak, self.epoch
        ).to(self.accelerator.device)
        classes = self.targets.shape[1]
        self.method.refresh(Pool(self.epoch, scores[:, :classes], scores[:, classes:]))

    def _test_scores(self, module: StepMethod) -> Tensor:
        """(n_test, K) float32, as they are stored."""
        everything = torch.arange(len(self.data.prepared.test))
        return self.scorer.scores(module.predict, "test", everything, "test", 0).float()

    def _finish_epoch(self) -> Tensor | None:
        epoch, steps = self.epoch, self.sampler.steps_per_epoch
        row: dict[str, Any] = {
            "epoch": epoch,
            "lr": [float(group["lr"]) for group in self.optimizer.param_groups],
            "losses": {name: value / steps for name, value in self._total_losses().items()},
            "mAP_ema": None,
            "mAP_model": None,
            "pseudo_labels": self.probe.summary() if self.probe else None,
        }
        scores = None
        last = epoch + 1 == self.schedule.epochs
        if self.schedule.evaluate and (last or (epoch + 1) % self.recipe.eval_every == 0):
            scores = self._evaluate(row, epoch)
        row["seconds"] = self.seconds
        self.epoch, self.step = epoch + 1, 0
        self.on_step(self.epoch, self.step, steps, self.seconds)
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
            held = self.scorer.scores(self.ema.module.predict, "train", self.data.held_out, "test", 0)
            score = self.summarise_val(held)["mAP"]
            row["mAP_val"] = score
            if self.val is None or score > self.val["val_mAP"]:
                self.val = {**summary, "epoch": epoch, "val_mAP": score}
        return scores

    def _save(self) -> None:
        self.group.at("checkpoint")
        state = self.state()
        self._check_agreement(state)
        place = (self.epoch, self.step)
        if self.group.is_main:
            self.checkpoints.stage(*place)
            self.checkpoints.write(state, *place)
        if self.strategy.sharded and self.group.world > 1:
            self.accelerator.wait_for_everyone()
            if not self.group.is_main:
                share = {name: value for name, value in state.items() if name.startswith("share.")}
                self.checkpoints.write(share, *place)
            self.accelerator.wait_for_everyone()
        if self.group.is_main:
            self.checkpoints.seal(*place)
        self.accelerator.wait_for_everyone()

    def _check_agreement(self, state: dict[str, Any]) -> None:
        """Weights, buffers and moving average are the same on every process, to the last bit."""
        if self.group.world == 1:
            return
        names = [f"{part}.{name}" for part in ("model", "ema") for name in state[part]]
        values = [value for part in ("model", "ema") for value in state[part].values()]
        differing = self.group.differing(fingerprints(values))
        if differing:
            rank, k = differing[0]
            raise RuntimeError(
                f"rank {rank} has another {names[k]} than rank 0 at epoch {self.epoch} step "
                f"{self.step} ({len(differing)} tensors differ): the processes have come apart"
            )


def fingerprints(values: list[Tensor]) -> Tensor:
    """(n,) int64 on the CPU, one per tensor: the sum of its bytes, four at a time."""
    sums = []
    for value in values:
        flat = value.detach().contiguous().flatten().view(torch.uint8)
        words = flat.view(torch.int32) if len(flat) % 4 == 0 else flat
        sums.append(words.sum(dtype=torch.int64))
    return torch.stack(sums).cpu() if sums else torch.zeros(0, dtype=torch.int64)


def _finite(value: float) -> bool:
    return value - value == 0.0

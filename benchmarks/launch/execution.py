"""Executes one run or one shared stage in this process."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

import methods
from benchmarks.launch.failures import GroupBroken, Hung, failure
from benchmarks.plan.jobs import Job, Stage, warmup
from benchmarks.provenance import device_name, now, provenance
from benchmarks.status.progress_file import ProgressFile
from benchmarks.training.checkpoint import Checkpoints
from benchmarks.training.group import lost_peer
from benchmarks.training.hidden_labels import PseudoLabelProbe
from benchmarks.training.metrics import summary
from benchmarks.training.schedule import Outcome, Schedule, TrainData
from benchmarks.training.scoring import Scorer
from benchmarks.training.strategy import Strategy
from benchmarks.training.trainer import Trainer
from benchmarks.workspace import Workspace
from methods.backbones import load_backbone
from methods.backbones.base import Backbone
from methods.base import FitMethod, StepMethod, Task
from results.errors import LeaseLostError
from results.files import atomic_write_bytes, atomic_write_json
from results.lease import Share
from results.store import Lease
from slurm.protocol import EXIT_BROKEN, EXIT_LOST


@dataclass
class Options:
    """How runs are executed; nothing here changes a number.

    Attributes:
        checkpoint_seconds: time between checkpoints inside an epoch; 0 for every step.
        launch: names the call that this process serves; errors of earlier calls are retried.
        report: called with one line of progress.
        should_stop: asked after every step; True makes a training save and stop.
        hang_seconds: time after which a group of processes that does not move counts as hung.
    """

    checkpoint_seconds: float = 30.0
    hang_seconds: float = 600.0
    launch: str = ""
    report: Callable[[str], None] = lambda line: None
    should_stop: Callable[[], bool] = lambda: False


def task_of(job: Job, unlabelled: int) -> Task:
    """What the method of a run is told."""
    dataset = job.prepared.dataset
    labels = torch.from_numpy(dataset.train.labels[job.split.labelled].astype(np.float32))
    return Task(dataset.classes, dataset.prompts, labels, unlabelled, job.spec.seed)


def summariser(job: Job) -> Callable[[Tensor], dict[str, Any]]:
    """Test scores to the stored summary; frequencies for head and tail come from all labels."""
    dataset = job.prepared.dataset
    counts = dataset.train.labels.sum(axis=0, dtype=np.int64)
    scale = methods.get(job.spec.method).score_scale
    return lambda scores: summary(scores, dataset.test.labels, counts, scale=scale, classes=dataset.classes)


class Execution:
    """One process's way through runs that share precision and strategy.

    In a group of processes the first one claims runs and tells the others, who `join`.

    Args:
        workspace: where results go.
        strategy: processes, device and precision; one per process, because accelerate keeps them in
            process-wide state.
        options: see `Options`.
    """

    def __init__(self, workspace: Workspace, strategy: Strategy, options: Options) -> None:
        self.workspace, self.strategy, self.options = workspace, strategy, options
        self.group, self.accelerator = strategy.group, strategy.accelerator

    # -- runs ----------------------------------------------------------------------------------

    def run(self, job: Job, number: int = 0) -> str:
        """Execute a run whose stages are done; called in the group's first process.

        Args:
            job: the run.
            number: what tells the group's other processes which run it is.

        Returns:
            "done", "failed" (recorded in the run's directory), or "busy" (another process has it).
        """
        store, directory = self.workspace.store, job.directory(self.workspace)
        if store.state(directory).kind == "done":
            return "done"
        lease = store.claim(directory, job.spec.record())
        if lease is None:
            return "busy"
        with lease:
            if store.state(directory).kind == "done":  # finished while we waited for the lease
                return "done"
            if job.cell.kind == "fit":  # small: the other processes wait
                return self._guarded(job.spec.title, directory, lease, lambda: self._fit(job, lease))
            self.group.told(number, lease.generation)
            return self._guarded(
                job.spec.title, directory, lease, lambda: self._train(job, lease), together=True
            )

    def join(self, stage: Stage | None, job: Job, generation: int) -> None:
        """Take part in what the group's first process has claimed."""
        place = job if stage is None else stage
        directory = place.directory(self.workspace)
        share = Share(directory, generation)
        work: Callable[[], None]
        if stage is None:
            title, work = job.spec.title, lambda: self._train(job, share)
        else:
            title, work = stage.kind, lambda: self._stage(stage, directory, job)
        self._guarded(title, directory, share, work, together=True)

    def _guarded(
        self,
        title: str,
        directory: Path,
        lease: Lease | Share,
        work: Callable[[], None],
        together: bool = False,
    ) -> str:
        """Do a piece of work; an error is recorded with it, and the others go on."""
        try:
            if together:
                limit = self.options.hang_seconds
                hung = self._hung(title, directory, lease)
                with self.group.watched(directory, lease.generation, limit, hung):
                    work()
            else:
                work()
        except Exception as error:
            alone = self.group.world == 1 or not together
            if not alone and lost_peer(error):  # the run is not to blame: it is continued
                self.options.report(f"a process of the group is gone: {title}")
                raise GroupBroken(EXIT_LOST) from None
            self._record(title, directory, lease, error)
            if not alone:
                raise GroupBroken(EXIT_BROKEN) from None
            return "failed"
        return "done"

    def _record(self, title: str, directory: Path, lease: Lease | Share, error: Exception) -> None:
        known = self.group.world == 1 or isinstance(error, Hung)
        rank = "" if known else f"rank {self.group.rank}: "
        line = f"{rank}{type(error).__name__}: {error}"
        try:
            record = failure(error, self.options.launch, rank)
            if self.workspace.store.write_failure(directory, lease, record):
                self.options.report(f"failed: {title}: {line}")
        except LeaseLostError:
            self.options.report(f"given up, another process took it over: {title}: {line}")
        except OSError as full:  # no room for the record either: the run counts as dead
            self.options.report(f"failed: {title}: {line}; it cannot be recorded: {full}")

    def _hung(self, title: str, directory: Path, lease: Lease | Share) -> Callable[[str], None]:
        def hung(line: str) -> None:
            time.sleep(self.group.rank)  # all ranks see it at once; one of them tells
            self._record(title, directory, lease, Hung(line))
            # The main thread may wait in a collective for ever: only the process can end it.
            os._exit(EXIT_BROKEN)

        return hung

    def _fit(self, job: Job, lease: Lease) -> None:
        started = time.monotonic()
        stage = job.stages[0].directory(self.workspace)
        features = {split: torch.from_numpy(np.load(stage / f"{split}.npy")) for split in ("train", "test")}
        backbone = self._backbone(job)
        method = methods.create(job.spec.method, backbone=backbone, task=task_of(job, 0), **job.spec.hyper)
        assert isinstance(method, FitMethod)  # what the kind of the cell says
        method.fit(features["train"][job.split.labelled], job.spec.seed)
        scores = method.predict(features["test"]).cpu()
        summarise = summariser(job)
        val = None
        if len(job.split.held_out):
            val = summarise(scores)
        metrics = {"last": summarise(scores), "val": val, "oracle": None}
        seconds = time.monotonic() - started
        images = len(job.split.labelled)
        self._write(job, lease, scores, metrics, seconds=seconds, trainable=0, images=images)

    def _train(self, job: Job, lease: Lease | Share) -> None:
        directory, recipe = job.directory(self.workspace), job.cell.recipe
        semi = job.cell.kind == "semi"
        pool = job.split.unlabelled if semi else job.split.unlabelled[:0]
        method = methods.create(
            job.spec.method,
            backbone=self._backbone(job),
            task=task_of(job, len(pool)),
            **job.spec.hyper,
        )
        assert isinstance(method, StepMethod)  # what the kind of the cell says
        self._start(method, job)
        checkpoints = Checkpoints(directory / "checkpoints", self.options.checkpoint_seconds)
        data = self._data(job, pool)
        probe = None
        if semi:
            hidden = torch.from_numpy(job.prepared.dataset.train.labels[pool])
            probe = PseudoLabelProbe(hidden, self.accelerator)
        store = self.workspace.store
        schedule = Schedule.semi_supervised(recipe) if semi else Schedule.labelled_only(recipe)
        place = ProgressFile(directory, job.spec.title, schedule.epochs)
        trainer = Trainer(
            method,
            data,
            recipe,
            schedule,
            job.spec.seed,
            strategy=self.strategy,
            checkpoints=checkpoints,
            probe=probe,
            summarise=summariser(job),
            summarise_val=self._val_summariser(job),
            on_epoch=lambda row: self._epoch(job, directory, row),
            on_step=place if self.group.is_main else _unseen,
            should_stop=self.options.should_stop,
        )
        trainer.resume()
        if self.group.is_main:
            store.truncate_epochs(directory, trainer.epoch)
        outcome = trainer.fit()
        if isinstance(lease, Lease):
            self._finish(job, lease, outcome, trainer)
            checkpoints.clear()
            place.clear()

    def _start(self, method: StepMethod, job: Job) -> None:
        """Warm-up weights where the method has a warm-up, else its own starting values."""
        if job.stages:
            file = job.stages[0].directory(self.workspace) / f"{job.cell.recipe.warmup_weights}.safetensors"
            method.load_warmup(safetensors.torch.load_file(file))
        else:
            self._calibrate(method, job)

    def _calibrate(self, method: StepMethod, job: Job) -> None:
        """Let a method that starts from scratch set its biases on the labelled images."""
        method.to(self.accelerator.device, self.strategy.dtype).eval()
        scorer = Scorer(job.prepared, self.strategy, job.cell.recipe.eval_batch, job.spec.seed)
        labelled = torch.from_numpy(job.split.labelled)
        logits = scorer.scores(method.predict, "train", labelled, "test", 0)
        method.calibrate(logits.to(self.accelerator.device))

    def _epoch(self, job: Job, directory: Path, row: dict[str, Any]) -> None:
        self.workspace.store.append_epoch(directory, row)
        quality = row["pseudo_labels"]
        score = row["mAP_ema"]
        self.options.report(
            f"{job.spec.title} epoch {row['epoch'] + 1}"
            + (f" mAP {score:.2f}" if score is not None else "")
            + (f" pseudo-label OF1 {quality['OF1']:.1f}" if quality and quality["OF1"] else "")
        )

    def _finish(self, job: Job, lease: Lease, outcome: Outcome, trainer: Trainer) -> None:
        assert outcome.scores is not None  # every schedule of a run evaluates
        metrics = {"last": summariser(job)(outcome.scores), "val": outcome.val, "oracle": outcome.oracle}
        trainable = sum(value.numel() for value in trainer.method.parameters() if value.requires_grad)
        self._write(
            job,
            lease,
            outcome.scores,
            metrics,
            seconds=outcome.seconds,
            trainable=trainable,
            images=outcome.images_seen,
        )

    def _write(
        self,
        job: Job,
        lease: Lease,
        scores: Tensor,
        metrics: dict[str, Any],
        *,
        seconds: float,
        trainable: int,
        images: int,
    ) -> None:
        dataset = job.prepared.dataset
        values = np.ascontiguousarray(scores.numpy(), dtype=np.float32)
        self.workspace.store.write_result(
            job.directory(self.workspace),
            lease,
            {
                "run_id": job.spec.run_id,
                "spec": job.spec.record(),
                "metrics": metrics,
                "classes": list(dataset.classes),
                "cost": {
                    "seconds": seconds,
                    "device": device_name(self.accelerator.device),
                    "trainable_parameters": trainable,
                    "images_seen": images,
                },
                "split": {
                    "labelled": len(job.split.labelled),
                    "held_out": len(job.split.held_out),
                    "unlabelled": len(job.split.unlabelled),
                },
                "predictions_sha256": hashlib.sha256(values.tobytes()).hexdigest(),
                "provenance": {
                    **provenance(self.accelerator.device, self.group.world, self.strategy.name),
                    **({"method_code": job.code.record()} if job.code else {}),
                },
                "finished": now(),
            },
            {"scores": values},
        )
        self.options.report(f"done: {job.spec.title} mAP {metrics['last']['mAP']:.2f}")

    # -- stages --------------------------------------------------------------------------------

    def stage(self, stage: Stage, job: Job, number: int = 0) -> str:
        """Compute a shared stage with the data of a run that needs it: "done", "failed", "busy"."""
        directory = stage.directory(self.workspace)
        if stage.is_done(self.workspace):
            return "done"
        lease = self.workspace.store.claim(directory, {"stage": stage.kind, "key": stage.key})
        if lease is None:
            return "busy"
        with lease:
            if stage.is_done(self.workspace):
                return "done"
            self.group.told(number, lease.generation)
            title = _stage_title(stage.kind, job)
            found = self._guarded(
                title, directory, lease, lambda: self._stage(stage, directory, job), together=True
            )
            if found == "done":
                self.options.report(f"done: {title}")
        return found

    def _stage(self, stage: Stage, directory: Path, job: Job) -> None:
        started = time.monotonic()
        if stage.kind == "features":
            self._features(directory, job)
        else:
            self._warmup(directory, job)
        if self.group.is_main:
            atomic_write_json(
                directory / "stage.json",
                {
                    "kind": stage.kind,
                    "key": stage.key,
                    "seconds": time.monotonic() - started,
                    "device": device_name(self.accelerator.device),
                },
            )

    def _features(self, directory: Path, job: Job) -> None:
        backbone = self._backbone(job).to(self.accelerator.device, self.strategy.dtype).eval()
        scorer = Scorer(job.prepared, self.strategy, job.cell.recipe.eval_batch, 0)
        for split in ("train", "test"):
            everything = torch.arange(len(getattr(job.prepared, split)))
            found = scorer.scores(backbone.features, split, everything, "test", 0)
            if self.group.is_main:
                save_array(directory / f"{split}.npy", found.float().numpy())

    def _warmup(self, directory: Path, job: Job) -> None:
        found = warmup(job.cell)
        assert found is not None  # the stage exists because the method has a warm-up
        name, hyper = found
        method = methods.create(
            name, backbone=self._backbone(job), task=task_of(job, 0), **dataclasses.asdict(hyper)
        )
        assert isinstance(method, StepMethod)  # only these name a warm-up
        self._calibrate(method, job)
        checkpoints = Checkpoints(directory / "checkpoints", self.options.checkpoint_seconds)
        recipe = job.cell.recipe
        schedule = Schedule.warmup(recipe)
        place = ProgressFile(directory, _stage_title("warmup", job), schedule.epochs)
        trainer = Trainer(
            method,
            self._data(job, job.split.unlabelled[:0]),
            recipe,
            schedule,
            job.spec.seed,
            strategy=self.strategy,
            checkpoints=checkpoints,
            summarise=summariser(job),
            summarise_val=self._val_summariser(job),
            on_step=place if self.group.is_main else _unseen,
            should_stop=self.options.should_stop,
        )
        trainer.resume()
        trainer.fit()
        if not self.group.is_main:
            return
        for weights, module in (("model", trainer.method), ("ema", trainer.ema.module)):
            state = {name: value.contiguous().cpu() for name, value in module.training_state().items()}
            atomic_write_bytes(directory / f"{weights}.safetensors", safetensors.torch.save(state))
        checkpoints.clear()
        place.clear()

    # -- parts ---------------------------------------------------------------------------------

    def _backbone(self, job: Job) -> Backbone:
        return load_backbone(job.cell.backbone, job.cell.recipe.resolution)

    def _data(self, job: Job, pool: np.ndarray) -> TrainData:
        split = job.split
        return TrainData(
            job.prepared,
            torch.from_numpy(split.labelled),
            torch.from_numpy(pool),
            task_of(job, 0).labels,
            torch.from_numpy(split.held_out),
        )

    def _val_summariser(self, job: Job) -> Callable[[Tensor], dict[str, Any]]:
        dataset, held = job.prepared.dataset, job.split.held_out
        counts = dataset.train.labels.sum(axis=0, dtype=np.int64)
        scale = methods.get(job.spec.method).score_scale
        return lambda scores: summary(
            scores, dataset.train.labels[held], counts, scale=scale, classes=dataset.classes
        )


def _stage_title(kind: str, job: Job) -> str:
    """A stage for people, by the run that it is computed for."""
    return f"{kind} for {job.spec.dataset} p={job.spec.ratio:g} seed={job.spec.seed}"


def _unseen(epoch: int, step: int, steps: int, seconds: float) -> None:
    """In the place of a `ProgressFile`, in processes that write none."""


def save_array(path: Path, values: np.ndarray) -> None:
    """Write one .npy file atomically."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    atomic_write_bytes(path, buffer.getvalue())

"""What a worker executes: runs, and the stages that runs share.

A task is computed by one process or by a group of them; rank 0 alone writes to the store.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks.launch import recorded
from benchmarks.launch.doubtful import doubts
from benchmarks.launch.recorded import Finished
from benchmarks.models.keep import keep
from benchmarks.plan.copies import used
from benchmarks.plan.identity import digest
from benchmarks.plan.jobs import Job
from benchmarks.plan.product_code import loaded, of_method
from benchmarks.plan.stages import FROZEN, STAGE_RECORD, Stage
from benchmarks.provenance import device_name
from benchmarks.status.progress_file import ProgressFile
from benchmarks.training import stage_files
from benchmarks.training.build import build_backbone, build_fit_method, summariser, task_of
from benchmarks.training.checkpoint import Checkpoints
from benchmarks.training.frozen import frozen_features
from benchmarks.training.host import TrainingHost
from benchmarks.training.peak_memory import PeakMemory
from benchmarks.training.phased import Training
from benchmarks.training.schedule import Outcome
from benchmarks.training.strategy import Strategy
from benchmarks.training.trainer import Trainer
from benchmarks.workspace import Workspace
from results.files import atomic_write_json
from results.lease import MemberLease
from results.predictions import digests
from results.store import Lease
from results.weights import NAME as WEIGHTS


@dataclass
class Options:
    """How runs are executed; nothing here changes a number.

    Attributes:
        checkpoint_seconds: time between checkpoints inside an epoch; 0 for every step.
        launch: names the call that this process serves; errors of earlier calls are retried.
        report: called with one line of progress.
        should_stop: asked after every step; True makes a training save and stop.
        hang_seconds: time after which a group of processes that does not move counts as hung.
        keep_weights: whether finished runs keep their weights: "", "all" or "best" (until the grid is done).
    """

    checkpoint_seconds: float = 30.0
    hang_seconds: float = 600.0
    launch: str = ""
    report: Callable[[str], None] = lambda line: None
    should_stop: Callable[[], bool] = lambda: False
    keep_weights: str = ""


@dataclass(frozen=True)
class TaskContext:
    """Where and by what tasks are executed.

    Attributes:
        workspace: where results go.
        strategy: processes, device and precision.
        options: see `Options`.
    """

    workspace: Workspace
    strategy: Strategy
    options: Options


class Task(ABC):
    """A run or a stage, to be executed.

    Attributes:
        title: names it for people.
        directory: where its result goes.
        claim_record: what its lease says it is.
        together: whether all processes of a group compute it; else rank 0 alone does.
    """

    title: str
    directory: Path
    claim_record: dict[str, Any]
    together: bool

    def __init__(self, context: TaskContext, job: Job) -> None:
        self.context, self.job = context, job
        self.workspace, self.strategy, self.options = context.workspace, context.strategy, context.options
        self.group, self.device = self.strategy.group, self.strategy.accelerator.device

    @abstractmethod
    def is_done(self) -> bool:
        """Whether its result is in the store."""

    @abstractmethod
    def compute(self, lease: Lease | MemberLease) -> None:
        """Compute the result, and write it on rank 0.

        Args:
            lease: the right to write it, which only rank 0 has.
        """

    def _code(self, stage: Stage | None) -> str:
        """A hash of the code that computes a stage, or the run: see `results.versions`."""
        method = self.job.spec.method if stage is None else stage.key.get("method")
        sources, copies = of_method(method, loaded())["sha256"], used()
        data = [] if copies is None else copies.provenance().get("module_data", [])
        return digest([sources, data]) if data else sources

    def _training(
        self,
        lease: Lease | MemberLease,
        stage: Stage | None,
        on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    ) -> tuple[Training, ProgressFile]:
        """A training that continues from the newest checkpoint in the task's directory."""
        epochs = Training.epochs(self.job, stage)
        progress = ProgressFile(self.directory, self.title, epochs, lease.generation, lease.held)
        stop = self.options.should_stop
        code = self._code(stage)
        main = TrainingHost(
            on_epoch, on_step=progress, should_stop=stop, is_lost=lambda: not lease.held(), code=code
        )
        training = Training(
            self.job,
            stage,
            self.strategy,
            checkpoints=lambda name: Checkpoints(
                self.directory / "checkpoints" / name,
                self.options.checkpoint_seconds,
                lease.generation,
                lease.require,
            ),
            workspace=self.workspace,
            host=main if self.group.is_main else TrainingHost(should_stop=stop, code=code),
        )
        return training, progress


class RunTask(Task):
    """A run whose stages are done."""

    def __init__(self, context: TaskContext, job: Job) -> None:
        super().__init__(context, job)
        self.title, self.directory = job.spec.title, job.directory(context.workspace)
        self.claim_record = job.spec.record()
        self.together = job.cell.kind != "fit"  # fitting is small: the other processes wait

    def is_done(self) -> bool:
        """Whether its result is in the store."""
        return self.workspace.store.state(self.directory).kind == "done"

    def compute(self, lease: Lease | MemberLease) -> None:
        """Fit or train the method; rank 0 writes the result."""
        memory = PeakMemory(self.device)
        if self.job.cell.kind == "fit":
            self._write(lease, self._fit(), memory)  # on rank 0, as `together` says
            return
        training, progress = self._training(lease, None, lambda row: self._on_epoch(lease, row))
        if self.group.is_main:
            lease.require()
            self.workspace.store.truncate_epochs(self.directory, training.epoch + 1)
        outcome = training.fit()
        if self.group.is_main:
            trainer = training.trainer
            self._write(lease, self._trained(trainer, outcome), memory, trainer.code[:-1])
            self.workspace.store.settle_epochs(self.directory)
            training.clear()
            progress.clear()

    def _fit(self) -> Finished:
        job, started = self.job, time.monotonic()
        features = stage_files.read_features(job.stages[0].directory(self.workspace))
        method = build_fit_method(job, build_backbone(job), task_of(job))
        for stage in job.stages[1:]:
            views = stage_files.read_features(stage.directory(self.workspace), stage.kind)["views"]
            method.take_views(views)
        method.fit(features["train"][job.split.labelled], job.spec.seed)
        scores = method.predict(features["test"]).float().cpu()  # as they are stored
        last = summariser(job)(scores)
        # Nothing is chosen: with held-out images, their rule reports the only fit there is.
        val = last if len(job.split.held_out) else None
        metrics = {"last": last, "model": last, "max": last, "val": val, "oracle": None}
        seconds, images = time.monotonic() - started, len(job.split.labelled)
        return Finished(scores, None, metrics, seconds, 0, images, method, features["test"])

    def _trained(self, trainer: Trainer, outcome: Outcome) -> Finished:
        assert outcome.scores is not None  # every schedule of a run evaluates
        assert outcome.raw_scores is not None
        summarise = summariser(self.job)
        last, model = summarise(outcome.scores), summarise(outcome.raw_scores)
        averaged = bool(self.job.cell.recipe.ema_decay)
        weights = "model" if model["mAP"] > last["mAP"] or not averaged else "ema"
        return Finished(
            outcome.scores,
            outcome.raw_scores if averaged else None,
            {
                "last": last,
                "model": model,
                "max": {**(model if weights == "model" else last), "weights": weights},
                "val": _from_one(outcome.val),
                "oracle": _from_one(outcome.oracle),
            },
            outcome.seconds,
            sum(value.numel() for value in trainer.method.parameters() if value.requires_grad),
            outcome.images_seen,
            trainer.ema.module,
        )

    def _on_epoch(self, lease: Lease | MemberLease, row: dict[str, Any]) -> None:
        lease.require()
        self.workspace.store.append_epoch(self.directory, row, lease.generation)
        quality, score = row["pseudo_labels"], row["mAP_ema"]
        self.options.report(
            f"{self.title} epoch {row['epoch']}"
            + (f" mAP {score:.2f}" if score is not None else "")
            + (f" pseudo-label OF1 {quality['OF1']:.1f}" if quality and quality["OF1"] else "")
        )

    def _write(
        self, lease: Lease | MemberLease, found: Finished, memory: PeakMemory, earlier: Sequence[str] = ()
    ) -> None:
        peak, arrays = memory.read(), recorded.arrays(self.job, found)
        hashes = digests(arrays)
        self._keep(lease, found, hashes["scores"])
        record = recorded.record(self.job, found, hashes, self.workspace, self.strategy, peak, earlier)
        # Rank 0's lease is a whole one.
        self.workspace.store.write_result(self.directory, cast(Lease, lease), record, arrays)
        score = found.metrics["last"]["mAP"]
        self.options.report(f"done: {self.title} mAP {score:.2f}")
        rows = self.workspace.store.epochs(self.directory)
        for line in doubts(score, arrays["labels"], rows):
            self.options.report(f"warning: {self.title}: {line}")

    def _keep(self, lease: Lease | MemberLease, found: Finished, scores_sha256: str) -> None:
        """Keep the weights, if that is asked for, before the result makes the run done."""
        mode, why = self.options.keep_weights, ""
        if mode:
            why = keep(
                self.directory,
                self.job,
                found.method,
                found.scores,
                scores_sha256,
                mode=mode,
                strategy=self.strategy,
                features=found.features,
                require=lease.require,
            )
        else:  # an attempt that did not come to its end may have left some
            (self.directory / WEIGHTS).unlink(missing_ok=True)
        if why:
            self.options.report(f"weights not kept: {self.title}: {why}")


class StageTask(Task):
    """A stage that several runs share, computed with the data of one of them."""

    together = True

    def __init__(self, context: TaskContext, stage: Stage, job: Job) -> None:
        super().__init__(context, job)
        self.stage, self.directory = stage, stage.directory(context.workspace)
        self.title = f"{stage.kind} for {job.spec.dataset} {job.spec.subset}"
        self.claim_record = {"stage": stage.kind, "key": stage.key}
        self.sums: dict[str, stage_files.Sum] = {}

    def is_done(self) -> bool:
        """Whether its result is there, and what was written."""
        if not self.stage.is_done(self.workspace) or stage_files.damage(self.directory, self.stage.kind):
            return False
        if not stage_files.has_checksums(self.directory):
            self.options.report(
                f"{self.title}: made by an earlier version, without checksums; used as it is: "
                f"{self.directory}"
            )
        return True

    def compute(self, lease: Lease | MemberLease) -> None:
        """Compute features or a warm-up; rank 0 writes them."""
        started = time.monotonic()
        code = self._code(self.stage)
        if self.group.is_main:
            self._put_aside(lease)
        if self.stage.kind in FROZEN:
            self._compute_features(lease)
        else:
            earlier = self._train_warmup(lease)
            code = digest([code, *earlier]) if earlier else code
        if self.group.is_main:
            lease.require()
            atomic_write_json(
                self.directory / STAGE_RECORD,
                {
                    "files": self.sums,
                    "kind": self.stage.kind,
                    "key": self.stage.key,
                    "seconds": time.monotonic() - started,
                    "device": device_name(self.device),
                    "sources": code,
                },
            )
            self.options.report(f"done: {self.title}")

    def _put_aside(self, lease: Lease | MemberLease) -> None:
        """Of a stage that is damaged, say so, and let it count as not done while it is made again."""
        record = self.directory / STAGE_RECORD
        if os.path.lexists(record):
            why = stage_files.damage(self.directory, self.stage.kind) or f"{record} is of another stage"
            self.options.report(f"made again: {self.title}: {why}")
            lease.require()
            os.replace(record, self.directory / f"stage.damaged.{lease.generation}.json")

    def _compute_features(self, lease: Lease | MemberLease) -> None:
        found = frozen_features(self.job, self.stage, self.strategy)
        for name, compute in found.items():
            values = compute()  # one after the other: each is as large as its images are many
            if self.group.is_main:
                lease.require()
                self.sums[name] = stage_files.write_array(self.directory / name, values.float().numpy())

    def _train_warmup(self, lease: Lease | MemberLease) -> tuple[str, ...]:
        """Train and write it; returns hashes of the other code that began it, on rank 0."""
        training, progress = self._training(lease, self.stage)
        training.fit()
        if not self.group.is_main:
            return ()
        trainer = training.trainer
        for weights, module in (("model", trainer.method), ("ema", trainer.ema.module)):
            state = {name: value.contiguous().cpu() for name, value in module.training_state().items()}
            lease.require()
            name = f"{weights}.safetensors"
            self.sums[name] = stage_files.write_tensors(self.directory / name, state)
        training.clear()
        progress.clear()
        return trainer.code[:-1]


def _from_one(chosen: dict[str, Any] | None) -> dict[str, Any] | None:
    """The summary of a chosen epoch as it is stored, where epochs count from 1."""
    return chosen and {**chosen, "epoch": chosen["epoch"] + 1}

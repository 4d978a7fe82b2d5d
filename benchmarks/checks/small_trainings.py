"""Whole small trainings of registered methods, in this process, with and without other hidden labels.

The data is a folder of random pictures with a table of labels, written twice: the second table has other
labels for the unlabelled images and for the test images, and else the same. Both are planned, cached, warmed
up and trained by the harness itself, as runs of a grid are, but for the backbone: it is the contract's tiny
CLIP.
"""

from __future__ import annotations

import csv
import functools
import gc
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.checks import contract
from benchmarks.launch.execution import Execution, Options
from benchmarks.plan.grid import load
from benchmarks.plan.jobs import Job, resolve
from benchmarks.progress import silent
from benchmarks.training import build
from benchmarks.training.checkpoint import Checkpoints
from benchmarks.training.group import Group
from benchmarks.training.hidden_labels import HiddenLabels
from benchmarks.training.host import TrainingHost
from benchmarks.training.phased import Training
from benchmarks.training.strategy import make
from benchmarks.training.trainer import Interrupted
from benchmarks.workspace import Workspace
from methods.base import PseudoLabels

T = TypeVar("T")
TRAIN, TEST, LABELLED = 22, 6, 8
STEPS = 4
"""Steps of each training without phases: two epochs of two."""
GRID = """
description = "whole trainings of the contract"
datasets = [{{ name = "csv", alias = "contract", root = {root} }}]
ratios = ["{labelled} images"]
seeds = [1]
methods = {methods}
recipe = "embedded"
[override]
resolution = {size}
warmup_epochs = 1
epochs = 2
labelled_epochs = 2
batch_labelled = 3
batch_unlabelled = 7
batch_warmup = 4
ema_decay = 0.9
eval_every = 2
[hyper]
"""


class Trained(NamedTuple):
    """What a training ends with, and what it used on the way.

    Attributes:
        weights: of the method, its state included, and of its moving average.
        pseudo_labels: positions in the pool and pseudo-labels of each step that had some.
        scores: (n_test, K) of the moving average, then of the raw weights.
    """

    weights: dict[str, Tensor]
    pseudo_labels: list[tuple[Tensor, PseudoLabels]]
    scores: tuple[Tensor, ...]


class SmallTrainings:
    """Trainings of some methods in a folder, each done once.

    Args:
        folder: an empty folder, for data and runs.
        names: registered methods.
        overrides: hyper-parameters by method that fit four classes.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], overrides: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.folder, self.names = folder, tuple(names)
        self.overrides = {name: dict(overrides[name]) for name in names if name in overrides}
        self.strategy = make("ddp", "fp32", Group())
        self.trained = functools.cache(_on_tiny_backbone(self._trained))
        self.fitted = functools.cache(_on_tiny_backbone(self._fitted))

    @functools.cached_property
    def jobs(self) -> tuple[dict[str, Job], dict[str, Job]]:
        """The runs by method: on the labels as they are, and on those whose hidden ones are others."""
        rng = np.random.default_rng(5)
        present = rng.random((TRAIN + TEST, len(contract.NAMES))) < (0.75, 0.5, 0.35, 0.2)
        present[~present.any(axis=1), 0] = True
        labels = present.astype(np.uint8)
        first = self._plan("true", labels)
        split = next(iter(first.values())).split
        other = labels.copy()
        for rows in (split.unlabelled, np.arange(TRAIN, TRAIN + TEST)):
            # Another image's labels, of the class beside: frequencies change too.
            other[rows] = np.roll(labels[rng.permutation(rows)], 1, axis=1)
        second = self._plan("other", other)
        for name, job in second.items():
            before, after = (j.prepared.dataset.train.labels[j.split.labelled] for j in (first[name], job))
            assert np.array_equal(before, after)
            assert np.array_equal(job.split.unlabelled, split.unlabelled)
        return first, second

    def _plan(self, title: str, labels: NDArray[np.uint8]) -> dict[str, Job]:
        root = self.folder / title
        _write_pictures(root, labels)
        with open(root / "labels.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", *contract.NAMES, "split"])
            for number, row in enumerate(labels):
                table.writerow([f"{number:02d}.png", *row, "train" if number < TRAIN else "test"])
        values = {"root": str(root), "methods": list(self.names)}
        text = GRID.format(
            labelled=LABELLED,
            size=contract.SIZE,
            **{name: json.dumps(value) for name, value in values.items()},
        )
        for name, hyper in self.overrides.items():
            lines = (f"{field} = {json.dumps(value)}\n" for field, value in hyper.items())
            text += f"[hyper.{json.dumps(name)}]\n" + "".join(lines)
        grid = self.folder / f"{title}.toml"
        grid.write_text(text, encoding="utf-8")
        workspace = self._workspace(title)
        workspace.runs.mkdir()  # as a launch does: an absent folder of runs counts as lost
        found = resolve(load(str(grid)), workspace, progress=silent, workers=1)
        return {job.spec.method: job for job in found}

    def _workspace(self, title: str) -> Workspace:
        return Workspace(self.folder / f"{title}-data", self.folder / f"{title}-runs")

    def _staged(self, name: str, other: bool) -> tuple[Job, Workspace, Execution]:
        """A run whose stages are done."""
        job, workspace = self.jobs[other][name], self._workspace("other" if other else "true")
        failures: list[str] = []
        execution = Execution(workspace, self.strategy, Options(report=failures.append))
        for stage in job.stages:
            assert execution.stage(stage, job) == "done", failures
        return job, workspace, execution

    def _trained(self, name: str, other: bool = False, stop: int = 0) -> Trained:
        """Train a step method.

        Args:
            name: the method.
            other: whether the hidden labels and those of the test images are the other ones.
            stop: number of steps after which the training is stopped, saved, and continued by another
                trainer; 0 for none.
        """
        job, workspace, _ = self._staged(name, other)
        used: list[tuple[Tensor, PseudoLabels]] = []
        checkpoints = self.folder / f"checkpoints-{name}-{other:d}-{stop}"
        for asked in [stop, 0] if stop else [0]:
            training = Training(
                job,
                None,
                self.strategy,
                checkpoints=lambda folder: Checkpoints(checkpoints / folder, 1e9),
                workspace=workspace,
                host=TrainingHost(should_stop=_after(asked)),
            )
            trainer = training.trainer
            assert training.phases != (None,) or trainer.steps_per_epoch * trainer.schedule.epochs == STEPS
            assert training.resumed == (bool(stop) and not asked)
            try:
                with mock.patch.object(HiddenLabels, "update", _recording(HiddenLabels.update, used)):
                    outcome = training.fit()
            except Interrupted:
                continue
            state = training.trainer.state()
        weights = {
            f"{part}.{key}": value.clone() for part in ("model", "ema") for key, value in state[part].items()
        }
        assert outcome.scores is not None
        assert outcome.raw_scores is not None
        return Trained(weights, used, (outcome.scores, outcome.raw_scores))

    def _fitted(self, name: str, other: bool = False) -> Tensor:
        """Fit a method to frozen features; its (n_test, K) scores."""
        job, workspace, execution = self._staged(name, other)
        assert execution.run(job) == "done"
        return torch.from_numpy(workspace.store.predictions(job.directory(workspace))["scores"])


def _on_tiny_backbone(work: Callable[..., T]) -> Callable[..., T]:
    """The same function, with the contract's backbone in place of the one that a run names."""

    def tiny(spec: Any, resolution: int) -> Any:
        return contract.tiny_backbone()

    @functools.wraps(work)
    def wrapped(*args: Any, **kwargs: Any) -> T:
        # accelerate collects garbage before each training: not among all that is loaded already.
        gc.freeze()
        try:
            with mock.patch.object(build, "load_backbone", tiny):
                return work(*args, **kwargs)
        finally:
            gc.unfreeze()

    return wrapped


def _after(steps: int) -> Callable[[], bool]:
    """Whether to stop, asked after each step: after so many, or never for 0."""
    asked = itertools.count(1)
    return lambda: next(asked) == steps


def _recording(update: Any, used: list[tuple[Tensor, PseudoLabels]]) -> Any:
    def record(hidden: HiddenLabels, positions: Tensor, pseudo: PseudoLabels) -> None:
        used.append((positions.clone(), pseudo))
        update(hidden, positions, pseudo)

    return record


def _write_pictures(folder: Path, labels: NDArray[np.uint8]) -> None:
    """Random pictures, the same for each table."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(9)
    for number in range(len(labels)):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((contract.SIZE, contract.SIZE)).save(folder / f"{number:02d}.png")

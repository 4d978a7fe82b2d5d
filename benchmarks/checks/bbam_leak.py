"""What the hidden labels are worth that BBAM's public code reads: an audit; its leaky scores are no results.

    python -m benchmarks.checks.bbam_leak --seeds 1 2 3

The public code (github changchunli/SSMLL-BBAM, eda5cdd) reads hidden labels in two places; see the card of
`bbam`. On GlyphScenes each training is done as the method here is, and with the leaks put in:

    honest       the registered method: y = .5 for unlabelled images, warm-up on the labelled ones
    transform    before each epoch but the first, pseudo-labels are made with the hidden labels as y
    warm-up      the warm-up is on another draw of as many labelled images, as with the code's two seeds
    both         what the published commands run

The leaky trainings cannot be named by a grid and are in no registry: a leak is put into the trainer of one
training, here. Nothing is written to a run store: the folder of warm-ups is deleted at the end, and no run
is recorded. The table says which scores are no results.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.arguments import folder, positive
from benchmarks.launch.execution import Execution, Options
from benchmarks.plan.grid import load
from benchmarks.plan.jobs import Job, resolve
from benchmarks.progress import silent
from benchmarks.training.build import build_trainer, summariser
from benchmarks.training.checkpoint import Checkpoints
from benchmarks.training.group import Group
from benchmarks.training.host import TrainingHost
from benchmarks.training.strategy import make
from benchmarks.training.trainer import Trainer
from benchmarks.workspace import Workspace
from methods.base import Pool
from methods.errors import UserError

TRAININGS = {
    "honest": (False, False),
    "transform": (True, False),
    "warm-up": (False, True),
    "both": (True, True),
}
"""Which leaks a training has: hidden labels in the transform, and a warm-up on others' labels."""

OTHER = 1000
"""What the seed of the other draw is larger by: the code's seeds are 1 and 1000."""

GRID = """
description = "an audit of BBAM's public code"
datasets = ["{dataset}"]
ratios = [{ratio}]
seeds = {seeds}
methods = ["bbam"]
recipe = "embedded"
[override]
epochs = {epochs}
eval_every = {epochs}
[hyper.bbam]
lr_backbone = {lr_backbone}
lr_head = {lr_head}
"""


def leak(trainer: Trainer) -> None:
    """Let a training of BBAM make its pseudo-labels with the hidden labels, as the public code does."""
    method: Any = trainer.method
    average: Any = trainer.ema.module
    assert trainer.hidden_labels is not None  # there is a pool
    hidden, refresh = trainer.hidden_labels.hidden.float(), method.refresh

    def refresh_with_hidden_labels(pool: Pool) -> None:
        cosines = average.classifier.cosines(pool.extra)
        scores = method.hyper.scale * method.balanced(cosines, hidden)
        refresh(dataclasses.replace(pool, scores=scores))

    method.refresh = refresh_with_hidden_labels


class Audit:
    """The trainings, one after the other.

    Args:
        data: folder of the datasets.
        runs: a folder for warm-ups and checkpoints, to be deleted.
        values: what the grid is filled with.
    """

    def __init__(self, data: Path, runs: Path, values: dict[str, Any]) -> None:
        self.workspace, self.seeds = Workspace(data, runs), values["seeds"]
        self.strategy = make("ddp", "fp32", Group())
        self.execution = Execution(self.workspace, self.strategy, Options(report=self._say))
        grid = runs / "grid.toml"
        both = [*self.seeds, *(seed + OTHER for seed in self.seeds)]
        grid.write_text(GRID.format(**{**values, "seeds": both}), encoding="utf-8")
        found = resolve(load(str(grid)), self.workspace, progress=silent, workers=1)
        self.jobs = {job.spec.seed: job for job in found}

    def rows(self, trainings: Sequence[str]) -> Iterator[dict[str, Any]]:
        """A row for each seed and training.

        Raises:
            UserError: a warm-up failed.
        """
        for seed in self.seeds:
            for name in trainings:
                row = self._train(seed, name)
                self._say(f"{row}")
                yield row

    def _train(self, seed: int, name: str) -> dict[str, Any]:
        transform, warmup = TRAININGS[name]
        job, other = self.jobs[seed], self.jobs[seed + OTHER]
        source = other if warmup else job
        self._warm_up(source)
        quality: list[dict[str, Any]] = []

        def on_epoch(row: dict[str, Any]) -> None:
            quality.append(row["pseudo_labels"])
            self._say(f"seed {seed}, {name}: epoch {row['epoch']}")

        trainer = build_trainer(
            dataclasses.replace(job, stages=source.stages),
            None,
            self.strategy,
            checkpoints=Checkpoints(self.workspace.runs / f"checkpoints-{seed}-{name}", 1e9),
            workspace=self.workspace,
            host=TrainingHost(on_epoch=on_epoch),
        )
        if transform:
            leak(trainer)
        outcome = trainer.fit()
        assert outcome.scores is not None  # the last epoch is evaluated
        return {
            "training": name,
            "is_a_result": not (transform or warmup),
            "seed": seed,
            "mAP": summariser(job)(outcome.scores)["mAP"],
            "OF1": quality[-1]["OF1"],
            "seconds": round(outcome.seconds),
        }

    def _warm_up(self, job: Job) -> None:
        for stage in job.stages:
            if self.execution.stage(stage, job) != "done":
                raise UserError(f"the warm-up of seed {job.spec.seed} failed; the line above says why")

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Test mAP of each seed and the mean, and what the leak adds; scores of leaky trainings are marked."""
    lines: list[list[str]] = []
    for name in TRAININGS:
        mine = [row for row in rows if row["training"] == name]
        if not mine:
            continue
        scores = [row["mAP"] for row in mine]
        mark = "" if mine[0]["is_a_result"] else "NO RESULT: reads hidden labels"
        own = {row["seed"]: row["mAP"] for row in rows if row["training"] == "honest"}
        worth = [row["mAP"] - own[row["seed"]] for row in mine if row["seed"] in own]
        lines.append(
            [
                name,
                mark,
                " ".join(f"{score:.2f}" for score in scores),
                f"{statistics.mean(scores):.2f}",
                f"{statistics.mean(worth):+.2f}" if mark and worth else "",
                f"{statistics.mean(row['OF1'] for row in mine):.1f}",
            ]
        )
    head = ["training", "", "test mAP by seed", "mean", "leak", "OF1 of pseudo-labels, last epoch"]
    return tabulate(lines, head, disable_numparse=True, tablefmt="github")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m benchmarks.checks.bbam_leak`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checks.bbam_leak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=folder, default=Path("data"), metavar="DIR", help="default: data")
    parser.add_argument("--dataset", choices=("glyphscenes", "glyphscenes-dev"), default="glyphscenes")
    parser.add_argument("--ratio", type=float, default=0.05, metavar="P", help="labelled share (default .05)")
    parser.add_argument("--seeds", type=positive, nargs="+", default=[1, 2, 3], metavar="SEED")
    parser.add_argument(
        "--epochs", type=positive, default=3, metavar="N", help="after the warm-up (default 3)"
    )
    parser.add_argument("--lr-backbone", type=float, default=1e-4, metavar="RATE", help="default 1e-4")
    parser.add_argument("--lr-head", type=float, default=1e-3, metavar="RATE", help="default 1e-3")
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    args = parser.parse_args(arguments)
    values = {name: getattr(args, name) for name in ("dataset", "ratio", "epochs", "lr_backbone", "lr_head")}
    values["seeds"] = sorted(set(args.seeds))
    try:
        with tempfile.TemporaryDirectory(prefix="ssmll-bbam-leak-") as runs:
            rows = list(Audit(args.data, Path(runs), values).rows(args.trainings))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps({"rows": rows, **values}) if args.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Scaling: images trained on per second by two processes, against one; one thread each.

The ratio is that of strong scaling, two processes' rate over twice that of one with the same global
batch: a recipe fixes the global batch, so this is what `--processes 2` does to a run. Beside it:

  weak     every process has the recipe's batch, so that a step is over twice as many images
  ceiling  two single processes side by side, which share nothing but the machine: its memory and
           what its cores have in common let no pair of processes do better

What strong scaling loses is divided into three factors, of which the ratio is the product:

  batch     one process alone with half of the batch: what does not shrink with it, such as the
            optimiser and the texts, is done by both
  machine   both processes with half of the batch at once, exchanging nothing
  exchange  the same, exchanging gradients, buffers and the agreement after every step

One process, two single ones and the groups are started once, as the launcher starts them, and take
turns, round by round. Starting is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.launch.memory import keep_large_blocks
from benchmarks.perf import training
from benchmarks.perf.training import advance, build, check_steps, find_job, say
from benchmarks.progress import silent
from benchmarks.training.group import Group
from benchmarks.training.trainer import Trainer
from methods.errors import UserError
from slurm.protocol import RENDEZVOUS

WORLD = 2
RATES = ("one", "side_by_side", "strong", "weak", "half_alone", "half_together")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this measurement."""
    training.add_arguments(parser, steps=8, rounds=9)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    found = measure(options.method, options.grid, options.data, steps=options.steps, rounds=options.rounds)
    print(json.dumps(found) if options.json else table(found))
    return 0


def measure(method: str, grid: str, data: Path, *, steps: int, rounds: int) -> dict[str, Any]:
    """Measure one process and two.

    Args:
        method: registered name.
        grid: name or path of a grid.
        data: folder of the datasets.
        steps: steps of a round; every round takes those of another epoch.
        rounds: rounds that count.

    Returns:
        What the JSON line has. Rates are images (each in its views) per second of all processes
        together, medians over the rounds.

    Raises:
        UserError: what `find_job` and `check_steps` raise; a process died.
    """
    job = find_job(method, grid, data, training.progress())
    check_steps(job, steps, WORLD)
    found = training.describe(job, steps, rounds)
    say(f"starting {3 * WORLD} processes")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ssmll-perf-")))
        asked = Asked(method, grid, str(data), str(folder), steps)
        single = [_Team(asked, 1, 1, f"single-{k}", stack) for k in range(WORLD)]
        strong = _Team(asked, WORLD, 1, "strong", stack)
        weak = _Team(asked, WORLD, WORLD, "weak", stack)
        for team in (*single, strong, weak):
            team.wait()
        rates: dict[str, list[float]] = {name: [] for name in RATES}
        for number in range(rounds + 1):
            turn = number % len(RATES)
            for name in RATES[turn:] + RATES[:turn]:
                rate = _rate(name, number, single, strong, weak)
                if number:  # everything is touched once before anything counts
                    rates[name].append(rate)
            if number:
                one, two = rates["one"][-1], rates["strong"][-1]
                say(
                    f"round {number} of {rounds}: {one:,.0f} images a second by one process, "
                    f"{two:,.0f} by {WORLD}"
                )
    middle = {name: statistics.median(each) for name, each in rates.items()}
    one = middle["one"]
    return {
        "ratio": middle["strong"] / (WORLD * one),
        "ratio_weak": middle["weak"] / (WORLD * one),
        "ceiling": middle["side_by_side"] / (WORLD * one),
        "ratio_of_fastest": max(rates["strong"]) / (WORLD * max(rates["one"])),
        "factors": {
            "batch": middle["half_alone"] / one,
            "machine": middle["half_together"] / (WORLD * middle["half_alone"]),
            "exchange": middle["strong"] / middle["half_together"],
        },
        "exchange_share": 1 - middle["strong"] / middle["half_together"],
        "exchange_share_weak": 1 - middle["weak"] / middle["side_by_side"],
        "images_per_second": middle,
        "ratios": [two / (WORLD * one) for two, one in zip(rates["strong"], rates["one"], strict=True)],
        "processes": WORLD,
        "threads": 1,
        **found,
    }


def table(found: dict[str, Any]) -> str:
    """The figures for a reader."""
    rates, factors = found["images_per_second"], found["factors"]
    low, high = min(found["ratios"]), max(found["ratios"])
    rows = [
        ("one process", rates["one"], ""),
        ("two processes, the same batch", rates["strong"], f"{found['ratio']:.1%}"),
        ("two processes, a batch each", rates["weak"], f"{found['ratio_weak']:.1%}"),
        (
            "two single processes side by side",
            rates["side_by_side"],
            f"{found['ceiling']:.1%}  the machine's ceiling",
        ),
    ]
    return "\n".join(
        (
            training.title(found),
            *(f"{name:34} {rate:>7,.0f} images / s  {share}" for name, rate, share in rows),
            f"ratio {found['ratio']:.3f} ({low:.3f} to {high:.3f}; of the fastest rounds "
            f"{found['ratio_of_fastest']:.3f}) = half of the batch {factors['batch']:.3f} x shared "
            f"machine {factors['machine']:.3f} x exchange {factors['exchange']:.3f}",
            f"exchange takes {found['exchange_share']:.1%} of a step with half of the batch, "
            f"{found['exchange_share_weak']:.1%} of one with the whole",
            training.ending(found),
        )
    )


class Asked(NamedTuple):
    """What all processes are told.

    Attributes:
        method: see `measure`.
        grid: see `measure`.
        data: see `measure`.
        folder: for the groups' meeting points.
        steps: see `measure`.
    """

    method: str
    grid: str
    data: str
    folder: str
    steps: int


class Took(NamedTuple):
    """What a process did in its turn.

    Attributes:
        images: trained on, by all processes of its group.
        began: moment, on the clock that processes of a machine share.
        ended: moment, on the same clock.
    """

    images: int
    began: float
    ended: float


def _rate(name: str, epoch: int, single: Sequence[_Team], strong: _Team, weak: _Team) -> float:
    """Images per second of one of the rates."""
    if name == "one":
        return single[0].rate(epoch)
    if name == "side_by_side":  # they need not end together
        for team in single:
            team.begin(epoch)
        return sum(team.rate(epoch, begun=True) for team in single)
    if name == "weak":
        return weak.rate(epoch)
    if name == "strong":
        return strong.rate(epoch)
    return strong.rate_apart(epoch, 1 if name == "half_alone" else WORLD)


class _Team:
    """One process, or a group of them, which trains when it is told to.

    Args:
        asked: what to train.
        world: processes.
        times: factor of the recipe's batches.
        name: tells the teams apart.
        stack: ends the processes.
    """

    def __init__(self, asked: Asked, world: int, times: int, name: str, stack: contextlib.ExitStack) -> None:
        self.pipes: list[Connection] = []
        context = multiprocessing.get_context("spawn")
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, asked, times), daemon=True)
            with _environment(rank, world, Path(asked.folder) / f"meeting-{name}"):
                process.start()
            theirs.close()
            self.pipes.append(ours)
            stack.callback(_end, process, ours)

    def wait(self) -> None:
        """Wait until all processes are ready."""
        for pipe in self.pipes:
            self._received(pipe)

    def begin(self, epoch: int, apart: bool = False, count: int | None = None) -> None:
        """Let the first `count` processes train; all of them by default."""
        for pipe in self.pipes[:count]:
            pipe.send((epoch, apart))

    def rate(self, epoch: int, *, begun: bool = False) -> float:
        """Images per second of the whole team."""
        if not begun:
            self.begin(epoch)
        took = [self._received(pipe) for pipe in self.pipes]
        seconds = max(each.ended for each in took) - min(each.began for each in took)
        return took[0].images / seconds

    def rate_apart(self, epoch: int, count: int) -> float:
        """Images per second of `count` processes that do their parts without an exchange."""
        self.begin(epoch, apart=True, count=count)
        took = [self._received(pipe) for pipe in self.pipes[:count]]
        return sum(each.images / len(self.pipes) / (each.ended - each.began) for each in took)

    @staticmethod
    def _received(pipe: Connection) -> Any:
        try:
            answer = pipe.recv()
        except (EOFError, ConnectionError):
            raise UserError("a measuring process died; its message stands above") from None
        if isinstance(answer, UserError):
            raise answer
        return answer


def _end(process: multiprocessing.process.BaseProcess, pipe: Connection) -> None:
    pipe.close()
    process.join(timeout=5)
    if process.is_alive():  # the rest of its group is gone, or it hangs
        process.kill()
        process.join()


@contextmanager
def _environment(rank: int, world: int, meeting: Path) -> Iterator[None]:
    """The variables that the launcher gives to a process, while it is started."""
    group = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        RENDEZVOUS: str(meeting),
    }
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name, value in group.items():
        if world > 1:
            os.environ[name] = value
        else:  # this process may stand in a group itself
            os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(pipe: Connection, asked: Asked, times: int) -> None:
    """What a measuring process does: it trains some steps each time that it is told to."""
    sys.stdout = sys.stderr  # libraries' remarks: the standard output is for the result
    torch.set_num_threads(1)
    keep_large_blocks()
    group = Group.join()
    try:
        job = find_job(asked.method, asked.grid, Path(asked.data), silent)
        trainer = build(job, group, Path(asked.folder), times)
    except UserError as error:
        pipe.send(error)
        return
    with contextlib.suppress(EOFError, ConnectionError):  # nothing more is asked for
        pipe.send("ready")
        while True:
            epoch, apart = pipe.recv()
            seen, began = trainer.images_seen, time.perf_counter()
            with _apart(trainer) if apart else contextlib.nullcontext():
                advance(trainer, epoch, asked.steps)
            ended = time.perf_counter()
            pipe.send(Took(trainer.images_seen - seen, began, ended))
    group.leave()


@contextmanager
def _apart(trainer: Trainer) -> Iterator[None]:
    """Let a process of a group train by itself.

    The processes' weights come apart, which no time depends on.
    """
    group: Any = trainer.group
    wrapped, trainer.model = trainer.model, trainer.method
    group.start_max = lambda value: value
    try:
        yield
    finally:
        trainer.model = wrapped
        del group.start_max

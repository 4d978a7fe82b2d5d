"""Calls sbatch for submitit, and finds out what became of a submission that seems to have failed.

A controller under load accepts a job and answers too late: sbatch then says "Socket timed out", and the
job runs. Each submission therefore carries a mark of its own in the job's comment. What sbatch leaves open
is settled by asking squeue for that mark: a job that is found is the submission's, and is taken as such.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from slurm import client

SETTLE_SECONDS = 20.0
"""How long a job is looked for after sbatch has left open whether there is one."""
POLL_SECONDS = 2.0
PREFIX = "ssmll:"


def new_mark() -> str:
    """A word that no other submission has."""
    return f"{PREFIX}{secrets.token_hex(8)}"


class Unsettled(client.SlurmError):
    """Nobody could say whether SLURM has taken the jobs; those with the mark may still appear."""


def submitted(words: list[str], mark: str, say: Callable[[str], None]) -> str:
    """Call sbatch once, and return the number of the job that SLURM made of it.

    Args:
        words: sbatch and its arguments; the script's comment holds the mark.
        mark: see `new_mark`.
        say: gets a line when a job was found that sbatch has not told of.

    Raises:
        SlurmError: SLURM refused.
        Unsettled: whether it has the job could not be told.
    """
    try:
        told = client.once(*words)
    except client.SlurmError as error:
        failure = error
    else:
        number = re.search(r"job (\d+)", told)
        if number is not None:
            return number[1]
        failure = client.SlurmError(f"sbatch said no job's number: {told.strip()[:200]!r}", doubtful=True)
    if not failure.doubtful:
        # squeue is not asked: it shows a job that was refused too, as FAILED for BadConstraints.
        raise failure
    job = _found(mark, failure)
    if job is None:
        raise Unsettled(
            f"{failure}; squeue shows no such job within {SETTLE_SECONDS:g} s. Should one appear later, the "
            "next `run` or `cancel` removes it",
            doubtful=True,
        )
    say(f"{failure}; but SLURM has the jobs: {job} is taken over")
    return job


def _found(mark: str, failure: client.SlurmError) -> str | None:
    """The job with the mark, or None; of several, which a wrapper of sbatch may have made, one stays."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            jobs = client.marked([mark])[mark]
        except client.SlurmError as error:
            raise Unsettled(
                f"{failure}; whether SLURM has the jobs is not known ({error}). The next `run` or `cancel` "
                "removes them before it does anything else",
                doubtful=True,
            ) from None
        if jobs:
            first, *others = sorted(jobs, key=int)
            if others:
                client.cancel(others)
            return first
        if time.monotonic() >= end:
            return None
        time.sleep(POLL_SECONDS)


@contextmanager
def for_submitit(mark: str, say: Callable[[str], None]) -> Iterator[None]:
    """Let submitit call sbatch through `submitted` inside the block.

    submitit makes another executor for an array, so overriding a method of ours would not reach it; what
    all its executors use to call a command does. It has no time limit of its own.

    Raises:
        RuntimeError: this version of submitit calls sbatch in another way.
    """
    from submitit.core import utils as imported

    utils: Any = imported
    calls = 0

    class Sbatch:
        def __init__(self, command: list[str], **options: Any) -> None:
            self.command = command

        def __call__(self) -> str:
            nonlocal calls
            calls += 1
            return f"Submitted batch job {submitted(self.command, mark, say)}"

    theirs = utils.CommandFunction
    utils.CommandFunction = Sbatch
    try:
        yield
    finally:
        utils.CommandFunction = theirs
    if not calls:
        raise RuntimeError("submitit no longer calls sbatch through CommandFunction: see slurm/sbatch.py")

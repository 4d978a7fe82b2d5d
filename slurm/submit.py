"""Submits bundles as job arrays, through submitit.

submitit's raw `SlurmExecutor` is used: `AutoExecutor` writes a wckey that some clusters refuse. It
does not split arrays, so they are cut here; MaxArraySize limits the highest index, and each part
starts at 0 again.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.errors import UserError
from slurm import client
from slurm.profile import Profile
from slurm.task import JobCommand


@dataclass(frozen=True)
class Array:
    """Bundles with the same request and the same dependencies.

    Attributes:
        bundles: numbers of the bundles.
        nodes: nodes of each job.
        each: tasks on each node.
        after: jobs that have to end first, with or without success.
    """

    bundles: tuple[int, ...]
    nodes: int = 1
    each: int = 1
    after: tuple[str, ...] = ()


def largest_array(profile: Profile) -> int:
    """The most elements of an array: the smaller of the profile's number and the cluster's MaxArraySize."""
    limit = client.setting("MaxArraySize", "1001")
    return max(1, min(profile.array_size, int(limit) if limit.isdecimal() else 1001))


def submit(
    array: Array,
    folder: Path,
    name: str,
    profile: Profile,
    work: Sequence[JobCommand],
    pythonpath: Path,
    size: int,
) -> list[tuple[int, str]]:
    """Submit an array, in several parts if it is too large.

    Args:
        array: the bundles.
        folder: where submitit keeps scripts and logs; shared with the nodes.
        name: the jobs' name in the queue.
        profile: what the jobs request.
        work: the command of each bundle's job.
        pythonpath: folder of the code that the jobs execute.
        size: see `largest_array`.

    Returns:
        (bundle, job) of each element. Parts that were submitted before one was refused stay submitted;
        the error lists them as `submitted`.

    Raises:
        SlurmError: SLURM refused.
        UserError: submitit cannot take a flag.
    """
    import submitit

    done: list[tuple[int, str]] = []
    flags = profile.flags(array.nodes, array.each)
    flags["job_name"] = name
    # The submitter's environment, but this code first: before other installations, and before the
    # folder that the command was called in, which `python -m` would otherwise put in front.
    flags["setup"] = [
        f'export PYTHONPATH={quoted(pythonpath)}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1',
        *flags["setup"],
    ]
    if array.after:
        flags["dependency"] = "afterany:" + ":".join(array.after)
    logging.getLogger("submitit").setLevel(logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    with _outside():
        for first in range(0, len(array.bundles), size):
            part = range(first, min(first + size, len(array.bundles)))
            try:
                executor = submitit.SlurmExecutor(
                    str(folder),
                    max_num_timeout=profile.max_requeues,
                    python=profile.python or None,
                )
                executor.update_parameters(**flags)
                # submitit prints what sbatch says, which the error below says again.
                with redirect_stderr(io.StringIO()):
                    jobs = executor.map_array(_call, [work[k] for k in part])
            except submitit.core.utils.FailedJobError as error:
                raise client.SlurmError(client.explained("sbatch", str(error)), done) from None
            except (TypeError, ValueError) as error:
                raise UserError(f"profile: {error}".splitlines()[0]) from None
            done += [(array.bundles[k], job.job_id) for k, job in zip(part, jobs, strict=True)]
    return done


def _call(work: JobCommand) -> int:
    """What a job calls; pickled by reference, so it keeps its name (see `slurm.task.Bundle`)."""
    return work()


def quoted(path: Path | str) -> str:
    """A path, quoted for a shell."""
    import shlex

    return shlex.quote(str(path))


@contextmanager
def _outside() -> Any:
    """Submit as from a login node: inside a job, sbatch would take the job's variables for options."""
    kept = dict(os.environ)
    clean = client.outside()
    for name in set(kept) - set(clean):
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)

"""Submits bundles as job arrays, through submitit.

submitit's raw `SlurmExecutor` is used: `AutoExecutor` writes a wckey that some clusters refuse. It
does not split arrays, so they are cut here; MaxArraySize limits the highest index, and each part
starts at 0 again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.errors import UserError
from slurm import client, entry, sbatch
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
    *,
    before: Callable[[str, Sequence[int]], None] = lambda mark, bundles: None,
    say: Callable[[str], None] = lambda line: None,
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
        before: called before each part is submitted, with its mark (see `slurm.sbatch`) and its bundles.
        say: gets a line when sbatch failed and SLURM has the jobs all the same.

    Returns:
        (bundle, job) of each element. Parts that were submitted before one was refused stay submitted;
        the error lists them as `submitted`.

    Raises:
        SlurmError: SLURM refused, or (`Unsettled`) did not say whether it did.
        UserError: submitit cannot take a flag; a path is none that SLURM can use (see `slurm.entry`).
    """
    import submitit

    entry.check(folder)
    code = quoted(entry.importable(pythonpath))
    done: list[tuple[int, str]] = []
    flags = profile.flags(array.nodes, array.each)
    flags["job_name"] = name
    flags["additional_parameters"] = {**flags["additional_parameters"]}
    comment = str(flags["additional_parameters"].pop("comment", ""))
    # The submitter's environment, but this code first: before other installations, and before the
    # folder that the command was called in, which `python -m` would otherwise put in front.
    flags["setup"] = [
        # With the flag --export, srun would hand only the variables that the flag names to the tasks.
        "export SLURM_EXPORT_ENV=ALL",
        f'export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1',
        *flags["setup"],
    ]
    if array.after:
        flags["dependency"] = "afterany:" + ":".join(array.after)
    # What it logs below an error is of its own watching of jobs with sacct, which nothing here asks for
    # (`slurm.client` does), and of foreign plugins. What it warns of, by `warnings`, is not muted.
    logging.getLogger("submitit").setLevel(logging.ERROR)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with _outside(), entry.any_folder(folder):
        for first in range(0, len(array.bundles), size):
            part = range(first, min(first + size, len(array.bundles)))
            try:
                executor = submitit.SlurmExecutor(
                    str(folder),
                    max_num_timeout=profile.max_requeues,
                    python=profile.python or None,
                )
                mark = sbatch.new_mark()
                executor.update_parameters(**flags, comment=f"{comment} {mark}".strip())
                before(mark, [array.bundles[k] for k in part])
                with sbatch.for_submitit(mark, say):
                    jobs = executor.map_array(_call, [work[k] for k in part])
            except client.SlurmError as error:
                error.submitted = done
                raise
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

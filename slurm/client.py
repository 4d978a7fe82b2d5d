"""Calls SLURM's commands and parses their answers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from methods.errors import UserError

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun", "sinfo")
SECONDS = 60
# What people most often see of sbatch, and what helps; the first that fits counts.
_HINTS = (
    ("invalid partition", "partition", "`sinfo -s` lists the partitions"),
    ("invalid account", "account", "`sacctmgr show associations user=$USER` lists yours"),
    ("invalid qos", "qos", "`sacctmgr show associations user=$USER format=qos` lists yours"),
    ("submitjob", "bundle_minutes", "too many jobs are queued: longer bundles are fewer, or wait"),
    ("job array", "array_size", "make the arrays smaller"),
    ("time limit", "minutes", "`scontrol show partition` shows MaxTime"),
    ("(gres)", "gpus", "`sinfo -o '%P %G'` shows what nodes offer"),
    ("feature", "constraint", "`sinfo -o '%P %f'` shows the features of nodes"),
    ("memory specification", "memory_gb", "`sinfo -o '%P %m'` shows the memory of nodes"),
    ("node name", "exclude", "`sinfo -N` lists the nodes"),
    ("reservation", "reservation", "`scontrol show reservation` lists them"),
    ("unrecognized option", "extra", "`sbatch --help` lists the flags"),
    (
        "node configuration is not available",
        "gpus, cpus or memory_gb",
        "no node of the partition has as much",
    ),
)


class SlurmError(UserError):
    """A command of SLURM failed; the message quotes it and says what to do.

    Attributes:
        submitted: (bundle, job) of what an interrupted submission had submitted before.
    """

    def __init__(self, message: str, submitted: Sequence[tuple[int, str]] = ()) -> None:
        super().__init__(message)
        self.submitted = list(submitted)


@dataclass(frozen=True)
class Queued:
    """A job in the queue, waiting or running.

    Attributes:
        job: its number, "123" or "123_4".
        state: PENDING, RUNNING, COMPLETING and so on.
        reason: why it waits.
        used: time used, as SLURM prints it.
        nodes: the nodes that it runs on.
    """

    job: str
    state: str
    reason: str
    used: str
    nodes: str

    @property
    def waits(self) -> bool:
        """Whether it has no nodes."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")


def available() -> bool:
    """Whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None


def require() -> None:
    """Raise `SlurmError` unless SLURM's commands are here."""
    absent = [name for name in COMMANDS if shutil.which(name) is None]
    if absent:
        raise SlurmError(
            f"SLURM's commands are not on the PATH ({', '.join(absent)}): call this on a login "
            "node, leave --launcher slurm out, or try the throwaway cluster of slurm/cluster/up"
        )


def call(*words: str) -> str:
    """Run a command of SLURM and return its standard output.

    Raises:
        SlurmError: the command is absent, fails, or does not answer within a minute.
    """
    try:
        done = subprocess.run(
            list(words),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env=outside(),
        )
    except FileNotFoundError:
        require()
        raise SlurmError(f"{words[0]} is not on the PATH") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{words[0]} did not answer within {SECONDS} s: is the controller up? (scontrol ping)"
        ) from None
    if done.returncode:
        raise SlurmError(explained(words[0], done.stderr or done.stdout))
    return done.stdout


def outside() -> dict[str, str]:
    """The environment without variables that would change what a command of SLURM does.

    Called from inside a job, sbatch and srun take `SLURM_*` and `SBATCH_*` for options. A user's
    own `SQUEUE_STATES` and the like would hide jobs, which would then be submitted again.
    """
    dropped = (
        "SLURM_",
        "SLURMD_",
        "SRUN_",
        "SBATCH_",
        "SUBMITIT_",
        "SQUEUE_",
        "SACCT_",
        "SINFO_",
    )
    # Where the cluster is, and who asks.
    kept = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(dropped)}


def explained(command: str, text: str) -> str:
    """One line: SLURM's message, the profile's field that it concerns, and what helps."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
    told = told.removeprefix(f"{command}: ").removeprefix("error: ")
    whole = text.lower()
    for words, field, hint in _HINTS:
        if words in whole:
            return f"{command} refused: {told} (profile: {field}; {hint})"
    return f"{command} failed: {told or 'without a word'}"


def queue(names: Iterable[str]) -> dict[str, Queued]:
    """The queued jobs of these names, waiting or running, by number; elements of arrays one by one."""
    wanted = sorted(set(names))
    if not wanted:
        return {}
    found = {}
    out = call(
        "squeue",
        "--noheader",
        "--array",
        "--all",
        f"--name={','.join(wanted)}",
        "--format=%i|%T|%r|%M|%N",
    )
    for line in out.splitlines():
        if line.count("|") >= 4:
            job, state, reason, used, nodes = line.strip().split("|", 4)
            found[job] = Queued(job, state, reason, used, nodes)
    return found


def ended(jobs: Iterable[str]) -> dict[str, str]:
    """How jobs ended, by number, from the accounting; empty where the cluster has none."""
    wanted = sorted(set(jobs))
    if not wanted or shutil.which("sacct") is None:
        return {}
    found: dict[str, str] = {}
    for first in range(0, len(wanted), 500):
        part = ",".join(wanted[first : first + 500])
        try:
            out = call(
                "sacct",
                "--noheader",
                "--allocations",
                "--parsable2",
                f"--jobs={part}",
                "--format=JobID,State",
            )
        except SlurmError:  # no accounting: the run store knows what was finished
            return found
        for line in out.splitlines():
            job, bar, state = line.partition("|")
            if bar:
                found[job] = state.split(" ")[0]  # "CANCELLED by 1000"
    return found


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs or whole arrays by their numbers.

    Raises:
        SlurmError: SLURM refused.
    """
    numbers = sorted(set(jobs))
    for first in range(0, len(numbers), 200):
        call("scancel", *numbers[first : first + 200])


def setting(name: str, default: str = "") -> str:
    """One value of `scontrol show config`; the default where it is absent."""
    for line in call("scontrol", "show", "config").splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() == name:
            return value.strip()
    return default

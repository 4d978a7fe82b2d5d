"""Calls SLURM's commands and parses their answers.

A controller that is busy or restarts answers nothing for a while. What only asks (squeue, sacct, sinfo,
`scontrol show`) is therefore asked again, for `PATIENCE` seconds; what changes something is called once,
and `slurm.sbatch` finds out what became of a submission.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from methods.errors import UserError
from slurm import words

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun", "sinfo")
SECONDS = 60
"""How long a command may take to answer."""
PATIENCE = 90.0
"""Seconds during which a question is asked again; the message of the failure states them. One that hangs is
asked twice."""
BRIEF = 5.0
"""The same where somebody looks at the answer and can do without."""
_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
_ASKS = ("squeue", "sacct", "sinfo", "sacctmgr")
# A failure in these words is an answer: asked again, it would be the same. Authentication may recover.
_LASTING = (
    "invalid",
    "unrecognized",
    "unknown",
    "disabled",
    "denied",
    "permi",
    "illegal",
    "not running a",
    "pending execution",
)
# Words of sbatch after which SLURM may have the job all the same; so may have one that was killed or slow.
_DOUBTFUL = (
    "timed out",
    "timeout",
    "unable to contact",
    "connect",
    "zero bytes",
    "transport",
    "communication",
    "unexpected message",
    "protocol",
    "temporarily",
    "authentication",
)
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
        doubtful: the command may have done its work all the same.
        hung: it gave no answer at all.
    """

    def __init__(
        self,
        message: str,
        submitted: Sequence[tuple[int, str]] = (),
        *,
        doubtful: bool = False,
        hung: bool = False,
    ) -> None:
        super().__init__(message)
        self.submitted = list(submitted)
        self.doubtful, self.hung = doubtful, hung


ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)
"""States of jobs that are over; one that was preempted and goes on is PENDING."""
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")


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
        return self.state in _WAITING

    @property
    def why(self) -> str:
        """Why it waits, or its state, in SLURM's terms; see `slurm.words`."""
        return self.reason if self.waits and self.state not in words.STATES else self.state

    @property
    def hopeless(self) -> bool:
        """Whether it waits until somebody does something."""
        return self.waits and words.is_hopeless(self.state, self.reason)


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


def call(*command: str, patience: float | None = None) -> str:
    """Run a command of SLURM and return its standard output.

    Args:
        command: the command and its arguments.
        patience: seconds during which a question that fails is asked again; None for `PATIENCE`. What
            changes something is called once.

    Raises:
        SlurmError: the command is absent, refuses, or did not answer in all that time.
    """
    asks = command[0] in _ASKS or command[:2] == ("scontrol", "show")
    return _patiently(command, (PATIENCE if patience is None else patience) if asks else 0.0)


def insist(*command: str) -> str:
    """Run a command that changes something and does no harm when it is repeated, with patience.

    Raises:
        SlurmError: see `call`.
    """
    return _patiently(command, PATIENCE)


def _patiently(command: Sequence[str], patience: float) -> str:
    started, tries, hung = time.monotonic(), 0, 0
    while True:
        try:
            return once(*command)
        except SlurmError as error:
            tries, hung = tries + 1, hung + error.hung
            pause = _PAUSES[min(tries, len(_PAUSES)) - 1]
            spent = time.monotonic() - started
            if not error.doubtful or spent + pause > patience or hung > 1:
                asked = f"; asked {tries} times in {spent:.0f} s" if tries > 1 else ""
                raise SlurmError(f"{error}{asked}", doubtful=error.doubtful) from None
            time.sleep(pause)


def once(*command: str) -> str:
    """As `call`, but without patience.

    Raises:
        SlurmError: see `call`; `doubtful` where asking again may help.
    """
    try:
        done = subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
            env=outside(),
        )
    except FileNotFoundError:
        require()
        raise SlurmError(f"{command[0]} is not on the PATH") from None
    except OSError as error:
        raise SlurmError(f"{command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{command[0]} did not answer within {SECONDS} s: is the controller up? (scontrol ping)",
            doubtful=True,
            hung=True,
        ) from None
    if done.returncode:
        text = done.stderr or done.stdout
        raise SlurmError(explained(command[0], text), doubtful=_doubtful(command[0], done.returncode, text))
    return done.stdout


def _doubtful(command: str, code: int, text: str) -> bool:
    """Whether a failure says nothing about what was asked or wanted."""
    said = text.lower()
    if code < 0 or code > 128 or not said.strip() or any(part in said for part in _DOUBTFUL):
        return True
    # A question has one right answer, so anything but a refusal is worth a second try.
    return command in (*_ASKS, "scontrol") and not any(part in said for part in _LASTING)


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
    for part, field, hint in _HINTS:
        if part in whole:
            return f"{command} refused: {told} (profile: {field}; {hint})"
    return f"{command} failed: {told or 'without a word'}"


def queue(names: Iterable[str], patience: float | None = None) -> dict[str, Queued]:
    """The queued jobs of these names, waiting or running, by number; elements of arrays one by one.

    Args:
        names: the jobs' names.
        patience: see `call`.

    Raises:
        SlurmError: squeue did not answer in all that time.
    """
    wanted = sorted(set(names))
    if not wanted:
        return {}
    # squeue cuts its list of names at commas. Launches of earlier versions have names that hold some:
    # those are asked for with all others, and told apart here.
    whole = any("," in name for name in wanted)
    chosen = [] if whole else [f"--name={','.join(wanted)}"]
    form = "%i|%T|%r|%M|%N" + ("|%j" if whole else "")
    found = {}
    out = call("squeue", "--noheader", "--array", "--all", *chosen, f"--format={form}", patience=patience)
    for line in out.splitlines():
        if line.count("|") >= form.count("|"):
            job, state, reason, used, nodes, *name = line.strip().split("|", form.count("|"))
            if not whole or name[0] in wanted:
                found[job] = Queued(job, state, reason, used, nodes)
    return found


def marked(marks: Iterable[str]) -> dict[str, dict[str, str]]:
    """The jobs of this user whose comment holds one of these marks, also those that ended a short time ago.

    Returns:
        By mark: number of the job, or of the array as a whole, to its state.

    Raises:
        SlurmError: squeue did not answer.
    """
    found: dict[str, dict[str, str]] = {mark: {} for mark in marks}
    if not found:
        return found
    chosen = ("--all", "--states=all", f"--user={os.getuid()}")
    for line in call("squeue", "--noheader", *chosen, "--format=%F|%T|%k").splitlines():
        job, _, rest = line.strip().partition("|")
        state, _, comment = rest.partition("|")
        for mark in found:
            if mark in comment.split():
                # An array is one entry for each of its states: what lives counts.
                if state in ENDED:
                    found[mark].setdefault(job, state)
                else:
                    found[mark][job] = state
    return found


def ended(jobs: Iterable[str], patience: float | None = None) -> dict[str, str]:
    """How jobs ended, by number: from the accounting, or else from the controller's short memory.

    Args:
        jobs: their numbers.
        patience: see `call`.

    Returns:
        States; what neither knows is left out, the run store knows what was finished.
    """
    wanted = sorted(set(jobs))
    found: dict[str, str] = {}
    for first in range(0, len(wanted), 500):
        part = ",".join(wanted[first : first + 500])
        # Of several numbers squeue leaves out those that it does not know; one alone is an error.
        for command in (
            ("sacct", "--allocations", "--parsable2", "--format=JobID,State"),
            ("squeue", "--array", "--all", "--states=all", "--format=%i|%T"),
        ):
            if shutil.which(command[0]) is None:
                continue
            try:
                out = call(*command, "--noheader", f"--jobs={part}", patience=patience)
            except SlurmError:
                continue
            for line in out.splitlines():
                job, bar, state = line.strip().partition("|")
                if bar:
                    found.setdefault(job, state.split(" ")[0])  # "CANCELLED by 1000"
            break
    return found


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs or whole arrays by their numbers.

    Raises:
        SlurmError: SLURM refused.
    """
    numbers = sorted(set(jobs))
    for first in range(0, len(numbers), 200):
        insist("scancel", *numbers[first : first + 200])


def setting(name: str, default: str = "") -> str:
    """One value of `scontrol show config`; the default where it is absent."""
    for line in call("scontrol", "show", "config").splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() == name:
            return value.strip()
    return default

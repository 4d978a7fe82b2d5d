"""Profiles: what jobs request from a SLURM cluster, one TOML file per cluster."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from methods.errors import UserError, nearest
from methods.fields import Wording, build

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROFILES = Path(__file__).parent / "profiles"
VARIABLE = "SSMLL_SLURM_PROFILE"
SHORTEST = 20
"""Shortest time limit in minutes: submitit takes any signal in a job's last ten minutes for the limit."""
OWN_FLAGS = (
    "array",
    "chdir",
    "dependency",
    "error",
    "job-name",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "open-mode",
    "output",
    "parsable",
    "requeue",
    "signal",
    "test-only",
    "wait",
    "wrap",
)

_SRUN_OURS = ("--export", "--output", "-o", "--error", "-e", "--ntasks", "-n", "--wait", "-W")

_WORDING = Wording(wrong="{where}, {name}: {value!r} is not {wanted}", text="string")


@dataclass(frozen=True)
class Profile:
    """What jobs request from a cluster.

    Attributes:
        description: for people.
        partition: empty for the cluster's default.
        account: the account that is billed; empty for the user's default.
        qos: quality of service; empty for the default.
        constraint: features that nodes must have, such as "a100|h100".
        exclude: nodes to leave out.
        reservation: name of a reservation.
        gpus: GPUs of each process; 0 trains on CPUs.
        gpu_type: such as "a100"; empty for any.
        gpu_flag: the flag that requests GPUs on this cluster, "gpus-per-node" or "gres".
        processes_per_node: largest number of processes of one run on one node.
        cpus: CPUs of each process.
        memory_gb: memory of each process in GB; 0 leaves it to the cluster.
        minutes: time limit of a job; a longer bundle is requeued and resumed.
        signal_seconds: time between the signal to save and the end of a job.
        bundle_minutes: runs are bundled into jobs of about this length.
        parallel: largest number of jobs of an array that run at the same time.
        array_size: largest array; the cluster's MaxArraySize limits it too.
        max_requeues: how often a preempted or timed-out job is requeued.
        max_attempts: a run that was started this often without finishing is submitted only by `retry`.
        use_srun: start tasks with srun; runs of several processes need it.
        srun_args: further arguments of srun.
        setup: shell lines before a job's work, such as "module load cuda".
        python: Python on the nodes; empty for the one that submits.
        wckey: workload key, for clusters that require one.
        extra: further flags of sbatch, by their long names.
    """

    description: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclude: str = ""
    reservation: str = ""
    gpus: int = 1
    gpu_type: str = ""
    gpu_flag: str = "gpus-per-node"
    processes_per_node: int = 8
    cpus: int = 4
    memory_gb: int = 0
    minutes: int = 240
    signal_seconds: int = 120
    bundle_minutes: int = 60
    parallel: int = 256
    array_size: int = 1000
    max_requeues: int = 50
    max_attempts: int = 10
    use_srun: bool = True
    srun_args: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    python: str = ""
    wckey: str = ""
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def shape(self, processes: int, nodes: int) -> tuple[int, int]:
        """Return the number of nodes of a run, and of its processes on each node.

        Args:
            processes: processes that train it together.
            nodes: nodes to spread them over evenly; 0 for the fewest that the profile allows.

        Raises:
            UserError: they cannot be spread evenly, exceed the profile's limit, or need srun.
        """
        most = self.processes_per_node
        fewest = -(-processes // most)
        count = nodes or next(n for n in range(fewest, processes + 1) if processes % n == 0)
        if processes % count:
            raise UserError(f"{processes} processes cannot be spread evenly over {count} nodes")
        if processes // count > most:
            raise UserError(
                f"{processes} processes on {count} nodes: the profile allows {most} on a node "
                "(processes_per_node)"
            )
        if processes > 1 and not self.use_srun:
            raise UserError(f"{processes} processes of one run need use_srun = true in the profile")
        return count, processes // count

    def flags(self, nodes: int, each: int) -> dict[str, Any]:
        """Return the request to sbatch, by the parameter names of submitit's `SlurmExecutor`.

        Args:
            nodes: nodes of a job.
            each: tasks on each node.
        """
        found: dict[str, Any] = {
            "time": self.minutes,
            "nodes": nodes,
            "ntasks_per_node": each,
            "cpus_per_task": self.cpus,
            "signal_delay_s": self.signal_seconds,
            "stderr_to_stdout": True,
            "use_srun": self.use_srun,
            "setup": list(self.setup),
            # Since Slurm 22.05, srun no longer inherits --cpus-per-task from sbatch.
            "srun_args": [f"--cpus-per-task={self.cpus}", *self.srun_args],
            "wckey": self.wckey or None,
            "array_parallelism": self.parallel,
        }
        for name in ("partition", "account", "qos", "constraint", "exclude"):
            if getattr(self, name):
                found[name] = getattr(self, name)
        more: dict[str, Any] = {"requeue": True}
        if self.reservation:
            more["reservation"] = self.reservation
        if self.memory_gb:
            more["mem"] = f"{self.memory_gb * each}G"
        if self.gpus:
            kind = f"{self.gpu_type}:" if self.gpu_type else ""
            # Requested per node, not per task: if each task sees one GPU, all numbered 0,
            # communication between GPUs fails.
            wanted = f"{kind}{self.gpus * each}"
            more[self.gpu_flag] = f"gpu:{wanted}" if self.gpu_flag == "gres" else wanted
        # A false flag is left out: submitit would write --flag=False.
        extra = {name: value for name, value in self.extra.items() if value is not False}
        found["additional_parameters"] = {**more, **extra}
        return found


def available() -> list[str]:
    """Return the names of the profiles in this repository."""
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


def load(name: str | None) -> Profile:
    """Read a profile by name or path.

    Args:
        name: of a profile in this repository, or the path of a .toml file; None for the one that the
            environment variable SSMLL_SLURM_PROFILE names, or else the defaults.

    Raises:
        UserError: the file is absent or no TOML, or a field is unknown or has a wrong value.
    """
    name = name or os.environ.get(VARIABLE) or None
    if name is None:
        return Profile()
    path = Path(name).expanduser()
    if path.suffix != ".toml":
        path = PROFILES / f"{name}.toml"
        if not path.is_file():
            raise UserError(
                f"no profile {name!r}{nearest(name, available())}; a profile of your own is given "
                "by its path, ending in .toml"
            )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"profile {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"profile {path}: {error}") from None
    return checked(values, str(path))


def checked(values: dict[str, Any], where: str) -> Profile:
    """Build a profile from the table of a file.

    Raises:
        UserError: an unknown field, a value of the wrong type, or one that is out of range.
    """
    if "extra" in values:
        _check_extra(values["extra"], where)
    profile = build(Profile, values, f"profile {where}", _WORDING)
    lowest = {"minutes": SHORTEST, "gpus": 0, "memory_gb": 0, "max_requeues": 0}
    for name, value in vars(profile).items():
        if type(value) is int and value < lowest.get(name, 1):
            why = " (preemption could not be told from the time limit)" if name == "minutes" else ""
            raise UserError(
                f"profile {where}, {name}: {value} is too small; at least {lowest.get(name, 1)}" + why
            )
    if profile.gpu_flag not in ("gpus-per-node", "gres"):
        raise UserError(
            f"profile {where}, gpu_flag: {profile.gpu_flag!r}"
            + nearest(profile.gpu_flag, ("gpus-per-node", "gres"))
        )
    for argument in profile.srun_args:
        if argument.split("=")[0] in _SRUN_OURS:
            raise UserError(
                f"profile {where}, srun_args: {argument} would take from the tasks what they are started with"
            )
    if profile.signal_seconds >= 60 * profile.minutes:
        raise UserError(f"profile {where}, signal_seconds: longer than the {profile.minutes} min")
    return profile


def _check_extra(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise UserError(f"profile {where}, extra: a table of sbatch flags, such as [extra]")
    for flag, setting in value.items():
        if flag.lstrip("-").replace("_", "-") in OWN_FLAGS or flag.startswith("-"):
            what = "is set by the harness" if not flag.startswith("-") else "goes without dashes"
            raise UserError(f"profile {where}, extra: the flag {flag!r} {what}")
        if not isinstance(setting, str | int | bool):
            raise UserError(f"profile {where}, extra, {flag}: {setting!r} is no flag's value")

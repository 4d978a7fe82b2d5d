"""What those who start processes and the processes agree on: exit codes, the log, the job, the group."""

from __future__ import annotations

import os

from methods.errors import UserError

EXIT_STOPPED = 75
"""The command was asked to stop and has saved its state (EX_TEMPFAIL)."""
EXIT_BROKEN = 76
"""The command's process group cannot go on. The cause is recorded with the run; starting again helps."""
EXIT_LOST = 77
"""A peer process died. The run is not at fault, so no failure is recorded; starting again helps."""
LOG = "SSMLL_LOG"
"""Environment variable: the file that receives the command's output. `slurm.task` sets it; progress
files and failure records name it."""


GROUP = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "NODE_RANK",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
)
"""Environment variables that tell a process of PyTorch its place in a group. Whoever starts processes sets
or removes all of them: one that is left over from another launcher makes a process wait for others."""


MPI = tuple(
    f"{library}_{name}"
    for library, names in {
        "PMI": ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"),
        "OMPI_COMM_WORLD": ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"),
        "MV2_COMM_WORLD": ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"),
        "MPI": ("LOCALRANKID", "LOCALNRANKS"),
    }.items()
    for name in names
)
"""The same of MPI's launchers, which accelerate believes more than the above. No process here uses MPI."""

RENDEZVOUS = "SSMLL_RENDEZVOUS"
"""Environment variable: a file through which the ranks that one launcher starts find each other."""


def place_in_group() -> tuple[int, int]:
    """This process's rank and the number of processes of its group, as the environment says; (0, 1) alone.

    Raises:
        UserError: the variables contradict each other, or some are missing: probably they are left over.
    """
    world = _integer("WORLD_SIZE", 1)
    if world == 1:
        return 0, 1
    needed = ("RANK",) if os.environ.get(RENDEZVOUS) else ("RANK", "MASTER_ADDR", "MASTER_PORT")
    absent = [name for name in needed if not os.environ.get(name)]
    if absent:
        raise UserError(
            f"WORLD_SIZE={world} in the environment makes this one of {world} processes, but "
            f"{' and '.join(absent)} of torchrun or srun are not set; {_remedy()}"
        )
    rank = _integer("RANK", 0)
    if not 0 <= rank < world:
        raise UserError(f"RANK={rank} and WORLD_SIZE={world} in the environment do not agree; {_remedy()}")
    return rank, world


def meeting_place() -> str:
    """Where the processes of this group meet, for a message."""
    return os.environ.get(RENDEZVOUS) or f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def notice_of_group(rank: int, world: int) -> str:
    """One line about what a process of a group waits for, and how to go without."""
    return (
        f"rank {rank} of {world} (RANK and WORLD_SIZE of the environment): waits for the others at "
        f"{meeting_place()}; Ctrl-C ends it. Is no group meant? {_remedy()}"
    )


def _remedy() -> str:
    left = [name for name in GROUP if name in os.environ]
    return f"unset {' '.join(left)}; --processes N starts a group here"


def _integer(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        number = int(text)
    except ValueError:
        raise UserError(f"environment variable {name}={text!r} is not a number; {_remedy()}") from None
    if name == "WORLD_SIZE" and number < 1:
        raise UserError(f"environment variable {name}={text}: a group has at least 1 process; {_remedy()}")
    return number


def job_number() -> str | None:
    """The number of this process's SLURM job as squeue prints it ("7" or "7_3"); None without one."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID")

"""Environment variables of launchers and workers, and what of this machine a worker gets.

A process of PyTorch is told its rank by environment variables, and accelerate reads them too, so some
have to be set or removed for the whole process. All of them are here, but for what users set.

RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE
    A process's place in its group. Set by `of_worker`, torchrun and `slurm.task`, read by
    `training.group` and accelerate. `Group.join` removes those of a group of one process, because
    accelerate would look for the rest of the group.
SSMLL_RENDEZVOUS
    A file by which the ranks of one start meet; a port could be taken. Set by `of_worker`, read by
    `training.group`.
MASTER_ADDR, MASTER_PORT
    The same for processes on several machines. Set by torchrun and `slurm.task`.
OMP_NUM_THREADS
    CPU threads of a process. Set by the user, `of_worker` and `slurm.task`, read by torch and
    `threads_of_user`.
CUDA_VISIBLE_DEVICES
    The GPUs of a process group. Set by the user or `of_worker`, read by torch.
PYTHONPATH, PYTHONSAFEPATH
    The code that is to run. Extended by `of_worker`, `slurm.submit` and `slurm/array.sbatch`; the last
    two also keep the working directory, which may hold other code, off the path (Python 3.11 and later).
SSMLL_COMMAND
    The user's command line, which results name instead of the worker's. Set by `record_command` in the
    worker itself, read by `benchmarks.provenance`.
SSMLL_LAUNCH
    The launch that a worker serves. Set by `slurm/array.sbatch`, where a saved plan is used again: each
    call is a launch of its own, so that it tries failed runs again. Read by `launch_name`.
SSMLL_LOG (`slurm.protocol.LOG`)
    The file that holds this process's output. Set by `slurm.task`, read by `launch.failures` and
    `status.progress_file`.
ACCELERATE_*
    Variables of `accelerate launch`. `training.strategy` refuses those that would change a training.
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.provenance import COMMAND
from benchmarks.training.group import RENDEZVOUS
from benchmarks.workspace import REPOSITORY

LAUNCH = "SSMLL_LAUNCH"


def threads_of_user() -> int | None:
    """`OMP_NUM_THREADS`, which a user sets to share the machine with others; None where it is unset."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() else None


def of_worker(
    number: int, rank: int, *, processes: int, threads: int, gpus: int, meeting: Path
) -> dict[str, str]:
    """The whole environment of one process of a local worker.

    Args:
        number: number of the worker on this machine; decides which GPUs it gets.
        rank: number of the process in the worker's group.
        processes: processes of the group.
        threads: CPU threads of each process.
        gpus: GPUs of this machine.
        meeting: a file, new for every start, by which the processes of the group meet.
    """
    path = filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))
    found = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(path)}
    if gpus and "CUDA_VISIBLE_DEVICES" not in os.environ:
        first = number * processes
        found["CUDA_VISIBLE_DEVICES"] = ",".join(str((first + k) % gpus) for k in range(processes))
    if processes > 1:
        found |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            RENDEZVOUS: str(meeting),
        }
    return found


def record_command(command: str) -> None:
    """Let the results of this process name the command line that asked for them."""
    os.environ[COMMAND] = command


def launch_name(default: str) -> str:
    """The launch that this process serves: what `slurm/array.sbatch` says, or else the order's."""
    return os.environ.get(LAUNCH) or default

"""Environment variables of launchers and workers, and what of this machine a worker gets.

A process of PyTorch is told its rank by environment variables, and accelerate reads them too, so some
have to be set or removed for the whole process. All of them are here, but for what users set.

RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE
    A process's place in its group. Set by `of_worker`, torchrun and `slurm.task`, read by
    `training.group` and accelerate. `of_worker` and `slurm.task` remove what is left over of them and of
    their kind (`slurm.protocol.GROUP`), and `Group.join` those of a group of one process, because accelerate
    would look for the rest of the group.
SSMLL_RENDEZVOUS
    A file by which the ranks of one start meet; a port could be taken. Set by `of_worker`, read by
    `training.group`.
MASTER_ADDR, MASTER_PORT
    The same for processes on several machines. Set by torchrun and `slurm.task`.
OMP_NUM_THREADS
    CPU threads of a process. Set by the user, `of_worker` and `slurm.task`, read by torch and
    `threads_of_user`; more than the cores, or a task's CPUs, are cut with a line.
CUDA_VISIBLE_DEVICES
    The GPUs of a process group. Set by the user or `of_worker`, read by torch.
PYTHONPATH, PYTHONSAFEPATH
    The code that is to run. Extended by `of_worker`, `slurm.submit` and `slurm/array.sbatch`, which also
    keep the working directory, which may hold other code, off the path (Python 3.11 and later).
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
    Variables of `accelerate launch`. `training.accelerate_variables` refuses what would change a training.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from benchmarks.provenance import COMMAND, cores
from benchmarks.workspace import REPOSITORY
from slurm.entry import importable
from slurm.protocol import GROUP, MPI, RENDEZVOUS

LAUNCH = "SSMLL_LAUNCH"


def threads_of_user(report: Callable[[str], None] = lambda line: None) -> int | None:
    """`OMP_NUM_THREADS`, which a user sets to share the machine with others; None where it is unset.

    Args:
        report: gets a line when the number is none, or more than there are cores: it is then left out or cut.
    """
    value = os.environ.get("OMP_NUM_THREADS", "").strip()
    if not value:
        return None
    first = value.split(",")[0].strip()  # "4,2": of nested regions, the outer one counts
    if not first.isdecimal() or int(first) < 1:
        report(f"OMP_NUM_THREADS={value} is no number of threads: left out")
        return None
    if int(first) > cores():
        report(f"OMP_NUM_THREADS={value} is more than the cores that may be used: {cores()} threads")
    return min(int(first), cores())


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

    Raises:
        UserError: the code lies where PYTHONPATH cannot name it.
    """
    path = filter(None, (importable(REPOSITORY), os.environ.get("PYTHONPATH")))
    found = {name: value for name, value in os.environ.items() if name not in (*GROUP, *MPI, RENDEZVOUS)}
    found |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}
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

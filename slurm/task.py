"""A SLURM task: starts a command, forwards signals, and requeues the job.

    python -m slurm.task [--max-requeues N] [--restarts N] -- COMMAND ...

The command is a child process. The task forwards SIGUSR2, which SLURM sends before a preemption or the
time limit, and SIGTERM; the command saves its state and exits with 75. After SIGUSR2 the first task then
requeues the job. After SIGTERM alone, which `scancel` sends, it does not. This replaces submitit's own
signal handling, which requeues from inside a signal handler while other tasks are still saving.

A command that was killed, or that lost a peer of its process group, is restarted a few times.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from slurm import client
from slurm.protocol import EXIT_BROKEN, EXIT_LOST, EXIT_STOPPED, GROUP, LOG, MPI, job_number


@dataclass(frozen=True)
class JobCommand:
    """The command of one job; submitit pickles an instance for the job to call.

    Attributes:
        command: program and arguments, the same in every task of the job.
        max_requeues: how often the job may be requeued.
        restarts: how often a command that was killed is restarted.
    """

    command: tuple[str, ...]
    max_requeues: int = 50
    restarts: int = 2

    def __call__(self) -> int:
        """Run the command.

        Raises:
            RuntimeError: it failed; SLURM then shows the job as FAILED.
        """
        import submitit

        job = submitit.JobEnvironment()
        os.environ[LOG] = str(job.paths.stdout)
        # A job killed while submitit stored its result would fail when it is run again.
        path = job.paths.result_pickle
        path.with_suffix(path.suffix + ".save_tmp").unlink(missing_ok=True)
        return run(self.command, max_requeues=self.max_requeues, restarts=self.restarts)


Bundle = JobCommand
"""The class under its former name. Pickles name it by reference, and a job in the queue may be requeued
by any later version of this module: the name stays, and so do the fields of `JobCommand`."""


def run(command: Sequence[str], *, max_requeues: int, restarts: int) -> int:
    """Run a command as this task; see the module's docstring.

    Returns:
        0.

    Raises:
        RuntimeError: the command failed, or was asked to stop and the job is not requeued.
    """
    task = _Task(list(command), restarts)
    before = {number: signal.signal(number, task.on_signal) for number in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        code = task.work()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # Negative: the signal came before the command could handle it. Nothing is lost by that.
    if task.asked == signal.SIGUSR2 and (code in (EXIT_STOPPED, EXIT_LOST) or code < 0):
        requeue(max_requeues)
    if code:
        raise RuntimeError(f"{' '.join(command)}: exit code {code}")
    return 0


class _Task:
    """A command that runs."""

    def __init__(self, command: list[str], restarts: int) -> None:
        self.command, self.restarts = command, restarts
        self.asked: int | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Forward the first signal; ignore the others."""
        if self.asked is None:
            self.asked = number
            say(f"{signal.Signals(number).name}: the state is saved at the next step")
            if self.process is not None and self.process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(self.process.pid, number)

    def work(self) -> int:
        """Run the command, with restarts, until it ends for good; its exit code."""
        starts = 0
        while True:
            # Its own session: signals reach it once, from here.
            self.process = subprocess.Popen(self.command, env=environment(starts), start_new_session=True)
            if self.asked is not None:  # it came before the command was there
                self.process.send_signal(self.asked)
            code = None
            while code is None:
                # Not wait(): a signal handler could not look at the process meanwhile.
                time.sleep(0.2)
                code = self.process.poll()
            lost = code < 0 or code in (EXIT_BROKEN, EXIT_LOST)
            if not lost or self.asked is not None or starts >= self.restarts:
                return code
            starts += 1
            say(f"the command ended with {code}; it is started again ({starts} of {self.restarts})")


def environment(starts: int = 0) -> dict[str, str]:
    """The variables of a task's command: its rank, where there are several tasks, and no other.

    The submitter's environment comes along: a rank that is left over in it would make one task wait for
    others, and its OMP_NUM_THREADS was meant for another machine.

    GPUs are not narrowed to one per task: accelerate asks for the GPU of the local rank.

    Args:
        starts: number of earlier starts of the command; each start uses a port of its own.
    """
    found = {name: value for name, value in os.environ.items() if name not in (*GROUP, *MPI)}
    cpus = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if cpus.isdecimal():  # torch sees all cores of a node where nothing binds the task to its own
        asked = os.environ.get("OMP_NUM_THREADS", "")
        if not asked.isdecimal() or not 0 < int(asked) <= int(cpus):
            if asked:
                say(f"OMP_NUM_THREADS={asked} of the environment: {cpus}, which are the CPUs of the task")
            found["OMP_NUM_THREADS"] = cpus
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)
    if tasks <= 1 or "SLURM_PROCID" not in os.environ:
        return found
    job = int(os.environ["SLURM_JOB_ID"])
    again = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
    found |= {
        "MASTER_ADDR": first_node(),
        "MASTER_PORT": str(port(job, again + starts)),
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // nodes),
    }
    return found


def port(job: int, starts: int) -> int:
    """A port that the tasks of a job derive without communication: 20000 … 59999."""
    return 20000 + (job * 7 + starts) % 40000


def first_node() -> str:
    """The address of the job's first node."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    name = client.call("scontrol", "show", "hostnames", nodes).split()[0]
    for part in client.call("scontrol", "show", "node", name, "--oneliner").split():
        key, _, value = part.partition("=")
        if key == "NodeAddr":
            return value
    return name


def requeue(most: int) -> None:
    """Requeue this job, from its first task; the other tasks wait until SLURM ends them.

    Does nothing when the job was requeued as often as allowed.

    Args:
        most: the allowed number of requeues.
    """
    count = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if count >= most:
        say(f"requeued {count} times already (max_requeues): the next `run` goes on with its runs")
        return
    if os.environ.get("SLURM_PROCID", "0") == "0":
        job = job_number()
        assert job is not None  # SLURM sets it in every task
        say(f"back into the queue as job {job} ({count + 1} of at most {most} times)")
        try:
            client.insist("scontrol", "requeue", job)
        except client.SlurmError as error:
            if "pending execution" not in str(error).lower():
                say(f"{error}; the next `run` goes on with its runs")
                return
            say("SLURM has put it there already")
    time.sleep(60)  # SLURM ends a requeued job; ending by itself it could count as completed


def say(line: str) -> None:
    """Print a line into the job's log."""
    print(f"task on {socket.gethostname()}: {line}", flush=True)


def main() -> int:
    """Entry point of `python -m slurm.task`, for sbatch scripts."""
    parser = argparse.ArgumentParser(prog="python -m slurm.task")
    parser.add_argument("--max-requeues", type=int, default=50)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("no command: python -m slurm.task -- COMMAND ...")
    if LOG not in os.environ and Path("/proc/self/fd/1").exists():
        os.environ[LOG] = os.readlink("/proc/self/fd/1")
    try:
        return run(command, max_requeues=args.max_requeues, restarts=args.restarts)
    except RuntimeError as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())

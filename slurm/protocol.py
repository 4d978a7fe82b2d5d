"""What `slurm.task` and the command that it starts agree on: exit codes, the log, the job's number."""

from __future__ import annotations

import os

EXIT_STOPPED = 75
"""The command was asked to stop and has saved its state (EX_TEMPFAIL)."""
EXIT_BROKEN = 76
"""The command's process group cannot go on. The cause is recorded with the run; starting again helps."""
EXIT_LOST = 77
"""A peer process died. The run is not at fault, so no failure is recorded; starting again helps."""
LOG = "SSMLL_LOG"
"""Environment variable: the file that receives the command's output. `slurm.task` sets it; progress
files and failure records name it."""


def job_number() -> str | None:
    """The number of this process's SLURM job as squeue prints it ("7" or "7_3"); None without one."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID")

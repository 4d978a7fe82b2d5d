"""The record of a failed run or stage, and the exceptions that end a process group."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

from benchmarks.plan.copies import used
from benchmarks.plan.identity import RunSpec
from benchmarks.provenance import now
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results import failure as records
from results.errors import StoreError
from slurm.protocol import LOG


class Hung(RuntimeError):  # noqa: N818 - it is an outcome of a run before it is an error
    """Nothing moved for too long; the message names the ranks that hold the group up."""


class GroupBroken(BaseException):
    """A process of the group failed or is gone, so the group can no longer communicate.

    Attributes:
        code: exit code of this process.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class StageFailed(RuntimeError):  # noqa: N818
    """A stage that the run needs has failed."""


def failure(error: BaseException, launch: str, rank: str = "") -> dict[str, Any]:
    """The record of an error: type, message (with the rank in front), traceback, log.

    An error for users says what is wrong and what to do; where in the code it was raised would hide that.
    """
    log, copies = os.environ.get(LOG), used()
    plain = isinstance(error, UserError | StoreError)
    text = "" if plain else "".join(traceback.format_exception(error))
    return {
        "launch": launch,
        "type": type(error).__name__,
        "message": f"{rank}{error}",
        "traceback": copies.as_written(text) if copies is not None else text,
        "time": now(),
        **({"log": log} if log else {}),
    }


def failed_in(directory: Path, launch: str) -> str | None:
    """The error recorded in a directory during this launch, or None; earlier errors are retried."""
    try:
        record = records.read(directory)
    except OSError:
        return None
    if record is None or record.get("launch") != launch:
        return None
    return f"{record['type']}: {record['message']}"


def fail_dependent(workspace: Workspace, spec: RunSpec, directory: Path, why: str, launch: str) -> None:
    """Record a run as failed because a stage that it needs has failed."""
    record(workspace, spec.record(), directory, StageFailed(why), launch)


def record(
    workspace: Workspace, spec: dict[str, Any], directory: Path, error: Exception, launch: str
) -> bool:
    """Record the failure of a run that was not begun; False where another process holds it or has done it."""
    lease = workspace.store.claim(directory, spec)
    if lease is None:
        return False
    with lease:
        workspace.store.write_failure(directory, lease, failure(error, launch))
    return True

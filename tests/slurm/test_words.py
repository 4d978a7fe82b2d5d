"""What SLURM's states and reasons are said to mean."""

from __future__ import annotations

import pytest

from slurm import words
from slurm.client import Queued


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("SUSPENDED", "goes on where it stands"),
        ("CONFIGURING", "nodes are being started"),
        ("OUT_OF_MEMORY", "memory_gb"),
        ("ReqNodeNotAvail", "down, drained or reserved"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "down, drained or reserved"),
        ("ReqNodeNotAvail,_May_be_reserved_for_other_job", "down, drained or reserved"),
        ("BadConstraints", "constraint, gpus, cpus"),
        ("launch failed requeued held", "scontrol release"),
        ("(launch_failed_requeued_held)", "scontrol release"),
        ("QOSMinCpuNotSatisfied", "less than the QOS requires"),
        ("QOSMinGRES", "less than the QOS requires"),
        ("AssocGrpCPUMinutesLimit", "is used up"),
        ("QOSGrpGRESRunMinutes", "is used up"),
        ("QOSMaxJobsPerUserLimit", "when others have ended"),
    ],
)
def test_each_has_its_word(name, part):
    assert words.explained(name).startswith(name)
    assert part in words.explained(name)


@pytest.mark.parametrize("name", ["Priority", "Resources", "None", "RUNNING", "FAILED", "COMPLETED", ""])
def test_plain_ones_stay(name):
    assert words.explained(name) == name


def queued(state: str, reason: str) -> Queued:
    return Queued("7", state, reason, "0:00", "")


def test_what_holds_a_job_is_told_from_what_passes():
    assert queued("PENDING", "BadConstraints").hopeless
    assert queued("PENDING", "launch failed requeued held").hopeless
    assert queued("REQUEUE_HOLD", "None").hopeless
    assert queued("REQUEUE_HOLD", "None").why == "REQUEUE_HOLD"
    assert not queued("PENDING", "Priority").hopeless
    assert not queued("PENDING", "ReqNodeNotAvail").hopeless
    assert not queued("RUNNING", "BadConstraints").hopeless
    assert queued("SUSPENDED", "None").why == "SUSPENDED"

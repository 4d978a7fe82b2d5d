"""What SLURM's states and reasons mean for a run, in words that say what to do.

Names are those of squeue and sacct (slurm_errno.h and job_state_string of Slurm 22.05 to 24.11); reasons
of which there are families (limits of a QOS, of an association, of a partition) are told by their parts.
"""

from __future__ import annotations

import re

RESTARTS = 5
"""So many beginnings without an end are a loop that somebody should look at."""

STATES = {
    "CONFIGURING": "its nodes are being started",
    "COMPLETING": "it is ending",
    "SUSPENDED": "stopped by SLURM or an administrator, it goes on where it stands",
    "STOPPED": "stopped by a signal, it keeps its nodes",
    "RESIZING": "its nodes change",
    "SIGNALING": "it is being asked to save",
    "STAGE_OUT": "its files are being copied",
    "REQUEUE_HOLD": "requeued and held: `scontrol release` lets it go on",
    "SPECIAL_EXIT": "requeued and held after a failure: look into its log, then `scontrol release`",
    "RESV_DEL_HOLD": "held, its reservation is gone: reservation in the profile, then `cancel` and `run`",
}
"""Of jobs in the queue."""

ENDS = {
    "OUT_OF_MEMORY": "killed by the memory limit: raise memory_gb in the profile, or make the batch smaller",
    "TIMEOUT": "the time limit: `run` goes on with it",
    "NODE_FAIL": "its node failed: `run` goes on with it",
    "BOOT_FAIL": "its node did not start: `run` goes on with it",
    "DEADLINE": "its deadline (extra.deadline) passed before it could end",
    "PREEMPTED": "another job took its place: `run` goes on with it",
    "CANCELLED": "by somebody: `run` goes on with it",
    "REVOKED": "another cluster has taken it",
}
"""Of jobs that are over."""

REASONS = {
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "BadConstraints": "no node can offer what it asks for: constraint, gpus, cpus, memory_gb in the profile",
    "DependencyNeverSatisfied": "what it waits for has failed: `cancel`, then `run`",
    "InvalidAccount": "account in the profile",
    "InvalidQOS": "qos in the profile",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition takes no jobs",
    "PartitionTimeLimit": "minutes in the profile is more than the partition allows",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows",
    "PartitionConfig": "the partition cannot offer what it asks for",
    "JobHeldAdmin": "held by an administrator",
    "JobHeldUser": "held: `scontrol release` lets it go",
    "JobHoldMaxRequeue": "held after too many requeues: look into its log, then `scontrol release`",
    "JobLaunchFailure": "it could not be started: look into its log, the node may be broken",
    "launchfailedrequeuedheld": "its start failed: `scontrol release`, or tell the administrators",
    "NodeDown": "its node is down",
    "BeginTime": "it was requeued a moment ago, or has a time to begin",
    "ReservationDeleted": "its reservation is gone: reservation in the profile",
    "Licenses": "no licence is free",
    "NonZeroExitCode": "it failed",
    "OutOfMemory": ENDS["OUT_OF_MEMORY"],
    "TimeLimit": ENDS["TIMEOUT"],
    "QOSNotAllowed": "qos in the profile is not allowed in this partition",
    "AccountNotAllowed": "account in the profile is not allowed in this partition",
}
"""Why jobs wait: starts of reasons, without blanks and underscores."""

_LIMITS = ("Assoc", "QOS", "MaxArray", "Max")
_HOPELESS = (
    "BadConstraints",
    "DependencyNeverSatisfied",
    "InvalidAccount",
    "InvalidQOS",
    "JobHeld",
    "JobHoldMaxRequeue",
    "launchfailed",
    "ReservationDeleted",
    "PartitionTimeLimit",
    "PartitionNodeLimit",
    "PartitionConfig",
    "NotAllowed",
    "NotSatisfied",
)


def meaning(name: str) -> str:
    """What a state or reason means, " (in brackets)"; "" where it is plain.

    Args:
        name: as SLURM gives it, such as "OUT_OF_MEMORY", "Priority" or
            "ReqNodeNotAvail, UnavailableNodes:n[1-2]".
    """
    found = STATES.get(name) or ENDS.get(name) or _of_reason(name)
    return f" ({found})" if found else ""


def explained(name: str) -> str:
    """A state or reason with its meaning; see `meaning`."""
    return f"{name}{meaning(name)}"


def _of_reason(reason: str) -> str:
    plain = re.sub(r"[()_ ]", "", reason).lower()
    for name, found in REASONS.items():
        if plain.startswith(name.lower()):
            return found
    if not reason.startswith(_LIMITS):
        return ""
    if "Min" in reason and "Minutes" not in reason and "RunMins" not in reason:
        return "it asks for less than the QOS requires: gpus or cpus in the profile"
    if "Minutes" in reason or "RunMins" in reason:
        return "the time that the account or QOS may use is used up"
    return "a limit of the account, QOS or user: it starts when others have ended"


def is_hopeless(state: str, reason: str) -> bool:
    """Whether a job that waits does so until somebody does something."""
    plain = re.sub(r"[()_ ]", "", reason).lower()
    held = state in ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
    return held or any(name.lower() in plain for name in _HOPELESS)

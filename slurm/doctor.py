"""Whether a cluster can do what a profile asks for, and what to change.

Most is asked from the login node; `slurm.node_check` looks at the rest from inside a job.
"""

from __future__ import annotations

import getpass
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.errors import UserError, nearest
from slurm import client, node_check
from slurm.findings import Finding, table
from slurm.profile import SHORTEST, Profile

__all__ = ["Finding", "examine", "minutes_of", "table"]

_TRIED = "sbatch --test-only"
_FOR_A_JOB = ("partition", _TRIED)


def examine(
    profile: Profile,
    shared: Path,
    packages: Mapping[str, str],
    *,
    submit: bool = True,
    report: Callable[[str], None],
) -> list[Finding]:
    """Try out a profile. What SLURM refuses becomes a finding, never an error.

    Args:
        profile: what jobs would ask for.
        shared: a folder that nodes have to reach, made where it is absent; what is written there
            is removed, but for the log of a job that failed.
        packages: versions that nodes have to have, by name; "python" is Python's own.
        submit: also submit a job of a few seconds and wait for it, at most some minutes.
        report: takes lines of progress.
    """
    found = _commands()
    if all(shutil.which(name) is None for name in client.COMMANDS):
        return found
    report("asking the controller")
    config, answered = _controller()
    found.append(answered)
    if answered.state == "problem":  # every further command would wait for it, a minute each
        return found
    cluster = _Cluster(profile, config)
    for what, check in _CHECKS:
        try:
            found += check(cluster)
        except (UserError, ValueError) as error:
            found.append(Finding(what, "warning", f"cannot be told: {error}"))
    found.append(_accepted(profile))
    # A job for a partition that is down or too short for it would only wait.
    hopeless = [f.what for f in found if f.state == "problem" and f.what in _FOR_A_JOB]
    if submit and hopeless:
        report(f"no job is submitted before this is solved: {', '.join(hopeless)}")
    elif submit:
        found += node_check.from_node(profile, shared, packages, report)
    return found


@dataclass(frozen=True)
class _Cluster:
    """What the checks look at.

    Attributes:
        profile: what jobs would ask for.
        config: the answer of `scontrol show config`.
    """

    profile: Profile
    config: Mapping[str, str]

    def get(self, name: str) -> str:
        """A setting of the cluster; empty where it has none."""
        value = self.config.get(name, "")
        return "" if value in ("(null)", "N/A") else value

    def partitions(self) -> dict[str, dict[str, str]]:
        """The fields of each partition, by name."""
        found = {}
        for line in _ask("scontrol", "show", "partition", "--oneliner").splitlines():
            fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
            if "PartitionName" in fields:
                found[fields["PartitionName"]] = fields
        return found

    def mine(self) -> list[dict[str, str]]:
        """The partitions that jobs would go to, as far as they exist."""
        every = self.partitions()
        if self.profile.partition:
            names = self.profile.partition.split(",")
            return [every[name] for name in names if name in every]
        return [fields for fields in every.values() if fields.get("Default") == "YES"]


def minutes_of(text: str) -> float | None:
    """Minutes of a time limit as SLURM writes it, "[days-]hh:mm:ss"; None for no limit.

    Raises:
        ValueError: it is neither.
    """
    if text.upper() in ("UNLIMITED", "INFINITE", "NONE"):
        return None
    days, dash, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"{text!r} is no time limit")
    if dash or len(parts) == 3:  # days-hours[:minutes[:seconds]] and hours:minutes:seconds
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:  # minutes[:seconds]
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return (int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60


def _ask(*command: str) -> str:
    """An answer of SLURM; a doctor who waits long for one has his finding."""
    return client.call(*command, patience=client.BRIEF)


def _commands() -> list[Finding]:
    absent = [name for name in client.COMMANDS if shutil.which(name) is None]
    if absent:
        return [
            Finding(
                "commands",
                "problem",
                f"not on the PATH: {', '.join(absent)}",
                "call this on a login node (perhaps after `module load slurm`), or try the throwaway "
                "cluster of slurm/cluster/up",
            )
        ]
    try:
        return [Finding("commands", "ok", client.call("sbatch", "--version").strip())]
    except client.SlurmError as error:
        return [Finding("commands", "problem", str(error), "is SLURM_CONF set as it should be?")]


def _controller() -> tuple[dict[str, str], Finding]:
    advice = "ask an administrator, or look whether SLURM_CONF names the right cluster"
    try:
        said = " ".join(client.call("scontrol", "ping").split())
        if " UP" not in said:  # a backup that is up will do
            return {}, Finding("controller", "problem", said, advice)
        config = {}
        for line in _ask("scontrol", "show", "config").splitlines():
            key, equals, value = line.partition("=")
            if equals:
                config[key.strip()] = value.strip()
    except client.SlurmError as error:
        return {}, Finding("controller", "problem", str(error), advice)
    return config, Finding("controller", "ok", said)


def _accounting(cluster: _Cluster) -> list[Finding]:
    kind = cluster.get("AccountingStorageType")
    off = "states of ended jobs are unknown; the run store knows what matters"
    if kind.rpartition("/")[2] in ("", "none"):
        return [Finding("accounting", "warning", f"off ({kind or 'not set'})", off)]
    if shutil.which("sacct") is None:
        return [Finding("accounting", "warning", f"{kind}, but sacct is not on the PATH", off)]
    try:
        _ask("sacct", "--noheader", "--allocations", "--jobs=1", "--format=JobID,State")
    except client.SlurmError as error:
        return [Finding("accounting", "warning", f"{kind}, but {error}", off)]
    return [Finding("accounting", "ok", f"{kind}, sacct answers")]


def _arrays(cluster: _Cluster) -> list[Finding]:
    text, wanted = cluster.get("MaxArraySize") or "1001", cluster.profile.array_size
    limit = int(text)
    if limit < 1:
        return [
            Finding(
                "arrays",
                "problem",
                f"MaxArraySize={limit}: the cluster takes no arrays",
                "ask an administrator to set MaxArraySize",
            )
        ]
    note = f"; the profile's {wanted} are cut into arrays of {limit}" if limit < wanted else ""
    return [Finding("arrays", "ok", f"MaxArraySize={limit}, array_size={wanted}{note}")]


def _partition(cluster: _Cluster) -> list[Finding]:
    every, profile = cluster.partitions(), cluster.profile
    absent = [name for name in profile.partition.split(",") if name and name not in every]
    if absent:
        return [
            Finding(
                "partition",
                "problem",
                f"no partition {absent[0]!r}",
                f"partition in the profile{nearest(absent[0], every)}",
            )
        ]
    mine = cluster.mine()
    if not mine:
        return [
            Finding(
                "partition",
                "problem",
                "the cluster has no default partition",
                f"name one in the profile{nearest('', every)}",
            )
        ]
    found = []
    for fields in mine:
        name, state = fields["PartitionName"], fields.get("State", "")
        time = fields.get("MaxTime", "UNLIMITED")
        limit = minutes_of(time)
        said = f"{name} is {state}, {fields.get('TotalNodes', '?')} nodes, MaxTime {time}"
        if state != "UP":
            found.append(Finding("partition", "problem", said, "take another partition, or wait"))
        elif limit is not None and limit < profile.minutes:
            enough = f"minutes = {limit:.0f} or less in the profile, or "
            found.append(
                Finding(
                    "partition",
                    "problem",
                    f"{said}; the profile asks for {profile.minutes} min and would wait for ever",
                    (enough if limit >= SHORTEST else "") + "another partition",
                )
            )
        else:
            found.append(Finding("partition", "ok", f"{said}; asked for: {profile.minutes} min"))
    return found


def _association(cluster: _Cluster) -> list[Finding]:
    profile, what = cluster.profile, "account and qos"
    wanted = {name: getattr(profile, name) for name in ("account", "qos") if getattr(profile, name)}
    if not wanted:
        return [Finding(what, "ok", "the cluster's defaults")]
    said = ", ".join(f"{name} {value}" for name, value in wanted.items())
    if cluster.get("AccountingStorageType").rpartition("/")[2] in ("", "none"):
        return [Finding(what, "warning", f"{said}: cannot be told without accounting")]
    lines = _ask(
        "sacctmgr",
        "--noheader",
        "--parsable2",
        "show",
        "associations",
        f"user={getpass.getuser()}",
        "format=account,qos",
    ).splitlines()
    rows = [line.strip().split("|") for line in lines if "|" in line]
    if not rows:
        return [Finding(what, "warning", f"{said}: sacctmgr shows no associations of yours")]
    accounts = {row[0] for row in rows}
    if profile.account and profile.account not in accounts:
        known, name = accounts, "account"
    else:
        of = [row for row in rows if not profile.account or row[0] == profile.account]
        known, name = {qos for row in of for qos in row[1].split(",") if qos}, "qos"
    if name not in wanted or wanted[name] in known or not known:
        return [Finding(what, "ok", said)]
    # Without enforcement SLURM only writes the name down.
    enforced = "associations" in cluster.get("AccountingStorageEnforce").lower()
    return [
        Finding(
            what,
            "problem" if enforced else "warning",
            f"{name} {wanted[name]!r} is none of yours",
            f"{name} in the profile{nearest(wanted[name], known)}",
        )
    ]


def _preemption(cluster: _Cluster) -> list[Finding]:
    found = []
    kind = cluster.get("PreemptType").rpartition("/")[2]
    default = cluster.get("PreemptMode")
    modes = {fields.get("PreemptMode") or default for fields in cluster.mine()} or {default}
    if kind in ("", "none") or (kind == "partition_prio" and modes == {"OFF"}):
        found.append(Finding("preemption", "ok", "jobs are not preempted"))
    else:
        said = f"{kind}, PreemptMode {'/'.join(sorted(modes))}"
        if any("CANCEL" in mode for mode in modes):
            found.append(
                Finding(
                    "preemption",
                    "warning",
                    said,
                    "preempted jobs do not come back; the next `run` submits what is left",
                )
            )
        elif any("SUSPEND" in mode for mode in modes):
            found.append(
                Finding(
                    "preemption",
                    "warning",
                    said,
                    "a suspended job loses its runs to other jobs after a minute",
                )
            )
        else:
            found.append(Finding("preemption", "ok", said))
        found.append(_preemption_signal(cluster, kind))
    asked = "" if cluster.get("JobRequeue") != "0" else "; the profile asks with --requeue"
    found.append(Finding("requeue", "ok", f"JobRequeue={cluster.get('JobRequeue')}{asked}"))
    wait = cluster.get("KillWait")
    seconds = wait.split(" ")[0]
    short = seconds.isdecimal() and int(seconds) < 5
    found.append(
        Finding(
            "KillWait",
            "warning" if short else "ok",
            f"{wait} from SIGTERM to SIGKILL",
            "jobs ended by SIGTERM lose at most checkpoint_seconds of work" if short else "",
        )
    )
    return found


def _preemption_signal(cluster: _Cluster, kind: str) -> Finding:
    """Whether SIGUSR2, after which a task requeues its job, comes before a preemption.

    What follows was seen with Slurm 22.05: SIGTERM alone looks like `scancel`, so that a task ends
    without requeueing. Within a GraceTime, SLURM takes that for the job's own end.
    """
    what = "preemption signal"
    # By partition, or by QOS, where it is not asked for.
    times = {fields.get("GraceTime", "0") for fields in cluster.mine()}
    by_partition = kind == "partition_prio"
    grace = f", GraceTime {'/'.join(sorted(times))} s" if by_partition else ""
    # Up to Slurm 22.05 it is called preempt_send_user_signal, and stands elsewhere.
    if any("send_user_signal" in cluster.get(f"{name}Parameters") for name in ("Preempt", "Slurmctld")):
        return Finding(what, "ok", f"send_user_signal{grace}")
    if by_partition and times == {"0"}:
        then = "are requeued by SLURM and lose at most checkpoint_seconds of work"
    else:
        then = (
            "lose at most checkpoint_seconds of work, but one that ends within its GraceTime is "
            "not requeued: the next `run` goes on with it"
        )
    return Finding(
        what,
        "warning",
        f"send_user_signal is not set{grace}",
        f"preempted jobs get SIGTERM and "
        f"{then}. An administrator can set PreemptParameters=send_user_signal (in older Slurm "
        "SlurmctldParameters=preempt_send_user_signal)",
    )


def _gpus(cluster: _Cluster) -> list[Finding]:
    profile, types = cluster.profile, cluster.get("GresTypes")
    if not profile.gpus:
        return [Finding("GPUs", "ok", "none asked for")]
    if "gpu" not in types.split(","):
        return [
            Finding(
                "GPUs",
                "problem",
                f"GresTypes={types or 'none'}: the cluster counts none",
                "gpus = 0 trains on CPUs; or another cluster",
            )
        ]
    kind = cluster.get("SelectType")
    if profile.gpu_flag == "gpus-per-node" and kind and not kind.endswith("cons_tres"):
        return [
            Finding("GPUs", "problem", f"{kind} knows no --gpus-per-node", 'gpu_flag = "gres" in the profile')
        ]
    return [Finding("GPUs", "ok", f"GresTypes={types}; asked for: {profile.gpus} for each process")]


def _accepted(profile: Profile) -> Finding:
    what = _TRIED
    try:
        client.call("sbatch", "--test-only", *_words(profile), "--wrap=true")
    except client.SlurmError as error:
        return Finding(what, "problem", str(error), "change the profile; no job was submitted")
    return Finding(what, "ok", "a job with the profile's flags would be accepted")


def _words(profile: Profile) -> list[str]:
    """The profile's flags as sbatch takes them; submitit writes the same into its scripts."""
    flags: dict[str, Any] = profile.flags(1, 1)
    flags |= flags.pop("additional_parameters")
    flags["signal"] = f"USR2@{flags.pop('signal_delay_s')}"
    for name in ("stderr_to_stdout", "use_srun", "setup", "srun_args", "array_parallelism"):
        del flags[name]
    return [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in flags.items()
        if value is not None
    ]


_CHECKS: tuple[tuple[str, Callable[[_Cluster], list[Finding]]], ...] = (
    ("accounting", _accounting),
    ("arrays", _arrays),
    ("partition", _partition),
    ("account and qos", _association),
    ("preemption", _preemption),
    ("GPUs", _gpus),
)

"""What the environment of a login node says about jobs: SBATCH_ACCOUNT and its kind.

sbatch takes SBATCH_* variables for options. Here a profile says what jobs request, so the variables that
sites and users set for all of their jobs become defaults of the profile, with a line; what else sbatch
would read is refused by name. Nothing is dropped in silence: a lost account bills another project.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from methods.errors import UserError
from slurm.profile import Profile

PREFIX = "SBATCH_"
TAKEN = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_WCKEY": "wckey",
}
"""Variables that become the default of a field, which is empty where a profile does not say it."""

FIELDS = {
    "SBATCH_TIMELIMIT": "minutes",
    "SBATCH_GPUS": "gpus",
    "SBATCH_GPUS_PER_NODE": "gpus",
    "SBATCH_GPUS_PER_TASK": "gpus",
    "SBATCH_GRES": "gpus and gpu_flag",
    "SBATCH_MEM_PER_NODE": "memory_gb",
    "SBATCH_SIGNAL": "signal_seconds",
    "SBATCH_NO_REQUEUE": "max_requeues",
    "SBATCH_ARRAY_INX": "parallel",
}
"""Variables whose field always has a value: which of both counts has to be said in the profile."""

OURS = (
    "SBATCH_ERROR",
    "SBATCH_INPUT",
    "SBATCH_JOB_NAME",
    "SBATCH_OPEN_MODE",
    "SBATCH_OUTPUT",
    "SBATCH_REQUEUE",
    "SBATCH_WAIT",
)
"""Variables of options that the harness sets itself."""

QUIET = ("SBATCH_DEBUG", "SBATCH_IGNORE_PBS")
"""Variables that change nothing about a job."""

INSIDE = ("SBATCH_CPU_BIND", "SBATCH_MEM_BIND")
"""Starts of variables that SLURM sets inside a job, about that job."""


def adopt(profile: Profile, environ: Mapping[str, str] | None = None) -> tuple[Profile, list[str]]:
    """A profile with the site's variables as defaults, and a line about each that matters.

    Args:
        profile: what jobs request.
        environ: variables; None for those of this process.

    Raises:
        UserError: a variable asks for what the profile has to say; names the field.
    """
    environ = os.environ if environ is None else environ
    said: list[str] = []
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIX) or not value or name in QUIET:
            continue
        if name.startswith(INSIDE) and "SLURM_JOB_ID" in environ:
            continue
        field = TAKEN.get(name)
        if field is None:
            _refuse(name, value)
            continue
        stated = getattr(profile, field) or profile.extra.get(field, "")
        if not stated:
            changed: dict[str, Any] = {field: value}
            profile = dataclasses.replace(profile, **changed)
            said.append(f"{name}={value} of the environment: taken for the profile's {field}, which is empty")
        elif str(stated) != value:
            said.append(
                f"{name}={value} of the environment does not count: the profile has {field} = {stated}"
            )
    return profile, said


def _refuse(name: str, value: str) -> None:
    """Say where what a variable asks for belongs.

    Raises:
        UserError: always.
    """
    flag = name.removeprefix(PREFIX).lower().replace("_", "-")
    if name in OURS:
        what = f"the harness sets --{flag} itself"
    elif name in FIELDS:
        what = f"jobs ask for what the profile's {FIELDS[name]} says: state it there"
    elif name == "SBATCH_EXPORT":
        what = 'jobs get the whole environment: state [extra] export = "..." in the profile for another'
    elif name == "SBATCH_CLUSTERS":
        what = "set SLURM_CLUSTERS, which squeue and scancel read, too"
    else:
        what = f"state it in the profile, as {flag} below [extra]"
    raise UserError(f"{name}={value} in the environment would be lost: {what}, and unset {name}")

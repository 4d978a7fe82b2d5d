"""Where a number comes from: code, packages, machine, command."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.workspace import REPOSITORY

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "torchvision",
    "accelerate",
    "open_clip_torch",
    "timm",
    "numpy",
    "scikit-learn",
    "pillow",
    "scipy",
    "deepspeed",
)
# Variables that change what accelerate, torch or the BLAS below them do.
PREFIXES = (
    "ACCELERATE_",
    "SLURM_JOB_ID",
    "SLURM_ARRAY",
    "SLURMD_NODENAME",
    "OMP_",
    "MKL_",
    "CUDA_VISIBLE",
    "CUBLAS_",
    "DS_",
    "NCCL_",
    "GLOO_",
    "TORCH_",
    "PYTORCH_",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
)
COMMAND = "SSMLL_COMMAND"
"""Environment variable: the command line that results name; a worker sets it to its user's."""
CODE_FILE = "CODE.json"
"""File in a copy of the code for jobs: the `code_state` of the original."""


@cache
def code_state() -> dict[str, str | None]:
    """Commit and hash of the uncommitted changes of this copy, None where there are none."""
    root = REPOSITORY
    if (root / CODE_FILE).is_file():
        return json.loads((root / CODE_FILE).read_text(encoding="utf-8"))

    def git(*arguments: str) -> bytes | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("diff", "HEAD") or b""
    # A new file that git does not track yet is a change too.
    for name in (git("ls-files", "-z", "--others", "--exclude-standard") or b"").split(b"\0"):
        if name:
            changes += name + b"\0" + _content(root / os.fsdecode(name))
    return {
        "commit": commit.decode().strip() if commit else None,
        "dirty": hashlib.sha256(changes).hexdigest()[:16] if changes else None,
    }


def _content(path: Path) -> bytes:
    """What a new file holds; of a link, such as one to a virtual environment, where it leads.

    What git names beside files (a repository inside this one, a pipe), what has gone meanwhile or may not be
    read, has no content.
    """
    try:
        if path.is_symlink():
            return os.fsencode(os.readlink(path))
        return path.read_bytes() if path.is_file() else b""
    except OSError:
        return b""


@cache
def packages() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """CPU cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return allowed or 1


def device_name(device: torch.device) -> str:
    """The name of a device, such as "CPU …, 2 threads"."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {processor()}, {torch.get_num_threads()} threads"


def provenance(device: torch.device, processes: int, strategy: str) -> dict[str, Any]:
    """Everything about the circumstances of a run, as JSON values."""
    import torch

    return {
        **code_state(),
        "packages": packages(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": device_name(device),
        "processes": processes,
        "strategy": strategy,
        "threads": torch.get_num_threads(),
        "command": os.environ.get(COMMAND) or shlex.join(sys.argv),
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIXES)
        },
    }


def now() -> str:
    """The current time, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")

"""The doctor's job: what a node sees, and whether it is what the login node sees.

    python -m slurm.node_check REQUEST

runs on the node and writes its answer beside the request. It needs the standard library only, so
that it can say what an environment lacks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import resource
import secrets
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from methods.errors import UserError
from slurm import client, words
from slurm.findings import Finding
from slurm.profile import SHORTEST, Profile

START_SECONDS = 300.0
"""How long the job may wait in the queue."""
WORK_SECONDS = 180.0
"""How long it may work: importing torch from a network disk takes its time."""
APPEAR_SECONDS = 60.0
"""How long a network disk may hide a file that a node wrote."""
POLL_SECONDS = 2.0
_REQUEST, _ANSWER, _TOKEN = "request.json", "answer.json", "token"
_SHARED = "--runs must lie on a file system that login and compute nodes share"


def from_node(
    profile: Profile, shared: Path, packages: Mapping[str, str], report: Callable[[str], None]
) -> list[Finding]:
    """Submit a job like any other, if shorter, wait for it, and compare what it saw.

    Args:
        profile: what to ask for.
        shared: a folder that the node has to reach.
        packages: see `slurm.doctor.examine`.
        report: takes lines of progress.
    """
    from slurm import submit
    from slurm.task import JobCommand

    name = f"ssmll-doctor-{secrets.token_hex(3)}"
    folder = shared.absolute() / "doctor" / f"{time.strftime('%Y%m%d-%H%M%S')}-{name[-6:]}"
    token = secrets.token_hex(8)
    request = {"token": token, "packages": sorted(packages), "gpus": profile.gpus}
    try:
        folder.mkdir(parents=True)
        _write(folder / _TOKEN, token)
        _write(folder / _REQUEST, json.dumps(request))
    except OSError as error:
        return [
            Finding(
                "shared folder",
                "problem",
                f"{folder}: {error.strerror}",
                "choose a folder that can be written with --runs",
            )
        ]
    # With a container, this is the Python inside of it: the command runs where submitit does.
    python = shlex.split(profile.python or sys.executable)[-1]
    command = (python, "-m", "slurm.node_check", str(folder / _REQUEST))
    # Short jobs start sooner. SIGUSR2 still comes long after the answer.
    short = min(profile.minutes, max(SHORTEST, profile.signal_seconds // 60 + 10))
    try:
        [(_, job)] = submit.submit(
            submit.Array((0,)),
            folder / "jobs",
            name,
            dataclasses.replace(profile, minutes=short),
            [JobCommand(command, max_requeues=0, restarts=0)],
            Path(__file__).resolve().parent.parent,
            1,
        )
    except UserError as error:
        shutil.rmtree(folder, ignore_errors=True)
        return [Finding("a job", "problem", str(error), "change the profile")]
    report(f"job {job} was submitted; it looks around on a node and ends")
    try:
        answer = _wait(name, job, folder, report)
    finally:  # whatever happens here, an interruption too: no job stays behind
        with suppress(client.SlurmError):
            if client.queue([name], client.BRIEF):
                client.insist("scancel", f"--name={name}")
    if isinstance(answer, Finding):
        return [answer]
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()
    report(f"job {job} answered from {answer['hostname']}")
    return compare(answer, token, profile, packages)


def _wait(name: str, job: str, folder: Path, report: Callable[[str], None]) -> dict[str, Any] | Finding:
    """The job's answer, or what kept it from answering."""
    end = time.monotonic() + START_SECONDS
    told, asked, begun, gone = "", False, False, 0.0
    while True:
        answer = _read(folder / _ANSWER)
        if answer is not None:
            _until_gone(name)
            return answer
        now = time.monotonic()
        try:
            queued = next(iter(client.queue([name], 0.0).values()), None)
        except client.SlurmError as error:  # a busy controller: the next look may do
            report(str(error))
        else:
            if queued is None:
                gone = gone or now
                # Where its log is to be seen, an answer would be, too.
                if now - gone >= (2 * POLL_SECONDS if _log(folder) else APPEAR_SECONDS):
                    return _ended(job, folder)
            elif queued.waits or queued.state == "CONFIGURING":
                if not asked or queued.reason != told:
                    asked, told = True, queued.reason
                    why = words.explained(queued.why)
                    report(f"job {job} waits in the queue ({why}); at most {START_SECONDS:.0f} s")
            elif not begun:
                begun, end = True, now + WORK_SECONDS
                report(f"job {job} works on {queued.nodes}")
        if now > end:
            if begun:
                return Finding(
                    "a job",
                    "problem",
                    f"job {job} gave no answer in {WORK_SECONDS:.0f} s{_log(folder)}",
                    _SHARED,
                )
            return Finding(
                "a job",
                "warning",
                f"job {job} did not start within "
                f"{START_SECONDS:.0f} s ({told or 'no reason given'}) and was cancelled",
                "try again when the queue is shorter; nothing is known of the nodes",
            )
        time.sleep(POLL_SECONDS)


def _until_gone(name: str) -> None:
    """Let the job end by itself for a while: it still stores its result in the folder."""
    with suppress(client.SlurmError):
        for _ in range(10):
            states = {queued.state for queued in client.queue([name], 0.0).values()}
            if not states - {"COMPLETING"}:
                return
            time.sleep(POLL_SECONDS)


def _ended(job: str, folder: Path) -> Finding:
    state = client.ended([job], client.BRIEF).get(job, "")
    said = f"job {job} ended without an answer" + (f" ({words.explained(state)})" if state else "")
    log = _log(folder)
    if log:
        return Finding(
            "a job",
            "problem",
            said + log,
            f"its log: {folder / 'jobs'}; setup and python in the profile make the environment on the node",
        )
    return Finding("shared folder", "problem", f"{said} and without a log in {folder}", _SHARED)


def _log(folder: Path) -> str:
    """The last line of the job's log that says something; empty where there is no log."""
    paths = sorted((folder / "jobs").glob("*.out"), reverse=True)
    for path in paths:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        # The child's own words before submitit's account of its exit code.
        for part in ("Error:", "error:", "rror", ""):
            for line in reversed(said):
                if part in line and "exit code" not in line:
                    return f": {line[:300]}"
    return ": its log is empty" if paths else ""


def compare(
    answer: Mapping[str, Any], token: str, profile: Profile, packages: Mapping[str, str]
) -> list[Finding]:
    """Findings of a node's answer.

    Args:
        answer: what `look` found.
        token: what the node should have read.
        profile: what was asked for.
        packages: versions here.
    """
    host = answer["hostname"]
    found = []
    if answer["token"] != token or answer["unwritable"]:
        why = answer["unwritable"] or "a file of the login node is not the same there"
        found.append(Finding("shared folder", "problem", f"{host}: {why}", _SHARED))
    else:
        note = "" if answer["hard_links"] else ", no hard links (leases fall back to O_EXCL)"
        found.append(Finding("shared folder", "ok", f"read and written from {host}{note}"))
    found.append(
        _least(
            "free space",
            answer["free_bytes"],
            5,
            "of the shared folder",
            "checkpoints and results need room: remove old ones",
        )
    )
    found.append(
        _least(
            "/dev/shm",
            answer["shm_bytes"],
            1,
            f"on {host}",
            "loader processes hand batches over there: memory_gb, or fewer workers",
        )
    )
    skew = answer["clock_seconds"]
    found.append(
        Finding(
            "clock",
            "warning" if abs(skew) > 5 else "ok",
            f"{host} differs from the file system by {skew:+.1f} s",
            "times in results are off by as much; leases go by the file system's clock"
            if abs(skew) > 5
            else "",
        )
    )
    other = [
        f"{name} {answer['packages'].get(name) or 'is absent'} (here {here})"
        for name, here in packages.items()
        if answer["packages"].get(name) != here
    ]
    where = f"{answer['executable']} on {host}"
    if other:
        found.append(
            Finding(
                "environment",
                "problem",
                f"{where}: {', '.join(other)}",
                "make it the same with python and setup in the profile",
            )
        )
    else:
        found.append(Finding("environment", "ok", f"{where}: the same {len(packages)} versions"))
    files = answer["nofile"]
    found.append(
        Finding(
            "open files",
            "ok" if files < 0 or files >= 1024 else "warning",
            "no limit" if files < 0 else f"at most {files}",
            "" if files < 0 or files >= 1024 else 'setup = ["ulimit -n 4096"] in the profile',
        )
    )
    if profile.gpus:
        found.append(_gpus_seen(answer, profile))
    return found


def _gpus_seen(answer: Mapping[str, Any], profile: Profile) -> Finding:
    names = answer["gpu_names"]
    visible = answer["cuda_visible_devices"]
    said = (
        f"torch sees {len(names)} of {profile.gpus} on {answer['hostname']}"
        + (f" ({', '.join(sorted(set(names)))})" if names else "")
        + f", CUDA_VISIBLE_DEVICES={'not set' if visible is None else visible}"
        + ("" if answer["nvidia_smi"] else ", no nvidia-smi")
        + (f", {answer['gpu_error']}" if answer["gpu_error"] else "")
    )
    if len(names) < profile.gpus:
        return Finding(
            "GPUs on a node",
            "problem",
            said,
            'gpu_flag = "gres" or "gpus-per-node", and gpu_type, in the profile; if nvidia-smi '
            "shows them there, torch was built without CUDA or for a newer driver",
        )
    return Finding("GPUs on a node", "ok", said)


def _least(what: str, size: int | None, gigabytes: float, where: str, advice: str) -> Finding:
    if size is None:
        return Finding(what, "warning", f"cannot be told {where}")
    enough = size >= gigabytes * 1e9
    return Finding(
        what, "ok" if enough else "warning", f"{size / 1e9:.1f} GB {where}", "" if enough else advice
    )


def look(folder: Path) -> dict[str, Any]:
    """What this machine sees; each part may fail for itself.

    Args:
        folder: where the request lies.
    """
    request = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    found: dict[str, Any] = {
        "hostname": socket.gethostname(),
        "executable": sys.executable,
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "nvidia_smi": shutil.which("nvidia-smi"),
        "token": None,
        "unwritable": "",
        "hard_links": False,
        "clock_seconds": 0.0,
        "gpu_names": [],
        "gpu_error": "",
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "free_bytes": _free(folder),
        "shm_bytes": _free(Path("/dev/shm")),
    }
    try:
        found["token"] = (folder / _TOKEN).read_text(encoding="utf-8")
        path = folder / f"written-{found['hostname']}"
        before = time.time()
        _write(path, "x")
        # The file was stamped between two looks at this machine's clock.
        found["clock_seconds"] = (before + time.time()) / 2 - path.stat().st_mtime
        with suppress(OSError):
            os.link(path, path.with_suffix(".link"))
            found["hard_links"] = True
    except OSError as error:
        found["unwritable"] = f"{folder}: {error.strerror}"
    versions: dict[str, str | None] = {}
    for name in request["packages"]:
        try:
            versions[name] = metadata.version(name) if name != "python" else None
        except metadata.PackageNotFoundError:
            versions[name] = None
    if "python" in versions:
        versions["python"] = platform.python_version()
    found["packages"] = versions
    if request["gpus"]:
        try:
            import torch

            found["gpu_names"] = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        except Exception as error:  # a driver can fail in many ways, and each one is an answer
            found["gpu_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


def _free(folder: Path) -> int | None:
    """Bytes that a folder has room for, None where it is not there."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _write(path: Path, text: str) -> None:
    """Write and rename: whoever reads the file sees all of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read(path: Path) -> dict[str, Any] | None:
    # Listing the folder makes NFS ask its server; a name that was absent is remembered otherwise.
    with suppress(OSError, ValueError):
        if path.name in os.listdir(path.parent):
            return json.loads(path.read_text(encoding="utf-8"))
    return None


def main() -> int:
    """Entry point of `python -m slurm.node_check REQUEST`."""
    folder = Path(sys.argv[1]).parent
    _write(folder / _ANSWER, json.dumps(look(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Finds the logs of runs, also in a copied folder, and reads their last lines."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmarks.status.overview import Overview, Run
from benchmarks.workspace import REPOSITORY, Workspace
from methods.errors import UserError
from results.errors import StoreError
from results.store import RunStore
from results.why import matching
from slurm.launches import Launches

CHUNK = 64 * 1024
LISTED = 10
POLL_SECONDS = 0.5
_LAUNCHES = "/slurm/launches/"
_FRAME = re.compile(r'\s*File "(.+)", line (\d+), in (.+)')


def relocated(path: str | Path, runs: Path) -> Path | None:
    """The present path of a log; None where it cannot be read.

    A job's log moves with the folder of runs, so the log is looked up there first, and then at the path
    as it was recorded.

    Args:
        path: the recorded path, perhaps of another machine.
        runs: the folder of runs.
    """
    before, found, below = str(path).rpartition(_LAUNCHES)
    places = [runs / _LAUNCHES.strip("/") / below] if found and before else []
    for place in (*places, Path(path)):
        if os.path.isfile(place) and os.access(place, os.R_OK):
            return place
    return None


def log_of(run: Run, runs: Path) -> tuple[Path | None, list[str]]:
    """The most informative log of a run.

    Args:
        run: the run.
        runs: the folder of runs.

    Returns:
        A log that can be read, or None; and all recorded paths.
    """
    recorded = (run.error or {}).get("log"), (run.progress or {}).get("log")
    said = [str(place) for place in recorded if place]
    if run.launch is not None and run.job:
        said.append(str(run.launch.log(run.job)))
    else:  # a finished run: `status` does not look for its job
        said += [str(place) for place in _submitted(run.run_id, runs)]
    said = list(dict.fromkeys(said))
    places = (relocated(place, runs) for place in said)
    return next((place for place in places if place is not None), None), said


def _submitted(run_id: str, runs: Path) -> list[Path]:
    """The logs of all jobs that were submitted for a run, the newest first."""
    found = []
    with suppress(UserError):  # launches that cannot be read: `status` names them
        for launch in Launches(runs):
            with suppress(UserError):
                jobs = launch.jobs()
                found += [
                    launch.log(jobs[number])
                    for number, run_ids in enumerate(launch.run_ids)
                    if number in jobs and any(each.startswith(run_id[:16]) for each in run_ids)
                ]
    return found


def tail(path: Path, lines: int, until: str = "") -> list[str]:
    """The last lines of a file, without what progress bars have overwritten.

    Args:
        path: a text file.
        lines: how many.
        until: if one of the last lines holds this text, those after it are left out.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        length = min(size, max(CHUNK, 200 * lines))
        while True:
            file.seek(size - length)
            data = file.read(length)
            if length == size or data.count(b"\n") > lines:
                break
            length = min(size, 4 * length)
    found = [
        line.rpartition("\r")[2] for line in data.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    ]
    if found and not found[-1]:
        found.pop()
    if until:
        places = [k for k, line in enumerate(found) if until in line]
        found = found[: places[-1] + 1] if places else found
    return found[-lines:]


def nearest_frame(trace: str) -> str:
    """The innermost frame of a traceback outside of libraries, such as "methods/a.py:12 in f"."""
    frames = [match.groups() for line in trace.splitlines() if (match := _FRAME.match(line))]
    own = [frame for frame in frames if "-packages/" not in frame[0] and "/lib/python" not in frame[0]]
    if not frames:
        return ""
    path, line, function = (own or frames)[-1]
    root = f"{REPOSITORY}/"
    return f"{path.removeprefix(root)}:{line} in {function}"


def resolve(view: Overview, words: str) -> Run:
    """The one run that a user names.

    Args:
        view: of everything.
        words: the start of a run id, method/dataset/ratio/seed as `why` takes it, or a part of its
            title.

    Raises:
        UserError: the words match no run, or several.
    """
    by_id = {run.run_id[:16]: run for run in view.runs}
    found: list[Run] = []
    if re.fullmatch(r"[0-9a-fA-F]{4,64}", words):
        short = words.lower()[:16]
        found = [run for run_id, run in by_id.items() if run_id.startswith(short)]
    if not found and "/" in words:
        try:
            paths = matching(RunStore(Workspace(Path(), view.root).store.root), words)
        except StoreError as error:
            raise UserError(str(error)) from None
        found = [by_id[path.name.rsplit("-", 1)[1]] for path in paths]
    if not found:
        folded = words.casefold()
        found = [run for run in view.runs if folded in run.title.casefold()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(
            f"no run matches {words!r} in {view.root}; give the start of its identity, "
            "method/dataset/ratio/seed or a part of its title (`status` shows them)"
        )
    names = "; ".join(run.title for run in found[:LISTED])
    more = f"; and {len(found) - LISTED} more" if len(found) > LISTED else ""
    raise UserError(f"{len(found)} runs match {words!r}, name one by its [identity]: {names}{more}")


def show(run: Run, runs: Path, lines: int) -> tuple[list[str], Path | None]:
    """Lines to show about a run, and the log that they come from; None for other sources."""
    path, said = log_of(run, runs)
    head = f"{run.title}: {run.kind}" + (f", {run.detail}" if run.detail else "")
    if path is not None:
        return [head, f"log {path}", "", *tail(path, lines)], path
    found = [head]
    if said:
        found.append(f"its log cannot be read here: {', '.join(said)}")
    else:
        found.append("no log of its own: a run without a job prints where it was started")
    trace = str((run.error or {}).get("traceback") or "").rstrip()
    if trace:
        found += ["", "traceback of the failure", *trace.splitlines()[-lines:]]
    return found + _epochs(run, lines), None


def follow(path: Path, over: Callable[[], bool]) -> None:
    """Print the lines that are added to a log until the run is over.

    Args:
        path: the log; its present content is skipped.
        over: says whether the run is over; called repeatedly.
    """
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        file.seek(0, os.SEEK_END)
        while True:
            ends = over()  # asked first: what was written before the end is printed
            text = file.read()
            if text:
                sys.stdout.write(text)
                sys.stdout.flush()
            elif ends:
                return
            else:
                time.sleep(POLL_SECONDS)


def _epochs(run: Run, lines: int) -> list[str]:
    if run.directory is None:
        return []
    try:
        rows = RunStore(run.directory.parent).epochs(run.directory)
    except StoreError as error:
        return ["", str(error)]
    if not rows:
        return ["", "no epoch is finished"]
    found = ["", f"epochs so far ({len(rows)})"]
    for row in rows[-lines:]:
        losses = "  ".join(f"{name} {value:.4g}" for name, value in row.get("losses", {}).items())
        score = row.get("mAP_ema")
        mean = f"  mAP {score:.2f}" if score is not None else ""
        found.append(f"  epoch {row['epoch']}{mean}  {losses}".rstrip())
    return found

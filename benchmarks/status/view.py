"""A status as text, as JSON, and redrawn on a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from benchmarks.progress import duration
from benchmarks.status.logs import log_of, nearest_frame, tail
from benchmarks.status.overview import Overview, Run
from results.lineage import SUPERSEDED, reasons
from results.store import error_signature
from slurm.words import RESTARTS, explained, meaning

LISTED = 20
"""Runs that a section names."""
NAMED = 3
"""Runs that a group of failures names."""
TAIL = 5
"""Lines of a log that a group of failures shows."""
_CLEAR, _HOME, _REST = "\x1b[2J", "\x1b[H", "\x1b[J"
_HIDE, _SHOW, _LINE_END = "\x1b[?25l", "\x1b[?25h", "\x1b[K"


def plain(view: Overview, *, everything: bool = False) -> str:
    """A status as text; no newline at the end.

    Args:
        view: the state of the runs.
        everything: name every run of a section, not only the first `LISTED`.
    """
    most = len(view.runs) + len(view.stages) if everything else LISTED
    lines = [headline(view), *(f"  {remark}" for remark in view.remarks)]
    by_left = sorted(view.of("running"), key=lambda run: run.left() or float("inf"))
    lines += _section("running", [_running(run, view) for run in by_left], most)
    lines += _section("stages being computed", [_running(run, view) for run in view.stages], most)
    lines += _section("preempted", [_preempted(run, view) for run in view.of("preempted")], most)
    lines += _waiting("queued", view.of("queued"))
    lines += _submitted(view)
    lines += _section("dead", [_dead(run) for run in view.of("dead")], most)
    lines += _failed(view, most if everything else NAMED)
    lines += _section("unreadable", [f"{run.title}  {run.detail}" for run in view.of("unreadable")], most)
    lines += _superseded(view, most)
    lines += _gone(view)
    return "\n".join(lines)


def headline(view: Overview) -> str:
    """One line of counts."""
    count = len(view.runs)
    counts = ", ".join(f"{number} {kind}" for kind, number in view.counts().items())
    stages = f"; {len(view.stages)} shared stages being computed" if view.stages else ""
    return f"{view.name}: {count} run{'' if count == 1 else 's'}" + (
        f" ({counts}){stages}" if count else f"{stages}"
    )


def as_json(view: Overview) -> dict[str, Any]:
    """A status as JSON values: counts, groups of failures, and one entry per run."""
    return {
        "name": view.name,
        "runs_folder": str(view.root),
        "time": view.taken,
        "counts": view.counts(),
        "remarks": view.remarks,
        "failures": [
            {
                "signature": signature,
                "count": len(runs),
                "run_ids": [run.run_id for run in runs],
                "titles": [run.title for run in runs],
                "at": _at(runs[0]),
                "log": _log(runs[0], view.root),
                "tail": last_lines(runs[0], view.root),
            }
            for signature, runs in failures(view)
        ],
        "runs": [_record(run, view) for run in view.runs],
        "stages": [_record(run, view) for run in view.stages],
    }


def failures(view: Overview) -> list[tuple[str, list[Run]]]:
    """Failed runs grouped by the signature of their error, the largest group first."""
    groups: dict[str, list[Run]] = {}
    for run in view.of("failed"):
        error = run.error or {}
        signature = error.get("signature") or error_signature(
            str(error.get("type")), str(error.get("message"))
        )
        groups.setdefault(str(signature), []).append(run)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def live(
    look: Callable[[], Overview],
    every: float,
    out: TextIO | None = None,
    *,
    everything: bool = False,
) -> Overview | None:
    """Show the status again and again until every run has ended or Ctrl-C.

    On a terminal it is redrawn in place, cut to the window; elsewhere each is printed below the
    one before.

    Args:
        look: reads the state of the runs.
        every: seconds between two calls of `look`.
        out: the stream that is written to; standard output by default.
        everything: see `plain`.

    Returns:
        The last status; None after Ctrl-C.
    """
    out = out or sys.stdout
    terminal = out.isatty()
    if terminal:
        out.write(_HIDE + _CLEAR)
    try:
        while True:
            view = look()
            text = plain(view, everything=everything)
            stamp = time.strftime("%H:%M:%S", time.localtime(view.taken))
            if terminal:
                out.write(screen(text, f"{stamp}, every {every:g} s; Ctrl-C ends the view"))
            else:
                out.write(f"{stamp} {text}\n")
            out.flush()
            if view.settled:
                return view
            time.sleep(every)
    except KeyboardInterrupt:
        return None
    finally:
        if terminal:
            out.write("\n" + _SHOW)
            out.flush()


def screen(text: str, footer: str) -> str:
    """The characters that draw a text over the previous one, cut to the window."""
    columns, rows = shutil.get_terminal_size()
    lines = text.splitlines()
    room = max(1, rows - 2)  # the footer, and the line that the cursor stands in
    if len(lines) > room:
        lines = [*lines[: room - 1], f"... {len(lines) - room + 1} more lines"]
    cut = [line if len(line) < columns else line[: columns - 2] + "…" for line in [*lines, footer]]
    return _HOME + "".join(f"{line}{_LINE_END}\n" for line in cut) + _REST


def _section(title: str, lines: Sequence[str], most: int) -> list[str]:
    if not lines:
        return []
    more = [f"  ... and {len(lines) - most} more (--all)"] if len(lines) > most else []
    return ["", f"{title} ({len(lines)})", *(f"  {line}" for line in lines[:most]), *more]


def _running(run: Run, view: Overview) -> str:
    parts = []
    if run.progress is not None and run.current:
        parts.append(_place(run.progress))
        left = run.left()
        if left is not None:
            parts.append(f"{duration(left)} left")
    if run.age is not None:
        parts.append(f"heartbeat {duration(run.age)} ago")
    parts.append(run.detail)
    parts += [f"job {run.job}"] if run.job else []
    return f"{run.title}  {', '.join(parts)}"


def _place(progress: dict[str, Any]) -> str:
    epoch, epochs = progress["epoch"], progress["epochs"]
    if epoch >= epochs and progress["step"] >= progress["steps"]:
        return f"epoch {epochs}/{epochs} ended"
    return f"epoch {epoch}/{epochs} step {progress['step']}/{progress['steps']}"


def _preempted(run: Run, view: Overview) -> str:
    return f"{run.title}  {_begun(run)}; job {run.job}: {explained(run.why)}"


def _begun(run: Run) -> str:
    place = f", came to {_place(run.progress)}" if run.progress else ""
    # A run that gets on has come to somewhere; one that is begun and lost again and again has a cause.
    loop = ", again and again: look into its log" if run.attempts >= RESTARTS else ""
    return f"begun {run.attempts} {'time' if run.attempts == 1 else 'times'}{loop}{place}"


def _dead(run: Run) -> str:
    job = ""
    if run.job:
        job = f"; job {run.job} " + (f"ended: {explained(run.why)}" if run.why else "is no longer queued")
    return f"{run.title}  {run.detail}; {_begun(run)}{job}"


def _waiting(title: str, runs: Sequence[Run]) -> list[str]:
    """The number of runs whose jobs wait, by reason."""
    if not runs:
        return []
    reasons: dict[str, int] = {}
    for run in runs:
        reasons[run.why] = reasons.get(run.why, 0) + 1
    told = ", ".join(
        f"{why} {count}{meaning(why)}" for why, count in sorted(reasons.items(), key=lambda item: -item[1])
    )
    jobs = len({run.job for run in runs})
    return ["", f"{title} ({len(runs)}) in {jobs} job{'' if jobs == 1 else 's'}: {told}"]


def _submitted(view: Overview) -> list[str]:
    """Runs of which it is unknown here whether they still wait, by launch."""
    groups: dict[str, list[Run]] = {}
    for run in view.of("submitted"):
        assert run.launch is not None  # what makes a run "submitted"
        groups.setdefault(run.launch.folder.name, []).append(run)
    lines = []
    for name, runs in groups.items():
        assert runs[0].launch is not None
        when = runs[0].launch.submitted
        begun = sum(bool(run.attempts) for run in runs)
        told = f"; {begun} begun" if begun else ""
        lines.append(f"  {len(runs)} by launch {name}{f', at {when} UTC' if when else ''}{told}")
    count = len(view.of("submitted"))
    return ["", f"submitted and not done ({count})", *lines] if lines else []


def _failed(view: Overview, most: int) -> list[str]:
    groups = failures(view)
    if not groups:
        return []
    count = len(view.of("failed"))
    lines = ["", f"failed ({count}) for {len(groups)} reason{'' if len(groups) == 1 else 's'}"]
    for signature, runs in groups[: max(most, LISTED)]:
        names = ", ".join(run.title for run in runs[:most])
        more = f", ... and {len(runs) - most} more" if len(runs) > most else ""
        lines += [f"  {len(runs)} x {signature}", f"      runs  {names}{more}"]
        waiting = [run for run in runs if run.why]
        if waiting:
            lines.append(f"      {len(waiting)} of them belong to jobs that are queued or at work")
        at = _at(runs[0])
        lines += [f"      at    {at}"] if at else []
        lines.append(f"      log   {_log(runs[0], view.root) or 'not readable here'}")
        lines += [f"      | {line}" for line in last_lines(runs[0], view.root)]
    hidden = len(groups) - max(most, LISTED)
    return lines + ([f"  ... and {hidden} more reasons (--all)"] if hidden > 0 else [])


def _superseded(view: Overview, most: int) -> list[str]:
    """Runs that an earlier version has made, with the reasons why they are other runs now."""
    runs = view.of(SUPERSEDED)
    lines = _section("superseded", [f"{run.title}  {run.detail}" for run in runs], most)
    return lines + [f"  {reason}" for reason in reasons(run.old[0] for run in runs)]


def _gone(view: Overview) -> list[str]:
    """Runs that were never started although their jobs have left the queue."""
    runs = [run for run in view.of("not started") if run.job]
    if not runs:
        return []
    how: dict[str, int] = {}
    for run in runs:
        how[run.why or "no longer queued"] = how.get(run.why or "no longer queued", 0) + 1
    told = ", ".join(f"{why} {count}{meaning(why)}" for why, count in how.items())
    path, said = log_of(runs[0], view.root)
    log = f"; a log: {path}" if path else f"; a log should be {said[0]}" if said else ""
    head = f"submitted, but their jobs ended before they began ({len(runs)}): {told}{log}"
    return ["", head, *(f"      | {line}" for line in last_lines(runs[0], view.root))]


def _at(run: Run) -> str:
    return nearest_frame(str((run.error or {}).get("traceback") or ""))


def _log(run: Run, root: Path) -> str | None:
    path, _ = log_of(run, root)
    return str(path) if path else None


def last_lines(run: Run, root: Path) -> list[str]:
    """The end of the log up to the failure (a job goes on with other runs), or of the traceback."""
    path, _ = log_of(run, root)
    try:
        lines = tail(path, TAIL, until=f"failed: {run.title}") if path else []
    except OSError:
        lines = []
    trace = str((run.error or {}).get("traceback") or (run.error or {}).get("message") or "")
    return lines or trace.rstrip().splitlines()[-TAIL:]


def _record(run: Run, view: Overview) -> dict[str, Any]:
    """The entry of a run; finished and not started runs have a title only if no file has to be read."""
    found: dict[str, Any] = {"run_id": run.run_id, "state": run.kind}
    quiet = run.kind in ("done", "not started", "queued", SUPERSEDED)
    found["title"] = run.known_title or None if quiet else run.title
    values = {
        "directory": str(run.directory) if run.directory else None,
        "heartbeat_age": run.age,
        "detail": run.detail,
        "attempts": run.attempts,
        "progress": run.progress,
        "left": run.left(),
        "job": run.job,
        "why": run.why,
        "launch": run.launch.folder.name if run.launch else None,
        "error": run.error,
    }
    return found | {key: value for key, value in values.items() if value not in (None, "")}

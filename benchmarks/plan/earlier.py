"""A remembered plan, used where the grid cannot be planned any more.

Tables, figures and `status` need the identities of a grid's runs and their results: no picture, no weights
and no network. So where an input of the plan is not here (the pictures, or a runs folder that was copied to
another machine), the newest remembered plan of the grid answers, and a line says what has become of what it
was made from. See `benchmarks.plan.remembered` for what is kept.
"""

from __future__ import annotations

import dataclasses
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plan.reads import State, installed, sources
from benchmarks.plan.remembered import CODE, FOLDER, VARIABLES, Question, plan_of, read
from benchmarks.plan.summary import PlannedRun, PlanSummary
from benchmarks.workspace import REPOSITORY, Workspace
from results.text import listed

SHOWN = 3
"""Inputs that a line names."""


@dataclass(frozen=True)
class EarlierPlan:
    """A remembered plan whose inputs may have changed since.

    Attributes:
        plan: the runs that were asked for.
        made: when, seconds since the epoch.
        absent: inputs that are not here.
        changed: inputs that are not what they were.
    """

    plan: PlanSummary
    made: float
    absent: tuple[str, ...]
    changed: tuple[str, ...]

    def remark(self) -> str:
        """One line: which plan it is, and what has become of its inputs."""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.made))
        parts = [f"not here: {_some(self.absent)}"] if self.absent else []
        parts += [f"changed since: {_some(self.changed)}"] if self.changed else []
        return f"grid {self.plan.name}: the runs are those of the plan of {when}" + (
            f" ({'; '.join(parts)})" if parts else ""
        )


def newest(question: Question, workspace: Workspace) -> EarlierPlan | None:
    """The newest remembered plan of the question's grid that has the runs it asks for.

    The plan may be one of the whole grid, of another working directory or data folder, or of another
    machine; a grid file is the same under another path if it has the same name and content.
    """
    for made, file in _dated(workspace):
        body = read(file)
        try:
            if body is not None and _is_of(body, question):
                part = _part(plan_of(body), body["question"], question)
                if part is not None:
                    return EarlierPlan(part, made, *_inputs(body, question, workspace))
        except (KeyError, TypeError, AttributeError):  # another version wrote it
            continue
    return None


def every(workspace: Workspace) -> list[PlanSummary]:
    """All remembered plans, the newest first."""
    found = []
    for _, file in _dated(workspace):
        body = read(file)
        with suppress(KeyError, TypeError, AttributeError):  # another version wrote it
            found += [plan_of(body)] if body is not None else []
    return found


def _dated(workspace: Workspace) -> list[tuple[float, Path]]:
    found = []
    for file in (workspace.runs / FOLDER).glob("*.json"):
        with suppress(OSError):  # a link that leads nowhere
            found.append((file.stat().st_mtime, file))
    return sorted(found, reverse=True)


def _is_of(body: dict[str, Any], question: Question) -> bool:
    """Whether a record is of the question's grid and strategy."""
    asked, said = question.grid, body["question"]
    if said["strategy"] != question.strategy:
        return False
    if not asked.endswith(".toml"):
        return said["grid"] == asked
    path = os.path.abspath(asked)
    if said["grid"] == path:
        return True
    state = body["files"].get(said["grid"])
    return os.path.basename(said["grid"]) == os.path.basename(path) and bool(
        state and _content(path) == state[2]
    )


def _part(plan: PlanSummary, said: dict[str, Any], question: Question) -> PlanSummary | None:
    """The runs that a question asks for; None if the plan has not all of them."""
    kept = plan.runs

    def said_of(run: PlannedRun, field: str) -> Any:
        """What a command line calls the run's budget, seed, split or row."""
        if field == "ratio":
            return run.budget or run.ratio
        if field == "split_seed" and run.split_seed is None:
            return run.seed
        return getattr(run, field)

    parts = {"ratios": "ratio", "seeds": "seed", "split_seeds": "split_seed", "methods": "label"}
    for name, field in parts.items():
        asked, had = list(getattr(question, name)), list(said.get(name, ()))
        if not asked and had:  # the whole is asked for, and this is a part
            return None
        if asked and not set(asked) <= {said_of(run, field) for run in kept}:
            return None
        if asked:
            kept = tuple(run for run in kept if said_of(run, field) in asked)
    return dataclasses.replace(plan, runs=kept)


def _inputs(
    body: dict[str, Any], question: Question, workspace: Workspace
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What of a plan's inputs is absent, and what has changed."""
    now = question.values(workspace)
    moves = [(body["question"][name], now[name]) for name in ("data", "from")]
    grid = body["question"]["grid"]
    if grid.endswith(".toml"):
        moves.insert(0, (os.path.dirname(grid), os.path.dirname(now["grid"])))
    absent, changed = [], []
    for path, state in {**body["files"], **body["pixels"]}.items():
        here = _moved(path, moves)
        if state[0] >= 0 and not os.path.exists(here):
            absent.append(here)
        elif len(state) > 2 and not State(*state).holds(here) and _content(here) != state[2]:
            changed.append(here)
    for file, digest in body.get("pictures", {}).items():
        gone, held = _pictures(_moved(file, moves), digest)
        if gone:
            absent.append(f"{len(gone)} pictures, such as {gone[0]}")
        elif not held:
            changed.append("pictures")
    for name, value in body["environment"].items():
        if name not in VARIABLES and os.environ.get(name) != value:
            (changed if name in os.environ else absent).append(f"${{{name}}}")
    if sorted(body["code"]) != sources(CODE) or not all(
        State(*state).holds(str(REPOSITORY / path)) for path, state in body["code"].items()
    ):
        changed.append("the code of SSMLL-Bench")
    if body["installed"] != installed():
        changed.append("the installed packages")
    return tuple(absent), tuple(changed)


def _pictures(manifest: str, digest: str) -> tuple[list[str], bool]:
    """The pictures of a manifest that are not here; and whether all are what they were."""
    from benchmarks.data.cache.sources import holds, load  # needs NumPy

    found = load(manifest)
    if found is None:  # it lies beside the cache, whose absence is said already
        return [], True
    gone = [path for path in found.paths if not os.path.exists(path)]
    return gone, not gone and holds(manifest, digest)


def _moved(path: str, moves: list[tuple[str, str]]) -> str:
    """Where a file would lie now that the folders above it have moved."""
    for before, after in moves:
        if path.startswith(f"{before}{os.sep}"):
            return after + path[len(before) :]
    return path


def _content(path: str) -> str:
    return State.recorded(path).sha256


def _some(names: tuple[str, ...]) -> str:
    here = os.path.join(os.getcwd(), "")
    # What a user knows first: files that the harness made lie in deeper folders.
    shown = sorted((name.removeprefix(here) for name in names), key=lambda name: (name.count(os.sep), name))
    return listed(shown, SHOWN)

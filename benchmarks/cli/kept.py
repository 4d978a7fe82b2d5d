"""The weights that runs kept: what `--keep-weights` leaves, and the run that `predict` and its like mean."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cli.options import RUN
from benchmarks.plan.summary import PlannedRun, PlanSummary
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results import weights
from results.columns import seeds_name, subset_name
from results.damage import UnreadableError
from results.errors import StoreError
from results.schema import Result
from results.text import listed, one_line

Group = dict[str, list[PlannedRun]]
"""The runs of a column by row."""


def settle(args: argparse.Namespace, summary: PlanSummary, workspace: Workspace, executed: set[str]) -> bool:
    """Leave only the weights that ``--keep-weights`` asked for, and say what is kept and how large it is.

    Args:
        args: the command line; nothing is done without ``keep_weights``.
        summary: the runs of the grid.
        workspace: where results lie.
        executed: identities of the runs that this call was to execute.

    Returns:
        Whether all finished runs that were executed, and are to have weights, have some.
    """
    if not args.keep_weights:
        return True
    dropped: set[str] = set()
    if args.keep_weights == "best":
        dropped = _keep_best(summary, workspace)
    runs = [run for run in summary.runs if weights.of_run(run.directory(workspace)) is not None]
    count, size = weights.total(run.directory(workspace) for run in runs)
    print(f"weights: {count} runs, {weights.size_text(size)}, {weights.NAME} in their directories")
    done = [run for run in summary.runs if workspace.store.state(run.directory(workspace)).kind == "done"]
    bare = [run for run in done if run not in runs and run.run_id not in dropped]
    lost = [run for run in bare if run.run_id in executed]
    if lost:
        print(f"without weights, see above: {listed([run.title for run in lost], 5)}", file=sys.stderr)
    older = [run for run in bare if run not in lost]
    if older:
        print(
            f"{len(older)} runs were finished before without weights; `predict` says how to train one again",
            file=sys.stderr,
        )
    return not lost


def _keep_best(summary: PlanSummary, workspace: Workspace) -> set[str]:
    """Remove the weights of a column's runs that are not of its best row, where those are not to stay.

    A row that is not complete may become the best one: its weights stay. So do those that a call with
    ``--keep-weights`` alone has kept.

    Returns:
        Identities of the runs that are not to have weights.
    """
    columns: dict[tuple[Any, ...], Group] = {}
    for run in summary.runs:
        column = columns.setdefault((run.dataset, run.budget or run.ratio), {})
        column.setdefault(run.label, []).append(run)
    dropped: set[str] = set()
    removed = freed = 0
    for column in columns.values():
        means = {
            label: mean for label, runs in column.items() if (mean := _mean(runs, workspace)) is not None
        }
        if not means:
            continue
        best = max(means.values())
        names = [label for label, mean in means.items() if mean == best]
        for run in (run for label in means if label not in names for run in column[label]):
            dropped.add(run.run_id)
            path = weights.of_run(run.directory(workspace))
            if path is not None and _may_go(path):
                removed, freed = removed + 1, freed + path.stat().st_size
                path.unlink(missing_ok=True)
        some = next(iter(column.values()))[0]
        share = some.budget or f"p={some.ratio:g}"
        unfinished = [label for label in column if label not in means]
        waiting = f"; not complete, so kept too: {listed(unfinished, 5)}" if unfinished else ""
        print(one_line(f"best on {some.dataset} {share}: {' and '.join(names)} ({best:.2f} mAP){waiting}"))
    if removed:
        print(f"removed the weights of {removed} other runs, {weights.size_text(freed)}")
    return dropped


def _mean(runs: list[PlannedRun], workspace: Workspace) -> float | None:
    """Mean mAP (rule last) of a row; None where a run is missing."""
    values = []
    for run in runs:
        result = workspace.store.read(run.directory(workspace))[1]
        if result is None:
            return None
        values.append(result["metrics"]["last"]["mAP"])
    return sum(values) / len(values)


def _may_go(path: Path) -> bool:
    """Whether weights were kept to choose the best only; those that cannot be read stay where they are."""
    try:
        return weights.read_header(path).record["kept"] == "best"
    except UnreadableError:
        return False


def find(workspace: Workspace, query: str) -> tuple[Path, Result]:
    """The one finished run that a user means.

    Args:
        workspace: where results lie.
        query: the start of its identity, or method/dataset/ratio/seed.

    Raises:
        UserError: none or several match, or it is not done.
    """
    from results.why import matching

    store = workspace.store
    found = matching(store, query.strip())
    if not found:
        raise UserError(
            f"no run matches {query!r} in {store.root}; give the first characters of a run id, or "
            "method/dataset/ratio/seed (`status` lists runs)"
        )
    if len(found) > 1:
        done = [run for run in found if store.state(run).kind == "done"]
        if len(done) != 1:
            names = listed([str(run.relative_to(store.root)) for run in found], 5)
            raise UserError(
                f"{len(found)} runs match {query!r}: {names}; give more of it, or the start of the identity, "
                "which ends a directory's name"
            )
        found = done
    (run,) = found
    state, result = store.read(run)
    if state.kind == "unreadable":
        raise StoreError(state.detail)
    if result is None:
        raise UserError(f"{run.relative_to(store.root)} is {state.kind}: it has no result yet")
    return run, result


def weights_of(workspace: Workspace, query: str) -> tuple[Path, Result]:
    """The file of weights of the run that a user means, and its result.

    Raises:
        UserError: see `find`; or the run has none (the command that trains it again is named), or they are
            not those of its result.
    """
    run, result = find(workspace, query)
    path = weights.of_run(run)
    if path is None:
        raise UserError(
            f"{run.relative_to(workspace.store.root)} has kept no weights. To have them, train it again in "
            f"another folder of runs and take them over: {retrain(result, workspace)}"
        )
    try:
        record = weights.read_header(path).record
    except UnreadableError as error:
        raise UserError(str(error)) from None
    if problem := weights.foreign(record, result):
        raise UserError(f"{path} has not the weights of this run: {problem}; move the file away")
    return path, result


def title(record: Mapping[str, Any]) -> str:
    """What trained a model, for people.

    Args:
        record: of a file of weights.
    """
    spec = record["spec"]
    subset = subset_name(spec["ratio"], spec.get("budget", ""))
    seeds = seeds_name(spec["seed"], spec.get("split_seed"))
    name = spec.get("label", spec["method"])
    return one_line(f"{name} · {spec['dataset']['alias']} {subset} {seeds} [{record['run_id'][:8]}]")


def retrain(result: Result, workspace: Workspace) -> str:
    """The commands that train a run again and take its weights over."""
    spec, provenance = result["spec"], result["provenance"]
    words = ["--grid", _grid(provenance), "--methods", spec.get("label", spec["method"])]
    words += ["--ratios", str(spec.get("budget") or f"{spec['ratio']:g}"), "--seeds", str(spec["seed"])]
    if spec.get("split_seed", spec["seed"]) != spec["seed"]:
        words += ["--split-seeds", str(spec["split_seed"])]
    again = f"{workspace.runs}-again"
    data = ["--data", str(workspace.data)] if str(workspace.data) != "data" else []
    train = shlex.join([*words, "--keep-weights", *data, "--runs", again])
    take = shlex.join(["merge", again, "--runs", str(workspace.runs)])
    return f"{RUN} {train} && {RUN} {take}"


def _grid(provenance: Any) -> str:
    """The grid that a run was of, as its command line named it."""
    try:
        words = shlex.split(provenance.get("command", ""))
    except ValueError:
        words = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--grid" and following:
            return following
        if word.startswith("--grid="):
            return word.removeprefix("--grid=")
    name = provenance.get("grid", {}).get("file", "")
    return name.removesuffix(".toml") or "GRID"

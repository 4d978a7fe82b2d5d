"""From stored runs to data frames: one row per run, per class or per epoch.

A *wanted* run is {"run_id", "dataset", "ratio", "seed", "method", "label"}: `dataset` is the name
shown (the spec's dataset.alias), `label` the row of the table that the run belongs to. Runs without
a result stay in the frame of `collect` with their state, so that nothing vanishes from a table.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from results.damage import to_stderr
from results.errors import StoreError
from results.evaluated import evaluated
from results.schema import RULES, Result, Rule, Spec
from results.store import RunStore
from results.versions import made_by

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

METRICS = ("mAP", "OF1", "CF1", "head", "medium", "tail", "num_classes")
QUALITY = ("OP", "OR", "OF1", "CP", "CR", "CF1", "coverage")
SCORES = ("mAP_ema", "mAP_model", "mAP_val")
"""Scores of an epoch: on the test images with the EMA's and the raw weights, on held-out images."""
KEYS = ("run_id", "dataset", "ratio", "seed", "method", "label")
"""What a wanted run has to say."""
COLUMNS = (*KEYS, "budget", "split_seed")
"""What is known of a wanted run: a budget other than a ratio, and the split's seed, if they are its own."""


def collect(store: RunStore, wanted: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Every wanted run with its state and its metrics under every selection rule.

    Args:
        store: where the runs are.
        wanted: the runs, in the order in which tables and legends should show them.

    Returns:
        A row per wanted run, in order: `COLUMNS`, state (see
        `RunState.kind`), detail, digest (SHA-256 of result.json, "" without one), seconds, peeking_rule (what
        drew the labelled images, if it looked at all labels; else missing), made_by (`versions.MadeBy`,
        None without a result), evaluated (`results.evaluated.Evaluated`, None without a result), device (what
        trained it, for people), trainable_parameters (NaN where an earlier version did not record them),
        spec (what was asked for; None without a result), and
        "<rule>/<metric>" for every rule of `RULES` and metric of `METRICS` (percent; NaN where
        there is none).

    Raises:
        StoreError: a wanted item lacks a key, or two of them claim the same cell and seed.
    """
    import pandas as pd

    columns = [*COLUMNS, "state", "detail", "digest", "seconds", "peeking_rule", "made_by"]
    columns += ["evaluated", "device", "trainable_parameters", "spec"]
    columns += [f"{rule}/{metric}" for rule in RULES for metric in METRICS]
    rows = []
    for item, directory in located(store, wanted):
        state, result = store.read(directory)
        row = {**item, "state": state.kind, "detail": state.detail, "digest": ""}
        if result is not None:
            row["digest"] = store.digest(directory)
            row["seconds"] = result["cost"]["seconds"]
            row["device"] = result["cost"]["device"]
            row["trainable_parameters"] = result["cost"].get("trainable_parameters")
            row["made_by"] = made_by(result)
            row["evaluated"] = evaluated(result)
            row["spec"] = result["spec"]
            split = result.get("split")
            if split is not None and split.get("sees_hidden_labels"):
                row["peeking_rule"] = split.get("rule", "a rule")
            for rule in RULES:
                found: Mapping[str, Any] = result["metrics"].get(rule) or {}
                row |= {f"{rule}/{metric}": found.get(metric) for metric in METRICS}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=pd.Index(columns))
    numbers = [name for name in columns if "/" in name] + ["seconds", "trainable_parameters", "ratio"]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def collect_classes(store: RunStore, wanted: Sequence[dict[str, Any]], rule: Rule = "last") -> pd.DataFrame:
    """Average precision of every class of every finished run.

    Args:
        store: where the runs are.
        wanted: see `collect`.
        rule: selection rule.

    Returns:
        A row per run and class: the keys of the run, class, AP (percent, NaN without a positive),
        train_count and group (head, medium, tail). Runs without a result under the rule are absent.
    """
    import pandas as pd

    rows = []
    for item, directory in located(store, wanted):
        result = store.read(directory)[1]
        found = None if result is None else result["metrics"].get(rule)
        if result is None or found is None:
            continue
        per_class = zip(result["classes"], found["AP"], found["train_counts"], found["groups"], strict=True)
        rows += [
            {**item, "class": name, "AP": ap, "train_count": count, "group": group}
            for name, ap, count, group in per_class
        ]
    columns = [*COLUMNS, "class", "AP", "train_count", "group"]
    return pd.DataFrame(rows, columns=pd.Index(columns)).astype({"AP": "float64"})


def collect_curves(
    store: RunStore, wanted: Sequence[dict[str, Any]], left_out: Callable[[str], None] = to_stderr
) -> pd.DataFrame:
    """Every epoch of every run, finished or not.

    Args:
        store: where the runs are.
        wanted: see `collect`.
        left_out: gets a line on each run whose epochs cannot be read; none of them is in the frame.

    Returns:
        A row per run and epoch: the keys of the run, epoch (from 1), pseudo (whether it has pseudo-labels),
        losses (term -> sum or None), and the columns of `SCORES` and `QUALITY` (percent, NaN where undefined
        or not computed in that epoch).
    """
    import pandas as pd

    rows = []
    for item, directory in located(store, wanted):
        try:
            epochs = store.epochs(directory)
        except StoreError as error:
            left_out(str(error))
            continue
        for epoch in epochs:
            quality = epoch.get("pseudo_labels") or {}
            values = {name: quality.get(name) for name in QUALITY}
            scores = {name: epoch.get(name) for name in SCORES}
            said = {"epoch": epoch["epoch"], "pseudo": bool(quality), "losses": epoch.get("losses", {})}
            rows.append({**item, **said, **scores, **values})
    columns = [*COLUMNS, "epoch", "pseudo", "losses", *SCORES, *QUALITY]
    frame = pd.DataFrame(rows, columns=pd.Index(columns))
    return frame.astype({**dict.fromkeys((*SCORES, *QUALITY), "float64"), "pseudo": "bool"})


def collect_epochs(
    store: RunStore, wanted: Sequence[dict[str, Any]], left_out: Callable[[str], None] = to_stderr
) -> pd.DataFrame:
    """Pseudo-label quality of every epoch of every run, finished or not.

    Args:
        store: where the runs are.
        wanted: see `collect`.
        left_out: see `collect_curves`.

    Returns:
        A row per run and epoch that has pseudo-labels: the keys of the run, epoch, and the columns
        of `QUALITY` (percent, NaN where undefined).
    """
    curves = collect_curves(store, wanted, left_out)
    return curves[curves["pseudo"]][[*COLUMNS, "epoch", *QUALITY]].reset_index(drop=True)


def finished(store: RunStore, wanted: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], Result]]:
    """Keys and result of the finished ones of the wanted runs, in order; ``wanted`` as for `collect`."""
    read = ((item, store.read(directory)[1]) for item, directory in located(store, wanted))
    return [(item, result) for item, result in read if result is not None]


def finished_specs(store: RunStore, wanted: Sequence[dict[str, Any]]) -> list[Spec]:
    """What the finished ones of the wanted runs were asked for, in order; ``wanted`` as for `collect`."""
    return [result["spec"] for _, result in finished(store, wanted)]


def located(store: RunStore, wanted: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], Path]]:
    """The keys of every wanted run with its directory, after a check for clashes."""
    found = []
    cells: dict[tuple, str] = {}
    ratios: dict[tuple[str, str], list[float]] = {}
    for number, item in enumerate(wanted):
        missing = [key for key in KEYS if key not in item]
        if missing:
            raise StoreError(f"wanted run {number} lacks {', '.join(missing)}")
        keys = {key: item[key] for key in KEYS}
        split_seed = item.get("split_seed")
        keys["budget"] = item.get("budget") or ""
        keys["split_seed"] = keys["seed"] if split_seed is None else split_seed
        column = keys["budget"] or float(keys["ratio"])
        cell = (keys["label"], keys["dataset"], column, keys["split_seed"], keys["seed"])
        other = cells.setdefault(cell, keys["run_id"])
        if other != keys["run_id"]:
            raise StoreError(
                f"runs {other[:16]} and {keys['run_id'][:16]} are both {keys['label']} on "
                f"{keys['dataset']}, ratio {keys['ratio']}, seed {keys['seed']}; "
                "give them different labels"
            )
        spec = {**keys, "dataset": {"alias": keys["dataset"]}}
        found.append((keys, store.directory(keys["run_id"], spec)))
        ratios.setdefault((keys["dataset"], keys["budget"]), []).append(float(keys["ratio"]))
    for keys, _ in found:
        if keys["budget"]:  # subsets of one budget may differ in size, and stand in one column
            keys["ratio"] = statistics.fmean(ratios[keys["dataset"], keys["budget"]])
    return found

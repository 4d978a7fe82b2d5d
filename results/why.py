"""Where a number comes from: everything that is stored about the runs behind it."""

from __future__ import annotations

import functools
import itertools
import re
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from results.errors import StoreError, nearest
from results.files import canonical_json
from results.frames import METRICS
from results.lineage import Predecessor, moves_since, successor
from results.moves import SEEDED, flat
from results.schema import RULES, Result, Rule
from results.store import RunStore
from results.text import one_line
from results.versions import Differs, against_today, differences, made_by

# Without these a number cannot be traced, so their absence is printed too.
ESSENTIAL = ("command", "commit", "dirty", "host", "device")
_DIGEST = re.compile(r"[0-9a-f]{32,64}$")
_HASH = re.compile(r"[0-9a-fA-F]{4,64}$")
_NUMBER = re.compile(r"(\d+\.\d+)\*?(?:\s*(?:±|\+-)\s*(\d+\.\d+)\*?)?$")
SOME_SEEDS = 10
"""Most seeds of which every choice is tried."""


Planned = Iterable[tuple[str, Mapping[str, Any]]]
"""Identities and specs of planned runs."""


def why(store: RunStore, query: str, planned: Planned = (), differs: Differs = lambda files: []) -> str:
    """Explain a number.

    Args:
        store: where the runs are.
        query: the first characters (four or more) of a run id; or method/dataset/ratio/seed, whose
            end may be left off (csaa/GlyphScenes/0.05), with the method's name or its label; or a
            number as a table prints it (62.43, or "62.4 ± 0.3"): every run and every mean over seeds
            that rounds to it is listed; without any, the means over some of the seeds, which a table of
            a part of the grid prints.
        planned: runs of the remembered plans, which may supersede a result.
        differs: compares the code that made a result with that of today.

    Returns:
        One run in full, or a list of the runs that match with their values, mean and standard
        deviation; no newline at the end.

    Raises:
        StoreError: nothing matches; the message names the nearest valid part.
    """
    return "\n".join(map(one_line, _answer(store, query.strip(), list(planned), differs)))


def is_number(query: str) -> bool:
    """Whether a query is a number as a table prints it."""
    return _NUMBER.match(query.strip()) is not None


def _answer(store: RunStore, query: str, planned: Planned, differs: Differs) -> list[str]:
    number = _NUMBER.match(query)
    if number:
        return _by_number(store, query, number[1], number[2] or "", planned)
    found = matching(store, query)
    if not found:
        raise StoreError(
            f"no run matches '{query}' in {store.root}; give the first characters of a run id, "
            f"method/dataset/ratio/seed, or a number as the table prints it{_hidden(store)}"
        )
    one = len(found) == 1
    lines = _one(store, found[0], planned, differs) if one else _several(store, found, planned)
    return lines + list(store.hidden.values())


def _hidden(store: RunStore) -> str:
    """The end of an error message about something that may lie in a folder that cannot be listed."""
    return "".join(f"; {line}" for line in store.hidden.values())


def matching(store: RunStore, query: str) -> list[Path]:
    """Directories of the runs that match the start of a run id, or method/dataset/ratio/seed.

    Raises:
        StoreError: a part of method/dataset/ratio/seed is unknown; the nearest valid one is named.
    """
    found = store.find(query.lower()) if _HASH.match(query) else []
    if not found and ("/" in query or query in _methods(store)):
        found = _by_path(store, query)
    return found


def _one(store: RunStore, run: Path, planned: Planned, differs: Differs) -> list[str]:
    state, result = store.read(run)
    lines = [f"run        {run.relative_to(store.root)}"]
    if state.kind == "unreadable":
        raise StoreError(state.detail)
    if result is None:
        lines.append(f"state      {state.kind}{': ' + state.detail if state.detail else ''}")
        lines.append("           there is no number yet")
        if state.attempts:
            lines += _section("spec", _spec(store, run))
        return lines
    lines += [
        f"run id     {result['run_id']}",
        f"state      done, {result['finished']}, attempt {state.attempts}",
        f"result     sha256:{store.digest(run)}",
        *_superseded(result, successor(store, run, result, planned)),
        "",
        "value per selection rule (percent)",
    ]
    for rule in RULES:
        values = result["metrics"].get(rule)
        if values is None:
            lines.append(f"  {rule:<8} not recorded")
            continue
        shown = [f"{name} {_number(values.get(name))}" for name in METRICS]
        extra = [f"{key} {values[key]}" for key in ("epoch", "weights") if key in values]
        lines.append(f"  {rule:<8} " + "  ".join(shown + extra))
    provenance = flat(result["provenance"])
    known = {name: provenance.pop(name, None) for name in ESSENTIAL}
    known = {name: "not recorded" if value is None else value for name, value in known.items()}
    if known["commit"] != "not recorded" and known["dirty"] == "not recorded":
        known["dirty"] = "no uncommitted changes"
    files = {k: provenance.pop(k) for k in list(provenance) if k.startswith("sources.files.")}
    packages = {k: provenance.pop(k) for k in list(provenance) if k.startswith("packages.")}
    lines += _section("provenance", {**known, **provenance})
    lines.append(f"  {'code of the number':<{_WIDTH}} {against_today(files, differs)}")
    if packages:
        versions = " ".join(f"{k.split('.', 1)[1]}={v}" for k, v in packages.items())
        lines.append(f"  {'packages':<{_WIDTH}} {versions}")
    lines += _section("cost", result["cost"])
    spec = flat(result["spec"])
    digests = {name: value for name, value in spec.items() if _DIGEST.match(str(value))}
    lines += _section("hashes of data, split and weights", digests)
    lines += _section("spec", {name: spec[name] for name in spec if name not in digests})
    printed = {"run_id", "spec", "metrics", "classes", "cost", "provenance", "finished"}
    printed |= {"format", "identities"}
    lines += _section("also recorded", {k: v for k, v in result.items() if k not in printed})
    lines += _damage(store, run)
    try:
        rows = store.epochs(run)
    except StoreError as error:
        rows = []
        lines += ["", str(error)]
    if rows:
        curve = " ".join(_number(row.get("mAP_ema")) for row in rows)
        lines += ["", f"mAP of the EMA weights, epoch {rows[0]['epoch']} to {rows[-1]['epoch']}"]
        lines.append(f"  {curve}")
    return lines


def _several(store: RunStore, runs: list[Path], planned: Planned) -> list[str]:
    lines = [f"{len(runs)} runs match; name one of them for its provenance"]
    known = {run: store.read(run) for run in runs}
    specs = {run: flat(_spec(store, run)) for run in runs if known[run][0].attempts}
    keys = sorted({key for spec in specs.values() for key in spec})
    # Fields in which the runs differ tell them apart; the path shows some, digests tell nobody.
    varying = [
        key
        for key in keys
        if len(seen := {str(spec.get(key)) for spec in specs.values()}) > 1
        and key not in ("seed", "ratio", "method", "dataset.alias")
        and not any(map(_DIGEST.match, seen))
    ]
    groups: dict[tuple[str, Rule], list[tuple[Path, float]]] = {}
    for run in runs:
        state, result = known[run]
        parts = [str(run.relative_to(store.root)), state.kind]
        if state.kind == "unreadable":
            parts.append(state.detail)
        if result is not None:
            parts += _by(successor(store, run, result, planned))
            for rule in RULES:
                summary = result["metrics"].get(rule)
                if summary is not None:
                    groups.setdefault((_cell(store, run), rule), []).append((run, summary["mAP"]))
                    parts.append(f"{rule} mAP {summary['mAP']:.2f}")
        parts += [f"{key}={specs[run].get(key, 'absent')}" for key in varying if run in specs]
        lines.append("  " + "  ".join(parts))
    for (cell, rule), members in groups.items():
        for variant in _variants(store, members):
            lines.append(f"{cell}: {rule} mAP {_spread(store, variant, 2)}{_seeds_of(variant, members)}")
    return lines


def _by_path(store: RunStore, query: str) -> list[Path]:
    """Runs of a method/dataset/ratio/seed query, checked part by part."""
    parts = [part for part in query.split("/") if part]
    if not parts or len(parts) > 4:
        raise StoreError(f"'{query}' should be method/dataset/ratio/seed")
    fields: list[tuple[str, Path, tuple[str, ...]]] = []
    budget = len(parts) > 2 and not _is_ratio(parts[2])  # not in the path
    for run in store.scan():
        ratio, seed = run.name.rsplit("-", 1)[0].removeprefix("p").rsplit("-s", 1)
        dataset, method = run.parent.parent.name, run.parent.name
        if budget:
            ratio = _budget(store, run) or ratio
        fields.append((method, run, (dataset, ratio, seed)))
    # A label names a variant of a method; it is not in the path, so it is read only if need be.
    selected = [(run, rest) for method, run, rest in fields if method == parts[0]]
    if not selected:
        labels = [(_label(store, run), run, rest) for _, run, rest in fields]
        selected = [(run, rest) for label, run, rest in labels if label == parts[0]]
    if not selected:
        hint = nearest(parts[0], sorted(_methods(store)))
        raise StoreError(f"no run of method '{parts[0]}' in {store.root}{hint}{_hidden(store)}")
    for place, (kind, part) in enumerate(zip(("dataset", "ratio", "seed"), parts[1:], strict=False)):
        wanted = _ratio(part) if kind == "ratio" and not budget else part
        valid = sorted({rest[place] for _, rest in selected})
        selected = [(run, rest) for run, rest in selected if rest[place] == wanted]
        if not selected:
            raise StoreError(
                f"no run of '{'/'.join(parts[: place + 1])}' with {kind} '{part}'{nearest(wanted, valid)}"
            )
    return [run for run, _ in selected]


def _by_number(store: RunStore, query: str, mean: str, std: str, planned: Planned) -> list[str]:
    """Runs, and means over seeds, that round to a printed number; `std` is empty where none was printed."""
    digits = len(mean.split(".")[1])
    lines: list[str] = []
    groups: dict[tuple[str, Rule, str], list[tuple[Path, float]]] = {}

    @functools.cache  # a run is in several groups, and to find what supersedes it reads its neighbours
    def by(run: Path) -> Predecessor | None:
        return successor(store, run, store.load(run), planned)

    unread: list[str] = []
    for run in store.scan():
        state, result = store.read(run)
        if result is None:
            unread += [state.detail] if state.kind == "unreadable" else []
            continue
        for rule in RULES:
            values: Mapping[str, Any] = result["metrics"].get(rule) or {}
            for metric, value in values.items():
                if metric not in METRICS or metric == "num_classes" or value is None:
                    continue
                if not std and f"{value:.{digits}f}" == mean:
                    told = "".join(f"  {text}" for text in _by(by(run)))
                    lines.append(f"  {run.relative_to(store.root)}  {rule} {metric} {value:.4f}{told}")
                key = (_cell(store, run), rule, metric)
                groups.setdefault(key, []).append((run, value))

    def matches(members: list[tuple[Path, float]]) -> bool:
        values = [value for _, value in members]
        if std and f"{statistics.stdev(values):.{len(std.split('.')[1])}f}" != std:
            return False
        return f"{statistics.fmean(values):.{digits}f}" == mean

    def names(members: Iterable[tuple[Path, float]]) -> str:
        return ", ".join(f"{run.name}{' (superseded)' * (by(run) is not None)}" for run, _ in members)

    variants = [
        (f"  {cell}: {rule} {metric} ", variant)
        for (cell, rule, metric), members in groups.items()
        for variant in _variants(store, members)
    ]
    lines += [
        f"{head}{_spread(store, variant, 4)}: {names(variant)}"
        for head, variant in variants
        if matches(variant)
    ]
    if not lines:
        lines = [
            f"{head}{_spread(store, list(some), 4)} of {len(variant)}: {names(some)}"
            for head, variant in variants
            if len(variant) <= SOME_SEEDS
            for size in range(len(variant) - 1, 1, -1)
            for some in itertools.combinations(variant, size)
            if matches(list(some))
        ]
    unread += store.hidden.values()
    if not lines:
        raise StoreError(
            f"no stored value or mean over seeds in {store.root} rounds to {query}; it may come "
            f"from another store or an older result{''.join(f'; {line}' for line in unread)}"
        )
    return [f"{query} can be:", *lines, *(f"not looked at: {line}" for line in unread)]


def _superseded(result: Result, by: Predecessor | None) -> list[str]:
    """Lines on what supersedes a result, where something does."""
    if by is not None:
        lines = [f"superseded by {by.by}, because"]
        for reason in dict.fromkeys(change.reason for change in by.changes):
            moved = [str(change) for change in by.changes if change.reason == reason]
            lines += [f"  {reason}", *(f"    {text}" for text in moved)]
        return lines
    moved = moves_since(result)
    if not moved:
        return []
    lines = ["superseded an earlier version made it, and what supersedes it is not known here; since then:"]
    return lines + [f"  {reason}" for reason in moved]


def _by(by: Predecessor | None) -> list[str]:
    return [] if by is None else [f"superseded by [{by.by[:8]}]"]


_WIDTH = 26


def _section(title: str, values: Mapping[str, Any]) -> list[str]:
    if not values:
        return []
    return ["", title, *(f"  {key:<{_WIDTH}} {value}" for key, value in flat(values).items())]


def _methods(store: RunStore) -> set[str]:
    """Names of methods and labels that have a run."""
    runs = store.scan()
    return {run.parent.name for run in runs} | {_label(store, run) for run in runs} - {""}


def _cell(store: RunStore, run: Path) -> str:
    """The cell of a table that a run belongs to."""
    ratio = _budget(store, run) or run.name.rsplit("-s", 1)[0].removeprefix("p")
    return f"{_label(store, run) or run.parent.name} on {run.parent.parent.name} at {ratio}"


def _variants(store: RunStore, members: list[tuple[Path, float]]) -> list[list[tuple[Path, float]]]:
    """The runs of a cell as groups with a run per seed and more than one seed.

    A store may hold a cell twice, trained in two ways; each then is a group of its own, and a mean over both
    is in no table.
    """
    if _seeds_differ(store, members):
        return [members]
    groups: dict[str, list[tuple[Path, float]]] = {}
    for run, value in members:
        spec = {k: v for k, v in _spec(store, run).items() if k not in SEEDED}
        groups.setdefault(canonical_json(spec), []).append((run, value))
    return [group for group in groups.values() if _seeds_differ(store, group)]


def _seeds_differ(store: RunStore, members: list[tuple[Path, float]]) -> bool:
    """Whether runs of one cell are more than one, each with another seed of the split or of the training."""
    specs = (_spec(store, run) for run, _ in members)
    seeds = {(spec.get("split_seed", spec["seed"]), spec["seed"]) for spec in specs}
    return len(seeds) == len(members) > 1


def _seeds_of(variant: list[tuple[Path, float]], members: list[tuple[Path, float]]) -> str:
    """The runs of a variant, where its cell has others."""
    return "" if variant is members else f": {', '.join(run.name for run, _ in variant)}"


def _spread(store: RunStore, members: list[tuple[Path, float]], digits: int) -> str:
    values = [value for _, value in members]
    mean, std = statistics.fmean(values), statistics.stdev(values)
    parted = differences(made_by(store.load(run)) for run, _ in members)
    return f"{mean:.{digits}f} ± {std:.{digits}f} over {len(values)} seeds (std, ddof = 1){parted}"


def _label(store: RunStore, run: Path) -> str:
    return _said(store, run, "label")


def _budget(store: RunStore, run: Path) -> str:
    """What a run's labelled images were asked for by, such as "100 images"; "" for a ratio."""
    return _said(store, run, "budget")


def _said(store: RunStore, run: Path, field: str) -> str:
    """A text of a run's spec; "" where it has none."""
    return str(_spec(store, run).get(field, ""))


def _spec(store: RunStore, run: Path) -> Mapping[str, Any]:
    """A run's spec, from its result where spec.json is damaged; empty where neither says."""
    try:
        return store.spec(run)
    except StoreError:
        result = store.read(run)[1]
        return {} if result is None else result["spec"]


def _damage(store: RunStore, run: Path) -> list[str]:
    """What is wrong with the files beside a result."""
    try:
        store.spec(run)
    except StoreError as error:
        return ["", str(error)]
    return []


def _is_ratio(text: str) -> bool:
    """Whether a text is a share and not "100 images" or "4 per class".

    Raises:
        StoreError: it is none of these.
    """
    if text.endswith((" images", " image", " per class")):
        return False
    _ratio(text)
    return True


def _ratio(text: str) -> str:
    """A ratio as the directory names it: "0.050" and "5%" give "0.05"."""
    try:
        if text.endswith("%"):
            return f"{float(text[:-1]) / 100:g}"
        return f"{float(text):g}"
    except ValueError as error:
        raise StoreError(f"'{text}' is not a ratio; write it as 0.05, 5% or '100 images'") from error


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return "–" if value is None else str(value)

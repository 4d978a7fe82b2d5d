"""All finished runs of a store, for a table without a grid.

A grid says which runs belong together; without one their specs do. A row is a label, and runs of one label
that were made in several ways (another learning rate, say) are rows of their own, named by what differs.
Results of earlier versions, which are superseded, are kept apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from results.damage import to_stderr
from results.files import canonical_json
from results.lineage import moves_since, successor
from results.moves import SEEDED, UNIDENTIFIED, flat
from results.schema import Result
from results.store import RunStore

SHOWN = 3
"""Fields that the name of a row shows."""
_SEEDED = SEEDED | UNIDENTIFIED
"""Fields in which the runs of one row differ."""
Found = list[tuple[Path, Result]]


def finished(
    store: RunStore,
    planned: Iterable[tuple[str, Mapping[str, Any]]] = (),
    left_out: Callable[[str], None] = to_stderr,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The finished runs as `results.frames` wants them: those of today's identities, and the superseded ones.

    Args:
        store: where they are.
        planned: identities and specs of planned runs, which may supersede a result.
        left_out: gets a line on each run, or folder of runs, that cannot be read.
    """
    planned = list(planned)
    found: Found = []
    for run in store.scan():
        state, result = store.read(run)
        if result is not None:
            found.append((run, result))
        elif state.kind == "unreadable":
            left_out(state.detail)
    for line in store.hidden.values():
        left_out(line)
    newest: dict[Path, int] = {}
    for run, result in found:
        newest[run.parent] = max(newest.get(run.parent, 0), _version(result))
    methods = {str(spec.get("method")): int(spec.get("version", 1)) for _, spec in reversed(planned)}
    today: Found = []
    old: Found = []
    for run, result in found:
        highest = max(newest[run.parent], methods.get(result["spec"]["method"], 0))
        superseded = bool(moves_since(result)) or (
            _version(result) < highest and successor(store, run, result, planned) is not None
        )
        (old if superseded else today).append((run, result))
    return _wanted(today, ""), _wanted(old, " (superseded)")


def _version(result: Result) -> int:
    return result["spec"].get("version", 1)


def _wanted(found: Found, mark: str) -> list[dict[str, Any]]:
    """Wanted runs with labels that tell the ways apart in which the runs of a cell were made."""
    cells: dict[tuple[str, str, float | str], Found] = {}
    for run, result in found:
        spec = result["spec"]
        column = spec.get("budget") or float(spec["ratio"])
        key = (_label(result), spec["dataset"]["alias"], column)
        cells.setdefault(key, []).append((run, result))
    wanted = []
    for (label, dataset, _), members in cells.items():
        names = _names(members)
        taken: dict[tuple[str, int, int], str] = {}
        for _, result in members:
            spec, run_id = result["spec"], result["run_id"]
            name = f"{label}{names[_way(result)]}{mark}"
            seeds = {"seed": spec["seed"], "split_seed": spec.get("split_seed", spec["seed"])}
            place = (name, seeds["split_seed"], seeds["seed"])
            if taken.setdefault(place, run_id) != run_id:  # another list of labelled images
                name = f"{name} [{run_id[:8]}]"
            keys = {"method": spec["method"], "label": name, "budget": spec.get("budget", ""), **seeds}
            wanted.append({"run_id": run_id, "dataset": dataset, "ratio": float(spec["ratio"]), **keys})
    return wanted


def _names(members: Found) -> dict[str, str]:
    """What tells each way of a cell's runs from the others, such as " (lr_head=0.5)"; "" for the only one."""
    ways = {_way(result): flat(result["spec"]) for _, result in members}
    fields = sorted({field for spec in ways.values() for field in spec} - _SEEDED)
    varying = [field for field in fields if len({str(spec.get(field)) for spec in ways.values()}) > 1]
    if not varying:
        return dict.fromkeys(ways, "")
    more = f", and {len(varying) - SHOWN} more fields" if len(varying) > SHOWN else ""
    names = {}
    for way, spec in ways.items():
        shown = (f"{field.split('.')[-1]}={str(spec.get(field, 'absent'))[:12]}" for field in varying[:SHOWN])
        names[way] = f" ({', '.join(shown)}{more})"
    for number, way in enumerate(names, start=1):  # what is shown may be the same
        if list(names.values()).count(names[way]) > 1:
            names[way] = f"{names[way]} {number}"
    return names


def _way(result: Result) -> str:
    return canonical_json({key: value for key, value in result["spec"].items() if key not in _SEEDED})


def _label(result: Result) -> str:
    return str(result["spec"].get("label") or result["spec"]["method"])

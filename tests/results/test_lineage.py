"""Results of earlier versions: which of today's runs supersede them, and where that is said."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from results.frames import collect
from results.lineage import as_wanted, mark, moves_since, note, predecessors
from results.moves import GENERATION, changes
from results.store import RunStore
from results.tables import table
from results.why import why
from results.writers import to_text

OLD = json.loads(Path(__file__).with_name("result-format-1.json").read_text())
"""Written by commit b1c1b62, before identities moved for the first time: CSAA of `--grid demo`."""


def moved(spec: dict[str, Any], **values: Any) -> dict[str, Any]:
    """The spec as today's version would have it; `values` are set by dotted name."""
    new = copy.deepcopy(spec)
    today = {
        "dataset.digest": "7" * 64,
        "backbone.quick_gelu": False,
        "backbone.mean": [0.5, 0.5, 0.5],
        "backbone.std": [0.25, 0.25, 0.25],
        "recipe.ema_warmup": True,
    }
    for name, value in {**today, **values}.items():
        *above, last = name.split(".")
        place = new
        for part in above:
            place = place[part]
        if value is ...:
            place.pop(last, None)
        else:
            place[last] = value
    return new


def put(store: RunStore, run_id: str, spec: dict[str, Any], value: float, **record: Any) -> Path:
    """A finished run as a file of a given version; `identities` is left out where none is given."""
    run = store.directory(run_id, spec)
    run.mkdir(parents=True)
    result = {**copy.deepcopy(OLD), "run_id": run_id, "spec": spec, **record}
    result["metrics"]["last"]["mAP"] = value
    (run / "spec.json").write_text(json.dumps(spec))
    (run / "result.json").write_text(json.dumps(result))
    (run / "lease.000001").write_text('{"released": true}')
    return run


def wanted(run_id: str, spec: dict[str, Any]) -> dict[str, Any]:
    keys = {name: spec[name] for name in ("ratio", "seed", "method", "label")}
    return {**keys, "run_id": run_id, "dataset": spec["dataset"]["alias"], "spec": spec}


def test_fields_that_an_update_moved_are_named_with_their_reason():
    found = changes(OLD["spec"], moved(OLD["spec"], version=2), 1)
    assert found is not None
    assert [change.field for change in found] == [
        "backbone.mean",
        "backbone.quick_gelu",
        "backbone.std",
        "dataset.digest",
        "recipe.ema_warmup",
        "version",
    ]
    text = [str(change) for change in found]
    assert text[1] == "backbone.quick_gelu absent → False"
    assert text[3] == "dataset.digest 1e492d07… → 77777777…"
    assert text[5] == "version 1 → 2"
    assert "moving average" in found[4].reason
    assert found[4].reason.endswith("(2026-11-27)")


@pytest.mark.parametrize(
    "change",
    [
        {"hyper.lr_backbone": 1e-4},
        {"hyper.temperature": ...},
        {"recipe.epochs": 4},
        {"recipe.ema_decay": 0.9997},
        {"split_digest": "0" * 64},
        {"seed": 2},
        {"ratio": 0.1},
        {"method": "fixmatch"},
        {"backbone.weights_sha256": "0" * 64},
        {"backbone.scale": 255.0},
        {"dataset.alias": "mine"},
        {"version": 0},
        {"code": "0" * 64},
        {"hyper.num_contexts": 0.5},
    ],
    ids=str,
)
def test_a_difference_in_anything_else_is_another_run(change):
    assert changes(OLD["spec"], moved(OLD["spec"], **change), 1) is None


def test_the_label_and_the_way_a_number_is_written_are_no_difference():
    again = moved(OLD["spec"], label="another", **{"recipe.ema_decay": 0.99, "hyper.eta_pos": 1})
    assert changes(OLD["spec"], again, 1)
    assert changes(OLD["spec"], OLD["spec"], 1) is None  # nothing has moved: it is the same run


def test_settings_that_are_chosen_side_by_side_today_do_not_supersede_each_other():
    plain = moved(OLD["spec"], **{"recipe.ema_warmup": ...})  # false today: an identity has no such field
    warm = moved(OLD["spec"])
    assert changes(plain, warm, GENERATION) is None
    assert changes(plain, warm, 1)
    higher = moved(OLD["spec"], version=3)
    assert [str(change) for change in changes(warm, higher, GENERATION) or ()] == ["version 1 → 3"]


@pytest.mark.parametrize("gone", [{"recipe.ema_warmup": True}, {"recipe.warmup_weights": "ema"}], ids=str)
def test_fields_of_an_average_that_is_not_kept_have_left_the_identity(gone):
    new = moved(
        OLD["spec"], **{"recipe.ema_decay": 0.0, "recipe.ema_warmup": ..., "recipe.warmup_weights": ...}
    )
    old = moved(new, **{"recipe.ema_warmup": ..., **gone})
    (change,) = changes(old, new, 2) or ()
    assert str(change).endswith("→ absent")
    assert "the number is the same" in change.reason
    assert changes(old, new, GENERATION) is None
    assert changes(new, old, 2) is None


def test_resolved_contexts_prefer_the_run_that_differs_least(store: RunStore):
    put(store, "a" * 64, OLD["spec"], 60.0)
    ten, four = moved(OLD["spec"]), moved(OLD["spec"], **{"hyper.num_contexts": 4})
    plan = [wanted("b" * 64, ten), {**wanted("c" * 64, four), "label": "four"}]
    assert list(predecessors(store, plan)) == ["b" * 64]
    assert list(predecessors(store, plan[1:])) == ["c" * 64]


def test_states_tables_and_why_of_superseded_results(store: RunStore):
    spec = OLD["spec"]
    specs = {seed: {**spec, "seed": seed, "split_digest": f"{seed}" * 64} for seed in (1, 2, 3)}
    for seed, value in ((1, 61.0), (2, 63.0)):
        put(store, f"{seed}a" * 32, specs[seed], value)
    put(store, "1c" * 32, moved(specs[1], **{"hyper.lr_head": 0.5}), 99.0, identities=GENERATION)
    plan = [wanted(f"{seed}b" * 32, moved(specs[seed])) for seed in (1, 2, 3)]
    put(store, "2b" * 32, moved(specs[2]), 70.0, identities=GENERATION)
    found = predecessors(store, plan)
    assert {key[:2]: [one.run_id[:2] for one in some] for key, some in found.items()} == {
        "1b": ["1a"],
        "2b": ["2a"],
    }
    frame = mark(collect(store, plan), found)
    assert list(frame["state"]) == ["superseded", "done", "not started"]
    text = to_text(table(frame, "last", remarks=[note(found)]))
    assert "70.0 (1/3; 1 not started, 1 superseded)" in text
    assert "Superseded, and in no cell: 2 results of earlier versions (moved: backbone.mean, " in text
    assert "61.0" not in text
    assert "62.0" not in text

    old, rows = as_wanted(plan, found)
    text = to_text(table(collect(store, old), "last", remarks=rows))
    assert "csaa (superseded)" in text
    assert "62.0 ± 1.4" in text
    assert "70.0" not in text
    assert rows[0].startswith("csaa (superseded): 2 runs, superseded in backbone.mean (none → [0.5, ")
    assert "dataset.digest (another hash)" in rows[0]

    text = why(store, "1a1a", [(item["run_id"], item["spec"]) for item in plan])
    assert f"superseded by {'1b' * 32}, because\n" in text
    assert "\n    recipe.ema_warmup absent → True\n" in text
    assert "\n  the decay of the moving average warms up; " in text
    assert "superseded by [2b2b2b2b]" in why(store, "63.0")  # the store has the run that supersedes it
    assert "superseded" not in why(store, "99.0")
    assert "superseded" not in why(store, "2b2b")
    text = why(store, "1a1a")
    assert "what supersedes it is not known here; since then:" in text
    both = why(store, "62.0 ± 1.4", [(item["run_id"], item["spec"]) for item in plan])
    assert both.count("(superseded)") == 2


def test_results_made_in_different_ways_are_never_averaged(store: RunStore):
    first = OLD["spec"]
    second = {**first, "version": 2, "seed": 2}
    put(store, "1a" * 32, first, 50.0)
    put(store, "2a" * 32, second, 60.0)
    plan = [wanted("1b" * 32, moved(first, version=3)), wanted("2b" * 32, moved(second, version=3))]
    old, rows = as_wanted(plan, predecessors(store, plan))
    assert [item["label"] for item in old] == ["csaa (superseded, 1)", "csaa (superseded, 2)"]
    assert "version (1 → 3)" in rows[0]
    assert "version (2 → 3)" in rows[1]
    # Of two results of one cell the newer one comes first, and each way has a row.
    put(store, "1d" * 32, {**first, "version": 2}, 55.0, finished="2026-12-01T00:00:00Z")
    found = predecessors(store, plan)
    assert [one.run_id[:2] for one in found["1b" * 32]] == ["1d", "1a"]
    old, _ = as_wanted(plan, found)
    rows_of = {item["run_id"][:2]: item["label"] for item in old}
    assert rows_of["1d"] == rows_of["2a"] != rows_of["1a"]


def test_unknown_specs_and_damaged_siblings_hide_nothing(store: RunStore):
    run = put(store, "1a" * 32, OLD["spec"], 50.0)
    plan = [wanted("1b" * 32, moved(OLD["spec"]))]
    assert predecessors(store, [{**plan[0], "spec": {}}]) == {}
    other = put(store, "1c" * 32, OLD["spec"], 50.0)
    (other / "result.json").write_text("{")
    assert len(predecessors(store, plan)["1b" * 32]) == 1
    (run / "spec.json").write_text("{")  # the result holds the same
    assert len(predecessors(store, plan)["1b" * 32]) == 1
    (run / "result.json").write_text("{")
    assert predecessors(store, plan) == {}
    assert note({}) == ""


def test_todays_results_say_their_generation(store: RunStore, run: Path):
    from tests.results.records import claim, make_result

    with claim(store, run) as lease:
        store.write_result(run, lease, make_result(), {})
    assert store.load(run)["identities"] == GENERATION
    assert moves_since(store.load(run)) == []
    assert len(moves_since(OLD)) >= 4


@pytest.mark.parametrize(("decay", "reasons"), [(0.99, 0), (0.0, 1), (None, 0)])
def test_a_result_whose_identity_an_update_left_alone_is_not_superseded(decay, reasons):
    changed = {"recipe.ema_decay": ... if decay is None else decay}  # a fitted method's recipe has none
    result = {"identities": 2, "spec": moved(OLD["spec"], **changed)}
    assert len(set(moves_since(result))) == reasons


def test_a_plan_in_memory_has_tuples_where_files_have_lists(store: RunStore):
    put(
        store,
        "1a" * 32,
        {**OLD["spec"], "backbone": {**OLD["spec"]["backbone"], "mean": [0.0, 0.0, 0.0]}},
        50.0,
    )
    kept = {"backbone.mean": (0.0, 0.0, 0.0), "backbone.std": (0.5, 0.5, 0.5), "backbone.quick_gelu": None}
    (one,) = predecessors(store, [wanted("1b" * 32, moved(OLD["spec"], **kept))])["1b" * 32]
    assert [str(change) for change in one.changes][:2] == [
        "backbone.quick_gelu absent → none",
        "backbone.std none → [0.5, 0.5, 0.5]",
    ]
    other = moved(OLD["spec"], **{**kept, "backbone.mean": (0.5, 0.5, 0.5)})
    assert predecessors(store, [wanted("1b" * 32, other)]) == {}

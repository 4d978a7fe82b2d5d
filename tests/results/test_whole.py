"""A table of all that a store has: runs that were made in different ways are never averaged."""

from __future__ import annotations

import json
from typing import Any

from results.frames import collect
from results.tables import table
from results.whole import finished


def rows(fake: Any) -> dict[str, tuple[str, ...]]:
    """The numbers of each row by its name."""
    today, old = finished(fake.store)
    assert not old
    made = table(collect(fake.store, today), "last")
    return {
        label: tuple(
            made.cells[label, column].number() for column in made.columns if (label, column) in made.cells
        )
        for label in made.labels
    }


def test_ways_of_a_label_are_rows_and_runs_without_a_result_are_none(fake: Any) -> None:
    fake.add("CSAA", 60.0, seed=1, lr=0.1)
    fake.add("CSAA", 62.0, seed=2, lr=0.1)
    fake.add("CSAA", 80.0, seed=3, lr=0.5)  # no seed twice: the mean would look like any other
    fake.add("CSAA", 50.0, seed=1, dataset="Other", lr=0.1)
    fake.add("FixMatch", None, state="failed")
    fake.add("Probe", 40.0)
    assert rows(fake) == {
        "CSAA (lr=0.1)": ("61.0 ± 1.4",),
        "CSAA (lr=0.5)": ("80.0",),
        "CSAA": ("50.0",),
        "Probe": ("40.0",),
    }


def test_ways_that_look_alike_and_other_labelled_images_of_a_seed_stay_apart(fake: Any) -> None:
    for value, last in ((60.0, 1), (70.0, 2)):
        fake.add("CSAA", value, a=1 + last, b=2 + last, c=3 + last, d=last)
    assert [len(numbers) for numbers in rows(fake).values()] == [1, 1]
    assert all(name.endswith("and 1 more fields)") for name in rows(fake))
    fake.add("Probe", 40.0)
    run_id = fake.add("Probe", 44.0, extra=1)
    (run,) = fake.store.find(run_id[:12])
    for name in ("spec.json", "result.json"):
        record = json.loads((run / name).read_text())
        spec = record if name == "spec.json" else record["spec"]
        spec["hyper"], spec["split_digest"] = {}, "e" * 64
        (run / name).write_text(json.dumps(record))
    found = rows(fake)
    assert {found[name] for name in found if name.startswith("Probe")} == {("40.0",), ("44.0",)}


def test_a_budget_is_one_column_and_a_fixed_split_is_named(fake: Any) -> None:
    """Subsets of "4 per class" differ in size; runs of other splits with one seed are no other row."""
    for split, seed, value in ((1, 1, 60.0), (1, 2, 62.0), (2, 1, 64.0), (2, 2, 66.0)):
        run_id = fake.add("CSAA", value, ratio=0.03 + split / 1000, seed=seed)
        (run,) = fake.store.find(run_id[:12])
        for name in ("spec.json", "result.json"):
            record = json.loads((run / name).read_text())
            spec = record["spec"] if name == "result.json" else record
            spec |= {"split_seed": split, "budget": "4 per class"}
            (run / name).write_text(json.dumps(record))
    today, _ = finished(fake.store)
    # Directories have each run's own share in their names; `collect` finds them by it.
    made = table(collect(fake.store, today), "last")
    assert [column.share for column in made.columns] == ["4 per class"]
    assert made.labels == ("CSAA",)
    assert made.cells["CSAA", made.columns[0]].number() == "63.0 ± 2.6"
    assert any("training seeds 1, 2 on splits 1, 2" in note for note in made.notes("Bold"))

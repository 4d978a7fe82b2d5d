"""The classes behind a mean, named where one has no positive among the test images."""

from __future__ import annotations

from typing import Any

import pytest

from results.evaluated import Evaluated, evaluated
from results.frames import collect
from results.tables import table


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("mAP", "Classes behind each mAP: GlyphScenes 5 of 6 (no positive among the test images: cloud)."),
        ("head", "Classes behind each mAP of head: GlyphScenes 2 of 2."),
        (
            "medium",
            "Classes behind each mAP of medium: GlyphScenes 2 of 2.",
        ),
        (
            "tail",
            "Classes behind each mAP of tail: GlyphScenes 1 of 2 (no positive among the test images: cloud).",
        ),
        ("OF1", ""),
    ],
)
def test_the_footer_says_how_many_classes(fake: Any, metric: str, said: str) -> None:
    fake.add("CSAA", 60.0)
    fake.add("FixMatch", None, state="failed")
    notes = table(collect(fake.store, fake.wanted), "last", metric).notes("*")
    assert [note for note in notes if note.startswith("Classes")] == ([said] if said else [])


def test_other_classes_in_some_runs_are_said(fake: Any, monkeypatch: Any) -> None:
    fake.add("CSAA", 60.0)
    frame = collect(fake.store, fake.wanted)
    fake.add("FixMatch", 61.0)
    frame = collect(fake.store, fake.wanted)
    known = frame.loc[1, "evaluated"]
    frame.at[1, "evaluated"] = Evaluated(known.classes, ("sun", "cloud"))
    (note,) = (line for line in table(frame, "last").notes("*") if line.startswith("Classes"))
    assert note == (
        "Classes behind each mAP: GlyphScenes 4 to 5, NOT the same in all runs, "
        "so that they cannot be compared."
    )


def test_many_absent_classes_are_counted_after_the_first() -> None:
    names = [f"c{i}" for i in range(20)]
    summary = {"AP": [None] * 19 + [50.0], "groups": ["head"] * 20}
    found = evaluated({"metrics": {"last": summary}, "classes": names})  # type: ignore[typeddict-item]
    assert found is not None
    assert found.part("mAP") == (20, tuple(names[:19]))
    assert evaluated({"metrics": {}, "classes": names}) is None  # type: ignore[typeddict-item]

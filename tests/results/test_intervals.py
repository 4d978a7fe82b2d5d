"""Intervals of a grid's columns: which runs they are of, what is left out, and what is computed once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from results import intervals
from results.errors import StoreError
from results.frames import located

RNG = np.random.default_rng(0)
LABELS = (RNG.random((80, 4)) < 0.3).astype(np.uint8)


@pytest.fixture
def filled(fake: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two methods at two ratios with two seeds, and one with a single seed at 5 %."""
    signals = {"CSAA": 2.0, "FixMatch": 1.0, "CAP": 1.5}
    for ratio in (0.05, 0.2):
        for seed in (1, 2):
            for label in signals:
                state = "failed" if label == "CAP" and seed == 2 else "done"
                fake.add(label, 60.0, ratio=ratio, seed=seed, state=state)
    arrays = {
        directory: {
            "scores": RNG.normal(size=LABELS.shape) + signals[keys["label"]] * LABELS,
            "raw_scores": RNG.normal(size=LABELS.shape),
            "labels": LABELS,
        }
        for keys, directory in located(fake.store, fake.wanted)
    }
    monkeypatch.setattr(fake.store, "predictions", lambda directory: arrays[directory])
    return fake


def test_every_column_has_the_methods_with_all_seeds(filled: Any) -> None:
    said: list[str] = []
    rows, left_out = intervals.compute(filled.store, filled.wanted, "last", resamples=50, say=said.append)
    assert [(row.ratio, row.label, row.seeds, row.images) for row in rows] == [
        (ratio, label, 2, 80) for ratio in (0.05, 0.2) for label in ("CSAA", "FixMatch")
    ]
    assert len(said) == 2
    assert sorted(left_out)[0] == "CAP, GlyphScenes 20 %, seed 2: failed"
    assert "CAP, GlyphScenes 5 %: 1 of 2 seeds" in left_out
    best, other = rows[:2]
    assert (best.behind, best.behind_low, best.behind_high) == (0, 0, 0)
    assert other.behind == pytest.approx(other.value - best.value)
    assert other.behind_high < 0
    text = intervals.to_text(rows, left_out)
    assert f"{best.value:.1f}" in text
    assert "2 seeds and 80 test images; covers other test sets of this size, other trainings" in text
    assert "left out: CAP, GlyphScenes 5 %: 1 of 2 seeds" in text


def test_what_has_not_changed_is_not_computed_again(filled: Any, tmp_path: Any, monkeypatch: Any) -> None:
    rows, _ = intervals.compute(filled.store, filled.wanted, "last", resamples=50)
    path = tmp_path / "intervals.csv"
    path.write_text(intervals.to_csv(rows))
    assert intervals.from_csv(path) == rows
    fewer = [item for item in filled.wanted if (item["ratio"], item["label"]) != (0.2, "FixMatch")]
    said: list[str] = []
    again, _ = intervals.compute(filled.store, fewer, "last", rows, 50, said.append)
    assert [line.split(":")[0] for line in said] == ["intervals of GlyphScenes, 20 %"]
    assert again[:2] == rows[:2]
    for damage in ("", "dataset,ratio\nx,y\n", path.read_text()[:-120]):
        path.write_text(damage)
        assert intervals.from_csv(path) == []


def test_rules_are_of_stored_scores(filled: Any) -> None:
    last, model = (
        intervals.compute(filled.store, filled.wanted, rule, resamples=20)[0] for rule in ("last", "model")
    )
    assert model[0].value < last[0].value
    with pytest.raises(StoreError, match="the rules last, model have, not 'oracle'"):
        intervals.compute(filled.store, filled.wanted, "oracle")


def test_runs_without_labels_leave_their_column_out(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filled.store, "predictions", lambda directory: {"scores": LABELS})
    rows, left_out = intervals.compute(filled.store, filled.wanted, "last")
    assert rows == []
    assert any("stored no labels; run it again" in line for line in left_out)


def test_names_stay_on_one_line(filled: Any) -> None:
    rows, _ = intervals.compute(filled.store, filled.wanted, "last", resamples=20)
    odd = [dataclasses.replace(row, label="two\nlines", dataset="a\tb") for row in rows[:1]]
    text = intervals.to_text(odd, ["left\nout"])
    assert len(text.splitlines()) == 5
    assert "\t" not in text

"""Intervals of a grid's columns: which runs they are of, what is left out, and what is computed once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from results import intervals
from results.bootstrap import resample
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
    found = intervals.compute(filled.store, filled.wanted, "last", resamples=50, say=said.append)
    rows, left_out = found.rows, found.left_out
    assert [(row.ratio, row.label, row.seeds, row.images) for row in rows] == [
        (ratio, label, 2, 80) for ratio in (0.05, 0.2) for label in ("CSAA", "FixMatch")
    ]
    assert len(said) == 2
    assert sorted(left_out)[0] == "CAP, GlyphScenes 20 %, seed 2: failed"
    assert "CAP, GlyphScenes 5 %: 1 of 2 seeds" in left_out
    best, other = rows[:2]
    arrays: dict[str, dict[int, Any]] = {"CSAA": {}, "FixMatch": {}}
    for keys, directory in located(filled.store, filled.wanted):
        if keys["ratio"] == 0.05 and keys["label"] in arrays:
            found_arrays = filled.store.predictions(directory)
            arrays[keys["label"]][keys["seed"]] = found_arrays["scores"], LABELS
    ((_, expected),) = resample(arrays, 50).pairs().values()
    assert (best.behind, best.behind_low, best.behind_high) == (0, 0, 0)
    assert other.behind == pytest.approx(other.value - best.value)
    assert other.behind_low < other.behind < 0
    assert [(pair.ratio, pair.first, pair.second) for pair in found.pairs] == [
        (ratio, "CSAA", "FixMatch") for ratio in (0.05, 0.2)
    ]
    assert found.pairs[0].difference == pytest.approx(-other.behind)
    assert found.pairs[0].p == pytest.approx(expected, rel=1e-12)
    text = intervals.to_text(found)
    assert f"{other.behind_low:.1f} to {other.behind_high:.1f}" in text
    assert f"{expected:.3f}" in text
    assert f"{best.value:.1f}" in text
    assert "2 seeds and 80 test images; covers other test sets of this size, other trainings" in text
    assert "left out: CAP, GlyphScenes 5 %: 1 of 2 seeds" in text


def test_what_has_not_changed_is_not_computed_again(filled: Any, tmp_path: Any, monkeypatch: Any) -> None:
    found = intervals.compute(filled.store, filled.wanted, "last", resamples=50)
    path, pairs = tmp_path / "intervals.csv", tmp_path / "pairs.csv"
    path.write_text(intervals.to_csv(found.rows, intervals.Row))
    pairs.write_text(intervals.to_csv(found.pairs, intervals.Pair))
    earlier = intervals.Intervals(
        intervals.from_csv(path, intervals.Row), intervals.from_csv(pairs, intervals.Pair)
    )
    assert (earlier.rows, earlier.pairs) == (found.rows, found.pairs)
    fewer = [item for item in filled.wanted if (item["ratio"], item["label"]) != (0.2, "FixMatch")]
    said: list[str] = []
    again = intervals.compute(filled.store, fewer, "last", earlier, 50, said.append)
    assert [line.split(":")[0] for line in said] == ["intervals of GlyphScenes, 20 %"]
    assert again.rows[:2] == found.rows[:2]
    said.clear()
    some = dataclasses.replace(earlier, pairs=earlier.pairs[:1])  # a column without its pairs is not known
    assert intervals.compute(filled.store, filled.wanted, "last", some, 50, said.append).pairs == found.pairs
    assert [line.split(":")[0] for line in said] == ["intervals of GlyphScenes, 20 %"]
    for damage in ("", "dataset,ratio\nx,y\n", path.read_text()[:-120]):
        path.write_text(damage)
        assert intervals.from_csv(path, intervals.Row) == ()


def test_progress_is_counted_and_every_column_is_kept_when_it_is_done(filled: Any) -> None:
    counted: dict[str, list[tuple[int, int]]] = {}
    kept: list[intervals.Intervals] = []

    def counter(title: str) -> Any:
        return lambda done, total: counted.setdefault(title, []).append((done, total))

    earlier = intervals.compute(filled.store, filled.wanted, "last", resamples=30)
    found = intervals.compute(
        filled.store, filled.wanted, "last", earlier, 40, counter=counter, keep=kept.append
    )
    assert list(counted) == ["intervals of GlyphScenes, 5 %", "intervals of GlyphScenes, 20 %"]
    for calls in counted.values():  # 2 methods, 2 seeds, 40 resamples in pieces of 16
        assert calls[0] == (0, 160)
        assert calls[-1] == (160, 160)
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
        assert len(calls) == 1 + 2 * 2 * 3
    assert kept[0].rows == (*found.rows[:2], *earlier.rows)  # the second column is not there yet
    assert kept[1].pairs == (*found.pairs, *earlier.pairs)


def test_rules_are_of_stored_scores(filled: Any) -> None:
    last, model = (
        intervals.compute(filled.store, filled.wanted, rule, resamples=20).rows for rule in ("last", "model")
    )
    assert model[0].value < last[0].value
    with pytest.raises(StoreError, match="the rules last, model have, not 'oracle'"):
        intervals.compute(filled.store, filled.wanted, "oracle")


def test_runs_without_labels_leave_their_column_out(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filled.store, "predictions", lambda directory: {"scores": LABELS})
    found = intervals.compute(filled.store, filled.wanted, "last")
    assert (found.rows, found.pairs) == ((), ())
    assert any("stored no labels; run it again" in line for line in found.left_out)


def test_names_stay_on_one_line(filled: Any) -> None:
    rows = intervals.compute(filled.store, filled.wanted, "last", resamples=20).rows
    odd = tuple(dataclasses.replace(row, label="two\nlines", dataset="a\tb") for row in rows[:1])
    text = intervals.to_text(intervals.Intervals(odd, left_out=("left\nout",)))
    assert len(text.splitlines()) == 5
    assert "\t" not in text

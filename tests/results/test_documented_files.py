"""docs/results.md: its example recomputes the mAP of a run, and its tables name what is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results.store import RunStore

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text()


def mean_ap(scores: np.ndarray, labels: np.ndarray) -> float:
    """By its definition: precision at each threshold, weighted by the recall that it adds."""
    found = []
    for column, truth in zip(scores.T, labels.T, strict=True):
        if truth.any():
            recalls = [0.0]
            ap = 0.0
            for threshold in sorted(set(column), reverse=True):
                above = column >= threshold
                recalls.append(truth[above].sum() / truth.sum())
                ap += (recalls[-1] - recalls[-2]) * truth[above].mean()
            found.append(ap)
    return 100 * float(np.mean(found))


def test_the_example_recomputes_the_map_of_every_finished_run(
    new_fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(example.strip().replace("\n\n", "\n").splitlines()) <= 11
    rng = np.random.default_rng(0)
    fake = new_fake(tmp_path / "runs" / "store")
    expected = []
    for seed in (1, 2):
        labels = (rng.random((40, 6)) < 0.3).astype(np.uint8)
        labels[:, 4] = 0  # no positive
        scores = (rng.normal(size=labels.shape) + labels).round(1).astype(np.float32)  # with ties
        expected.append(mean_ap(scores, labels))
        fake.add("CAP", expected[-1], seed=seed, arrays={"scores": scores, "labels": labels})
    fake.add("CAP", None, seed=3, state="failed")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/results.md", "exec"), {})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [float(recomputed) for _, recomputed, _ in printed] == pytest.approx(expected, abs=1e-4)
    assert all(recomputed == stored for _, recomputed, stored in printed)


def test_files_arrays_and_fields_are_named(fake: Any) -> None:
    run_id = fake.add("CAP", 60.0)
    (run,) = fake.store.find(run_id)
    for name in ("spec.json", "result.json", "predictions.npz", "epochs.jsonl", "failure.json"):
        assert f"`{name}`" in PAGE
    assert {path.name.split(".0")[0] for path in run.iterdir()} <= set(
        re.findall(r"`([\w.]+?)(?:\.0+1)?`", PAGE)
    )
    # The writers of both files, by their source: a field that is added there is described here.
    tasks = (ROOT / "benchmarks" / "launch" / "recorded.py").read_text()
    trainer = (ROOT / "benchmarks" / "training" / "trainer.py").read_text()
    row = trainer.split("row: dict[str, Any] = {")[1].split("}\n        scores")[0]
    block = tasks.split("arrays: dict[str, np.ndarray] = {")[1].split("}")[0]
    arrays = [*re.findall(r'arrays\["(\w+)"\] =', tasks), *re.findall(r'^        "(\w+)":', block, re.M)]
    fields = [*re.findall(r'^            "(\w+)":', row, re.M), "seconds", "mAP_val", "generation", "format"]
    assert {"scores", "labels", "raw_scores"} <= set(arrays)
    assert {"epoch", "losses", "pseudo_labels"} <= set(fields)
    for name in (*arrays, *fields):
        assert f"`{name}`" in PAGE, name


def test_the_page_is_found_where_one_looks() -> None:
    assert "docs/results.md" in (ROOT / "README.md").read_text()
    for name in ("store", "schema", "predictions", "epochs"):
        assert "docs/results.md" in (ROOT / "results" / f"{name}.py").read_text(), name
    assert RunStore.epochs
    assert RunStore.predictions

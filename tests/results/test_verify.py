"""Metrics recomputed from stored predictions: against the training's own code, and records that lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.run import main
from benchmarks.training.metrics import summary
from results.store import RunStore
from results.verify import Verifier, recomputed
from tests.results.records import claim, make_result, make_spec

COUNTS = [700, 20, 20, 5]
CLASSES = ["sun", "moon", "star", "kite"]
EPOCHS = 3


def data(seed: int = 0, images: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) float32 scores with many ties, and labels whose third class has no positive."""
    rng = np.random.default_rng(seed)
    scores = (rng.integers(-4, 5, (images, 4)) / 4).astype(np.float32)
    labels = rng.integers(0, 2, (images, 4)).astype(np.uint8)
    labels[:, 2] = 0
    return scores, labels


@pytest.mark.parametrize("scale", ["logits", "probabilities", "ranking"])
@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_measure_of_the_training(seed: int, scale: str) -> None:
    scores, labels = data(seed, images=[3, 17, 60][seed % 3])
    labels[0, 0] = 1
    if scale == "probabilities":
        scores = (scores - scores.min()) / (scores.max() - scores.min())
    if seed % 4 == 1:
        scores = scores * np.float32(0)  # all equal
    if seed % 4 == 2:
        scores = np.random.default_rng(seed).normal(size=scores.shape).astype(np.float32)
        scores = 1 / (1 + np.exp(-scores)) if scale == "probabilities" else scores
    expected = summary(scores, labels, COUNTS, scale=scale)
    found = recomputed(scores, labels.astype(bool), COUNTS, scale)
    del expected["train_counts"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name == "AP":
            ours, theirs = (np.array(each, float) for each in (found[name], value))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * 100, equal_nan=True)
        elif isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=0, abs=1e-10)
        else:
            assert found[name] == value


def put(store: RunStore, seed: int = 1, *, labels: bool = True, **changes: Any) -> Path:
    """A run of three epochs as the trainer leaves it, whose oracle is the raw weights of epoch 2."""
    run_id = hashlib.sha256(f"{seed}".encode()).hexdigest()
    spec = make_spec(seed=seed, dataset={"alias": "GlyphScenes", "digest": "d" * 64})
    run = store.directory(run_id, spec)
    truth = data()[1]
    ema, raw, best = (data(seed + k)[0] for k in (10, 20, 30))
    last, model, chosen = (summary(found, truth, COUNTS, scale="logits") for found in (ema, raw, best))
    chosen["mAP"] = max(last["mAP"], model["mAP"]) + 1  # nothing is stored that could say otherwise
    weights = "model" if model["mAP"] > last["mAP"] else "ema"
    metrics = {
        "last": last,
        "model": model,
        "max": {**(model if weights == "model" else last), "weights": weights},
        "val": {**last, "epoch": 3},
        "oracle": {**chosen, "epoch": 2, "weights": "model"},
    }
    result = make_result(
        run_id,
        spec=spec,
        metrics=metrics,
        classes=CLASSES,
        score_scale="logits",
        predictions_sha256=hashlib.sha256(ema.tobytes()).hexdigest(),
    )
    for path, value in changes.items():
        *tables, name = path.split("__")
        table: Any = result
        for each in tables:
            table = table[each]
        table[name] = value
    with claim(store, run) as lease:
        for epoch in range(1, EPOCHS + 1):
            row = {"epoch": epoch, "mAP_ema": 40.0, "mAP_model": 41.0}
            row |= {"mAP_model": chosen["mAP"]} if epoch == 2 else {}
            row |= {"mAP_ema": last["mAP"], "mAP_model": model["mAP"]} if epoch == EPOCHS else {}
            store.append_epoch(run, row)
        arrays = {"scores": ema, "raw_scores": raw, **({"labels": truth} if labels else {})}
        store.write_result(run, lease, result, arrays)
    return run


def verdict(store: RunStore, run: Path, **labels: Any) -> Any:
    return Verifier(store, **labels).verdict(run, store.load(run))


def test_a_run_as_it_was_left_agrees(store: RunStore) -> None:
    found = verdict(store, put(store))
    assert found.problems == ()
    assert found.agreed == ("last", "model", "max", "val")
    assert found.unknown == ("oracle: of epoch 2, whose scores are not stored; its row agrees",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metrics__last__mAP": 71.0}, "last mAP is 71.0000 in result.json and"),
        ({"metrics__last__CF1": 71.0}, "last CF1 is 71.0000"),
        ({"metrics__last__groups": ["head"] * 4}, "last groups is another list"),
        ({"metrics__model__AP": [1.0, 2.0, None, 3.0]}, "model AP is another list"),
        ({"metrics__max__OF1": 1.0}, "max OF1 is 1.0000"),
        ({"metrics__val__tail": 1.0}, "val tail is 1.0000"),
        ({"metrics__oracle__mAP": 99.0}, "oracle mAP is 99.0000, and epochs.jsonl says"),
        ({"metrics__oracle__mAP": 1.0}, "oracle mAP 1.0000 is below that of the last epoch"),
        ({"score_scale": "probabilities"}, "last OF1 is"),
        ({"predictions_sha256": "0" * 64}, "predictions_sha256 differs"),
        ({"classes": [*CLASSES[:3], "kites"], "score_scale": "ranking"}, "last OF1 is"),
    ],
)
def test_a_record_that_lies_is_said(store: RunStore, change: dict[str, Any], said: str) -> None:
    found = verdict(store, put(store, **change))
    assert any(said in line for line in found.problems), found


def sha256(array: Any) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


RAW, EMA = sha256(data(21)[0]), sha256(data(11)[0])  # of `put` with seed 1


@pytest.mark.parametrize(
    ("said", "problems"),
    [
        ({"scores": EMA, "raw_scores": RAW, "labels": sha256(data()[1])}, ()),
        (
            {"scores": EMA, "raw_scores": EMA, "labels": sha256(data()[1])},
            ("raw_scores in predictions.npz are not those of the run: arrays_sha256.raw_scores differs",),
        ),
        (
            {"scores": EMA, "labels": sha256(data()[1])},
            ("predictions.npz holds raw_scores, which the run had not: arrays_sha256 does not name it",),
        ),
        (
            {"scores": EMA, "raw_scores": RAW, "labels": sha256(data()[1]), "logits": RAW},
            ("predictions.npz lacks logits, which the run had: arrays_sha256.logits names it",),
        ),
    ],
)
def test_every_array_is_the_one_that_the_result_names(store: RunStore, said: Any, problems: Any) -> None:
    assert verdict(store, put(store, arrays_sha256=said)).problems == problems


def test_earlier_results_take_the_labels_of_another_run_or_of_the_dataset(store: RunStore) -> None:
    old = put(store, 1, labels=False)
    (line,) = verdict(store, old).unknown
    assert "hold no labels" in line
    known = {"d" * 64: data()[1]}
    assert verdict(store, old, labels=known).agreed == ("last", "model", "max", "val")
    assert verdict(store, old, labels={"d" * 64: 1 - data()[1]}).problems
    assert verdict(store, old, labels={"d" * 64: data()[1][:-1]}).problems
    put(store, 2)
    assert verdict(store, old).agreed == ("last", "model", "max", "val")


def test_labels_that_are_not_those_of_another_run_on_the_same_images_are_said(store: RunStore) -> None:
    one, two = put(store, 1), put(store, 2)
    with np.load(two / "predictions.npz") as file:
        arrays = dict(file)
    np.savez(two / "predictions.npz", **{**arrays, "labels": 1 - arrays["labels"]})
    verifier = Verifier(store)
    assert not verifier.verdict(one, store.load(one)).problems
    problems = verifier.verdict(two, store.load(two)).problems
    assert any(f"not those of {one.name}" in line for line in problems)


@pytest.mark.parametrize("how", ["gone", "empty", "half", "random", "shape", "nan", "pickle"])
def test_predictions_that_are_damaged_are_said(store: RunStore, how: str) -> None:
    run = put(store)
    path, (scores, labels) = run / "predictions.npz", data()
    if how == "shape":
        np.savez(path, scores=scores[:, :2], labels=labels)
    elif how == "nan":
        np.savez(path, scores=scores * np.float32("nan"), labels=labels)
    elif how == "pickle":
        np.savez(path, scores=np.array([None]))
    elif how == "gone":
        path.unlink()
    else:
        content = {"empty": b"", "half": path.read_bytes()[:500], "random": b"PK\x03\x04" + b"\xff" * 99}
        path.write_bytes(content[how])
    found = verdict(store, run)
    assert found.problems
    assert not found.agreed
    assert all("\n" not in line for line in found.problems)


def test_why_and_tables_say_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = RunStore(tmp_path / "store")
    put(store, 1)
    place = ["--runs", str(tmp_path)]
    assert main(["why", "csaa/GlyphScenes/0.05/1", *place]) == 0
    assert "recomputed from predictions.npz, and equal: last, model, max, val" in capsys.readouterr().out
    assert main(["tables", "--verify", *place]) == 0
    assert "Recomputed from the stored predictions: 1 of 1." in capsys.readouterr().out
    bad = put(store, 2)
    record = json.loads((bad / "result.json").read_text())
    record["metrics"]["last"]["mAP"] += 0.5
    (bad / "result.json").write_text(json.dumps(record))
    assert main(["tables", *place]) == 0  # nobody asked
    capsys.readouterr()
    assert main(["tables", "--verify", *place]) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("CONTRADICTED: CSAA · GlyphScenes p=0.05 seed=2 [")
    assert "CONTRADICTED by their stored predictions, do not use: CSAA · GlyphScenes p=0.05 seed=2" in out
    assert main(["why", bad.name.rsplit("-", 1)[1], *place]) == 1
    assert "CONTRADICTED: last mAP is" in capsys.readouterr().out

from __future__ import annotations

import json
from typing import Any

import pytest

from results.errors import StoreError
from results.why import why


def test_one_run_in_full(fake: Any) -> None:
    run_id = fake.add("CSAA", 62.43, seed=1, lr=0.01)
    fake.add("CSAA", 64.0, seed=2, lr=0.01)
    text = why(fake.store, run_id[:9])
    assert why(fake.store, "csaa/GlyphScenes/5%/1") == text
    assert why(fake.store, "CSAA/GlyphScenes/0.05/1") == text
    for expected in (
        run_id,
        "mAP 62.43",
        "mAP 63.43",
        "epoch 2",
        "run.py --grid x",
        "c" * 40,
        "1" * 64,
        "d" * 64,
        "no uncommitted changes",
        "box",
        "torch=2.15.0",
        "61.5",
        "hyper.lr",
        "50.00 51.00",
    ):
        assert expected in text, expected
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  "))
    assert lines["val"] == "not recorded"
    assert lines["device"]  # of the cost; the provenance of these fake runs has none
    assert "device                     not recorded" in text


def test_several_runs_show_what_tells_them_apart_and_their_mean(fake: Any) -> None:
    for seed, value in ((1, 60.0), (2, 64.0)):
        fake.add("CSAA", value, seed=seed, lr=0.1)
    fake.add("CSAA, no contexts", 58.0, method="csaa", lr=0.1)
    fake.add("CSAA", None, seed=3, lr=0.1, state="failed")
    text = why(fake.store, "csaa/GlyphScenes")
    assert text.startswith("4 runs match")
    assert "label=CSAA, no contexts" in text
    assert "split_digest" not in text
    assert "failed" in text
    assert "CSAA on GlyphScenes at 0.05: last mAP 62.00 ± 2.83 over 2 seeds" in text
    assert "no contexts on" not in text  # one run is no mean
    assert why(fake.store, "CSAA, no contexts/GlyphScenes").startswith("run ")


def test_variants_under_one_label_are_not_averaged(fake: Any) -> None:
    fake.add("CSAA", 60.0, lr=0.1)
    fake.add("CSAA", 64.0, lr=0.2)
    text = why(fake.store, "csaa")
    assert "±" not in text
    assert "hyper.lr=0.1" in text


def test_a_printed_number_leads_to_runs_and_means(fake: Any) -> None:
    for seed, value in ((1, 60.04), (2, 64.0)):
        fake.add("CSAA", value, seed=seed)
    assert "p0.05-s1-" in why(fake.store, "60.0")
    assert "last mAP 60.0400" in why(fake.store, "60.0")
    mean = why(fake.store, "62.0")
    assert "CSAA on GlyphScenes at 0.05: last mAP 62.0200 ± 2.8001 over 2 seeds" in mean
    with pytest.raises(StoreError, match=r"no stored value or mean .* rounds to 62\.04"):
        why(fake.store, "62.04")


def test_a_mean_of_one_variant_is_found_beside_another(fake: Any) -> None:
    for seed, (value, other) in enumerate([(61.8, 50.0), (61.9, 51.0), (62.0, 55.0)], start=1):
        fake.add("CSAA", value, seed=seed, lr=0.1)
        fake.add("CSAA", other, seed=seed, lr=0.2)
    fake.add("CSAA", 61.3, seed=1, lr=0.3)  # one seed: its value is no mean
    for query in ("61.9", "61.9 ± 0.1", "61.9*", "61.9 +- 0.1"):
        text = why(fake.store, query)
        assert "CSAA on GlyphScenes at 0.05: last mAP 61.9000 ± 0.1000 over 3 seeds" in text
    assert "last mAP 52.0000 ± 2.6458 over 3 seeds" in why(fake.store, "52.0")
    with pytest.raises(StoreError, match="no stored value or mean"):
        why(fake.store, "61.9 ± 0.2")
    with pytest.raises(StoreError, match="no stored value or mean"):
        why(fake.store, "56.95 ± 5.67")  # the mean over both variants, which no table prints
    listed = why(fake.store, "csaa/GlyphScenes/0.05")
    assert "last mAP 61.90 ± 0.10 over 3 seeds" in listed
    assert "last mAP 52.00 ± 2.65 over 3 seeds" in listed


def test_a_mean_over_some_of_the_seeds_is_found(fake: Any) -> None:
    for seed, value in enumerate([60.0, 61.0, 66.0], start=1):
        fake.add("CSAA", value, seed=seed)
    text = why(fake.store, "60.5 ± 0.7")
    assert "last mAP 60.5000 ± 0.7071 over 2 seeds (std, ddof = 1) of 3: p0.05-s1-" in text


def test_runs_without_a_number(fake: Any) -> None:
    run_id = fake.add("CSAA", None, state="failed")
    text = why(fake.store, run_id[:8])
    assert "failed: ValueError: NaN" in text
    assert "there is no number yet" in text
    assert "ratio" in text


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("csa/GlyphScenes", "no run of method 'csa' .* did you mean 'csaa'"),
        ("csaa/Glyphscenes", "with dataset 'Glyphscenes'; did you mean 'GlyphScenes'"),
        ("csaa/GlyphScenes/0.06", r"with ratio '0\.06'"),
        ("csaa/GlyphScenes/few", "'few' is not a ratio"),
        ("csaa/GlyphScenes/0.05/9", r"with seed '9' \(valid: 1\)"),
        ("a/b/c/d/e", "should be method/dataset/ratio/seed"),
        ("zzzz", "no run matches 'zzzz'"),
        ("ffffffff", "no run matches 'ffffffff'"),
    ],
)
def test_errors_name_the_nearest(fake: Any, query: str, message: str) -> None:
    fake.add("CSAA", 60.0)
    with pytest.raises(StoreError, match=message):
        why(fake.store, query)


def test_what_the_weights_were_used_with_is_shown(fake: Any) -> None:
    run_id = "e" * 64
    backbone = {
        "name": "open_clip/RN101",
        "quick_gelu": True,
        "mean": [0.48145466, 0.5, 0.4],
        "std": [0.25] * 3,
    }
    keys = {"ratio": 0.05, "seed": 1, "method": "zero_shot", "label": "zero_shot"}
    spec = {**keys, "dataset": {"alias": "x", "digest": "d" * 64}, "backbone": backbone}
    assert fake.store.claim(fake.store.directory(run_id, spec), spec) is not None
    lines = [line.split(maxsplit=1) for line in why(fake.store, run_id[:9]).splitlines()]
    assert ["backbone.quick_gelu", "True"] in lines
    assert ["backbone.mean", "[0.48145466, 0.5, 0.4]"] in lines
    assert ["backbone.std", "[0.25, 0.25, 0.25]"] in lines


def test_a_mean_over_splits_and_a_budget_by_its_name_are_found(fake: Any) -> None:
    for split in (1, 2):
        for seed in (1, 2):
            run_id = fake.add("CSAA", 60.0 + split + seed, seed=seed, marker=split)
            (run,) = fake.store.find(run_id)
            for name in ("spec.json", "result.json"):
                record = json.loads((run / name).read_text())
                spec = record.get("spec", record)
                spec |= {"split_seed": split, "budget": "200 images"}
                del spec["hyper"]["marker"]
                (run / name).write_text(json.dumps(record))
    text = why(fake.store, "63.0 ± 0.8")
    assert "CSAA on GlyphScenes at 200 images: last mAP 63.0000 ± 0.8165 over 4 seeds" in text
    assert why(fake.store, "csaa/GlyphScenes/200 images").count("done") == 4
    with pytest.raises(StoreError, match="with ratio '201 images'; did you mean '200 images'"):
        why(fake.store, "csaa/GlyphScenes/201 images")
    with pytest.raises(StoreError, match=r"'many' is not a ratio; write it as 0\.05, 5% or '100 images'"):
        why(fake.store, "csaa/GlyphScenes/many")

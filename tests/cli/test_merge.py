"""The verb `merge`: what it prints, and its exit codes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from benchmarks.run import main
from results.store import RunStore
from tests.results.records import make_result, make_spec, make_summary


@pytest.fixture
def add(tmp_path):
    def add(name: str, seed: int, value: float = 50.0):
        store, spec = RunStore(tmp_path / name / "store"), make_spec(seed=seed)
        run_id = hashlib.sha256(str(seed).encode()).hexdigest()
        place = store.directory(run_id, spec)
        metrics = {"last": make_summary(mAP=value), "val": None, "oracle": None}
        with store.claim(place, spec) as lease:
            result = make_result(run_id, spec=spec, metrics=metrics)
            store.write_result(place, lease, result, {"scores": np.zeros((1, 2), np.float32)})
        return place

    return add


def test_stores_become_one_and_the_second_time_nothing_is_left_to_do(add, tmp_path, capsys):
    add("a", 1)
    add("b b", 2)
    words = ["merge", str(tmp_path / "a"), str(tmp_path / "b b"), "--runs", str(tmp_path / "all")]
    assert main([*words, "--dry-run"]) == 0
    assert "would be: 1 taken" in capsys.readouterr().out
    assert not (tmp_path / "all").exists()
    assert main(words) == 0
    assert capsys.readouterr().out.count(": 1 taken") == 2
    assert main(words) == 0
    assert capsys.readouterr().out.count(": 1 equal") == 2
    assert main(["status", "--runs", str(tmp_path / "all")]) == 0
    assert "2 done" in capsys.readouterr().out
    assert main(["tables", "--runs", str(tmp_path / "all")]) == 0


def test_a_conflict_names_both_places_and_is_exit_code_1(add, tmp_path, capsys):
    mine, other = add("mine", 1), add("other", 1, value=61.0)
    assert main(["merge", str(tmp_path / "other"), "--runs", str(tmp_path / "mine")]) == 1
    told = capsys.readouterr()
    why = f"{mine} has another result: last.mAP 50.0 here, 61.0 there"
    assert told.err == f"conflict: {other}: {why}\n"
    assert "1 conflict" in told.out


@pytest.mark.parametrize(("name", "why"), [("nowhere", "no runs there"), ("mine", "would be merged into")])
def test_what_is_no_other_store_is_bad_usage(add, tmp_path, capsys, name, why):
    add("mine", 1)
    add("other", 2)
    words = ["merge", str(tmp_path / "other"), str(tmp_path / name), "--runs", str(tmp_path / "mine")]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert why in told
    assert told.count("\n") == 1
    assert len(RunStore(tmp_path / "mine" / "store").scan()) == 1, (
        "all stores are looked at before any is read"
    )

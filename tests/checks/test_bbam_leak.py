"""`python -m benchmarks.checks.bbam_leak`: the leak is the public code's, and its scores are no results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from types import SimpleNamespace

import pytest

import methods
from benchmarks.checks import bbam_leak
from benchmarks.checks.small_grid import write_scenes
from methods.base import Pool
from tests.methods.table import numbers, same
from tests.methods.test_bbam import FIRST, GOLDEN, SECOND, method_of, refreshed, scored


def leaky(method):
    """Put the leak into the training of a method that is its own average."""
    hidden = numbers(GOLDEN["hidden"]).bool()
    trainer = SimpleNamespace(
        method=method, ema=SimpleNamespace(module=method), hidden_labels=SimpleNamespace(hidden=hidden)
    )
    bbam_leak.leak(trainer)
    return method


def test_the_leaky_pseudo_labels_are_those_that_the_public_code_makes():
    method = method_of()
    refreshed(method, FIRST, 0)
    refreshed(leaky(method), SECOND, 1)
    same(method.pool_targets, SECOND["leaky_pseudo_labels"])
    assert SECOND["leaky_pseudo_labels"] != SECOND["pseudo_labels"]


def test_the_first_epoch_has_no_statistics_that_could_leak():
    method = leaky(method_of())
    refreshed(method, FIRST, 0)
    same(method.pool_targets, FIRST["pseudo_labels"])


def test_nothing_but_the_scores_of_the_pool_is_replaced():
    seen = []
    method = method_of()
    method.refresh = seen.append
    leaky(method)
    average = scored(method, SECOND["pool_average"])
    pool = Pool(1, average[:, :3], average[:, 3:])
    method.refresh(pool)
    changed = {
        f.name for f in dataclasses.fields(Pool) if getattr(seen[0], f.name) is not getattr(pool, f.name)
    }
    assert changed == {"scores"}


def test_only_the_honest_training_is_called_a_result():
    scores = {"honest": (50.0, 52.0), "transform": (51.0, 54.0), "both": (56.0, 57.0)}
    rows = [
        {
            "training": name,
            "is_a_result": not any(bbam_leak.TRAININGS[name]),
            "seed": seed,
            "mAP": value,
            "OF1": 60.0,
            "seconds": 1,
        }
        for name, values in scores.items()
        for seed, value in enumerate(values, start=1)
    ]
    lines = bbam_leak.table(rows).splitlines()[2:]
    assert [("NO RESULT" in line) for line in lines] == [False, True, True]
    assert "+1.50" in lines[1]
    assert "+5.50" in lines[2]


def test_no_leaky_training_can_be_named():
    assert [name for name in methods.available() if "leak" in name] == []
    assert sum(not any(leaks) for leaks in bbam_leak.TRAININGS.values()) == 1


@pytest.mark.parametrize(
    ("words", "line"), [(["--lr-head", "-1"], "lr_head"), (["--ratio", "2"], "ratio")], ids=["rate", "ratio"]
)
def test_a_wrong_value_is_one_line_that_names_it(words, line, tmp_path, capsys):
    assert bbam_leak.main(["--data", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert line in error
    assert "\n" not in error


@pytest.mark.slow
def test_no_training_is_recorded_and_hidden_labels_move_the_leaky_ones_only(tmp_path, monkeypatch, capsys):
    scenes = json.dumps(str(write_scenes(tmp_path)))
    grid = bbam_leak.GRID.replace(
        'datasets = ["{dataset}"]',
        f'datasets = [{{{{ name = "coco", alias = "{{dataset}}", root = {scenes} }}}}]',
    ).replace(
        "[override]",
        "[override]\nresolution = 64\nwarmup_epochs = 2\nbatch_labelled = 8\nbatch_unlabelled = 24",
    )
    monkeypatch.setattr(bbam_leak, "GRID", grid)
    runs = tmp_path / "runs"
    runs.mkdir()
    monkeypatch.setattr(
        bbam_leak.tempfile, "TemporaryDirectory", lambda prefix: contextlib.nullcontext(str(runs))
    )
    words = ["--data", str(tmp_path / "data"), "--ratio", "0.3", "--seeds", "1", "--epochs", "3", "--json"]
    assert bbam_leak.main(words) == 0
    rows = {row["training"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert [name for name, row in rows.items() if row["is_a_result"]] == ["honest"]
    assert len({row["mAP"] for row in rows.values()}) == 4
    assert not list(runs.rglob("result.json"))
    assert not list((runs / "store").glob("*"))
    assert len(list((runs / "stages").glob("warmup-*"))) == 2

"""The measurement of the trainer: both loops do the same work, and the figures fit together."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import types

import pytest
import torch

from benchmarks.perf import trainer as perf
from benchmarks.perf import training
from benchmarks.perf.__main__ import main
from benchmarks.progress import silent
from benchmarks.training.group import Group
from tests.conftest import ROOT, grid_text


@pytest.fixture
def grid(tmp_path, voc_root):
    """45 unlabelled images in 8 steps an epoch."""
    path = tmp_path / "grid.toml"
    path.write_text(
        grid_text(
            voc_root, '["zero_shot", "supervised", "fixmatch", "csaa"]', batch_labelled=3, batch_unlabelled=6
        )
    )
    return path


def pair(method, grid, tmp_path, **recipe):
    """A trainer and the bare loop beside it."""
    job = training.find_job(method, str(grid), tmp_path / "data", silent)
    cell = dataclasses.replace(job.cell, recipe=dataclasses.replace(job.cell.recipe, **recipe))
    job = dataclasses.replace(job, cell=cell)
    trainer = training.build(job, Group(), tmp_path)
    return trainer, perf.Bare(trainer, job)


@pytest.mark.parametrize("method", ["supervised", "csaa"])
def test_the_bare_loop_gets_the_trainers_batches(method, grid, tmp_path):
    trainer, bare = pair(method, grid, tmp_path)
    seen = {trainer.method: [], bare.model: []}
    for model, batches in seen.items():
        model.register_forward_pre_hook(lambda _, given, batches=batches: batches.append(given[0]))
    steps = trainer.steps_per_epoch - 1
    for epoch in (0, 7):  # the labelled images have come up more than once by then
        training.advance(trainer, epoch, steps)
        bare.train(bare.plan(epoch, range(1, 1 + steps)))
    ours, theirs = seen[bare.model], seen[trainer.method]
    assert len(ours) == len(theirs) == 2 * steps
    for one, other in zip(ours, theirs, strict=True):
        for field in dataclasses.fields(one):
            value, expected = getattr(one, field.name), getattr(other, field.name)
            if isinstance(expected, torch.Tensor):
                assert torch.equal(value, expected), field.name
            else:
                assert value == expected, field.name


@pytest.mark.parametrize("method", ["supervised", "fixmatch", "csaa"])
def test_the_loop_with_the_recipe_ends_where_the_trainer_does(method, grid, tmp_path):
    trainer, bare = pair(method, grid, tmp_path, clip_norm=0.5)
    start = {name: value.clone() for name, value in bare.model.state_dict().items()}
    first = trainer.steps_per_epoch - 2
    training.advance(trainer, 2, 2)
    bare.train(bare.plan(2, range(first, first + 2)), recipe=True)
    assert bare.scheduler.last_epoch == trainer.scheduler.last_epoch == 2
    pairs = ((bare.model, trainer.method), (bare.ema.module, trainer.ema.module))
    for ours, theirs in pairs:
        values = theirs.state_dict()
        for name, value in ours.state_dict().items():
            assert torch.equal(values[name], value), name
        assert not all(torch.equal(start[name], value) for name, value in values.items())


def test_the_bare_loop_does_without_average_and_schedule(grid, tmp_path):
    _, bare = pair("csaa", grid, tmp_path)
    rates = [group["lr"] for group in bare.optimizer.param_groups]
    before = {name: value.clone() for name, value in bare.ema.module.state_dict().items()}
    bare.train(bare.plan(0, range(1, 3)))
    assert [group["lr"] for group in bare.optimizer.param_groups] == rates
    for name, value in bare.ema.module.state_dict().items():
        assert torch.equal(before[name], value), name


@pytest.mark.slow
def test_the_json_line_has_every_figure(grid, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.perf",
            "trainer",
            "--json",
            "--method",
            "csaa",
            "--grid",
            str(grid),
            "--steps",
            "2",
            "--rounds",
            "2",
            "--data",
            str(tmp_path / "data"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["ratio"] == found["trainer_ms"] / found["bare_ms"]
    assert found["ratio_to_recipe"] == found["trainer_ms"] / found["recipe_ms"]
    assert 0.2 < found["ratio"] < 5  # loosely: nothing is to be learnt from four steps
    assert len(found["ratios"]) == found["rounds"] == 2
    assert (found["method"], found["steps"], found["batch"]) == ("csaa", 2, [3, 6])
    assert (found["dataset"], found["resolution"]) == ("tiny", 64)
    trainer, bare = found["parts"]["trainer"], found["parts"]["bare"]
    assert set(bare) < set(trainer)
    assert {"views", "forward", "backward", "optimizer", "gather", "rest"} == set(bare)
    assert {"sampler", "ema", "schedule", "scoring", "agreement"} <= set(trainer)
    assert all(value > 0 for value in trainer.values())
    assert sum(trainer.values()) == pytest.approx(found["trainer_ms"], rel=1)
    assert found["checkpoint_ms"] > 0
    assert found["machine"]["cores"] >= 1
    assert {"python", "torch", "accelerate"} <= set(found["versions"])
    table = perf.table(found)
    assert f"ratio {found['ratio']:.3f}" in table
    assert "batches of 3 + 6" in table


@pytest.mark.parametrize("name", ["trainer", "scaling"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "cssa"], "no method 'cssa'; did you mean 'csaa'?"),
        (["--method", "zero_shot"], "'zero_shot' is not trained in steps"),
        (["--method", "dualcoop"], "grid 'grid' has no method 'dualcoop'"),
        (["--grid", "embeded"], "no grid 'embeded'; did you mean 'embedded'?"),
    ],
)
def test_wrong_names_are_told(name, options, message, grid, tmp_path, capsys):
    chosen = ["--grid", str(grid), "--data", str(tmp_path / "data"), *options]
    assert main([name, *chosen]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err


def test_other_arithmetic_is_refused(grid, tmp_path):
    grid.write_text(grid.read_text().replace("[override]", '[override]\nprecision = "bf16"'))
    with pytest.raises(training.UserError, match="precision 'bf16' with strategy 'ddp'"):
        training.find_job("csaa", str(grid), tmp_path / "data", silent)


def test_an_epoch_must_be_longer_than_a_round(grid, tmp_path, capsys):
    chosen = ["--grid", str(grid), "--data", str(tmp_path / "data"), "--steps", "8"]
    threads = torch.get_num_threads()
    assert main(["trainer", *chosen]) == 2
    out, err = capsys.readouterr()
    assert not out  # nor what libraries say
    assert "--steps 8: an epoch has 8 steps; at most 7" in err
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ["trainer", "scaling"])
def test_wrong_options_are_usage_errors(name, capsys):
    for options in (["--steps", "0"], ["--rounds", "x"], ["--step"]):
        with pytest.raises(SystemExit) as ended:
            main([name, *options])
        assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_timed_calls_are_added_up_and_given_back(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(perf.time, "perf_counter", lambda: next(clock))

    class Owner:
        def first(self, value):
            return value

    owner, plain = Owner(), types.SimpleNamespace(second=lambda: "kept")
    kept = plain.second
    with perf._timed([(owner, "first", "a"), (plain, "second", "b")]) as spent:
        assert (owner.first(3), owner.first(value=4), plain.second()) == (3, 4, "kept")
    assert spent == {"a": 2, "b": 1}
    assert "first" not in vars(owner)
    assert plain.second is kept

"""The measurement of scaling: what each rate counts, and that the figures fit together."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.perf import scaling as perf
from benchmarks.perf import training
from benchmarks.progress import silent
from benchmarks.training.group import Group
from methods.errors import UserError
from slurm.protocol import RENDEZVOUS
from tests.conftest import ROOT, grid_text


@pytest.fixture
def grid(tmp_path, voc_root):
    """45 unlabelled images in 8 steps an epoch, in 4 with twice the batch."""
    path = tmp_path / "grid.toml"
    path.write_text(grid_text(voc_root, '["supervised", "csaa"]', batch_labelled=3, batch_unlabelled=6))
    return path


class Pipe:
    """Stands for a process that answers what it is given."""

    def __init__(self, *answers):
        self.answers, self.told = list(answers), []

    def send(self, what):
        self.told.append(what)

    def recv(self):
        if not self.answers:
            raise EOFError
        return self.answers.pop(0)


def team(*pipes):
    found = object.__new__(perf._Team)
    found.pipes = list(pipes)
    return found


def test_what_the_rates_count():
    single = [team(Pipe(perf.Took(64, 0, 2), perf.Took(64, 0, 2))), team(Pipe(perf.Took(64, 0, 4)))]
    # Both ranks of a group count the images of all of it; it took from the first start to the end.
    strong = team(
        Pipe(perf.Took(64, 10, 11), perf.Took(64, 0, 1), perf.Took(64, 0, 1)),
        Pipe(perf.Took(64, 9, 10.5), perf.Took(64, 5, 7)),
    )
    weak = team(Pipe(perf.Took(128, 0, 2)), Pipe(perf.Took(128, 0, 2)))

    def rate(name):
        return perf._rate(name, 3, single, strong, weak)

    assert rate("one") == 32
    assert rate("side_by_side") == 32 + 16
    assert rate("strong") == 32
    assert rate("weak") == 64
    assert rate("half_alone") == 32
    assert strong.pipes[1].told == [(3, False)]
    assert rate("half_together") == 32 + 16
    assert strong.pipes[0].told == [(3, False), (3, True), (3, True)]
    assert strong.pipes[1].told == [(3, False), (3, True)]


def test_a_round_fits_into_an_epoch_with_twice_the_batch(grid, tmp_path):
    with pytest.raises(UserError, match="--steps 4: an epoch has 4 steps; at most 3"):
        perf.measure("csaa", str(grid), tmp_path / "data", steps=4, rounds=1)


def test_what_goes_wrong_in_a_process_is_told():
    with pytest.raises(UserError, match="a measuring process died"):
        team(Pipe()).wait()
    with pytest.raises(UserError, match="--steps 9"):
        team(Pipe(UserError("--steps 9: an epoch has 8 steps"))).wait()


def test_the_environment_is_the_launchers(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.delenv("RANK", raising=False)
    before = dict(os.environ)
    with perf._environment(1, 2, Path("/somewhere/meeting")):
        assert os.environ["OMP_NUM_THREADS"] == "1"
        assert (os.environ["RANK"], os.environ["LOCAL_RANK"]) == ("1", "1")
        assert (os.environ["WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"]) == ("2", "2")
        assert os.environ[RENDEZVOUS] == "/somewhere/meeting"
    assert dict(os.environ) == before
    with perf._environment(0, 1, Path("/somewhere/meeting")):
        assert not {"RANK", "WORLD_SIZE", RENDEZVOUS} & set(os.environ)
        assert Group.join().world == 1
    assert dict(os.environ) == before


def test_a_process_apart_asks_nobody(grid, tmp_path):
    job = training.find_job("csaa", str(grid), tmp_path / "data", silent)
    trainer = training.build(job, Group(), tmp_path, times=2)
    assert (trainer.schedule.batch_labelled, trainer.schedule.batch_unlabelled) == (6, 12)
    wrapped = torch.nn.Sequential(trainer.method)
    trainer.model = wrapped
    agree = trainer.group.start_max
    with contextlib.ExitStack() as stack:
        stack.enter_context(perf._apart(trainer))
        trainer.group.world = 2  # would need another process
        assert trainer.model is trainer.method
        training.advance(trainer, 0, 2)
    assert trainer.images_seen == 6 + 12 + 6 + 45 - 3 * 12
    assert trainer.model is wrapped
    assert trainer.group.start_max == agree


def test_the_table_names_every_figure():
    found = {
        "ratio": 0.75,
        "ratio_weak": 0.86,
        "ceiling": 0.95,
        "ratio_of_fastest": 0.78,
        "factors": {"batch": 0.9, "machine": 0.95, "exchange": 0.88},
        "exchange_share": 0.12,
        "exchange_share_weak": 0.09,
        "ratios": [0.7, 0.8],
        "images_per_second": {"one": 300.0, "strong": 450.0, "weak": 516.0, "side_by_side": 570.0},
        "method": "csaa",
        "dataset": "scenes",
        "resolution": 128,
        "batch": [8, 56],
        "steps": 8,
        "rounds": 2,
        "machine": {"cpu": "a processor", "cores": 2},
        "load": 0.5,
        "versions": {"torch": "2.0"},
    }
    table = perf.table(found)
    for text in (
        "csaa on scenes",
        "batches of 8 + 56",
        "450 images / s  75.0%",
        "86.0%",
        "95.0%",
        "ratio 0.750 (0.700 to 0.800",
        "0.900 x",
        "0.950 x",
        "exchange 0.880",
        "12.0%",
        "a processor, 2 cores, load 0.5 before; torch 2.0",
    ):
        assert text in table


@pytest.mark.slow
def test_the_json_line_has_every_figure(grid, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.perf",
            "scaling",
            "--json",
            "--method",
            "csaa",
            "--grid",
            str(grid),
            "--steps",
            "2",
            "--rounds",
            "1",
            "--data",
            str(tmp_path / "data"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        cwd=ROOT,
    )
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    rates, factors = found["images_per_second"], found["factors"]
    assert set(rates) == set(perf.RATES)
    assert all(rate > 0 for rate in rates.values())
    assert found["ratio"] == rates["strong"] / (2 * rates["one"])
    assert found["ratio_weak"] == rates["weak"] / (2 * rates["one"])
    assert found["ceiling"] == rates["side_by_side"] / (2 * rates["one"])
    product = factors["batch"] * factors["machine"] * factors["exchange"]
    assert product == pytest.approx(found["ratio"])
    assert found["exchange_share"] == 1 - factors["exchange"]
    assert found["ratios"] == [found["ratio"]]
    assert (found["processes"], found["threads"], found["batch"]) == (2, 1, [3, 6])
    assert (found["method"], found["dataset"], found["steps"]) == ("csaa", "tiny", 2)
    assert found["machine"]["cores"] >= 1
    assert f"ratio {found['ratio']:.3f}" in perf.table(found)

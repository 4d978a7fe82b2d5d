"""Stages that change on the disk, and disks without room or right: what a worker makes of them."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import torch

from benchmarks.launch.execution import Execution, Options
from benchmarks.launch.worker import Worker
from benchmarks.plan.grid import load
from benchmarks.plan.jobs import resolve
from benchmarks.progress import silent
from benchmarks.training.group import Group
from benchmarks.training.strategy import make
from benchmarks.workspace import Workspace
from results.store import RunStore
from results.verify import Verifier
from tests.conftest import grid_text


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(voc_root, tmp_path_factory):
    """Runs, and the folder of their data."""
    folder = tmp_path_factory.mktemp("ground")
    (folder / "tiny.toml").write_text(grid_text(voc_root, '["linear_probe", "csaa"]', epochs=1))
    workspace = Workspace(folder / "data", folder / "runs")
    jobs = resolve(load(str(folder / "tiny.toml")), workspace, progress=silent, workers=1)
    return {job.spec.method: job for job in jobs}, workspace.data


class Place:
    """A folder of runs, and workers that come one after the other."""

    def __init__(self, tiny, method, runs):
        self.job, self.workspace = tiny[0][method], Workspace(tiny[1], runs)
        runs.mkdir()  # as a launcher does
        (self.stage,) = self.job.stages
        self.folder = self.stage.directory(self.workspace)
        self.run = self.job.directory(self.workspace)
        self.store, self.said, self.launches = self.workspace.store, [], 0

    def work(self, *tasks):
        """What the worker of another launch says of some tasks."""
        self.launches += 1
        self.said.clear()
        options = Options(launch=str(self.launches), report=self.said.append, checkpoint_seconds=9.0)
        execution = Execution(self.workspace, make("ddp", "fp32", Group()), options)
        Worker(list(tasks) or [(self.stage, self.job), (None, self.job)], self.workspace, execution).work()
        return list(self.said)

    def scores(self):
        return (self.run / "predictions.npz").read_bytes()


FILES = {"linear_probe": "train.npy", "csaa": "model.safetensors"}


@pytest.mark.parametrize("method", ["linear_probe", pytest.param("csaa", marks=pytest.mark.slow)])
def test_a_stage_that_changed_on_the_disk_is_made_again_and_never_used(tiny, tmp_path, method):
    calm, place = Place(tiny, method, tmp_path / "calm"), Place(tiny, method, tmp_path / "rough")
    calm.work()
    assert calm.store.state(calm.run).kind == "done"
    result = calm.store.load(calm.run)
    verdict = Verifier(calm.store).verdict(calm.run, result)
    assert not verdict.problems
    assert {"last", "model", "max"} <= set(verdict.agreed)

    place.work((place.stage, place.job))
    file = place.folder / FILES[method]
    data = bytearray(file.read_bytes())
    data[-5] ^= 64
    file.write_bytes(data)
    # Whoever reads it although it counts as done does not train on it, and says what to do.
    (line,) = [line for line in place.work((None, place.job)) if line.startswith("failed: ")]
    assert f"{file} has changed on the disk: its checksum differs; run again, and the stage is made" in line
    assert place.store.state(place.run).kind == "failed"
    said = place.work()
    assert any(line.startswith("made again: ") and str(file) in line for line in said)
    assert place.scores() == calm.scores()
    assert not any(line.startswith("made again") for line in place.work((place.stage, place.job)))


def test_a_stage_whose_record_is_damaged_is_made_again(tiny, tmp_path):
    place = Place(tiny, "linear_probe", tmp_path / "runs")
    place.work((place.stage, place.job))
    before = np.load(place.folder / "train.npy")
    record = place.folder / "stage.json"
    old = {name: value for name, value in json.loads(record.read_text()).items() if name != "files"}
    record.write_text(json.dumps(old))
    (line,) = place.work((place.stage, place.job))
    assert "made by an earlier version, without checksums; used as it is" in line
    (place.folder / "stage.json").write_text('{"kind": "other"}')
    said = place.work()
    assert any(line.startswith("made again: ") for line in said)
    assert place.store.state(place.run).kind == "done"
    assert np.array_equal(np.load(place.folder / "train.npy"), before)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.ESTALE])
def test_runs_that_cannot_be_begun_are_named_and_the_worker_ends(tiny, tmp_path, monkeypatch, number):
    place = Place(tiny, "linear_probe", tmp_path / "runs")

    def claim(self, directory, spec, **rest):
        raise OSError(number, os.strerror(number), str(directory))

    monkeypatch.setattr(RunStore, "claim", claim)
    said = place.work()
    assert len(said) == 2
    assert all(line.startswith("failed: ") and os.strerror(number) in line for line in said)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_lease_that_cannot_be_released_loses_nothing(tmp_path, monkeypatch, number):
    from results import lease as module

    store = RunStore(tmp_path)
    spec = {"dataset": {"alias": "a"}, "method": "m", "ratio": 0.1, "seed": 1}
    held = store.claim(store.directory("ab" * 32, spec), spec)

    def write(path, value):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(module, "atomic_write_json", write)
    with held:
        pass
    assert not held.held()

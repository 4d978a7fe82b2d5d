"""Runs on the tiny VOC tree that keep their weights, executed in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.launch.execution import Execution, Options
from benchmarks.launch.work_order import order
from benchmarks.launch.worker import Worker
from benchmarks.plan.grid import load
from benchmarks.plan.jobs import Job, resolve
from benchmarks.progress import silent
from benchmarks.run import main
from benchmarks.training.group import Group
from benchmarks.training.strategy import make
from benchmarks.workspace import Workspace
from tests.conftest import grid_text


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Trained:
    """A folder with a grid, its data and its runs."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.grid = folder, folder / "tiny.toml"
        self.grid.write_text(text)
        self.workspace = Workspace(folder / "data", folder / "runs")
        self.workspace.runs.mkdir()
        grid = load(str(self.grid))
        self.every = resolve(grid, self.workspace, progress=silent, workers=1)
        self.jobs = {job.spec.method: job for job in self.every}

    def work(self, *names: str, runs: Path | None = None, **options) -> list[str]:
        """Execute runs, all without names; what is said of them."""
        said: list[str] = []
        workspace = Workspace(self.workspace.data, runs or self.workspace.runs)
        workspace.runs.mkdir(exist_ok=True)
        chosen = [self.jobs[name] for name in names] or self.every
        options = Options(**{"report": said.append, "keep_weights": "all", **options})
        strategy = make("ddp", chosen[0].cell.recipe.precision, Group())
        Worker(order(chosen), workspace, Execution(workspace, strategy, options)).work()
        return said

    def directory(self, name: str, runs: Path | None = None) -> Path:
        job: Job = self.jobs[name]
        return job.directory(Workspace(self.workspace.data, runs or self.workspace.runs))

    def run(self, *words: str | Path) -> int:
        """The command line with this folder's data and runs."""
        places = ["--data", self.workspace.data, "--runs", self.workspace.runs]
        return main([*map(str, words), *map(str, places)])


@pytest.fixture(scope="session")
def trained(voc_root, tmp_path_factory) -> Trained:
    """A fitted and a trained method that kept their weights; not to be changed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    text = grid_text(voc_root, '["zero_shot", "linear_probe", "supervised"]', labelled_epochs=1)
    found = Trained(tmp_path_factory.mktemp("trained"), text)
    said = found.work()
    assert not [line for line in said if line.startswith(("failed", "weights not kept"))], said
    torch.set_num_threads(before)
    return found

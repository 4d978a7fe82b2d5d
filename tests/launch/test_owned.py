"""A launch runs its own copies: whatever is edited, broken or removed after it began changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import methods
from benchmarks.launch import worker
from benchmarks.launch.local import WORKER
from benchmarks.launch.work_order import WorkOrder
from benchmarks.plan import copies
from benchmarks.plan.copying import copy_grid
from benchmarks.plan.grid import load
from benchmarks.plan.jobs import resolve
from benchmarks.progress import silent
from benchmarks.workspace import Workspace
from methods import registry
from methods.errors import UserError
from tests.conftest import ROOT, grid_text

MINE = """
from pathlib import Path
from methods import register
from methods.zero_shot import ZeroShot
import sign_of_mine


@register
class Mine(ZeroShot):
    name = "mine"

    def predict(self, features):
        import late_of_mine  # imported when the run has begun

        shift = float(Path(__file__).with_name("shift.txt").read_text())
        bias = float((Path(__file__).parent / "tables" / f"{'bias'}.txt").read_text())
        return (sign_of_mine.SIGN * late_of_mine.FACTOR) * super().predict(features) + shift + bias
"""


class Project:
    """A user's grid with a method of its own, and the runs of it."""

    def __init__(self, folder: Path, voc_root: Path, data: Path) -> None:
        self.folder, self.workspace = folder, Workspace(data, folder / "runs")
        self.grid = folder / "own.toml"
        self.workspace.runs.mkdir(parents=True)
        self.write("mine.py", MINE)
        self.write("sign_of_mine.py", "SIGN = 1.0\n")
        self.write("late_of_mine.py", "FACTOR = 1.0\n")
        self.write("shift.txt", "0.0")
        self.write("tables/bias.txt", "0.0")
        self.write("recipe-of-mine.toml", (ROOT / "benchmarks" / "recipes" / "embedded.toml").read_text())
        text = grid_text(voc_root, '["mine"]').replace('"embedded"', '"recipe-of-mine.toml"')
        self.write("own.toml", 'modules = ["mine.py"]\n' + text)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def planned(self):
        loaded = load(str(self.grid))
        return loaded, resolve(loaded, self.workspace, progress=silent, workers=1)

    def order(self) -> Path:
        """The plan file of a launch, as it waits in a queue."""
        loaded, jobs = self.planned()
        self.loaded, self.jobs = loaded, jobs
        copy = copy_grid(loaded, jobs, self.folder / "copies")
        made = WorkOrder.make(
            copy,
            self.workspace,
            jobs,
            module=WORKER,
            strategy=None,
            checkpoint_seconds=30.0,
            hang_seconds=60.0,
        )
        made.write(self.folder / "plan.json")
        return self.folder / "plan.json"

    def work(self, plan: Path) -> subprocess.CompletedProcess:
        words = [sys.executable, "-m", WORKER, str(plan)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            words, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def result(self):
        (job,) = self.jobs
        directory = job.directory(self.workspace)
        with np.load(directory / "predictions.npz") as arrays:
            return self.workspace.store.load(directory), arrays["scores"]


@pytest.fixture
def project(tmp_path, voc_root, tmp_path_factory, monkeypatch):
    """A project whose methods this process forgets again."""
    for name in methods.available():  # a module registers once, when it is first imported
        methods.get(name)
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with registry.isolated():
        yield Project(tmp_path / "mine", voc_root, tmp_path_factory.getbasetemp() / "data-of-owned")
        copies.stop_using()
    for name in set(sys.modules) - before:
        if name.startswith((registry.USER_FILE, "sign_of_mine", "late_of_mine")):
            del sys.modules[name]


def test_a_worker_runs_what_was_planned_whatever_happens_meanwhile(project):
    """Module, imported helpers, data file beside it, recipe and grid are edited, broken or gone."""
    plan = project.order()
    project.write("mine.py", "raise RuntimeError('edited')\n")
    project.write("sign_of_mine.py", "SIGN = -1.0\n")
    project.write("late_of_mine.py", "FACTOR = -1.0\n")
    project.write("shift.txt", "100.0")
    project.write("recipe-of-mine.toml", "[broken\n")
    project.grid.unlink()
    done = project.work(plan)
    assert done.returncode == 0, done.stdout + done.stderr
    record, scores = project.result()
    untouched, _ = zero_shot(project)
    np.testing.assert_allclose(scores, untouched, atol=1e-5)
    provenance = record["provenance"]
    assert provenance["grid"]["file"] == "own.toml"
    assert provenance["recipe"]["file"] == "recipe-of-mine.toml"
    assert [name for name, _ in provenance["module_data"]] == ["shift.txt"]
    assert set(provenance["method_code"]["files"]) == {"late_of_mine.py", "mine.py", "sign_of_mine.py"}
    assert record["spec"]["code"] == provenance["method_code"]["sha256"]
    assert {"methods/zero_shot.py", "benchmarks/launch/tasks.py"} <= set(provenance["sources"]["files"])
    assert "methods/fixmatch.py" not in provenance["sources"]["files"]
    # A file that no string of a source names is a link: it is not owned, as the documentation says.
    (link,) = (project.folder / "copies").glob("*/0/tables")
    assert link.is_symlink()


def zero_shot(project):
    """The scores of the method that `mine` derives from, on the same features."""
    import torch

    from benchmarks.training.build import build_backbone, task_of

    (job,) = project.jobs
    stage = job.stages[0].directory(project.workspace)
    features = torch.from_numpy(np.load(stage / "test.npy"))
    method = methods.create("zero_shot", backbone=build_backbone(job), task=task_of(job))
    method.fit(features[:0], 1)
    return method.predict(features).cpu().numpy(), features


def test_a_module_that_changes_while_the_plan_is_made_is_named(project):
    loaded, jobs = project.planned()
    project.write("sign_of_mine.py", "SIGN = -1.0\n")
    with pytest.raises(UserError, match=r"sign_of_mine.py changed since the plan was made; start it again"):
        copy_grid(loaded, jobs, project.folder / "copies")
    assert not (project.folder / "copies").exists()


def test_a_damaged_copy_is_refused_in_one_line(project):
    plan = project.order()
    (copy,) = (project.folder / "copies").glob("*/0/sign_of_mine.py")
    copy.chmod(0o644)
    copy.write_text("SIGN = -1.0\n")
    with pytest.raises(
        UserError, match=r"sign_of_mine.py, a launch's copy of .*sign_of_mine.py, was changed"
    ):
        WorkOrder.read(plan).resolve()


def test_equal_files_share_a_copy_and_other_ones_do_not(project):
    loaded, jobs = project.planned()
    first = copy_grid(loaded, jobs, project.folder / "copies")
    assert copy_grid(loaded, jobs, project.folder / "copies") == first
    assert first.name == "own.toml"
    shutil.copy(project.grid, project.folder / "other.toml")
    other = load(str(project.folder / "other.toml"))
    assert copy_grid(other, (), project.folder / "copies").parent != first.parent


def test_a_copy_of_a_copy_is_planned_as_the_original(project):
    """As `prepare` in a job, or a user who repeats what a launch ran."""
    loaded, jobs = project.planned()
    copy = copy_grid(loaded, jobs, project.folder / "copies")
    shutil.rmtree(project.folder / "tables")
    for path in project.folder.glob("*.py"):
        path.unlink()
    project.grid.unlink()
    again = load(str(copy))
    assert (again.name, again.cells, again.path) == (loaded.name, loaded.cells, project.grid)
    assert copies.used().values["grid"]["original"] == str(project.grid)
    second = copy_grid(again, (), project.folder / "copies")
    assert load(str(second)).cells == loaded.cells


def test_local_workers_that_start_after_an_edit_run_what_was_planned(project, monkeypatch):
    """The launcher copies, then grid and module are broken, then its workers start."""
    from benchmarks.launch import local

    loaded, jobs = project.planned()
    project.jobs = jobs
    monkeypatch.chdir(project.folder)

    class Late(local._Worker):
        def _start(self) -> None:
            for name in ("own.toml", "mine.py"):
                project.write(name, "broken [\n")
            super()._start()

    monkeypatch.setattr(local, "_Worker", Late)
    told: list[str] = []
    local.Local(1, 1, 1, 30.0, 60.0).execute(loaded, jobs, project.workspace, told.append)
    assert any(line.startswith("done: mine") for line in told), told
    assert project.result()[0]["provenance"]["grid"]["file"] == "own.toml"


def test_copies_are_files_that_an_edit_by_mistake_does_not_reach(project):
    plan = json.loads(project.order().read_text())
    copy = Path(plan["grid"])
    assert copy.stat().st_mode & 0o222 == 0
    assert json.loads((copy.parent / copies.NAME).read_text())["modules"] == {
        str(project.folder / "mine.py"): "0/mine.py"
    }


def test_ranks_that_planned_other_runs_or_code_are_refused(project):
    """Under torchrun each process plans by itself, and a file may change in between."""
    order = WorkOrder.read(project.order())
    other = dataclasses.replace(order, sources={**order.sources, "methods/zero_shot.py": "0" * 64})

    class Three:
        def __init__(self, *others: WorkOrder) -> None:
            self.others = others

        def all_gather_object(self, mine):
            return [mine, *((each.run_ids, dict(each.planned), dict(each.sources)) for each in self.others)]

    worker._agree(order, Three(order, order))
    for odd in (other, dataclasses.replace(order, run_ids=("0" * 64,))):
        with pytest.raises(
            UserError, match=r"^rank 2 has planned other runs, or with other code, than rank 0"
        ):
            worker._agree(order, Three(order, odd))


def test_a_training_that_other_code_continues_says_so(tmp_path, voc_root):
    """A checkpoint names the code that wrote it, and a result the code that began its training."""
    from benchmarks.training.build import build_trainer
    from benchmarks.training.checkpoint import Checkpoints
    from benchmarks.training.group import Group
    from benchmarks.training.host import TrainingHost
    from benchmarks.training.strategy import make

    grid = tmp_path / "g.toml"
    grid.write_text(grid_text(voc_root, '["supervised"]'))
    workspace = Workspace(tmp_path / "data", tmp_path / "runs")
    (job,) = resolve(load(str(grid)), workspace, progress=silent, workers=1)
    strategy = make("ddp", "fp32", Group())

    def trainer(code: str):
        places = Checkpoints(tmp_path / "checkpoints", 1e9)
        made = build_trainer(job, None, strategy, checkpoints=places, host=TrainingHost(code=code))
        made.resume()
        return made

    for code, history in (("a", ("a",)), ("a", ("a",)), ("b", ("a", "b")), ("a", ("b", "a"))):
        continued = trainer(code)
        assert continued.code == history
        continued.step += 1  # a later checkpoint
        continued.save()

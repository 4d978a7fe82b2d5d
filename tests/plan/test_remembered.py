"""A plan is remembered while nothing has changed that it was made from, and resolved again otherwise."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.plan import jobs, reads, remembered
from benchmarks.plan.remembered import Question, recall
from benchmarks.run import main
from benchmarks.workspace import REPOSITORY, Workspace
from results.lease import acquire
from tests.conftest import CommandLine, grid_text

WEIGHTS = REPOSITORY / "methods" / "backbones" / "glyphclip" / "glyphclip.safetensors"


class Place:
    """A grid with its recipe, data, weights and module, and its remembered plan."""

    def __init__(self, folder: Path, voc_root: Path) -> None:
        self.folder = folder
        self.voc, self.grid, self.recipe = folder / "voc", folder / "grid.toml", folder / "recipe.toml"
        # Names of their own, because a process keeps the modules that it has imported.
        name = f"mine_{abs(hash(folder))}"
        self.module, self.helper = folder / f"{name}.py", folder / f"{name}_aid.py"
        self.weights = folder / "w.safetensors"
        self.workspace = Workspace(folder / "data", folder / "runs")
        shutil.copytree(voc_root, self.voc, copy_function=shutil.copyfile)
        shutil.copyfile(WEIGHTS, self.weights)
        self.recipe.write_text('[backbone]\nname = "glyphclip"\nweights = "${TEST_WEIGHTS}"\n')
        self.module.write_text(f"import {name}_aid\n")
        self.helper.write_text("LEVEL = 1\n")
        text = grid_text(self.voc, '["zero_shot", "linear_probe"]').replace('"embedded"', f'"{self.recipe}"')
        self.grid.write_text(text.replace("[override]", f'modules = ["{name}.py"]\n[override]'))

    @property
    def question(self) -> Question:
        return Question(str(self.grid))

    def call(self, *argv: str) -> int:
        places = ["--data", str(self.workspace.data), "--runs", str(self.workspace.runs), "--workers", "1"]
        return main([argv[0], "--grid", str(self.grid), *argv[1:], *places])

    def recalled(self) -> bool:
        return recall(self.question, self.workspace) is not None

    def file(self, pattern: str) -> Path:
        (found,) = self.folder.glob(pattern)
        return found


@pytest.fixture
def place(tmp_path, voc_root, monkeypatch) -> Place:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TEST_WEIGHTS", str(tmp_path / "w.safetensors"))
    made = Place(tmp_path, voc_root)
    assert made.call("prepare") == 0
    assert made.call("status") == 0
    return made


@pytest.fixture
def resolved(monkeypatch) -> list[int]:
    """How often plans are resolved."""
    calls: list[int] = []
    original = jobs.resolve
    monkeypatch.setattr(jobs, "resolve", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    return calls


def test_a_plan_is_resolved_once_while_nothing_changes(place, resolved, capsys):
    capsys.readouterr()
    assert place.call("status") == 0
    first = capsys.readouterr().out
    assert "2 runs (2 not started)" in first
    for verb in (("plan",), ("run", "--dry-run")):
        assert place.call(*verb) == 0
        out = capsys.readouterr().out
        assert out.startswith("grid grid: 2 runs (2 not started), 1 shared stages\n")
    assert not resolved
    shutil.rmtree(place.workspace.runs / "plans")
    assert place.call("plan") == 0  # makes nothing, and remembers nothing
    assert not (place.workspace.runs / "plans").exists()
    assert place.call("status") == 0
    assert first in capsys.readouterr().out
    assert resolved == [1]
    assert place.recalled()


def edit(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def same_length(path: Path) -> None:
    """Other content of the same length and with the same times."""
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"#")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def first_picture(place: Place) -> Path:
    return min(place.voc.rglob("*.jpg"))


CHANGES: dict[str, Callable[[Place], object]] = {
    "grid": lambda p: edit(p.grid),
    "grid, within a tick of the clock": lambda p: same_length(p.grid),
    "recipe": lambda p: edit(p.recipe),
    "user's module": lambda p: edit(p.module),
    "what a user's module imports": lambda p: edit(p.helper),
    "weights": lambda p: edit(p.weights),
    "annotation": lambda p: edit(p.file("voc/VOCdevkit/VOC2007/ImageSets/Main/car_trainval.txt")),
    "annotation, within a tick": lambda p: same_length(
        p.file("voc/VOCdevkit/VOC2007/ImageSets/Main/dog_test.txt")
    ),
    "annotation gone": lambda p: p.file("voc/VOCdevkit/VOC2007/ImageSets/Main/cat_test.txt").unlink(),
    "arrays that would be read instead": lambda p: (p.voc / "formatted_train_images.npy").touch(),
    "picture": lambda p: edit(first_picture(p)),
    "picture, with size and time kept": lambda p: same_length(first_picture(p)),
    "picture gone": lambda p: first_picture(p).unlink(),
    "hashes of the pictures gone": lambda p: shutil.rmtree(p.file("data/cache/sources")),
    "record of a cache": lambda p: edit(p.file("data/cache/tiny-*-64/meta.json")),
    "pixels of a cache": lambda p: os.truncate(p.file("data/cache/tiny-*-64/train.u8"), 100),
    "cache gone": lambda p: shutil.rmtree(p.file("data/cache/tiny-*-64")),
    "split file": lambda p: edit(p.file("data/splits/*/*.json")),
    "split file gone": lambda p: p.file("data/splits/*/*.json").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_plan_was_made_from(place, change):
    assert place.recalled()
    CHANGES[change](place)
    assert not place.recalled()


def test_environment_packages_and_code_count(place, monkeypatch, tmp_path):
    for name, value in (("TEST_WEIGHTS", str(tmp_path / "other")), ("TORCH_HOME", "elsewhere")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not place.recalled()
    with monkeypatch.context() as patch:
        (tmp_path / "site-packages" / "new_method-1.0.dist-info").mkdir(parents=True)
        patch.syspath_prepend(tmp_path / "site-packages")
        assert not place.recalled()
    code = tmp_path / "code"
    for folder in remembered.CODE:
        shutil.copytree(REPOSITORY / folder, code / folder)
    for module in (reads, remembered):
        monkeypatch.setattr(module, "REPOSITORY", code)
    assert place.recalled()  # a copy of the same code elsewhere
    (code / "methods" / "another.py").touch()
    assert not place.recalled()
    (code / "methods" / "another.py").unlink()
    edit(code / "benchmarks" / "plan" / "identity.py")
    assert not place.recalled()


def test_a_copy_with_other_times_is_the_same(place):
    for path in (place.grid, place.recipe, place.weights):
        os.utime(path, (1, 1))
    assert place.recalled()


def test_each_part_of_a_grid_has_its_own_plan(place, capsys):
    capsys.readouterr()
    assert place.call("status", "--methods", "zero_shot") == 0
    assert capsys.readouterr().out.startswith("grid grid: 1 run ")
    assert place.call("status") == 0
    assert capsys.readouterr().out.startswith("grid grid: 2 runs")
    part = Question(str(place.grid), methods=["zero_shot"])
    assert [run.label for run in recall(part, place.workspace).runs] == ["zero_shot"]
    assert recall(Question(str(place.grid), strategy="zero1"), place.workspace) is None
    other = Workspace(place.folder / "other data", place.workspace.runs)
    assert recall(place.question, other) is None


def test_a_damaged_file_is_ignored_and_rewritten(place, capsys):
    file = place.question.file(place.workspace)
    whole = file.read_bytes()
    empty = b'{"format": 1, "digest": "", "body": {}}'
    half, altered = whole[: len(whole) // 2], whole.replace(b'"zero_shot"', b'"zero_shut"')
    for content in (b"", b"{", b"[]", b"null", b'{"format": 1}', b"\xff", empty, half, altered):
        file.write_bytes(content)
        assert not place.recalled()
    capsys.readouterr()
    assert place.call("status") == 0
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert out.startswith("grid grid: 2 runs")
    assert place.recalled()


def test_a_store_that_cannot_be_written_costs_time_only(place, capsys):
    shutil.rmtree(place.workspace.runs)
    place.workspace.runs.mkdir()
    (place.workspace.runs / "plans").write_text("in the way")
    assert place.call("status") == 0
    assert "2 not started" in capsys.readouterr().out
    assert not place.recalled()


def test_what_changes_while_it_is_resolved_is_not_remembered(place, monkeypatch):
    lists = place.file("voc/VOCdevkit/VOC2007/ImageSets/Main/car_trainval.txt")
    shutil.rmtree(place.workspace.runs)
    original = jobs.resolve

    def disturbed(*args, **kwargs):
        found = original(*args, **kwargs)
        edit(lists)
        return found

    monkeypatch.setattr(jobs, "resolve", disturbed)
    assert place.call("status") == 0
    assert not place.recalled()
    assert not list(place.workspace.runs.glob("plans/*"))


def test_two_calls_at_once_leave_one_plan(place):
    shutil.rmtree(place.workspace.runs / "plans")
    command = CommandLine(place.folder)
    argv = ("status", "--grid", str(place.grid), "--workers", "1")
    both = [command.start(*argv) for _ in range(2)]
    outs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert outs[0][0] == outs[1][0]
    (file,) = (place.workspace.runs / "plans").iterdir()
    record = json.loads(file.read_bytes())
    assert len(record["body"]["plan"]["runs"]) == 2


def test_reads_note_opened_absent_and_listed(tmp_path):
    (tmp_path / "there").write_text("x")
    (tmp_path / "folder").mkdir()
    with reads.Reads() as found:
        (tmp_path / "there").read_text()
        (tmp_path / "written").write_text("y")
        os.listdir(tmp_path / "folder")
        with pytest.raises(FileNotFoundError):
            (tmp_path / "absent").read_text()
    (tmp_path / "later").write_text("z")
    (tmp_path / "later").read_text()
    assert set(found.files) == {str(tmp_path / "there"), str(tmp_path / "absent")}
    assert {str(tmp_path), str(tmp_path / "folder")} <= set(found.folders)
    found.keep(lambda path: True, lambda path: path.endswith("folder"))
    assert not found.changed()
    time.sleep(0.01)
    (tmp_path / "absent").write_text("now it is")
    (tmp_path / "folder" / "new").touch()
    assert found.changed() == {str(tmp_path / "absent"), str(tmp_path / "folder")}


def test_a_lease_that_is_held_meanwhile_is_no_input(tmp_path):
    with acquire(tmp_path / "run", ttl=0.3), reads.Reads() as found:
        time.sleep(0.5)
    assert not found.files

"""Tables, figures and `status` where the grid cannot be planned any more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.plan import earlier
from benchmarks.plan.remembered import Question
from benchmarks.run import main
from benchmarks.workspace import Workspace
from tests.conftest import CommandLine, grid_text, write_voc


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A folder with a grid of two seeds that is done; its pictures lie beside the grid file."""
    folder = tmp_path_factory.mktemp("original")
    write_voc(folder / "voc")
    text = grid_text(folder / "voc", '["zero_shot", { name = "zero_shot", label = "again" }]')
    (folder / "grid.toml").write_text(text.replace("seeds = [1]", "seeds = [1, 2]"))
    CommandLine(folder)("--grid", "grid.toml", "--no-plots", "--workers", "1")
    return folder


@pytest.fixture
def copied(original, tmp_path, monkeypatch) -> Path:
    """Its runs and its grid file on a machine without the pictures."""
    shutil.copytree(original / "runs", tmp_path / "runs")
    shutil.copyfile(original / "grid.toml", tmp_path / "grid.toml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tables_of_a_copied_store_say_which_plan_they_are_of(copied, original, capsys):
    assert main(["tables", "--grid", "grid.toml"]) == 0
    out, err = capsys.readouterr()
    printed = (original / "runs" / "tables" / "grid" / "mAP-last.txt").read_text()
    assert out.startswith(printed)
    assert err.count("\n") == 1
    assert err.startswith("remark: grid grid: the runs are those of the plan of 20")
    assert "not here: data/splits" in err or "not here: data/cache" in err
    assert "changed" not in err
    assert sorted(path.name for path in copied.iterdir()) == ["grid.toml", "runs"]
    assert main(["status", "--grid", "grid.toml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("grid grid: 4 runs (4 done)\n  grid grid: the runs are those of the plan of 20")


def test_pictures_that_are_gone_do_not_hide_a_table(original, tmp_path, monkeypatch, capsys):
    shutil.copytree(original / "voc", tmp_path / "voc")
    monkeypatch.chdir(tmp_path)
    text = (original / "grid.toml").read_text().replace(str(original), str(tmp_path))
    (tmp_path / "grid.toml").write_text(text)
    CommandLine(tmp_path)("--grid", "grid.toml", "--no-plots", "--workers", "1", "--methods", "again")
    assert main(["tables", "--grid", "grid.toml", "--methods", "again"]) == 0
    out, err = capsys.readouterr()
    assert not err
    shutil.rmtree(tmp_path / "voc")
    assert main(["tables", "--grid", "grid.toml", "--methods", "again"]) == 0
    again, err = capsys.readouterr()
    assert again == out
    assert "not here: voc/" in err
    # Nobody has planned the other half of the grid here.
    assert main(["tables", "--grid", "grid.toml"]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "no plan of grid grid.toml is remembered in runs/plans" in err


def test_a_part_of_a_remembered_grid(copied, capsys):
    assert main(["tables", "--grid", "grid.toml", "--methods", "again", "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    assert "Made of 1 run" in out
    assert "zero_shot" not in out.replace("written to", "")
    assert main(["tables", "--grid", "grid.toml", "--methods", "again", "--split-seeds", "2"]) == 0
    assert capsys.readouterr().out == out  # in this grid each seed has its own split
    assert main(["tables", "--grid", "grid.toml", "--split-seeds", "3"]) == 2
    assert "grid 'grid' has no split seed 3" in capsys.readouterr().err
    assert main(["tables", "--grid", "grid.toml", "--methods", "agian"]) == 2
    assert "did you mean 'again'" in capsys.readouterr().err


def test_a_grid_file_that_has_changed_is_named(copied, capsys):
    with (copied / "grid.toml").open("a") as file:
        file.write("# one more line\n")
    # Another file of this name is another grid, unless it lies where the planned one lay.
    assert main(["tables", "--grid", "grid.toml"]) == 2
    assert "no plan of grid grid.toml is remembered" in capsys.readouterr().err
    (plan,) = (copied / "runs" / "plans").iterdir()
    body = json.loads(plan.read_text())["body"]
    body["question"]["grid"] = str(copied / "grid.toml")
    found = earlier._inputs(body, Question("grid.toml"), Workspace(Path("data"), Path("runs")))
    assert found[0]
    assert str(copied / "grid.toml") not in found[0]


def test_files_of_another_version_and_damaged_ones_are_no_plans(copied, capsys):
    (plan,) = (copied / "runs" / "plans").iterdir()
    whole = plan.read_bytes()
    for content in (b"", b"[]", whole[:-50], b'{"format": 99, "digest": "", "body": {}}'):
        plan.write_bytes(content)
        assert main(["tables", "--grid", "grid.toml"]) == 2
        assert "no plan of grid" in capsys.readouterr().err
    plan.write_bytes(whole)
    (copied / "runs" / "plans" / "a-newer-one.json").write_text("{")
    assert main(["tables", "--grid", "grid.toml"]) == 0
    assert earlier.newest(Question("grid.toml", strategy="zero1"), Workspace(Path(), copied / "runs")) is None


def test_pictures_alone_that_are_gone_or_changed_are_said(original, tmp_path, monkeypatch, capsys):
    for name in ("voc", "runs", "data"):
        shutil.copytree(original / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    text = (original / "grid.toml").read_text().replace(str(original), str(tmp_path))
    (tmp_path / "grid.toml").write_text(text)
    CommandLine(tmp_path)("--grid", "grid.toml", "--no-plots", "--workers", "1")
    pictures = sorted((tmp_path / "voc").rglob("*.jpg"))
    pictures[3].write_bytes(pictures[4].read_bytes())
    assert main(["tables", "--grid", "grid.toml"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("remark: ")
    assert "changed since: pictures" in err
    assert "not prepared: tiny at 64 px" in err
    for picture in pictures:
        picture.unlink()
    assert main(["tables", "--grid", "grid.toml"]) == 0
    again, err = capsys.readouterr()
    assert again == out
    assert f"not here: 130 pictures, such as {pictures[0].parent}" in err

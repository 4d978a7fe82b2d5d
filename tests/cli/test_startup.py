"""The verbs that only read what is there start without torch, open_clip and their like."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, CommandLine, grid_text

HEAVY = {"torch", "torchvision", "open_clip", "timm", "accelerate", "sklearn", "scipy", "matplotlib"}
WATCHED = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.run import main
code = main(sys.argv[1:])
modules = sorted({{name.partition(".")[0] for name in sys.modules}})
print(json.dumps({{"code": code, "modules": modules}}))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, voc_root) -> CommandLine:
    """A small grid that is done, tables and figures included."""
    command = CommandLine(tmp_path_factory.mktemp("finished"))
    grid = command.folder / "grid.toml"
    grid.write_text(grid_text(voc_root, '["zero_shot", "linear_probe"]'))
    command("--grid", str(grid))
    return command


def watched(command: CommandLine, *argv: str) -> tuple[str, set[str]]:
    """What a verb prints, and the top-level modules that it has imported."""
    places = (
        ["--data", str(command.data), "--runs", str(command.runs)]
        if argv[0] not in ("list", "published")
        else []
    )
    words = [sys.executable, "-c", WATCHED, *argv, *places]
    # In the folder of the first call: relative paths of a grid start there, so it is part of the question.
    done = subprocess.run(words, cwd=command.folder, capture_output=True, text=True, check=True)
    out, _, last = done.stdout.rstrip().rpartition("\n")
    report = json.loads(last)
    assert report["code"] == 0, done.stderr
    return out, set(report["modules"])


VERBS = {
    "list": (["list"], "csaa, "),
    "status": (["status"], "2 done"),
    "status of a grid": (["status", "--grid", "GRID"], "2 runs (2 done)"),
    "logs": (["logs", "linear_probe/tiny/0.5/1"], ""),
    "why": (["why", "linear_probe/tiny/0.5/1"], "provenance"),
    "published": (["published", "--method", "cap"], "62.43"),
    "tables": (["tables", "--grid", "GRID"], "linear_probe"),
    "tables with published numbers": (["tables", "--grid", "GRID", "--published"], "no number of these"),
    "plots": (["plots", "--grid", "GRID"], "mAP-vs-ratio.png"),
    "plan": (["plan", "--grid", "GRID"], "2 runs (2 done)"),
    "splits verify": (["splits", "verify"], "ok: "),
    "a finished grid": (["--grid", "GRID"], "linear_probe"),
}


@pytest.mark.parametrize("name", VERBS)
def test_nothing_heavy_is_imported(finished, name):
    argv, text = VERBS[name]
    grid = str(finished.folder / "grid.toml")
    out, modules = watched(finished, *(grid if word == "GRID" else word for word in argv))
    assert text in out
    assert not modules.intersection(HEAVY)


@pytest.mark.parametrize("verb", ["tables", "plots", "status"])
def test_a_copied_store_answers_without_data_and_without_heavy_packages(finished, tmp_path, verb):
    copy = CommandLine(tmp_path)
    shutil.copytree(finished.runs, copy.runs)
    shutil.copyfile(finished.folder / "grid.toml", tmp_path / "grid.toml")
    out, modules = watched(copy, verb, "--grid", "grid.toml")
    assert {"tables": "linear_probe", "plots": "mAP-vs-ratio.png", "status": "2 done"}[verb] in out
    assert not modules.intersection(HEAVY)
    assert not copy.data.exists()


def test_figures_are_drawn_again_only_when_results_change(finished):
    grid = str(finished.folder / "grid.toml")
    folder = finished.runs / "tables" / "grid"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    out, _ = watched(finished, "plots", "--grid", grid)
    assert sorted(Path(line).name for line in out.splitlines()) == sorted(before)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")} == before
    figure = folder / "mAP-vs-ratio.png"
    whole = figure.read_bytes()
    figure.write_bytes(whole[:100])
    _, modules = watched(finished, "plots", "--grid", grid)
    assert figure.read_bytes() == whole
    assert "matplotlib" in modules

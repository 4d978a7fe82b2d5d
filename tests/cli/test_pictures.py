"""Two folders with the same names and labels and other pictures, and pictures that are replaced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.plan.grid import load
from benchmarks.plan.jobs import resolve
from benchmarks.progress import silent
from benchmarks.run import main
from benchmarks.workspace import Workspace
from tests.conftest import CommandLine

GRID = """
description = "mine"
datasets = [{{ name = "csv", alias = "mine", root = "{root}" }}]
ratios = [0.5]
seeds = [1]
methods = ["linear_probe"]
recipe = "embedded"
[override]
resolution = 64
"""


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """In the second, test pictures show the other class's colour: a classifier must fail on them."""
    made = []
    for folder, base in ((tmp_path / "first", 10), (tmp_path / "second", 100)):
        folder.mkdir()
        rows = ["path,labels,split"]
        for k in range(20):
            pixels = np.random.default_rng(k).integers(0, 60, (20, 20, 3)).astype(np.uint8)
            swapped = base == 100 and k >= 12
            pixels[5:, 5:, 0 if (k % 2) != swapped else 2] = 250
            pixels[0, 0] = base + k
            Image.fromarray(pixels).save(folder / f"{k}.png")
            rows.append(f"{k}.png,{'cat' if k % 2 else 'dog'},{'train' if k < 12 else 'test'}")
        (folder / "labels.csv").write_text("\n".join(rows) + "\n")
        made.append(folder)
    return made[0], made[1]


def test_prepare_verify_and_plan_see_the_pictures(tmp_path, folders, capsys):
    places = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs"), "--workers", "1"]

    def prepared(folder: Path) -> tuple[list[int], str]:
        """Corners of the first five cached pictures, and what is printed to the terminal."""
        capsys.readouterr()
        assert main(["prepare", "csv", "--root", str(folder), "--size", "20", "--verify", *places]) == 0
        out, err = capsys.readouterr()
        assert ", verified, " in out
        pixels = np.fromfile(Path(out.strip().rpartition(", ")[2]) / "train.u8", np.uint8)
        return pixels.reshape(-1, 3, 20, 20)[:5, 0, 0, 0].tolist(), err

    def planned(folder: Path) -> str:
        """The identity of the one run."""
        grid = tmp_path / f"{folder.name}.toml"
        grid.write_text(GRID.format(root=folder))
        place = Workspace(tmp_path / "data", tmp_path / "runs")
        (job,) = resolve(load(str(grid)), place, progress=silent, workers=1)
        return job.spec.run_id

    first, second = folders
    assert prepared(first)[0] == [10, 11, 12, 13, 14]
    assert prepared(second)[0] == [100, 101, 102, 103, 104]
    before = planned(first), planned(second)
    assert before[0] != before[1]
    Image.new("RGB", (30, 30), (255, 255, 255)).save(first / "0.png")
    assert planned(first) not in before
    assert planned(second) == before[1]
    (second / "15.png").write_bytes((second / "3.png").read_bytes())
    pixels, err = prepared(second)
    assert pixels == [100, 101, 102, 103, 104]
    assert "csv: 1 of 8 test images are byte for byte training images" in err
    assert prepared(first)[0] == [255, 11, 12, 13, 14]


@pytest.mark.slow
def test_a_grid_on_another_folder_shows_that_folder_s_numbers(tmp_path, folders, command):
    grid = tmp_path / "mine.toml"

    def score(folder: Path, call: CommandLine) -> float:
        grid.write_text(GRID.format(root=folder))
        call("--grid", str(grid), "--no-plots")
        results = call.runs.rglob("result.json")
        newest = max(results, key=lambda file: file.stat().st_mtime_ns)
        return json.loads(newest.read_text())["metrics"]["last"]["mAP"]

    first, second = folders
    found = score(first, command), score(second, command)
    (tmp_path / "fresh").mkdir()
    assert found[1] == score(second, CommandLine(tmp_path / "fresh"))
    assert found[0] > found[1] + 5

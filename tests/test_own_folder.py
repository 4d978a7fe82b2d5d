"""A user's own folder of images with a CSV: prepared, run, put into a table by three commands."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from tests.conftest import CLASSES, SIDE, CommandLine

GRID = """
description = "my own pictures"
datasets = [{ name = "csv", alias = "mine", root = "my pictures", split = "stratified" }]
ratios = [0.3]
seeds = [1]
methods = ["linear_probe", "fixmatch"]
recipe = "embedded"
[override]
resolution = 64
warmup_epochs = 1
epochs = 1
batch_unlabelled = 24
"""


@pytest.fixture
def own(tmp_path) -> CommandLine:
    """Pictures with names and a list as people have them: spaces, umlauts, a spreadsheet's CSV."""
    folder = tmp_path / "my pictures"
    rng = np.random.default_rng(3)
    rows = []
    for k in range(70):
        present = rng.random(3) < 0.5
        pixels = rng.integers(60, 120, (SIDE, SIDE, 3)).astype(np.uint8)
        for c in np.flatnonzero(present):
            top, left = rng.integers(0, SIDE - 16, 2)
            pixels[top : top + 16, left : left + 16] = 0
            pixels[top : top + 16, left : left + 16, c] = 255
        name = f"Fotos/Bild {k} – süß.{'png' if k % 2 else 'jpg'}"
        (folder / "Fotos").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
        labels = [f" {CLASSES[c]} " for c in np.flatnonzero(present)]
        rows.append((name, ";".join(labels), "test" if k >= 50 else "train"))
    with open(folder / "labels.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("path", "labels", "split"), *rows])  # CRLF, with a BOM
    (tmp_path / "mine.toml").write_text(GRID)
    return CommandLine(tmp_path)


def test_three_commands(own):
    out, err = own("prepare", "--grid", "mine.toml")
    assert out.startswith("mine: ")
    assert "64 px" in out
    assert "GiB free" in err
    out, err = own("--grid", "mine.toml", "--no-plots")
    assert "prepare mine" not in err  # it is there
    table, _ = own("tables", "--grid", "mine.toml")
    assert table.splitlines()[:2] == out.splitlines()[:2]
    for method in ("linear_probe", "fixmatch"):
        assert f"\n{method} " in table
    assert (own.runs / "tables" / "mine" / "mAP-last.tex").is_file()
    verified, _ = own("splits", "verify")
    assert "stratified" in verified


@pytest.mark.slow
def test_a_bad_picture_is_named_and_can_be_left_out(own):
    bad = own.folder / "my pictures" / "Fotos" / "Bild 4 – süß.jpg"
    bad.write_bytes(bad.read_bytes()[:500])
    _, err = own("prepare", "--grid", "mine.toml", code=2)
    assert "Bild 4 – süß.jpg" in err
    assert "skip_bad = true" in err
    assert "Traceback" not in err
    grid = own.folder / "mine.toml"
    grid.write_text(grid.read_text().replace('alias = "mine"', 'alias = "mine", skip_bad = true'))
    out, err = own("prepare", "--grid", "mine.toml")
    assert "1 unreadable images left out" in out
    _, err = own("--grid", "mine.toml", "--no-plots", "--methods", "linear_probe")
    assert "mine: 1 unreadable images are left out" in err

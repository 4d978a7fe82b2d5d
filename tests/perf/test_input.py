"""The input benchmark at a small size: what it prints, and that its reference is a fair one."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from benchmarks.perf import input as perf
from benchmarks.perf import pillow
from benchmarks.perf.__main__ import main


@pytest.mark.slow
def test_the_json_line_has_every_figure(tmp_path):
    photographs = perf.write_photographs(tmp_path / "photographs", 12)
    options = ["--json", "--size", "32", "--batch", "4", "--workers", "1", "--seconds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.perf", "input", *options, "--images", str(photographs[0].parent)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["ratio"] == found["pairs_per_second"] / found["pillow_pairs_per_second"]
    assert found["ratio"] > 2  # loosely: nothing is to be learnt from one second at 32 pixels
    assert found["raw_images_per_second"] > found["pairs_per_second"]
    assert (found["size"], found["batch"], found["workers"]) == (32, 4, 1)
    assert found["images"].startswith("12 ")
    assert str(tmp_path) in found["images"]
    assert len(found["ratios"]) == perf.ROUNDS
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]
    table = perf.table(found)
    assert f"ratio {found['ratio']:.1f}" in table
    assert "32 pixels" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "nowhere"], "--images nowhere is not a folder"),
        (["--images", "."], "0 image files; at least 2 are needed"),
    ],
)
def test_wrong_folders_are_told(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["input", *options]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err


def test_wrong_options_are_usage_errors(capsys):
    for options in ([], ["inpt"], ["input", "--batch", "0"], ["input", "--size", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(options)
        assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_synthetic_photographs_are_of_vocs_size(tmp_path):
    paths = perf.write_photographs(tmp_path, 3)
    for path in paths:
        with Image.open(path) as picture:
            assert picture.size == (500, 375)
        assert 60_000 < path.stat().st_size < 100_000
    assert len({path.read_bytes() for path in paths}) == 3


def test_positions_cover_the_images_also_when_a_batch_is_larger_than_they_are():
    batches = perf._positions(10, 4, seed=1)
    epoch = torch.cat([next(batches) for _ in range(2)])
    assert len(set(epoch.tolist())) == 8
    large = next(perf._positions(3, 8, seed=1))
    assert sorted(set(large.tolist())) == [0, 1, 2]
    assert len(large) == 8


def test_the_reference_decodes_once_and_makes_both_views(tmp_path, monkeypatch):
    (path,) = perf.write_photographs(tmp_path, 1)
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened.append(file) or original(file))
    weak, strong = pillow.WeakStrong([path], 48)[0]
    assert len(opened) == 1
    assert weak.shape == strong.shape == (3, 48, 48)
    assert weak.dtype == strong.dtype == torch.float32
    picture = original(path).convert("RGB")
    candidates = [
        np.asarray(p.resize((48, 48), Image.Resampling.BILINEAR)) for p in (picture, ImageOps.mirror(picture))
    ]
    found = (weak * 255).round().byte().permute(1, 2, 0).numpy()
    assert any((found == candidate).all() for candidate in candidates)


def test_the_reference_draws_like_the_protocol(tmp_path):
    (path,) = perf.write_photographs(tmp_path, 1)
    picture = Image.open(path).resize((40, 40))
    random.seed(1)
    unchanged = sum(
        np.array_equal(np.asarray(pillow.rand_augment(picture.copy())), np.asarray(picture))
        for _ in range(2000)
    )
    # A quarter gets no operation; some operations leave a picture as it is (level 8 of posterize).
    assert 0.22 < unchanged / 2000 < 0.32
    assert len(pillow.OPERATIONS) == 15
    for operation in pillow.OPERATIONS:
        for level in (1 / 9, 1.0):
            made = operation(picture.copy(), level)
            assert (made.size, made.mode) == ((40, 40), "RGB")
    areas = []
    for _ in range(200):
        blank = Image.new("RGB", (40, 40), (1, 2, 3))
        areas.append((np.asarray(pillow.cutout(blank)) != (1, 2, 3)).any(axis=2).mean())
    assert 0.05 < min(areas) < 0.12
    assert 0.2 < max(areas) < 0.28

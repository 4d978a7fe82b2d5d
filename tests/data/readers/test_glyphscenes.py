"""The reader of GlyphScenes renders the dataset once, on demand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.data.glyphscenes import scenes
from benchmarks.data.registry import DatasetSpec, open_dataset
from methods.errors import UserError
from tests.conftest import ROOT


def test_glyphscenes_is_rendered_once_on_demand(tmp_path, build_coco, instances, monkeypatch):
    calls = []

    def write(root, *, seed, workers, progress):
        calls.append((seed, workers))
        folder = root / "glyphscenes"
        content = instances({1: [1], 2: [2]}, {1: "cat", 2: "dog"})
        for split in ("train", "test"):
            images = build_coco(folder, split, content)[1]
            (folder / "images").mkdir(exist_ok=True)
            images.rename(folder / "images" / split)
        progress(4, 4)
        return folder

    monkeypatch.setattr(scenes, "write", write)
    seen = []
    dataset = open_dataset(
        DatasetSpec("glyphscenes"), tmp_path / "data", progress=lambda *a: seen.append(a), workers=1
    )
    assert dataset.classes == ("cat", "dog")
    assert seen == [(4, 4)]
    assert calls == [(0, 1)]  # published results use seed 0


def test_another_version_of_glyphscenes_is_a_clear_error(tmp_path, monkeypatch):
    def write(root, **options):
        raise ValueError("holds GlyphScenes version 0")

    monkeypatch.setattr(scenes, "write", write)
    with pytest.raises(UserError, match="version 0"):
        open_dataset(DatasetSpec("glyphscenes"), tmp_path)


def test_a_script_without_its_main_guard_ends_with_a_clear_error(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from benchmarks.data.registry import DatasetSpec, open_dataset\n"
        f"open_dataset(DatasetSpec('glyphscenes'), Path({str(tmp_path)!r}), workers=2)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode != 0
    assert "a rendering process died" in ended.stderr.splitlines()[-1]
    assert "put its work under `if __name__ == '__main__':`" in ended.stderr

"""Files of a stage: what is not what was written is named, and never used."""

import json

import numpy as np
import pytest
import torch

from benchmarks.training import stage_files
from benchmarks.training.stage_files import StageDamagedError

ARRAYS = {
    "train.npy": np.arange(60, dtype=np.float32).reshape(12, 5),
    "test.npy": np.ones((3, 5), np.float32),
    "views.npy": np.arange(30, dtype=np.float32).reshape(2, 3, 5),
}
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}


@pytest.fixture(params=["features", "views", "warmup"])
def stage(request, tmp_path):
    """A finished stage, and its kind."""
    if request.param != "warmup":
        names = stage_files.FILES[request.param]
        sums = {name: stage_files.write_array(tmp_path / name, ARRAYS[name]) for name in names}
    else:
        names = stage_files.FILES["warmup"]
        sums = {name: stage_files.write_tensors(tmp_path / name, WEIGHTS) for name in names}
    (tmp_path / "stage.json").write_text(json.dumps({"kind": request.param, "files": sums}))
    return tmp_path, request.param


def read(folder, kind):
    return (
        stage_files.read_weights(folder, "ema")
        if kind == "warmup"
        else stage_files.read_features(folder, kind)
    )


def test_what_was_written_comes_back(stage):
    folder, kind = stage
    assert stage_files.damage(folder, kind) == ""
    assert stage_files.has_checksums(folder)
    found = read(folder, kind)
    arrays = {
        name[:-4]: torch.from_numpy(ARRAYS[name]) for name in stage_files.FILES[kind] if kind != "warmup"
    }
    expected = WEIGHTS if kind == "warmup" else arrays
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def harm(path, how):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    content = {"empty": b"", "half": data[: len(data) // 2], "flipped": data, "random": b"\x93\x00\xff" * 40}
    path.unlink()
    if how == "directory":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(path.name)
    elif how in content:
        path.write_bytes(content[how])


@pytest.mark.parametrize("how", ["empty", "half", "flipped", "random", "directory", "loop", "gone"])
def test_a_file_that_is_not_what_was_written_is_named_and_not_read(stage, how):
    folder, kind = stage
    assert stage_files.damage(folder, kind) == ""  # known to this process as sound
    name = stage_files.FILES[kind][-1]
    harm(folder / name, how)
    said = stage_files.damage(folder, kind)
    assert str(folder / name) in said
    assert "\n" not in said
    with pytest.raises(StageDamagedError, match=f"{name}.*run again, and the stage is made anew"):
        read(folder, kind)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"files"', '{"files": []}', '{"files": {}}', '{"files": {"train.npy": 3}}', "[" * 99999],
)
def test_a_record_that_is_damaged_is_named(stage, text):
    folder, kind = stage
    (folder / "stage.json").write_text(text)
    assert "\n" not in stage_files.damage(folder, kind) != ""
    with pytest.raises(StageDamagedError):
        read(folder, kind)


@pytest.mark.parametrize("how", ["", "empty", "half", "random", "gone"])
def test_a_stage_of_an_earlier_version_is_believed_unless_its_form_is_broken(stage, how):
    folder, kind = stage
    (folder / "stage.json").write_text(json.dumps({"kind": kind}))
    assert not stage_files.has_checksums(folder)
    if not how:
        assert stage_files.damage(folder, kind) == ""
        assert read(folder, kind)
        return
    name = stage_files.FILES[kind][-1]
    harm(folder / name, how)
    assert name in stage_files.damage(folder, kind)
    with pytest.raises(StageDamagedError, match=name):
        read(folder, kind)

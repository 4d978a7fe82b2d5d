"""Exported models: loaded without our code they give the run's scores, and say what they are."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pytest
import safetensors
import torch

from benchmarks.cli.export import ENDINGS
from benchmarks.models import export as exporting
from tests.conftest import CLASSES, grid_text
from tests.models.conftest import Trained

WITH_ONNX = all(importlib.util.find_spec(name) for name in exporting.ONNX)


def test_the_command_line_knows_the_forms():
    assert ENDINGS == exporting.KINDS


def images_of(trained: Trained, count: int) -> torch.Tensor:
    """Test images by the documented input convention, without our views."""
    prepared = trained.jobs["supervised"].prepared
    return torch.from_numpy(np.asarray(prepared.test)[:count].copy()).float() / 255


def stored(trained: Trained, name: str) -> np.ndarray:
    return trained.workspace.store.predictions(trained.directory(name))["scores"]


@pytest.mark.parametrize(
    "name",
    ["linear_probe", pytest.param("supervised", marks=pytest.mark.slow)],
)
def test_torch_export_gives_the_stored_scores_for_any_number_of_images(trained, tmp_path, name, capsys):
    out = tmp_path / "model.pt2"
    assert trained.run("export", f"{name}/tiny/0.5/1", "--to", "torch-export", "--out", out) == 0
    assert "loaded, it gives the same scores" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]
    extra = {"ssmll_bench.json": ""}
    model = torch.export.load(out, extra_files=extra).module()
    for count in (1, 7):
        found = model(images_of(trained, count))
        assert np.abs(found.numpy() - stored(trained, name)[:count]).max() < 1e-4
    about = json.loads(extra["ssmll_bench.json"])
    assert about["classes"] == list(CLASSES)
    assert about["decision_above"] == 0.0
    assert about["input"]["shape"] == ["batch", 3, 64, 64]
    assert about["input"]["range"] == [0, 1]


def test_safetensors_holds_the_whole_model(trained, tmp_path):
    out = tmp_path / "model.safetensors"
    assert trained.run("export", "supervised/tiny/0.5/1", "--to", "safetensors", "--out", out) == 0
    with safetensors.safe_open(out, framework="pt") as file:
        about = json.loads(file.metadata()["ssmll_bench"])
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert about["run_id"] == trained.jobs["supervised"].spec.run_id
    kept = trained.directory("supervised") / "model.safetensors"
    assert out.stat().st_size > kept.stat().st_size / 2
    assert any(name.endswith("mean") for name in shapes)  # normalisation is inside
    assert [3] in [shape[:1] for shape in shapes.values()]
    # It is no file of a run, and is not taken for one.
    from benchmarks.models.rebuild import Kept
    from methods.errors import UserError

    with pytest.raises(UserError, match="its record lacks"):
        Kept.read(out)


def test_a_model_that_differs_after_loading_is_not_kept(trained, tmp_path, monkeypatch, capsys):
    def skewed(scorer, images, file, text):
        file.write_bytes(b"exported")
        return lambda some: scorer(some) + 1e-3

    monkeypatch.setitem(exporting._WRITERS, "torch-export", skewed)
    out = tmp_path / "model.pt2"
    out.write_bytes(b"of before")
    assert trained.run("export", "supervised/tiny/0.5/1", "--to", "torch-export", "--out", out) == 2
    assert "the exported model gives other scores, by 0.001" in capsys.readouterr().err
    assert out.read_bytes() == b"of before"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "onnx", "--out", "model.pt2"), "a model exported to onnx ends in .onnx"),
        (("--to", "onyx", "--out", "model.pt2"), "onyx"),
        (("--to", "torch-export", "--out", "nowhere/model.pt2"), "there is no folder nowhere"),
    ],
)
def test_wrong_words_are_one_line(trained, capsys, words, message):
    assert trained.run("export", "supervised/tiny/0.5/1", *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_without_onnx_one_line_says_how_to_get_it(trained, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "onnx" else find(name, *more)
    )
    out = tmp_path / "model.onnx"
    assert trained.run("export", "supervised/tiny/0.5/1", "--to", "onnx", "--out", out) == 2
    assert "pip install 'ssmll-bench[onnx]'" in capsys.readouterr().err
    assert not out.exists()


def test_a_method_that_reads_patches_is_refused(trained, tmp_path, monkeypatch, capsys):
    from methods.supervised import Supervised

    run = trained.directory("supervised")
    other = tmp_path / "runs"
    shutil.copytree(trained.workspace.runs, other)
    from benchmarks.models.rebuild import Model

    monkeypatch.setattr(Model, "_check", lambda self: setattr(self, "patches", 2))
    assert (
        trained.run("export", "supervised/tiny/0.5/1", "--to", "torch-export", "--out", tmp_path / "m.pt2")
        == 2
    )
    assert "cuts its images into patches (2 a side)" in capsys.readouterr().err
    assert Supervised.name in str(run)


@pytest.mark.slow
@pytest.mark.skipif(not WITH_ONNX, reason="onnx is missing: pip install 'ssmll-bench[onnx]'")
@pytest.mark.parametrize("name", ["linear_probe", "supervised"])
def test_onnx_gives_the_stored_scores(trained, tmp_path, name):
    import onnxruntime

    out = tmp_path / "model.onnx"
    assert trained.run("export", f"{name}/tiny/0.5/1", "--to", "onnx", "--out", out) == 0
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images_of(trained, 9).numpy()})[0]
    assert np.abs(found - stored(trained, name)[:9]).max() < 1e-4
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(CLASSES)


@pytest.mark.slow
def test_learnt_prompts_become_constants(voc_root, tmp_path):
    found = Trained(tmp_path, grid_text(voc_root, '["csaa"]', epochs=1))
    found.work()
    out = tmp_path / "model.pt2"
    assert found.run("export", "csaa/tiny/0.5/1", "--to", "torch-export", "--out", out) == 0
    model = torch.export.load(out).module()
    scores = found.workspace.store.predictions(found.directory("csaa"))["scores"]
    images = torch.from_numpy(np.asarray(found.jobs["csaa"].prepared.test)[:3].copy()).float() / 255
    assert np.abs(model(images).numpy() - scores[:3]).max() < 1e-4

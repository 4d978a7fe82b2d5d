"""Weights files are known by their content; what cannot be read safely is named, with what to do."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from methods.backbones import BackboneSpec
from methods.backbones.formats import weights_format
from methods.backbones.load import weights_digest
from methods.errors import UserError
from methods.weights import read_state_dict

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol 4:UserWarning"),
]

STATE = {"weight": torch.arange(4.0).view(2, 2), "bias": torch.ones(2)}


def torch_bytes(value, **options):
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def zipped(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def arrays():
    stream = io.BytesIO()
    np.savez(stream, weight=np.zeros(2))
    return stream.getvalue()


def script(module):
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(module), stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.pth", "x.bin", "x"])
@pytest.mark.parametrize(
    "content",
    [
        save(STATE),
        torch_bytes(STATE),
        torch_bytes(STATE, _use_new_zipfile_serialization=False),
        torch_bytes({"state_dict": {f"module.{key}": value for key, value in STATE.items()}, "epoch": 3}),
    ],
    ids=["safetensors", "torch", "old torch", "checkpoint"],
)
def test_the_content_decides_and_not_the_name(name, content, tmp_path):
    file = tmp_path / name
    file.write_bytes(content)
    found = read_state_dict(file)
    assert set(found) == set(STATE)
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


REFUSED = {
    "TorchScript": (lambda: script(nn.Linear(2, 2)), "a TorchScript archive.*'openai'.*torch.jit.load"),
    "namespace": (
        lambda: torch_bytes({"state_dict": STATE, "args": argparse.Namespace(lr=1)}),
        r"Python objects \(argparse.Namespace\).*save the tensors alone",
    ),
    "old namespace": (
        lambda: torch_bytes({"args": argparse.Namespace(lr=1)}, _use_new_zipfile_serialization=False),
        r"Python objects \(argparse.Namespace\)",
    ),
    "module": (lambda: torch_bytes(nn.Linear(2, 2)), r"Python objects \(.*torch.nn.modules.linear.Linear"),
    "numpy in it": (lambda: torch_bytes({"a": np.float64(1.0), "s": STATE}), "Python objects"),
    "pickle": (lambda: pickle.dumps({"weight": [1.0]}, 4), "a pickle, but not one that torch.save wrote"),
    "lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "annex": (lambda: b"/annex/objects/MD5E-s1--0.bin\n", "git-annex pointer"),
    "html": (lambda: b"\n<!DOCTYPE html><html></html>", "an HTML page.*download it anew"),
    "server error": (
        lambda: b'{"error": "Repository not found"}',
        "a JSON text, such as the error of a server",
    ),
    "xml": (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML text"),
    "index": (
        lambda: json.dumps({"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}).encode(),
        "the index of weights in several files",
    ),
    "empty": (lambda: b"", "is empty"),
    "zeros": (lambda: b"\0" * 5000, "a file of zero bytes"),
    "cut torch": (lambda: torch_bytes(STATE)[:-30], "cut off; fetch it again"),
    "cut old torch": (
        lambda: torch_bytes(STATE, _use_new_zipfile_serialization=False)[:-10],
        "damaged or cut off.*fetch it again",
    ),
    "cut safetensors": (lambda: save(STATE)[:-4], "damaged or cut off.*fetch it again"),
    "cut safetensors header": (lambda: save(STATE)[:40], "a safetensors file that is cut off"),
    "npz": (arrays, "a NumPy archive"),
    "zip": (lambda: zipped(readme="x"), "a ZIP archive without weights"),
    "gzip": (lambda: b"\x1f\x8b" + bytes(30), "a gzip archive"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(30), "an HDF5 file"),
    "gguf": (lambda: b"GGUF" + bytes(30), "a GGUF file"),
    "text": (lambda: b"not a checkpoint", "neither a safetensors file nor one that torch.save wrote"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_other_files_are_named_in_one_line(case, name, tmp_path):
    make, message = REFUSED[case]
    file = tmp_path / name
    file.write_bytes(make())
    with pytest.raises(UserError, match=message) as error:
        read_state_dict(file)
    text = str(error.value)
    assert text.startswith(f"weights file {file} cannot be read: it ")
    assert "\n" not in text
    assert "weights_only" not in text  # PyTorch's advice, which runs what is in the file
    assert len(text.replace(str(file), "")) < 330


def test_a_folder_names_a_file_in_it(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UserError, match=r"it is a folder; give a file$"):
        read_state_dict(tmp_path / "folder.pt")
    save_file(STATE, tmp_path / "folder.pt" / "model.safetensors")
    with pytest.raises(
        UserError, match=r"it is a folder; give a file, such as .*folder.pt/model.safetensors"
    ):
        weights_format(tmp_path / "folder.pt")


def test_what_the_message_on_torchscript_proposes_works(tmp_path):
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).half()
    old, new = tmp_path / "archive.pt", tmp_path / "tensors.pt"
    old.write_bytes(script(module))
    with pytest.raises(UserError) as error:
        read_state_dict(old)
    command = str(error.value).rpartition(": ")[2]
    assert command.startswith("torch.save(torch.jit.load(FILE")
    exec(command, {"torch": torch, "FILE": old, "NEW_FILE": new})
    found = read_state_dict(new)
    assert set(found) == set(module.state_dict())
    assert all(torch.equal(found[key], value) for key, value in module.state_dict().items())


def test_a_checkpoint_without_one_state_dict_lists_what_it_holds(tmp_path):
    file = tmp_path / "x.pt"
    torch.save({"net": STATE, "optimizer": {"lr": 1.0}, "epoch": 3}, file)
    with pytest.raises(UserError, match=r"does not hold a state dict .* but net, optimizer, epoch; save the"):
        read_state_dict(file)
    torch.save([STATE["bias"]], file)
    with pytest.raises(UserError, match="but a list"):
        read_state_dict(file)


def test_planning_looks_before_it_hashes(tmp_path):
    file = tmp_path / "weights.pt"
    spec = BackboneSpec("torchvision/resnet18", str(file))
    file.write_text("<html>log in</html>")
    with pytest.raises(UserError, match="an HTML page"):
        weights_digest(spec)
    file.write_bytes(save(STATE))
    assert weights_digest(spec) == hashlib.sha256(file.read_bytes()).hexdigest()

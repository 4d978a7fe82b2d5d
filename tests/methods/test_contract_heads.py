"""Every method with a pseudo-labelling rule on ML-Decoder, over the local features of CLIP and of a plain
network."""

from __future__ import annotations

import functools

import pytest
import torch

import methods
from benchmarks.checks import contract
from methods.backbones import BackboneSpec, load_backbone
from methods.parts.linear import LinearMethod

torch.set_num_threads(1)
NAMES = [name for name in methods.available() if issubclass(methods.get(name), LinearMethod)]


@functools.cache
def plain_backbone():
    return load_backbone(BackboneSpec("torchvision/squeezenet1_1"), contract.SIZE)


@pytest.mark.parametrize("kind", ["clip", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_trains_the_decoder_and_the_network(name, kind, monkeypatch):
    if kind == "plain":
        backbone = plain_backbone()
        monkeypatch.setattr(contract, "tiny_backbone", lambda: backbone)
    method = contract.started(contract.create(name, {"head": "ml_decoder"}))
    assert method.classifier.reads_map
    output = contract.forward(method, contract.tiny_batch(3, 4, method=method))
    torch.stack(list(output.losses.values())).sum().backward()
    trained = [parameter for group in method.param_groups() for parameter in group["params"]]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    for part in (method.classifier.decoder.group_weight, method.classifier.decoder.embed.weight):
        assert part.grad.abs().sum() > 0
    with torch.no_grad():
        assert method.eval().predict(contract.tiny_images(2, method)).shape == (2, 4)

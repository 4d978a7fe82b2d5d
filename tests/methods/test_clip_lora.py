"""CLIP-LoRA: an attention of its public code, and every kind of tower."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import methods
from methods.backbones import BackboneSpec
from methods.errors import UserError
from methods.parts.lora import LowRank, adapt, attention_weights, has_attention
from tests.methods.table import numbers, same

GOLDEN = json.loads((Path(__file__).parent / "golden" / "clip_lora.json").read_text())
"""Numbers that official code gave; it names the repository and the commit."""
G = {name: numbers(value) for name, value in GOLDEN.items() if isinstance(value, list)}


def test_an_attention_and_its_gradients_are_the_official_ones():
    attention = nn.MultiheadAttention(4, GOLDEN["heads"]).double().requires_grad_(False)
    attention.in_proj_weight.copy_(G["weight"])
    attention.in_proj_bias.copy_(G["bias"])
    attention.out_proj.weight.copy_(G["out_weight"])
    attention.out_proj.bias.copy_(G["out_bias"])
    assert adapt(attention, rank=2, factor=1 / 2**0.5) == 1
    (low,) = (module for module in attention.modules() if isinstance(module, LowRank))
    low.double()
    low.down.data, low.up.data = G["down"], G["up"]
    output, _ = attention(G["x"], G["x"], G["x"])
    same(output, GOLDEN["output"])
    to_down, to_up = torch.autograd.grad((output * G["direction"]).sum(), [low.down, low.up])
    same(to_down, GOLDEN["down_gradient"])
    same(to_up, GOLDEN["up_gradient"])
    attention.eval()  # torch has another path for it
    with torch.no_grad():
        same(attention(G["x"], G["x"], G["x"], need_weights=False)[0], GOLDEN["output"])


TOWERS = {  # adapted weights of the image and of the text tower
    "tiny-rn": (3, 2),
    "tiny-vit": (3, 2),
    "tiny-vit-qk": (3, 2),
    "tiny-bidirectional": (3, 2),
}


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("encoder", ["vision", "text", "both"])
def test_it_starts_at_zero_shot_and_trains_the_matrices_alone(tower, encoder, load, task, make_batch):
    vlm = load(tower)
    images = make_batch().strong_labelled
    texts = vlm.encode_text([f"a photo of a {name}." for name in task.prompts])
    frozen = copy.deepcopy(vlm)
    method = methods.create("clip_lora", backbone=vlm, task=task, encoder=encoder).eval()
    with torch.no_grad():
        cosines = F.normalize(frozen.features(images), dim=1) @ F.normalize(texts, dim=1).T
        torch.testing.assert_close(method.predict(images), vlm.logit_scale * cosines, rtol=1e-4, atol=1e-4)
    trained = {name for name, value in method.named_parameters() if value.requires_grad}
    assert all(name == "bias" or name.endswith((".down", ".up")) for name in trained)
    assert ("text" in " ".join(trained)) == (encoder != "vision")
    image, text = TOWERS[tower]
    counted = (image if encoder != "text" else 0) + (text if encoder != "vision" else 0)
    assert sum(isinstance(module, LowRank) for module in method.modules()) == counted
    method.train()
    output = method(make_batch())
    output.losses["labelled"].backward()
    ups = [value for name, value in method.named_parameters() if name.endswith(".up")]
    assert sum(float(up.grad.abs().sum()) for up in ups) > 0


def test_the_loss_is_the_mean_over_images_of_the_sum_over_classes(load, task, make_batch):
    method = methods.create("clip_lora", backbone=load(), task=task)
    batch = make_batch()
    expected = 0.0
    for logits, targets in zip(method.predict(batch.strong_labelled), batch.targets, strict=True):
        for z, y in zip(logits.tolist(), targets.tolist(), strict=True):
            expected += float(F.softplus(torch.tensor(-z if y else z, dtype=torch.float64))) / 4
    assert float(method(batch).losses["labelled"].detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("vit_tiny_patch16_224", 12),
        ("vit_base_patch16_siglip_224", 12 + 2),  # its pool has a query, and keys with values
        ("eva02_tiny_patch14_224", 12),
        ("eva02_base_patch14_224", 3 * 12),  # a layer for each of the three
        ("resnet10t", 0),
    ],
)
def test_towers_of_timm(name, found):
    import timm

    with torch.device("meta"):
        tower = timm.create_model(name, num_classes=0)
    assert len(list(attention_weights(tower))) == found


def test_towers_without_attention_are_refused_while_planning(load, task):
    spec, hyper = BackboneSpec("open_clip/tiny-timm"), methods.get("clip_lora").Hyper()
    assert not has_attention(spec)
    with pytest.raises(UserError, match="image tower of open_clip/tiny-timm has none; use a transformer"):
        methods.get("clip_lora").check_task(hyper, 4, spec)
    methods.get("clip_lora").check_task(methods.get("clip_lora").Hyper(encoder="text"), 4, spec)
    methods.get("clip_lora").check_task(hyper, 4, BackboneSpec("open_clip/ViT-B-16-SigLIP"))
    with pytest.raises(UserError, match="has none"):
        methods.create("clip_lora", backbone=load("tiny-timm"), task=task)


def test_a_text_tower_with_a_class_token_is_refused_and_its_image_tower_works(load, task, make_batch):
    with pytest.raises(UserError, match="takes no gradients here; use 'vision'"):
        methods.create("clip_lora", backbone=load("tiny-coca"), task=task)
    method = methods.create("clip_lora", backbone=load("tiny-coca"), task=task, encoder="vision")
    method(make_batch()).losses["labelled"].backward()
    assert all(value.grad is not None for value in method.parameters() if value.requires_grad)

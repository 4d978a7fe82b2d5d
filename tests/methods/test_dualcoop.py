import copy
import dataclasses
import json
import math
from pathlib import Path

import open_clip
import pytest
import torch
from torch.nn import functional as F

import methods
from methods.backbones.clip import VisionLanguageModel
from methods.errors import UserError
from methods.parts.regions import region_logits
from tests.methods.conftest import NAMES, wake_up
from tests.methods.table import same

GOLDEN = json.loads((Path(__file__).parent / "golden" / "dualcoop.json").read_text())
"""Numbers that official code gave, with repository and commit."""


def literal_logits(local, positive, negative):
    """DualCoOp's formulas with loops: scores 20 cos, weights from the positive scores, 5 Σ w s."""
    images, places, _ = local.shape
    plus = torch.zeros(images, len(positive))
    minus = torch.zeros(images, len(positive))
    for i in range(images):
        for k in range(len(positive)):
            up, down = [], []
            for r in range(places):
                up.append(20 * float(F.cosine_similarity(local[i, r], positive[k], dim=0)))
                down.append(20 * float(F.cosine_similarity(local[i, r], negative[k], dim=0)))
            total = sum(math.exp(s) for s in up)
            weights = [math.exp(s) / total for s in up]
            plus[i, k] = 5 * sum(w * s for w, s in zip(weights, up, strict=True))
            minus[i, k] = 5 * sum(w * s for w, s in zip(weights, down, strict=True))
    return plus, minus


def test_region_aggregation_equals_the_literal_formula():
    torch.manual_seed(0)
    local, positive, negative = torch.randn(2, 5, 8), torch.randn(3, 8), torch.randn(3, 8)
    found = region_logits(local, positive, negative)
    for one, other in zip(found, literal_logits(local, positive, negative), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_step_uses_code_locations_and_the_weighted_pair_loss(load, task, make_batch):
    vlm = load()
    method = methods.create("dualcoop", backbone=vlm, task=task, context_length=4, loss_weight=0.5)
    batch = make_batch()
    with torch.no_grad():
        _, local = vlm.dense_features(batch.strong_labelled, positional_embedding=True, mean_token=True)
    plus, minus = literal_logits(local, method.positive().detach(), method.negative().detach())
    loss = methods.losses.pair_asymmetric_loss(plus, minus, batch.targets).sum() * 0.5
    assert torch.allclose(method(batch).losses["labelled"], loss, rtol=1e-3)
    with torch.no_grad():
        scores = method.predict(batch.strong_labelled)
    assert torch.allclose(scores, plus - minus, atol=1e-3)


def test_plain_locations_differ_and_are_what_transformers_take(load, task, make_batch):
    batch = make_batch()
    code = methods.create("dualcoop", backbone=load(), task=task)
    plain = methods.create("dualcoop", backbone=load(), task=task, locations="plain")
    with torch.no_grad():
        assert not torch.allclose(
            code.predict(batch.strong_labelled), plain.predict(batch.strong_labelled), atol=1e-3
        )
    vit = methods.create("dualcoop", backbone=load("tiny-vit"), task=task, locations="plain")
    assert torch.isfinite(vit(batch).losses["labelled"])
    with pytest.raises(UserError, match="attention-pool"):
        methods.create("dualcoop", backbone=load("tiny-vit"), task=task)(batch)


def test_positive_and_negative_prompts_start_apart(load, task):
    method = methods.create("dualcoop", backbone=load(), task=task)
    assert not torch.equal(method.positive.context, method.negative.context)
    assert {name for name, p in method.named_parameters() if p.requires_grad} == {
        "positive.context",
        "negative.context",
    }


# --- the official code, step by step (github sunxm2357/DualCoOp, 49e71d7) ---------------------------------


def plain_bicubic(embedding, side):
    """A positional embedding at another size: cubic convolution with a = -0.75 from the four nearest."""
    old = round((len(embedding) - 1) ** 0.5)
    weights = torch.zeros(side, old, dtype=embedding.dtype)
    for new in range(side):
        place = (new + 0.5) * old / side - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            t = abs(place - tap)
            near = 1.25 * t**3 - 2.25 * t**2 + 1
            far = -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            weights[new, min(max(tap, 0), old - 1)] += near if t <= 1 else far
    square = embedding[1:].reshape(old, old, -1)
    square = torch.einsum("ra,sb,abc->rsc", weights, weights, square)
    return torch.cat([embedding[:1], square.reshape(side**2, -1)])


def official_logits(model, images, contexts):
    """Logits "absent" and "present" of the official model; contexts: the positive and the negative one."""
    visual, pool = model.visual, model.visual.attnpool
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (visual.image_mean, visual.image_std))
    maps = visual.stem((images - mean) / std)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        maps = layer(maps)
    side = maps.shape[-1]
    embedding = pool.positional_embedding
    if side**2 + 1 != len(embedding):
        embedding = plain_bicubic(embedding, side)
    texts = []
    for context in contexts:
        ids = open_clip.get_tokenizer("tiny-rn")([f"{'X ' * len(context)}{name}." for name in NAMES])
        rows = []
        for row in ids:
            tokens = model.token_embedding(row)
            tokens = torch.cat([tokens[:1], context, tokens[1 + len(context) :]])
            x = model.transformer((tokens + model.positional_embedding)[None], attn_mask=model.attn_mask)[0]
            rows.append(model.ln_final(x)[row.argmax()] @ model.text_projection)
        texts.append(torch.stack(rows))
    present, absent = [], []
    for image in maps:
        places = [image[:, r, c] for r in range(side) for c in range(side)]
        places = [torch.stack(places).mean(dim=0), *places]
        local = [pool.c_proj(pool.v_proj(x + e)) for x, e in zip(places, embedding, strict=True)]
        scores = [
            [torch.stack([20 * F.cosine_similarity(x, text, dim=0) for x in local]) for text in features]
            for features in texts
        ]
        present.append(torch.stack([5 * (s.softmax(0) * s).sum() for s in scores[0]]))
        absent.append(
            torch.stack([5 * (p.softmax(0) * n).sum() for p, n in zip(scores[0], scores[1], strict=True)])
        )
    return torch.stack(absent), torch.stack(present)


def official_loss(absent, present, targets, gamma_pos=1, gamma_neg=2, margin=0.05):
    """Its asymmetric loss, entry by entry: the focal weight has no gradient."""
    total = 0
    for no, yes, target in zip(absent.flatten(), present.flatten(), targets.flatten(), strict=True):
        shares = torch.stack([no, yes]).softmax(0)
        chance = shares[1] if target else (shares[0] + margin).clamp(max=1)
        weight = (1 - chance.detach()) ** (gamma_pos if target else gamma_neg)
        total = total - weight * chance.clamp(min=1e-6).log()
    return total


@pytest.fixture
def large():
    """Function from a resolution to a wrapped model, pretrained at 224 pixels, and the model alone."""

    def build(resolution):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = wake_up(open_clip.create_model("tiny-rn-224", pretrained=None).eval())
        own = copy.deepcopy(model)
        return VisionLanguageModel(own, open_clip.get_tokenizer("tiny-rn-224"), resolution, "x"), model

    return build


@pytest.mark.parametrize("resolution", [224, 448, 160])
def test_logits_loss_and_gradients_are_those_of_the_official_code(resolution, large, task, make_batch):
    vlm, model = large(resolution)
    batch = make_batch(labelled=3, size=resolution)
    method = methods.create("dualcoop", backbone=vlm, task=task, context_length=4, loss_weight=0.03)
    contexts = [
        prompt.context.detach().clone().requires_grad_() for prompt in (method.positive, method.negative)
    ]
    absent, present = official_logits(model, batch.strong_labelled, contexts)
    found = method.logits(batch.strong_labelled)
    assert torch.allclose(found[0], present, atol=2e-4)
    assert torch.allclose(found[1], absent, atol=2e-4)
    expected = 0.03 * official_loss(absent, present, batch.targets)
    expected.backward()
    loss = method(batch).losses["labelled"]
    loss.backward()
    assert torch.allclose(loss, expected, rtol=1e-4)
    for prompt, context in zip((method.positive, method.negative), contexts, strict=True):
        assert context.grad.abs().max() > 1e-5
        assert torch.allclose(prompt.context.grad, context.grad, rtol=1e-3, atol=1e-6)
    if resolution != 224:  # what the antialiased embedding, as of all other methods, would give
        with torch.no_grad():
            _, local = vlm.dense_features(batch.strong_labelled, positional_embedding=True, mean_token=True)
            other, _ = region_logits(local, method.positive(), method.negative())
        assert (other - present).abs().max() > 0.01


@pytest.mark.parametrize("run", GOLDEN["runs"], ids=lambda run: str(run["resolution"]))
def test_logits_loss_and_gradients_are_numbers_that_the_official_code_gave(run, task, make_batch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model("tiny-rn-224", pretrained=None, force_quick_gelu=True).eval()
    vlm = VisionLanguageModel(
        wake_up(model), open_clip.get_tokenizer("tiny-rn-224"), run["resolution"], "x"
    ).double()
    native = vlm.native_positions.abs().sum() - vlm.visual.attnpool.positional_embedding.abs().sum()
    method = methods.create("dualcoop", backbone=vlm, task=task, context_length=4, loss_weight=0.03).double()
    batch = make_batch(labelled=3, size=run["resolution"])
    images = batch.strong_labelled.double()
    # What the seeds give: another sum means that the numbers are of other inputs.
    same(sum(value.abs().sum() for value in model.parameters()) + native, run["weights"], 1e-7)
    same(images.sum(), run["images"])
    contexts = {"positive": method.positive.context, "negative": method.negative.context}
    same(sum(context.abs().sum() for context in contexts.values()), run["contexts"], 1e-7)
    found = method.logits(images)
    same(found[0], run["present"], 1e-7)
    same(found[1], run["absent"], 1e-7)
    batch = dataclasses.replace(batch, strong_labelled=images, targets=batch.targets.double())
    loss = method(batch).losses["labelled"]
    same(loss, run["loss"], 1e-7)
    loss.backward()
    for name, context in contexts.items():
        same(context.grad[0], run["gradients"][name], 1e-7)
        same(context.grad.norm(), run["norms"][name], 1e-7)


@pytest.mark.parametrize("resolution", [160, 448])
def test_other_methods_keep_the_antialiased_embedding(resolution, large, task, make_batch):
    vlm, model = large(resolution)
    methods.create("dualcoop", backbone=vlm, task=task).predict(make_batch(size=resolution).strong_labelled)
    native, side = model.visual.attnpool.positional_embedding.detach(), resolution // 32
    square = native[1:].T.reshape(1, -1, 7, 7)
    square = F.interpolate(square, size=(side, side), mode="bicubic", antialias=True)
    expected = torch.cat([native[:1], square.flatten(2)[0].T])
    assert torch.allclose(vlm.visual.attnpool.positional_embedding, expected, atol=1e-6)
    assert torch.equal(vlm.native_positions, native)
    assert not [name for name in vlm.state_dict() if "native" in name]  # checkpoints are as before
    images = torch.rand(2, 3, resolution, resolution)
    with torch.no_grad():
        whole, local = vlm.dense_features(images, positional_embedding=True)
        plain_whole, plain = vlm.dense_features(images, positional_embedding=True, antialias=False)
    assert torch.equal(whole, plain_whole)
    assert not torch.allclose(local, plain, atol=1e-3)


def test_the_plain_embedding_is_that_of_a_frozen_tower(large):
    vlm, _ = large(448)
    images = torch.rand(1, 3, 448, 448)
    with pytest.raises(ValueError, match="frozen tower"):
        vlm.dense_features(images, positional_embedding=True, antialias=False)
    _, doubled = (
        vlm.requires_grad_(False)
        .double()
        .dense_features(images.double(), positional_embedding=True, antialias=False)
    )
    assert doubled.dtype == torch.float64

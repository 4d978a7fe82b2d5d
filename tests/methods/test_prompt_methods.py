"""The methods after DualCoOp: numbers of their public code, and what ties them to DualCoOp."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import methods
from methods.backbones import BackboneSpec
from methods.base import Batch, Task
from methods.dualcoop_pp import evidence_logits
from methods.errors import UserError
from tests.methods.table import Text, numbers, same

GOLDEN = json.loads((Path(__file__).parent / "golden" / "prompts.json").read_text())
"""Numbers that official code gave; an entry names the repository and the commit."""
INPUTS = {name: numbers(values) for name, values in GOLDEN["inputs"].items()}


@pytest.fixture
def given(load, monkeypatch):
    """Function from a name to its method over the golden local features, and the batch that trains it."""
    monkeypatch.setattr("methods.dualcoop_pp.encode_together", lambda prompts: [one() for one in prompts])
    targets = INPUTS["targets"].float()
    three = Task(("a", "b", "c"), ("a", "b", "c"), targets, num_unlabelled=2, seed=0)

    def build(name, **hyper):
        method = methods.create(name, backbone=load(), task=three, context_length=4, **hyper)
        return prepared(method)

    def prepared(method):
        monkeypatch.setattr(method, "local", lambda images: INPUTS["local"])
        images = torch.zeros(2, 3, 64, 64)
        batch = Batch(
            epoch=0,
            step=0,
            labelled=torch.arange(2),
            weak_labelled=images,
            strong_labelled=images,
            targets=INPUTS["targets"],
            unlabelled=torch.arange(0),
            weak_unlabelled=images[:0],
            strong_unlabelled=images[:0],
            global_labelled=2,
            global_unlabelled=0,
        )
        return method.double(), batch

    build.prepared = prepared
    build.task = three
    return build


def check(name, method, batch, parameters):
    """Logits, loss and gradients of one step are the golden ones."""
    expected = GOLDEN[name]
    with torch.no_grad():
        positive, negative = method.logits(batch.strong_labelled)
        same(positive, expected["present"])
        same(negative, expected["absent"])
        same(method.predict(batch.strong_labelled), positive - negative)
    loss = method(batch).losses["labelled"]
    same(loss, expected["loss"])
    loss.backward()
    assert set(parameters) == set(expected["gradients"])
    for key, parameter in parameters.items():
        same(parameter.grad, expected["gradients"][key])


@pytest.mark.parametrize("name", ["positivecoop", "negativecoop"])
def test_one_prompt_and_one_vector_are_as_in_the_official_code(name, given):
    method, batch = given(name)
    method.prompt = Text(INPUTS["text"])
    method.residual, method.embedding = (
        nn.Parameter(INPUTS[key].clone()) for key in ("residual", "embedding")
    )
    parts = {"text": method.prompt.features, "residual": method.residual, "embedding": method.embedding}
    check(name, method, batch, parts)


def test_the_layer_without_texts_is_as_in_the_official_code(given, load):
    method, batch = given.prepared(methods.create("vision_only", backbone=load(), task=given.task))
    # The official layer has the negative maps first.
    order = [3, 4, 5, 0, 1, 2]
    entry = GOLDEN["vision_only"]
    method.layer = nn.Linear(6, 6, dtype=torch.float64)
    method.layer.weight.data = numbers(entry["weight"])[order]
    method.layer.bias.data = numbers(entry["bias"])[order]
    with torch.no_grad():
        positive, negative = method.logits(batch.strong_labelled)
    same(positive, entry["present"])
    same(negative, entry["absent"])
    loss = method(batch).losses["labelled"]
    same(loss, entry["loss"])
    loss.backward()
    same(method.layer.weight.grad, numbers(entry["gradients"]["weight"])[order])
    same(method.layer.bias.grad, numbers(entry["gradients"]["bias"])[order])


def test_evidence_and_the_contest_of_classes_are_as_in_the_public_code(given):
    method, batch = given("dualcoop_pp")
    method.evidence, method.positive, method.negative = (
        Text(INPUTS[key]) for key in ("evidence", "text", "embedding")
    )
    method.log_scale.data.fill_(GOLDEN["dualcoop_pp"]["log_scale"])
    parts = {key: getattr(method, key).features for key in ("evidence", "positive", "negative")}
    check("dualcoop_pp", method, batch, {**parts, "log_scale": method.log_scale})


def test_the_winner_of_a_location_keeps_it_and_with_no_contest_all_do():
    generator = torch.Generator().manual_seed(2)
    local, *texts = (torch.rand(size, generator=generator) for size in ((2, 5, 8), (3, 8), (3, 8), (3, 8)))
    evidence, positive, negative = (F.normalize(text, dim=-1) for text in texts)
    scale = torch.tensor(3.0)
    free, absent = evidence_logits(local, evidence, positive, negative, scale, 0.0)
    sharp, same_absent = evidence_logits(local, evidence, positive, negative, scale, 1e6)
    assert torch.equal(absent, same_absent)
    unit = F.normalize(local, dim=-1)
    for i in range(2):
        for k in range(3):
            weights = (math.exp(3) * unit[i] @ evidence[k]).softmax(0)
            cosines = unit[i] @ positive.T
            won = cosines.argmax(dim=1) == k
            assert float(free[i, k]) == pytest.approx(
                math.exp(3) * float((weights * cosines[:, k]).sum()), rel=1e-5
            )
            assert float(sharp[i, k]) == pytest.approx(
                math.exp(3) * float((weights * cosines[:, k] * won).sum()), rel=1e-5, abs=1e-6
            )


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_a_side_s_prompt_starts_where_dualcoop_s_does_and_both_sides_make_dualcoop(
    side, load, task, make_batch
):
    both = methods.create("dualcoop", backbone=load(), task=task)
    one = methods.create(f"{side}coop", backbone=load(), task=task, start="text")
    assert torch.equal(one.prompt.context, getattr(both, side).context)
    other = both.negative if side == "positive" else both.positive
    with torch.no_grad():
        images = make_batch().strong_labelled
        torch.testing.assert_close(*one.logits(images))
        one.embedding.copy_(other())
        for ours, theirs in zip(one.logits(images), both.logits(images), strict=True):
            torch.testing.assert_close(ours, theirs)
    default = methods.create(f"{side}coop", backbone=load(), task=task)
    for vector in (default.residual, default.embedding):
        assert 0.7 < float(vector.detach().std()) < 1.3


NAMES = ("dualcoop", "dualcoop_pp", "positivecoop", "negativecoop", "vision_only")


@pytest.mark.parametrize("name", NAMES)
def test_towers_without_locations_are_refused_while_planning(name):
    cls = methods.get(name)
    plain, code = (methods.hyper(name, locations=value) for value in ("plain", "code"))
    for backbone in ("open_clip/RN101", "open_clip/RN50", "glyphclip"):
        cls.check_task(code, 4, BackboneSpec(backbone))
    cls.check_task(plain, 4, BackboneSpec("open_clip/ViT-B-16"))
    with pytest.raises(UserError, match=rf"{name}.locations = 'code' needs an attention-pool"):
        cls.check_task(code, 4, BackboneSpec("open_clip/ViT-B-16"))
    for backbone in ("open_clip/ViT-B-16-SigLIP", "open_clip/coca_ViT-B-32", "open_clip/MobileCLIP-S1"):
        for hyper in (plain, code):
            with pytest.raises(UserError, match=rf"{name} reads features of locations") as caught:
                cls.check_task(hyper, 4, BackboneSpec(backbone))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tower", ["tiny-rn", "tiny-vit", "tiny-vit-qk"])
@pytest.mark.parametrize("name", NAMES[1:])
def test_towers_with_locations_train_all_that_is_learnt(name, tower, load, task, make_batch):
    method = methods.create(name, backbone=load(tower), task=task, locations="plain")
    batch = make_batch()
    method(batch).losses["labelled"].backward()
    groups = [parameter for group in method.param_groups() for parameter in group["params"]]
    learnt = {
        "dualcoop_pp": {"evidence.context", "positive.context", "negative.context", "log_scale"},
        "positivecoop": {"prompt.context", "residual", "embedding"},
        "negativecoop": {"prompt.context", "residual", "embedding"},
        "vision_only": {"layer.weight", "layer.bias"},
    }[name]
    assert {key for key, value in method.named_parameters() if value.requires_grad} == learnt
    assert len(groups) == len(learnt)
    assert all(parameter.grad.abs().sum() > 0 for parameter in groups)


def test_rates_of_contexts_and_vectors_are_their_own(load, task):
    method = methods.create("positivecoop", backbone=load(), task=task)
    rates = [(group["lr"], group["weight_decay"], len(group["params"])) for group in method.param_groups()]
    assert rates == [(5e-3, 0.0, 1), (0.5, 0.0, 2)]


def test_texts_that_would_cancel_and_values_without_meaning_are_refused():
    with pytest.raises(UserError, match="both contexts start from 'a photo of a'"):
        methods.hyper("dualcoop_pp", positive_words="a photo of a", negative_words="a photo of a")
    for name, field, value in (
        ("dualcoop_pp", "winner_scale", -1.0),
        ("positivecoop", "start", "zero"),
        ("vision_only", "loss_weight", -1.0),
        ("negativecoop", "gamma_pos", -1.0),
    ):
        with pytest.raises(UserError, match=field):
            methods.hyper(name, **{field: value})

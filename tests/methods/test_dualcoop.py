import math

import pytest
import torch
from torch.nn import functional as F

import methods
from methods.dualcoop import region_logits
from methods.errors import UserError


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

"""CLAP, CLIP-Adapter and Tip-Adapter: numbers of their public code, and what the multi-label form adds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn import functional as F

import methods
from methods.base import Task
from methods.clap import soft_recall
from methods.errors import UserError
from methods.parts.cached_views import average_precision
from methods.tip_adapter import cached
from tests.methods.table import numbers, same

GOLDEN = json.loads((Path(__file__).parent / "golden" / "cached_adapters.json").read_text())
"""Numbers that official code gave on one-hot labels; an entry names the repository and the commit."""
INPUTS = {name: numbers(values) for name, values in GOLDEN["inputs"].items() if name != "scale"}
NAMES = ("clap", "clip_adapter", "tip_adapter")


def given(name, labels=INPUTS["labels"], texts=INPUTS["texts"], **hyper):
    """A method over the golden texts, in float64, with the golden views."""
    task = Task(("a", "b", "c"), ("a", "b", "c"), labels.float(), num_unlabelled=2, seed=0)
    vlm = SimpleNamespace(
        is_vlm=True, dim=8, logit_scale=GOLDEN["inputs"]["scale"], encode_text=lambda _: texts
    )
    method = methods.create(name, backbone=vlm, task=task, **hyper)
    method.texts, method.views = texts, INPUTS["views"]
    if name == "clap":
        method.weight = nn.Parameter(texts.clone())
    return method


def test_clap_s_multipliers_constraint_and_logits_are_the_official_ones():
    golden, method = GOLDEN["clap"], given("clap", multiplier="soft-recall")
    method.prepare()
    same(method.multipliers, golden["multipliers"], tolerance=1e-6)  # there in float32
    with torch.no_grad():
        method.weight.add_(INPUTS["moved"])
    distance = method.distance()
    same(distance, golden["constraint"], tolerance=1e-6)
    (gradient,) = torch.autograd.grad(distance, method.weight)
    same(gradient, golden["gradient"], tolerance=1e-6)
    same(method.logits(INPUTS["features"]), golden["logits"])


def test_clip_adapter_s_logits_and_gradients_are_the_official_ones():
    golden, method = GOLDEN["clip_adapter"], given("clip_adapter")
    with torch.no_grad():
        method.first = nn.Parameter(INPUTS["first"])
        method.second = nn.Parameter(INPUTS["second"])
    logits = method.logits(INPUTS["features"])
    same(logits, golden["logits"])
    loss = F.cross_entropy(logits, torch.tensor([0, 2]))
    for found, expected in zip(
        torch.autograd.grad(loss, method.parameters()), golden["gradients"], strict=True
    ):
        same(found, expected)


def test_tip_adapter_s_keys_logits_and_gradient_are_the_official_ones():
    golden = GOLDEN["tip_adapter"]
    pair = {"alpha": golden["alpha"], "beta": golden["beta"]}
    method = given("tip_adapter", search=False, values="multi-hot", **pair)
    method.fit(INPUTS["views"][0], seed=0)
    same(method.keys, golden["keys"])
    with torch.no_grad():
        method.bias.zero_()
    method.values = method.values.double()
    logits = method.logits(INPUTS["features"])
    same(logits, golden["logits"], tolerance=1e-7)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([0, 2])), method.keys)
    same(gradient, golden["gradient"], tolerance=1e-6)


def labels_of(seed=0, n=5, k=3):
    found = (torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) < 0.5).double()
    found[0], found[1] = 1, 0
    return found


def test_a_step_of_clap_is_the_literal_one():
    """Loss summed over classes, mean over the batch; the constraint is a mean over classes."""
    labels = labels_of()
    method = given("clap", labels, epochs=1, batch=64, lr=0.1)
    method.fit(INPUTS["views"][0], seed=3)
    texts, views = INPUTS["texts"], INPUTS["views"]
    weight, bias = texts.clone().requires_grad_(), torch.zeros(3)
    rows = [(v, i) for v in range(2) for i in range(5)]

    def logit(v, i, k):
        f, w = views[v, i], weight[k]
        return 20 * (f @ w) / (f.norm() * w.norm())

    logits = torch.stack([torch.stack([logit(v, i, k) for k in range(3)]) for v, i in rows])
    for k in range(3):  # the mean probability is the frequency
        low, high = -100.0, 100.0
        wanted = float(labels[:, k].mean())
        for _ in range(80):
            middle = (low + high) / 2
            over = float(torch.sigmoid(logits[:, k].detach() + middle).mean()) > wanted
            low, high = (low, middle) if over else (middle, high)
        bias[k] = middle
    bias.requires_grad_()
    alpha = [average_precision_score(labels.repeat(2, 1)[:, k], logits[:, k].detach()) for k in range(3)]
    assert method.multipliers.tolist() == pytest.approx(alpha, rel=1e-6)
    loss = 0.0
    for row, (_, i) in enumerate(rows):
        for k in range(3):
            z, y = logits[row, k] + bias[k], labels[i, k]
            loss = loss + (y * F.softplus(-z) + (1 - y) * F.softplus(z)) / len(rows)
    loss = loss + sum(alpha[k] * (weight[k] - texts[k]).square().sum() for k in range(3)) / 3
    to_weight, to_bias = torch.autograd.grad(loss, [weight, bias])
    torch.testing.assert_close(method.weight.detach(), texts - 0.1 * to_weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(method.bias.detach(), bias.detach() - 0.1 * to_bias, rtol=1e-4, atol=1e-5)


def test_the_constraint_holds_the_weights_near_the_texts_and_most_where_no_image_shows_a_class():
    labels = labels_of()
    labels[:, 2] = 0
    free, held = (given("clap", labels, epochs=20, constraint=on) for on in (False, True))
    for method in (free, held):
        method.fit(INPUTS["views"][0], seed=0)
    moved = [(method.weight - method.texts).norm(dim=1) for method in (free, held)]
    assert (moved[1] < moved[0]).all()
    assert held.multipliers[2] == 1
    assert not free.multipliers.any()


def test_soft_recall_is_the_mean_probability_of_the_images_of_a_class():
    logits, labels = torch.randn(7, 3, dtype=torch.float64), labels_of(n=7)
    for k in range(3):
        rows = [i for i in range(7) if labels[i, k]]
        expected = sum(
            math.exp(logits[i, k]) / sum(math.exp(logits[i, j]) for j in range(3)) for i in rows
        ) / len(rows)
        assert float(soft_recall(logits, labels)[k]) == pytest.approx(expected)
    assert not soft_recall(logits, torch.zeros(7, 3)).any()


def test_average_precision_is_scikit_learn_s():
    generator = torch.Generator().manual_seed(4)
    scores, labels = torch.rand(50, 6, generator=generator), torch.rand(50, 6, generator=generator).round()
    labels[:, 5] = 0
    found = average_precision(scores, labels)
    expected = [average_precision_score(labels[:, k], scores[:, k]) for k in range(5)]
    assert found.tolist() == pytest.approx([*expected, 0.0])


def test_tip_adapter_s_values_do_not_depend_on_how_many_images_a_class_or_classes_an_image_has():
    labels = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]]).float()
    method = given("tip_adapter", labels, search=False)
    method.fit(INPUTS["views"][0], seed=0)
    expected = torch.tensor([[0.25, 0.5, 1], [0.25, 0, 0], [0.25, 0, 0], [0.25, 0, 0], [0, 0.5, 0]])
    assert torch.equal(method.values, expected)


def test_tip_adapter_chooses_by_the_folds_that_the_cache_does_not_hold():
    """Literal loop over folds, pairs and classes; the chosen pair is the best of them."""
    torch.manual_seed(0)
    n, labels = 23, labels_of(n=23)
    labels[:, 2] = 0
    method = given("tip_adapter", labels)
    views = torch.randn(2, n, 8, dtype=torch.float64)
    method.views = views
    method.fit(views[0], seed=5)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(5)).tolist()
    size = -(-n // 5)
    keys = F.normalize(views.mean(0), dim=1)
    pair = (3.0, 5.0)
    found = []
    for start in range(0, n, size):
        out = order[start : start + size]
        kept = [i for i in range(n) if i not in out]
        for k in range(3):
            count = sum(labels[i, k] for i in kept)
            if not 0 < sum(labels[i, k] for i in out) < len(out):
                continue
            scores = []
            for i in out:
                f = F.normalize(views[0][i], dim=0)
                text = 20 * float(f @ F.normalize(method.texts[k], dim=0))
                near = [math.exp(-pair[1] * (1 - float(f @ keys[j]))) * labels[j, k] / count for j in kept]
                scores.append(text + pair[0] * float(sum(near)))
            found.append(average_precision_score(labels[out, k], scores))
    assert method.searched[pair] == pytest.approx(sum(found) / len(found), rel=1e-6)
    best = max(method.searched, key=method.searched.__getitem__)
    assert (float(method.alpha), float(method.beta)) == pytest.approx(best)


def test_tip_adapter_keeps_its_pair_where_nothing_can_be_scored():
    labels = torch.ones(5, 3)
    method = given("tip_adapter", labels.double(), alpha=2.0, beta=3.0)
    method.fit(INPUTS["views"][0], seed=0)
    assert (float(method.alpha), float(method.beta), method.searched) == (2.0, 3.0, {})


def test_trained_keys_lower_the_loss():
    labels = labels_of()
    fixed, trained = (given("tip_adapter", labels, search=False, epochs=e, lr=0.01) for e in (0, 20))
    losses = []
    for method in (fixed, trained):
        method.fit(INPUTS["views"][0], seed=0)
        losses.append(float(method.loss(INPUTS["views"].flatten(0, 1), labels.repeat(2, 1)).detach()))
    assert losses[1] < losses[0]
    expected = fixed.keys @ F.normalize(INPUTS["features"], dim=1).T
    weights = torch.exp(-(1 - expected)).T @ fixed.values.double()
    torch.testing.assert_close(cached(INPUTS["features"], fixed.keys, fixed.values.double(), 1.0), weights)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tower", ["tiny-rn", "tiny-vit", "tiny-vit-qk", "tiny-timm", "tiny-bidirectional"])
def test_they_work_on_every_tower(name, tower, load, task):
    vlm = load(tower)
    method = methods.create(name, backbone=vlm, task=task, views=2, epochs=2)
    views = torch.randn(2, 8, vlm.dim)
    method.take_views(views)
    method.fit(views[0], seed=0)
    scores = method.predict(views[1])
    assert scores.shape == (8, 4)
    assert torch.isfinite(scores).all()
    other = methods.create(name, backbone=vlm, task=task, views=2, epochs=2)
    other.take_views(views)
    other.fit(views[0], seed=0)
    assert torch.equal(other.predict(views[1]), scores)


@pytest.mark.parametrize(
    ("name", "hyper"),
    [("clap", {"views": 0}), ("clip_adapter", {"ratio": 1.5}), ("tip_adapter", {"alpha": -1.0})],
)
def test_bad_values_are_refused(name, hyper, load, task):
    with pytest.raises(UserError, match=next(iter(hyper))):
        methods.create(name, backbone=load(), task=task, **hyper)

"""SCPNet: numbers of its official code, and what it does where that code has nothing to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import methods
from methods.base import Batch, Task
from methods.errors import UserError
from methods.parts.prompts import text_classifier
from methods.parts.relations import relation_graphs
from tests.methods.conftest import NAMES
from tests.methods.table import Table, Text, numbers, same

GOLDEN = json.loads((Path(__file__).parent / "golden" / "scpnet.json").read_text())
"""Numbers that official code gave, with repository and commit."""
FIVE = ("a", "b", "c", "d", "e")


def graphs(kept=3, **changes):
    values = {"neighbours": 0.2, "temperature": 0.2, **changes}
    return relation_graphs(numbers(GOLDEN["similarity"]), kept, **values)


def test_both_graphs_are_those_of_the_official_code():
    graph, smoothing = graphs()
    same(graph, GOLDEN["graph"])
    same(smoothing, GOLDEN["smoothing"])


@pytest.mark.parametrize("kept", [1, 2, 5, 9])
def test_rows_add_up_to_one_whatever_stays(kept):
    for graph in graphs(kept):
        same(graph.sum(dim=1), torch.ones(5))
        assert (graph >= 0).all()
        assert ((graph > 0).sum(dim=1) <= max(kept, 1)).all()
    if kept == 1:
        assert torch.equal(graphs(kept)[0], torch.eye(5, dtype=torch.float64))


def test_a_class_that_resembles_none_keeps_its_weight():
    similarity = torch.eye(3) - 0.5 * (1 - torch.eye(3))
    graph, smoothing = relation_graphs(similarity, 2, 0.2, 0.2)
    assert torch.equal(graph, torch.eye(3))
    assert torch.isfinite(smoothing).all()


def test_refined_texts_logits_and_gradients_are_those_of_the_official_code(load, task, monkeypatch):
    method = methods.create("scpnet", backbone=load(), task=task).double()
    classifier = method.classifier
    classifier.layers = nn.ParameterList(map(numbers, GOLDEN["weights"]))
    classifier.graph = graphs()[0]
    classifier.prompt = Text(numbers(GOLDEN["texts"]))
    monkeypatch.setattr(type(classifier.vlm), "features", lambda self, images: numbers(GOLDEN["features"]))
    logits = method.predict(torch.zeros(2, 3, 64, 64))
    same(logits, GOLDEN["logits"])
    (logits * numbers(GOLDEN["coefficients"])).sum().backward()
    same(classifier.prompt.features.grad, GOLDEN["gradients"]["texts"])
    for layer, expected in zip(classifier.layers, GOLDEN["gradients"]["weights"], strict=True):
        same(layer.grad, expected)


def stepped(load, entry, labelled, method=None):
    """A method whose answers are a golden step's logits, and that step's batch."""
    if method is None:
        task = Task(FIVE, FIVE, torch.eye(5), num_unlabelled=6, seed=0)
        method = methods.create(
            "scpnet", backbone=load(), task=task, k=2, threshold=0.95, relation_weight=1.5, kept=0.6
        ).double()
    smoothing = numbers(GOLDEN["smoothing"])
    known = numbers(labelled["logits"])
    rows = torch.cat([known, numbers(entry["weak"]), numbers(entry["strong"])])
    method.classifier = Table(rows)
    method.classifier.smoothing = smoothing
    first, images = 0, []
    for count in (len(known), 3, 3):
        places = torch.arange(first, first + count, dtype=torch.float64)
        images.append(places.view(-1, 1, 1, 1).expand(-1, 3, 2, 2))
        first += count
    batch = Batch(
        epoch=0,
        step=0,
        labelled=torch.arange(len(known)),
        weak_labelled=images[0],
        strong_labelled=images[0],
        targets=numbers(labelled["targets"]),
        unlabelled=torch.tensor(entry["images"]),
        weak_unlabelled=images[1],
        strong_unlabelled=images[2],
        global_labelled=len(known),
        global_unlabelled=3,
    )
    return method, batch


def test_pseudo_labels_losses_and_memory_are_those_of_the_official_code(load):
    method = None
    labelled = GOLDEN["labelled"]
    for entry in GOLDEN["steps"]:
        method, batch = stepped(load, entry, labelled, method)
        reached = numbers(entry["acc"])
        same(method.thresholds(), 0.95 * reached / (2 - reached))
        output = method(batch)
        same(output.losses["labelled"], labelled["loss"])
        same(output.losses["unlabelled"] + output.losses["relation"], entry["loss"])
        labels = numbers(entry["labels"])
        assert torch.equal(output.pseudo_labels.targets, labels)
        assert torch.equal(output.pseudo_labels.mask, labels.amax(dim=1, keepdim=True).expand(-1, 5))
        (gradient,) = torch.autograd.grad(sum(output.losses.values()), method.classifier.rows)
        same(gradient[:3], labelled["gradient"])
        same(gradient[3:6], torch.zeros(3, 5))  # the weak view teaches
        same(gradient[6:], entry["gradient"])
        method.observe_step(output.statistics)
        assert torch.equal(method.selected.double(), numbers(entry["selected"]))
        assert torch.equal(method.counts, method.selected.sum(dim=0))
    assert method.selected[1].any()  # the third step gave image 1 nothing, and it kept what it had


def test_the_graph_is_of_the_texts_and_the_start_is_theirs(load, task):
    vlm = load()
    method = methods.create("scpnet", backbone=vlm, task=task, kept=0.5, neighbours=0.3)
    texts = text_classifier(vlm, NAMES)
    expected, _ = relation_graphs(texts @ texts.T, 2, 0.3, 0.2)
    torch.testing.assert_close(method.classifier.graph, expected)
    for layer in method.classifier.layers:
        layer.data.zero_()
    with torch.no_grad():  # without convolution: cosines with the learnt prompt, "a photo of a NAME."
        images = torch.rand(2, 3, 64, 64)
        features = F.normalize(vlm.features(images), dim=-1)
        torch.testing.assert_close(method.predict(images), 10 * features @ texts.T, atol=1e-5, rtol=1e-4)


def test_the_tower_context_and_graph_learn_at_their_own_rates(load, task, make_batch):
    rates = {"lr_backbone": 1e-3, "lr_context": 2e-3, "lr_graph": 3e-3}
    method = methods.create("scpnet", backbone=load(), task=task, **rates)
    groups = method.param_groups()
    assert {group["lr"] for group in groups} == set(rates.values())
    for group in groups:
        vectors = {parameter.ndim <= 1 for parameter in group["params"]}
        assert vectors == {group["weight_decay"] == 0}
    learnt = {name.split(".")[1] for name, value in method.named_parameters() if value.requires_grad}
    assert learnt == {"vlm", "prompt", "layers"}
    frozen = [name for name, value in method.named_parameters() if not value.requires_grad]
    assert frozen
    assert all(name.startswith("classifier.vlm.text") for name in frozen)


def test_its_warm_up_uses_no_unlabelled_image_and_is_shared_by_what_only_steers_them(load, task, make_batch):
    cls = methods.get("scpnet")
    warm = cls.warmup_hyper(methods.hyper("scpnet", k=5, threshold=0.8, relation_weight=2.0))
    assert warm == cls.warmup_hyper(methods.hyper("scpnet"))
    assert warm != cls.warmup_hyper(methods.hyper("scpnet", kept=1.0))
    method = methods.create("scpnet", backbone=load(), task=task, unlabelled_weight=0.0)
    assert set(method(make_batch()).losses) == {"labelled"}


@pytest.mark.parametrize("tower", ["tiny-vit", "tiny-vit-qk", "tiny-timm", "tiny-bidirectional"])
def test_any_tower_with_a_learnable_text_tower_takes_a_step(tower, load, task, make_batch):
    method = methods.create("scpnet", backbone=load(tower), task=task)
    total = sum(method(make_batch()).losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert method.classifier.prompt.context.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("kept", 1.5), ("neighbours", -0.1), ("k", 0), ("temperature", 0.0), ("context_words", "")],
)
def test_values_without_meaning_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        methods.hyper("scpnet", **{field: value})

"""TaI-DPT: numbers of its official code, its sentences, and what of a sentence it learns from."""

from __future__ import annotations

import dataclasses
import doctest
import json
import random
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import methods
import methods.tai_dpt
from methods.backbones import BackboneSpec
from methods.errors import UserError
from methods.tai_dpt import pooled_cosines, ranking_loss, sentence
from tests.methods.conftest import NAMES
from tests.methods.table import Text, numbers, same

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tai_dpt.json").read_text())
"""Numbers that official code gave, with repository and commit."""


@pytest.fixture
def golden(load, task, monkeypatch):
    """The method with the golden texts of its four classes."""
    monkeypatch.setattr("methods.tai_dpt.encode_together", lambda prompts: [one() for one in prompts])
    method = methods.create("tai_dpt", backbone=load(), task=task).double()
    method.whole, method.local = Text(numbers(GOLDEN["whole"])), Text(numbers(GOLDEN["local"]))
    return method


def test_a_sentence_s_logits_losses_and_gradients_are_those_of_the_official_code(golden):
    tokens, ends = numbers(GOLDEN["tokens"]), torch.tensor(GOLDEN["ends"])
    used = torch.arange(tokens.shape[1]) <= ends[:, None]
    found = golden.logits(tokens[torch.arange(len(ends)), ends], tokens, golden.hyper.token_scale, used)
    expected = GOLDEN["sentence"]
    losses = []
    for logits, name, loss in zip(found, ("global", "local"), expected["losses"], strict=True):
        same(logits, expected[name])
        losses.append(ranking_loss(logits, numbers(GOLDEN["targets"]), golden.hyper.margin).mean())
        same(losses[-1], loss)
    sum(losses).backward()
    for name in ("whole", "local"):
        same(getattr(golden, name).features.grad, expected["gradients"][name])


@pytest.mark.parametrize("share", [0.5, 0.0, 0.8])
def test_an_image_s_score_is_that_of_the_official_code(golden, monkeypatch, share):
    image = {name: numbers(values) for name, values in GOLDEN["image"].items()}
    features = (image["features"], image["locations"])
    monkeypatch.setattr(type(golden.vlm), "dense_features", lambda self, images: features)
    golden.hyper = dataclasses.replace(golden.hyper, global_share=share)
    with torch.no_grad():
        found = golden.predict(torch.zeros(2, 3, 64, 64))
    same(found, share * image["global"] + (1 - share) * image["local"])


def test_a_step_learns_from_a_sentence_of_each_image_with_a_label(load, task, make_batch):
    vlm = load()
    method = methods.create("tai_dpt", backbone=vlm, task=task, context_length=4)
    batch = make_batch(labelled=6)
    assert not batch.targets[1].any()  # it has no sentence, and counts in the mean
    texts = method.sentences(batch)
    rows = batch.targets[batch.targets.any(dim=1)]
    assert len(texts) == len(rows) < 6
    expected = {"global": 0.0, "local": 0.0}
    unit = {"global": F.normalize(method.whole(), dim=-1), "local": F.normalize(method.local(), dim=-1)}
    for text, targets in zip(texts, rows, strict=True):
        for name, present in zip(NAMES, targets, strict=True):
            assert (name in text) == bool(present)
        ids, end = vlm.text_tower.tokenise([text])  # alone, so without padding
        tokens = [
            vlm.encode_prompts(vlm.text_tower.token_embedding(ids), torch.tensor([place]))
            for place in range(int(end) + 1)
        ]
        tokens = F.normalize(torch.cat(tokens), dim=-1)
        logits = {
            "global": 4 * tokens[-1:] @ unit["global"].T,
            "local": 4 * pooled_cosines(tokens[None], unit["local"], 50.0),
        }
        for name, values in logits.items():
            for p in range(4):
                for a in range(4):
                    if targets[p] == 1 and targets[a] == 0:
                        expected[name] += (1 - values[0, p] + values[0, a]).clamp(min=0) / 6
    for name, loss in method(batch).losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-5)


def test_sentences_are_drawn_anew_each_epoch_and_depend_on_nothing_else(load, task, make_batch):
    method = methods.create("tai_dpt", backbone=load(), task=task, templates="simple7")
    batch = make_batch(labelled=8)
    first = method.sentences(batch)
    assert first == method.sentences(dataclasses.replace(batch, step=5))
    assert first != method.sentences(dataclasses.replace(batch, epoch=1))
    some = dataclasses.replace(batch, labelled=batch.labelled[2:], targets=batch.targets[2:])
    assert set(method.sentences(some)) <= set(first)
    drawn = {sentence(("a", "b", "c"), ["{}!"], random.Random(seed)) for seed in range(60)}
    assert len(drawn) == 6
    assert sentence(("a",), ["a photo of a {}."], random.Random(0)) == "a photo of a a."


def test_no_image_reaches_a_step(load, task, make_batch):
    method = methods.create("tai_dpt", backbone=load(), task=task)
    batch = make_batch()
    black = dataclasses.replace(batch, strong_labelled=torch.zeros_like(batch.strong_labelled))
    for one, other in zip(method(batch).losses.values(), method(black).losses.values(), strict=True):
        assert torch.equal(one, other)


def test_a_step_without_a_sentence_costs_nothing(load, task, make_batch):
    method = methods.create("tai_dpt", backbone=load(), task=task)
    batch = make_batch()
    empty = dataclasses.replace(batch, targets=torch.zeros_like(batch.targets))
    total = sum(method(empty).losses.values())
    total.backward()
    assert float(total.detach()) == 0
    assert method.whole.context.grad.abs().sum() == 0


@pytest.mark.parametrize("tower", ["tiny-rn", "tiny-vit", "tiny-vit-qk", "tiny-bidirectional"])
def test_tokens_are_those_of_the_text_and_its_feature_is_encode_text_s(tower, load):
    text = load(tower).text_tower
    texts = ["a photo of a cat.", "dog"]
    with torch.no_grad():
        whole, tokens, used = text.encode_tokens(texts)
        torch.testing.assert_close(whole, text.encode_text(texts))
    assert used.sum(dim=1).tolist() == [8, 3]  # start, words, stop and end
    assert tokens.shape[:2] == used.shape
    if text.cuttable:
        torch.testing.assert_close(tokens[torch.arange(2), used.sum(dim=1) - 1], whole)


def test_towers_without_tokens_or_locations_are_refused(load, task):
    with pytest.raises(UserError, match="no features of single tokens"):
        load("tiny-coca").text_tower.encode_tokens(["a"])
    hyper = methods.hyper("tai_dpt")
    methods.get("tai_dpt").check_task(hyper, 4, BackboneSpec("open_clip/ViT-B-16"))
    with pytest.raises(UserError, match="tai_dpt reads features of locations"):
        methods.get("tai_dpt").check_task(hyper, 4, BackboneSpec("open_clip/ViT-B-16-SigLIP"))


def test_the_examples_hold():
    assert doctest.testmod(methods.tai_dpt) == (0, 2)

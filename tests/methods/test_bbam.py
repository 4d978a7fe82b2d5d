"""BBAM against numbers of its official code over two epochs, and what it does at the edges."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import methods
from methods.base import Pool
from methods.parts.angular import angle_statistics, balanced_angles, nearest_negatives
from tests.methods.table import PixelBackbone, Table, numbers, same
from tests.methods.table import task as task_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "bbam.json").read_text())
FIRST, SECOND = GOLDEN["epochs"]
LABELS = numbers(GOLDEN["labels"])


def method_of(**hyper):
    features = numbers(FIRST["pool_model"])
    method = methods.create(
        "bbam",
        backbone=PixelBackbone(),
        task=task_of(LABELS, len(features)),
        negatives=GOLDEN["eta"],
        width=features.shape[1],
        **hyper,
    ).double()
    with torch.no_grad():
        method.classifier.weight.copy_(numbers(GOLDEN["weight"]))
    return method


def scored(method, features):
    """What `score_pool` returns of images with these projected features."""
    features = numbers(features)
    scores = method._scores(method.classifier.cosines(features)).detach()
    return torch.cat([scores, features], dim=1)


def refreshed(method, epoch, number):
    average = scored(method, epoch["pool_average"])
    pool = Pool(number, average[:, :3], average[:, 3:])
    pool.model_scores = scored(method, epoch["pool_model"])
    pool.model_labelled = scored(method, epoch["labelled_model"])
    method.refresh(pool)


@pytest.fixture(scope="module", params=[1, 2], ids=["first epoch", "second epoch"])
def at_epoch(request):
    """The method after the refresh of an epoch, and the official numbers of it."""
    method = method_of()
    for number, epoch in enumerate(GOLDEN["epochs"][: request.param]):
        refreshed(method, epoch, number)
    return method, epoch


def test_pseudo_labels_statistics_and_sampling_are_those_of_the_official_code(at_epoch):
    method, epoch = at_epoch
    same(method.pool_targets, epoch["pseudo_labels"])
    same(method.means, epoch["means"])
    same(method.variances, epoch["variances"])
    # It has the sampling of the pool apart from the confidence.
    same(method.labelled_mask, epoch["labelled_sampled"])
    same(method.pool_mask, numbers(epoch["pool_sampled"]) * numbers(epoch["mask"]))


def step_on(method, epoch, make_batch):
    """A step on given cosines of strong views, its batch and its losses."""
    rows = torch.cat([numbers(epoch["strong_labelled"]), numbers(epoch["strong_unlabelled"])])
    table = Table(rows)
    images = torch.arange(len(rows)).double().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    batch = dataclasses.replace(
        make_batch(labelled=4, unlabelled=8, size=2),
        targets=LABELS[:4],
        strong_labelled=images[:4],
        strong_unlabelled=images[4:],
    )
    kept, method.classifier = method.classifier, table
    try:
        output = method(batch)
    finally:
        method.classifier = kept
    (gradient,) = torch.autograd.grad(sum(output.losses.values()), table.rows)
    return output, gradient


def test_losses_and_gradients_are_those_of_the_official_code(at_epoch, make_batch):
    method, epoch = at_epoch
    output, gradient = step_on(method, epoch, make_batch)
    same(output.losses["labelled"], epoch["labelled"])
    same(output.losses["unlabelled"], epoch["unlabelled"])
    same(gradient, epoch["gradient"], 1e-8)


def test_scores_of_images_without_a_label_are_the_official_ones_with_one_half(at_epoch):
    method, epoch = at_epoch
    same(scored(method, epoch["pool_model"])[:, :3] / method.hyper.scale, epoch["scores"])


def test_the_warm_up_has_the_margin_and_no_balance(make_batch):
    method = methods.create("bbam", backbone=PixelBackbone(), task=task_of(LABELS, 0)).double()
    rows = numbers(FIRST["strong_labelled"]).requires_grad_()
    method.classifier = torch.nn.Identity()
    batch = make_batch(labelled=4, unlabelled=0, size=2)
    none = rows.new_empty(0, 3)
    batch = dataclasses.replace(batch, targets=LABELS[:4], strong_labelled=rows, strong_unlabelled=none)
    output = method(batch)
    same(output.losses["labelled"], GOLDEN["warmup"]["labelled"])
    same(torch.autograd.grad(output.losses["labelled"], rows)[0], GOLDEN["warmup"]["gradient"])


def test_the_official_pseudo_labels_would_be_others_with_the_hidden_labels():
    # What the method must not do: its transform of the same scores, with the labels that nobody knows.
    method = method_of()
    refreshed(method, FIRST, 0)
    cosines = method.classifier.cosines(numbers(SECOND["pool_average"]))
    leaky = method.balanced(cosines, numbers(GOLDEN["hidden"]))
    same(leaky, SECOND["leaky_transformed"])
    assert SECOND["leaky_pseudo_labels"] != SECOND["pseudo_labels"]


def test_both_states_have_one_variance_and_their_own_means_afterwards():
    generator = torch.Generator().manual_seed(0)
    angles = 0.3 * torch.randn(500, 2, generator=generator, dtype=torch.float64) + 1.4
    positive = (torch.rand(500, 2, generator=generator) < 0.3).double()
    angles = torch.where(positive.bool(), (angles - 1.4) / 3 + 0.9, angles)
    states, zero = torch.stack([1 - positive, positive]), torch.zeros(2, 2, dtype=torch.float64)
    means, variances = angle_statistics(angles, states, zero, zero, 0.0)
    moved = balanced_angles(angles, positive, means, variances)
    after, spread = angle_statistics(moved, states, zero, zero, 0.0)
    assert torch.allclose(after, means, atol=1e-4)
    assert torch.allclose(spread, variances.mean(dim=0).expand(2, 2), rtol=1e-6)
    assert (variances[0] > 5 * variances[1]).all()


@pytest.mark.parametrize("shown", [0, 1, 6])
def test_a_class_that_none_one_or_every_labelled_image_shows_stays_finite(shown, make_batch):
    # The official code divides by a variance of 0 there, and every loss becomes NaN.
    labels = torch.zeros(6, 3)
    labels[:3, 0], labels[2:, 1], labels[:shown, 2] = 1, 1, 1
    method = methods.create("bbam", backbone=PixelBackbone(), task=task_of(labels, 5), width=4)
    pool = torch.randn(11, 7, generator=torch.Generator().manual_seed(1))
    for epoch in range(2):
        known = {"model_labelled": pool[5:], "model_scores": pool[:5]}
        method.refresh(Pool(epoch, pool[:5, :3], pool[:5, 3:], **known))
    batch = make_batch(labelled=6, unlabelled=5, size=2)
    output = method(dataclasses.replace(batch, targets=labels))
    sum(output.losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in method.parameters())
    assert torch.isfinite(method.predict(batch.strong_labelled)).all()
    if shown == 0:
        assert not method.labelled_mask[:, 2].any()  # no prototype that a negative could be near to
    assert method.labelled_mask[:shown, 2].all()


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0, 100.0])
def test_sampling_is_the_loop_over_sorted_negatives(share):
    generator = torch.Generator().manual_seed(3)
    cosines, draws = torch.rand(40, 5, generator=generator), torch.rand(40, 5, generator=generator)
    states = torch.stack([draws < 0.6, draws > 0.8]).float()  # the others are not used
    found = nearest_negatives(cosines, states, share)
    for k in range(5):
        negatives = [n for n in range(40) if states[0, n, k]]
        count = int(min(share * states[1, :, k].sum().item(), len(negatives)))
        expected = sorted(negatives, key=lambda n: -cosines[n, k].item())[:count]
        assert found[:, k].nonzero().flatten().tolist() == sorted(expected)


def test_statistics_stay_finite_where_cosines_are_one():
    method = method_of()
    refreshed(method, FIRST, 0)
    cosines = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    method.angular_loss(cosines, torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)).sum().backward()
    assert torch.isfinite(cosines.grad).all()

"""cap, top_k, iat: pseudo-labels of the pool's scores, kept through an epoch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import methods
from methods.base import Batch, Pool, Task
from methods.errors import UserError
from methods.losses import asymmetric_loss
from tests.methods.table import PixelBackbone

GOLDEN = json.loads((Path(__file__).parent / "golden" / "noisy.json").read_text(encoding="utf-8"))
NAMES = ("cap", "top_k", "iat")


def task_of(labels, unlabelled):
    names = tuple(f"class {k}" for k in range(labels.shape[1]))
    return Task(names, names, labels.float(), num_unlabelled=unlabelled, seed=0)


def build(name, labels, unlabelled, **hyper):
    return methods.create(name, backbone=PixelBackbone(), task=task_of(labels, unlabelled), **hyper)


def pool_of(scores, epoch=0):
    return Pool(epoch, scores, scores[:, :0])


def batch_of(labels, positions):
    generator = torch.Generator().manual_seed(3)

    def images(count):
        return torch.rand(count, 3, 2, 2, generator=generator)

    n, m = len(labels), len(positions)
    return Batch(
        0, 0, torch.arange(n), images(n), images(n), labels.float(), positions, images(m), images(m), n, m
    )


def golden_labels():
    """Labelled images with the numbers of positives of the golden case."""
    part = GOLDEN["cap"]
    return (torch.arange(part["labelled"])[:, None] < torch.tensor(part["counts"])).float()


def test_cap_labels_the_pool_as_the_official_code_but_for_classes_that_nobody_shows():
    part, labels = GOLDEN["cap"], golden_labels()
    scores = torch.tensor(part["scores"])
    for case in part["cases"]:
        method = build("cap", labels, len(scores), eta_pos=case["eta_pos"], eta_neg=case["eta_neg"])
        assert method.wants_pool(0)
        assert method.wants_pool(7)
        method.refresh(pool_of(scores))
        present = labels.any(dim=0)
        official = torch.tensor(case["targets"]).bool()
        assert torch.equal(method.pool_targets[:, present], official[:, present])
        assert torch.equal(method.pool_mask[:, present], torch.tensor(case["mask"]).bool()[:, present])
        assert official[:, ~present].all()
        assert not method.pool_targets[:, ~present].any()


def test_the_defaults_are_those_that_the_official_code_runs_with():
    asked, used = (1.0, 1.0), GOLDEN["cap"]["cases"][0]
    hyper = methods.hyper("cap")
    assert (hyper.eta_pos, hyper.eta_neg) == (used["eta_pos"], used["eta_neg"]) != asked
    assert (hyper.loss, hyper.gamma_pos, hyper.gamma_neg, hyper.clip) == ("asl", 0.0, 4.0, 0.05)
    assert hyper.unlabelled_weight == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_the_sum_of_both_losses_with_the_rows_of_the_table(name):
    labels = golden_labels()
    scores = torch.tensor(GOLDEN["cap"]["scores"])
    method = build(name, labels, len(scores))
    method.refresh(pool_of(scores))
    positions = torch.tensor([59, 0, 17, 4])
    batch = batch_of(labels[:3], positions)
    kept = [buffer.clone() for buffer in (method.pool_targets, method.pool_mask)]
    output = method(batch)
    targets, mask = kept[0][positions].float(), kept[1][positions].float()
    assert torch.equal(output.pseudo_labels.targets, targets)
    assert torch.equal(output.pseudo_labels.mask, mask)
    known = asymmetric_loss(method.predict(batch.strong_labelled), batch.targets).sum()
    unknown = (mask * asymmetric_loss(method.predict(batch.strong_unlabelled), targets)).sum()
    torch.testing.assert_close(output.losses["labelled"], known)
    torch.testing.assert_close(output.losses["unlabelled"], unknown)
    other = build(name, labels, len(scores))
    other.load_training_state(method.training_state())  # an epoch is continued without its scores
    assert torch.equal(other(batch).losses["unlabelled"], output.losses["unlabelled"])


def test_numbers_of_an_image_are_k_or_what_is_expected():
    scores = torch.tensor([[3.0, 1.0, -1.0, -3.0], [-4.0, -3.0, -5.0, -4.5]])
    labels = torch.eye(4)
    top = build("top_k", labels, 2, k=1)
    top.refresh(pool_of(scores))
    assert top.pool_targets.int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    adaptive = build("iat", labels, 2)
    adaptive.refresh(pool_of(scores))  # sums of probabilities: 2.0 and .08
    assert adaptive.pool_targets.int().tolist() == [[1, 1, 0, 0], [0, 1, 0, 0]]
    for method in (top, adaptive):
        assert method.pool_mask.all()


def test_a_k_that_leaves_no_class_negative_is_refused_by_name():
    method = methods.get("top_k")
    backbone = methods.backbones.BackboneSpec("torchvision/resnet18")
    method.check_task(methods.hyper("top_k", k=3), 4, backbone)
    for k, classes in ((4, 4), (5, 4), (1, 1)):
        with pytest.raises(
            UserError, match=rf"top_k\.k: {k} of {classes} classes .* smaller than the number"
        ):
            method.check_task(methods.hyper("top_k", k=k), classes, backbone)
    with pytest.raises(UserError, match="k: 0 is not allowed; it must be at least 1"):
        methods.hyper("top_k", k=0)
    with pytest.raises(UserError, match=r"eta_neg: 1.5 is not allowed; it must be between 0 and 1"):
        methods.hyper("cap", eta_neg=1.5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("images", "classes", "unlabelled"), [(5, 4, 3), (5, 4, 1), (1, 4, 3), (5, 1, 3)])
def test_few_images_and_one_class_never_make_all_positive(name, images, classes, unlabelled):
    labels = torch.zeros(images, classes)
    labels[0, 0] = 1  # no labelled image shows the others
    if name == "top_k" and classes == 1:
        return  # refused, see above
    method = build(name, labels, unlabelled)
    scores = torch.randn(unlabelled, classes, generator=torch.Generator().manual_seed(1)) - 1
    method.refresh(pool_of(scores))
    positives = method.pool_targets.float().mean(dim=0)
    if name == "cap":
        # One of one image shows the first class, so all are expected to; of five, none of three.
        expected = [images * unlabelled // images if images == 1 else unlabelled // images]
        assert method.pool_targets.sum(dim=0).tolist() == [*expected, *[0] * (classes - 1)]
    else:
        assert positives.mean() < 1
    output = method(batch_of(labels, torch.arange(unlabelled)))
    assert all(torch.isfinite(loss) for loss in output.losses.values())


def test_diverged_scores_are_named_and_no_label():
    for name in NAMES:
        method = build(name, torch.eye(4), 2)
        with pytest.raises(ValueError, match="the model has diverged"):
            method.refresh(pool_of(torch.tensor([[0.0, torch.nan, 1.0, 2.0]] * 2)))


def test_without_unlabelled_images_no_scores_are_asked_for():
    for name in NAMES:
        method = build(name, torch.eye(4), 0)
        assert not method.wants_pool(0)
        output = method(dataclasses.replace(batch_of(torch.eye(4), torch.arange(0)), global_unlabelled=0))
        assert output.losses["unlabelled"] == 0

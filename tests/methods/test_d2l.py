"""D2L against numbers of its official code, and each of its parts switched off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import methods
from methods.base import Batch, Pool
from methods.errors import UserError
from tests.methods.table import PixelBackbone, same, task

GOLDEN = json.loads((Path(__file__).parent / "golden" / "d2l.json").read_text())
TARGETS = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 1]], dtype=torch.float64)


def wave(*shape: int, phase: float, scale: float = 1.0) -> torch.Tensor:
    """Numbers that the golden ones were made with."""
    count = torch.Size(shape).numel()
    return (scale * torch.sin(1.7 * torch.arange(count, dtype=torch.float64) + phase)).view(shape)


def built(**hyper) -> methods.base.StepMethod:
    method = methods.create("d2l", backbone=PixelBackbone(), task=task(TARGETS, 4), head="linear", **hyper)
    method.double()
    layer = method.classifier.backbone.layer
    layer.weight.data, layer.bias.data = wave(6, 12, phase=5, scale=0.8), wave(6, phase=6, scale=0.2)
    for number, head in enumerate(heads_of(method)):
        if head is not None:
            head.weight.data = wave(3, 6, phase=10 + number, scale=1.5)
            head.bias.data = wave(3, phase=20 + number, scale=0.5)
    return method


def heads_of(method):
    """In the order of the code: whole and patches of labelled, then of unlabelled images."""
    return (method.classifier, method.patch_head, method.pool_head, method.pool_patch_head)


def views(grid: int = 2) -> dict[str, torch.Tensor]:
    sizes = {"strong_labelled": 3, "weak_unlabelled": 4, "strong_unlabelled": 4}
    found = {
        name: (wave(size, 5, 3, 2, 2, phase=phase) + 1) / 2
        for phase, (name, size) in enumerate(sizes.items())
    }
    return found if grid else {name: images[:, 0] for name, images in found.items()}


def batch_of(grid: int = 2, unlabelled: bool = True) -> Batch:
    images = {
        name: value if unlabelled or "un" not in name else value[:0] for name, value in views(grid).items()
    }
    count = len(images["weak_unlabelled"])
    return Batch(
        0, 0, torch.arange(3), targets=TARGETS, unlabelled=torch.arange(count), global_labelled=3,
        global_unlabelled=count, weak_labelled=images["strong_labelled"], **images,
    )  # fmt: skip


def with_teacher(method):
    teacher = built(**{name: getattr(method.hyper, name) for name in ("grid", "pairs")})
    teacher.share_state(method)
    method.set_teacher(teacher.eval())
    return method


def test_a_step_is_the_official_one():
    method = with_teacher(built())
    method.thresholds = torch.tensor([0.35, 0.5, 0.6], dtype=torch.float64)
    output = method(batch_of())
    same(output.pseudo_labels.targets.flatten(), GOLDEN["pseudo_labels"])
    assert output.pseudo_labels.mask.all()
    assert output.losses.keys() == GOLDEN["losses"].keys()
    for name, loss in output.losses.items():
        same(loss, GOLDEN["losses"][name], 1e-7)  # the code keeps logarithms above 1e-8
    sum(output.losses.values()).backward()
    for number, head in enumerate(heads_of(method), start=1):
        same(head.weight.grad.flatten(), GOLDEN["gradients"][f"head{number}"], 1e-7)
    same(method.classifier.backbone.layer.weight.grad.flatten(), GOLDEN["gradients"]["layer"], 1e-7)


def test_scores_are_the_mean_of_whole_and_joined_patches():
    with torch.no_grad():
        found = torch.sigmoid(built().predict(views()["weak_unlabelled"]))
    same(found.flatten(), GOLDEN["probabilities"])


def test_joined_patches_do_not_depend_on_their_order():
    images = views()["weak_unlabelled"]
    method = built()
    with torch.no_grad():
        turned = method.predict(images[:, [0, 3, 1, 4, 2]])
        torch.testing.assert_close(turned, method.predict(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [0, 2])
def test_without_decoupling_both_kinds_train_the_same_heads(grid):
    method = with_teacher(built(pairs="shared", grid=grid))
    apart = with_teacher(built(grid=grid))
    # With equal heads the losses are the same, and the gradients of a pair add up.
    for head, source in ((apart.pool_head, apart.classifier), (apart.pool_patch_head, apart.patch_head)):
        if head is not None:
            head.weight.data, head.bias.data = source.weight.data.clone(), source.bias.data.clone()
    for one in (method, apart):
        output = one(batch_of(grid))
        assert len(output.losses) == (4 if grid else 2)
        sum(output.losses.values()).backward()
    both = apart.classifier.weight.grad + apart.pool_head.weight.grad
    torch.testing.assert_close(method.classifier.weight.grad, both, rtol=1e-12, atol=1e-12)


def test_pseudo_labels_do_not_reach_the_heads_that_make_them():
    method = with_teacher(built())
    output = method(batch_of())
    (output.losses["unlabelled_whole"] + output.losses["unlabelled_patches"]).backward()
    assert method.classifier.weight.grad is None
    assert method.patch_head.weight.grad is None
    assert method.pool_head.weight.grad.any()


def test_thresholds_are_the_best_on_labelled_images_and_an_absent_class_has_no_positive():
    method = methods.create("d2l", backbone=PixelBackbone(), task=task([[1, 0], [0, 0], [1, 0]], 4))
    labelled = torch.logit(torch.tensor([[0.9, 0.9], [0.2, 0.8], [0.4, 0.7]]))
    method.refresh(Pool(0, labelled[:0], labelled[:0, :0], labelled=labelled))
    assert method.thresholds[0].item() == pytest.approx(0.21)  # above .2, up to .4, all are right
    assert method.thresholds[1].isinf()
    half = methods.create("d2l", backbone=PixelBackbone(), task=task([[1, 0]], 4), thresholds="half")
    assert not half.wants_pool(0)
    assert half.thresholds.tolist() == [0.5, 0.5]


def test_the_warm_up_trains_the_labelled_pair_and_the_other_starts_from_it():
    method = built()
    output = method(batch_of(unlabelled=False))
    assert output.pseudo_labels is None
    assert output.losses["unlabelled_whole"] == 0
    state = built().training_state()
    method.load_warmup(state)
    whole, patches, pool, pool_patches = heads_of(method)
    assert torch.equal(pool.weight, whole.weight)
    assert torch.equal(pool_patches.weight, patches.weight)
    assert not torch.equal(whole.weight, patches.weight)


def test_all_switches_share_one_warm_up():
    cls = methods.get("d2l")
    hypers = [
        methods.registry.hyper("d2l", **one) for one in ({}, {"pairs": "shared"}, {"thresholds": "half"})
    ]
    assert len({cls.warmup_hyper(hyper) for hyper in hypers}) == 1


@pytest.mark.parametrize("field", [{"pairs": "both"}, {"thresholds": "f2"}, {"grid": -1}, {"beta": -1.0}])
def test_wrong_values_are_named(field):
    with pytest.raises(UserError, match=next(iter(field))):
        methods.registry.hyper("d2l", **field)

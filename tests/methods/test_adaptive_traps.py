"""FlexMatch, FreeMatch, SoftMatch, AdaMatch: faults that public code has, and unusual data."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import methods
from benchmarks.checks import contract
from methods.errors import UserError
from tests.methods.test_adaptive_thresholds import FIVE, TWO, batch_of, build, close, double, step

NAMES = ("adamatch", "flexmatch", "freematch", "softmatch")


# -- traps of public code ------------------------------------------------------------------------------------


def test_fairness_leaves_out_a_class_without_a_used_entry():
    """The binary form of the code divides by the 0 entries of such a class."""
    weak, strong = torch.full((3, 2), 3.0).double(), double([[1.0, -1.0], [2.0, 0.5], [-0.5, 0.3]])
    weak[:, 1] = -0.1  # c = .525: below any threshold that starts high
    method = build("freematch", TWO, momentum=1.0, fairness_weight=1.0)
    method.confidence = double([0.9, 0.9])
    leaf = strong.clone().requires_grad_()
    output = step(method, batch_of(weak, leaf))
    assert output.pseudo_labels.mask.sum(dim=0).tolist() == [3, 0]
    one = build("freematch", [row[:1] for row in TWO], momentum=1.0, fairness_weight=1.0)
    one.confidence = double([0.9])
    alone = strong[:, :1].clone().requires_grad_()
    expected = step(one, batch_of(weak[:, :1], alone))
    # Twice the entries, the mean over the one class that is used.
    close(output.losses["fairness"], 2 * expected.losses["fairness"].item())
    found = torch.autograd.grad(output.losses["fairness"], leaf)[0]
    assert found[:, 1].tolist() == [0, 0, 0]
    close(found[:, :1], (2 * torch.autograd.grad(expected.losses["fairness"], alone)[0]).tolist())
    nothing = build("freematch", TWO, momentum=1.0, fairness_weight=1.0)
    nothing.confidence = double([2.0, 2.0])
    leaf = strong.clone().requires_grad_()
    output = step(nothing, batch_of(weak, leaf))
    assert output.losses["fairness"] == 0
    assert torch.autograd.grad(output.losses["fairness"], leaf)[0].abs().max() == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_fairness_of_a_class_in_one_state_has_no_slope_in_float32(sign):
    """All predicted alike: b is 1 or 0, where rounding times the slope of the logarithm would be large."""
    strong = (sign * torch.rand(7, 3, generator=torch.Generator().manual_seed(1)) * 5 + sign).requires_grad_()
    method = build("freematch", dtype=torch.float32, momentum=1.0, fairness_weight=1.0)
    output = step(method, batch_of(torch.full((7, 3), 2.0), strong))
    assert torch.isfinite(output.losses["fairness"])
    assert torch.autograd.grad(output.losses["fairness"], strong)[0].abs().max() < 1e-6


def test_variances_are_those_of_all_images_and_not_means_over_processes():
    """Also where a process has one image, whose own variance is not defined, or none."""
    weak = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).double()
    whole = build("softmatch", momentum=0.0)
    step(whole, batch_of(weak))
    p = torch.sigmoid(weak)
    aligned = whole.alignment(p)
    close(whole.variance, torch.maximum(aligned, 1 - aligned).var(dim=0, unbiased=True).tolist(), 1e-9)
    parts = [contract.copy_of(build("softmatch", momentum=0.0)) for _ in range(3)]
    for size in (7, 3, 2):
        batch = batch_of(weak[:size])

        def work(rank, processes, batch=batch):
            return step(parts[rank], contract.share(batch, rank, 3, processes))

        contract.Simulated(3).run(work)
        step(whole, batch)
        for part in parts:
            close(part.variance, whole.variance.tolist(), 1e-9)
            close(part.mean, whole.mean.tolist(), 1e-12)


def test_equal_confidences_and_single_images_leave_softmatch_defined():
    method = build("softmatch", momentum=0.0)
    for count in (4, 1, 1):  # the variance of equal values is 0, of one value unknown: it stays
        found = step(method, batch_of(torch.full((count, 3), 1.5).double())).pseudo_labels
        close(found.weight, torch.ones(count, 3).tolist(), 1e-6)
        assert torch.isfinite(method.variance).all()
    before = method.variance.clone()
    step(method, batch_of(torch.randn(1, 3).double()))
    assert torch.equal(method.variance, before)


def test_softmatch_has_no_mean_that_falls_for_a_state_that_batches_lack():
    """The code with per_class=True counts a state without images as mean 0 and variance 1."""
    method = build("softmatch", momentum=0.9)
    for number in range(100):
        generator = torch.Generator().manual_seed(number)
        step(method, batch_of(torch.randn(8, 3, generator=generator).double() - 8))
    assert (method.mean > 0.5).all()
    # Logits that are .01 and .5 once they are aligned: surer than the mean, and as unsure as can be.
    centre = torch.logit(method.alignment_mean) - torch.logit(method.alignment_target)
    found = step(method, batch_of(torch.stack([centre - 4.6, centre]))).pseudo_labels
    assert (found.weight[0] > 0.99).all()
    assert (found.weight[1] < 0.2).all(), found.weight[1]


def test_an_image_that_another_process_saw_counts_here():
    """The code of FlexMatch has a memory in each process."""
    parts = [build("flexmatch", pool=4) for _ in range(2)]
    batch = batch_of(torch.tensor([[9.0, -9.0, -9.0], [-9.0, 9.0, -9.0]]).double())
    contract.Simulated(2).run(
        lambda rank, processes: step(parts[rank], contract.share(batch, rank, 2, processes))
    )
    for part in parts:
        assert part.counts.tolist() == [1, 1, 0]
        assert part.unselected == 2
        assert part.selected[:2].long().tolist() == [[1, 0, 0], [0, 1, 0]]


# -- unusual data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("labels", "pool", "size"),
    [
        (FIVE, 20, 6),  # five labelled images, a class without one
        ([[1], [0], [1]], 20, 6),  # one class
        (FIVE, 2, 2),  # a pool smaller than a batch
        ([[0, 0, 0]], 1, 1),  # one image of each kind, without a label
        ([[1, 1, 1]], 20, 6),  # every class everywhere
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unusual_data_is_defined(name, labels, pool, size, dtype):
    """Losses, gradients and state stay finite; what the model calls absent stays absent."""
    method = build(name, labels, pool, dtype)
    classes = len(labels[0])
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        # The model finds the first class in a third of the images, and others hardly ever.
        weak = torch.randn(size, classes, generator=generator).to(dtype) * 2 - 1
        weak[:, 1:] -= 6
        strong = weak.clone().requires_grad_()
        known = torch.randn(2, classes, generator=generator).to(dtype) - 2
        output = step(method, batch_of(weak, strong, known))
        losses = torch.stack(list(output.losses.values()))
        assert torch.isfinite(losses).all()
        assert torch.isfinite(torch.autograd.grad(losses.sum(), strong, allow_unused=True)[0]).all()
        for state in method.state_names:
            assert torch.isfinite(getattr(method, state).double()).all(), state
        pseudo = output.pseudo_labels
        used = pseudo.weighted_mask > 0
        if size > 2:  # the mean of a single step of one or two images moves predictions far
            absent = double(labels).mean(dim=0) < 1
            assert not ((pseudo.targets >= 0.5) & used).all(dim=0)[absent].any()
        empty = batch_of(weak[:0], None, known)
        assert torch.isfinite(torch.stack(list(step(method, empty).losses.values()))).all()


@pytest.mark.parametrize(("loss", "share"), [("bce", 0.5), ("asl", 0.0359)])
def test_at_which_share_of_positives_a_loss_rests_at_one_half(loss, share):
    """A label at .5 means "more often than not" with the default loss, with ASL "in 3.6 % of the images"."""
    assert all(methods.hyper(name).loss == "bce" for name in NAMES)
    method = methods.create(
        "supervised", backbone=contract.tiny_backbone(), task=contract.tiny_task(), loss=loss
    )
    logit = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    method.loss(logit, double([[1], [0]])).sum().backward()
    up, down = logit.grad[:, 0].tolist()
    assert share * up + (1 - share) * down == pytest.approx(0, abs=1e-4)


def test_wrong_hyper_parameters_are_refused():
    for name, field, value in (
        ("flexmatch", "threshold", 0.3),
        ("freematch", "momentum", 1.2),
        ("freematch", "fairness_weight", -1.0),
        ("softmatch", "n_sigma", -1.0),
        ("adamatch", "relative_threshold", 2.0),
    ):
        with pytest.raises(UserError, match=rf"{field}: .* is not allowed; it must be"):
            methods.hyper(name, **{field: value})


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_its_own_has_a_range_that_holds_its_default(name):
    for field in dataclasses.fields(methods.get(name).Hyper):
        if field.metadata:
            assert field.metadata["low"] <= field.default <= field.metadata["high"], field.name
            assert field.metadata["scale"] in ("log", "linear")

"""Losses of the noisy-label family against numbers of the official code, whose commits `golden` names."""

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from methods.losses import (
    binary_cross_entropy,
    binary_entropy,
    hill_loss,
    large_loss,
    large_loss_changes,
    splc_loss,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "noisy.json").read_text(encoding="utf-8"))
LARGE = GOLDEN["large_loss"]
ELEMENTWISE = [
    lambda z, y: hill_loss(z, y),
    lambda z, y: splc_loss(z, y, correct=False),
    lambda z, y: splc_loss(z, y, correct=True),
    lambda z, y: large_loss(z, y, 2, "R"),
    lambda z, y: large_loss(z, y, 2, "Ct"),
    lambda z, y: binary_entropy(z) + 0 * y,
]


def tensors(part, *names):
    return [torch.tensor(part[name], dtype=torch.float32) for name in names]


def close(found, part, logits, scale=1.0, atol=2e-6):
    """Loss and gradient of the sum are those of the official code."""
    loss, gradient = tensors(part, "loss", "gradient")
    torch.testing.assert_close(scale * found, loss, rtol=2e-6, atol=atol)
    (ours,) = torch.autograd.grad(scale * found.sum(), logits)
    torch.testing.assert_close(ours, gradient, rtol=1e-5, atol=atol)


def test_hill_and_splc_are_those_of_the_official_code():
    part = GOLDEN["robust"]
    logits, targets = tensors(part, "logits", "targets")
    logits.requires_grad_()
    close(hill_loss(logits, targets), part["hill"], logits)
    close(splc_loss(logits, targets, correct=False), part["splc"], logits)
    close(splc_loss(logits, targets, correct=True), part["splc_corrected"], logits)
    changed = torch.tensor(part["splc"]["loss"]) != torch.tensor(part["splc_corrected"]["loss"])
    assert changed.any()  # the numbers do tell the two apart
    assert torch.equal(changed, (targets == 0) & (torch.sigmoid(logits) > 0.6))


@pytest.mark.parametrize(
    "case", [case for case in LARGE["cases"] if "typed" not in case["scheme"]], ids=lambda c: f"{c['scheme']}"
)
def test_large_loss_is_that_of_the_official_code(case):
    # There the mean over the batch and the changed and flipped entries, in the second epoch.
    logits, observed = tensors(LARGE, "logits", "observed")
    share = Fraction(str(case["rate"])) * (1 if case["scheme"] == "Cp" else 2)
    k = math.ceil(share * logits.numel())
    logits.requires_grad_()
    loss = large_loss(logits, observed, k, case["scheme"])
    assert float(loss.mean().detach()) == pytest.approx(case["loss"], rel=2e-6)
    (ours,) = torch.autograd.grad(loss.mean(), logits)
    torch.testing.assert_close(ours, torch.tensor(case["gradient"]), rtol=1e-5, atol=1e-8)
    _, flipped = large_loss_changes(logits, observed, k)
    assert flipped.nonzero().tolist() == case["flipped"]


def test_the_official_code_takes_cp_from_a_command_line_for_ct():
    # It compares texts with `is`: nothing is flipped for good. Ours does what the scheme's name says.
    cases = {(case["scheme"], case["rate"]): case for case in LARGE["cases"]}
    for rate in {rate for _, rate in cases}:
        typed, meant = cases["Cp-typed", rate], cases["Cp", rate]
        assert typed["gradient"] == cases["Ct", rate]["gradient"] != meant["gradient"]


def test_ties_with_the_kth_largest_loss_all_change_and_only_larger_ones_flip():
    logits = torch.tensor([[1.0, 2.0], [2.0, 3.0], [2.0, 5.0]])
    observed = torch.tensor([[0, 0], [0, 0], [0, 1]])  # the largest loss of all is observed
    changed, flipped = large_loss_changes(logits, observed, 2)
    assert changed.tolist() == [[False, True], [True, True], [True, False]]
    assert flipped.tolist() == [[False, False], [False, True], [False, False]]
    assert not large_loss_changes(logits, observed, 1)[1].any()
    for k in (6, 7, 1000):  # fewer unobserved entries than that: all of them, and never the observed one
        assert torch.equal(large_loss_changes(logits, observed, k)[0], observed == 0)
    for scheme in ("R", "Ct", "Cp"):
        plain = binary_cross_entropy(logits, observed)
        assert torch.equal(large_loss(logits, observed, 0, scheme), plain)
        assert torch.equal(large_loss(logits, observed, 9, scheme)[2, 1], plain[2, 1])


def test_the_k_largest_are_those_of_all_processes():
    torch.manual_seed(0)
    logits = torch.randn(7, 4)
    observed = (torch.rand(7, 4) < 0.2).float()
    whole = large_loss_changes(logits, observed, 5)
    losses = torch.nn.functional.softplus(logits).masked_fill(observed > 0, -torch.inf)
    for rank in range(2):
        own = large_loss_changes(logits[rank::2], observed[rank::2], 5, gather=lambda rows: losses)
        assert all(torch.equal(a, b[rank::2]) for a, b in zip(own, whole, strict=True))
    none = large_loss_changes(logits[:0], observed[:0], 5, gather=lambda rows: losses)
    assert all(mask.shape == (0, 4) for mask in none)


def test_the_entropy_is_that_of_vlpl_without_what_it_adds_in_the_logarithm():
    part = GOLDEN["vlpl"]
    logits, observed = tensors(part, "logits", "observed")
    official, gradient = tensors(part, "loss", "gradient")
    logits.requires_grad_()
    ours = torch.where(observed > 0, binary_cross_entropy(logits, observed), -0.2 * binary_entropy(logits))
    eps, p = 1e-5, torch.sigmoid(logits)
    assert ((ours - official).abs() <= torch.where(observed > 0, eps / p, 0.2 * 2 * eps) + 1e-6).all()
    (found,) = torch.autograd.grad(ours.sum(), logits)
    assert ((found - gradient).abs() <= eps / torch.minimum(p, 1 - p) + 1e-6).all()


def test_the_entropy_is_accurate_for_sure_predictions():
    z = torch.tensor([[0.0, 20.0, -40.0, 80.0]])
    q = torch.exp(-z.double().abs())
    exact = torch.log1p(q) + z.double().abs() * q / (1 + q)  # H = softplus(-|z|) + |z| (1 - p)
    torch.testing.assert_close(binary_entropy(z).double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(binary_entropy(z.double()), exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", ELEMENTWISE)
def test_losses_are_defined_at_the_edges(loss):
    assert loss(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 3)
    assert loss(torch.zeros(2, 1), torch.zeros(2, 1)).shape == (2, 1)
    logits = torch.tensor([[60000.0, -60000.0, -200.0, 0.0]], dtype=torch.float16).requires_grad_()
    for target in (0.0, 1.0):
        found = loss(logits, torch.full((1, 4), target))
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert torch.isfinite(gradient).all()
    assert loss(torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 2)).dtype == torch.float64
    diverged = loss(torch.full((2, 2), torch.nan), torch.zeros(2, 2))
    assert torch.isnan(diverged).all()  # for the trainer to name: nothing hides it, not even a rejected entry


def test_soft_targets_mix_the_two_terms():
    logits = torch.linspace(-3, 3, 8)[None]
    ones, soft = torch.ones(1, 8), torch.full((1, 8), 0.3)
    for loss in ELEMENTWISE[:3]:
        mixed = 0.3 * loss(logits, ones) + 0.7 * loss(logits, 0 * ones)
        torch.testing.assert_close(loss(logits, soft), mixed)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, math.nan])
def test_targets_outside_the_unit_interval_are_refused_by_name(wrong):
    logits, targets = torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [wrong, 0.0]])
    for name, call in (("hill_loss", hill_loss), ("splc_loss", lambda z, y: splc_loss(z, y, True))):
        with pytest.raises(ValueError, match=rf"{name}: targets must lie in \[0, 1\], not {wrong:g}"):
            call(logits, targets)
    with pytest.raises(ValueError, match=rf"large_loss: observed must be 0 or 1, not {wrong:g}"):
        large_loss(logits, targets, 1, "R")


def test_other_wrong_input_is_named():
    logits = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"hill_loss: targets have the shape \(2, 1\), the logits \(2, 2\)"):
        hill_loss(logits, torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"observed must be 0 or 1, not 0\.5"):
        large_loss(logits, torch.full((2, 2), 0.5), 1, "R")
    with pytest.raises(ValueError, match="k: -1 is not allowed"):
        large_loss(logits, logits, -1, "R")
    with pytest.raises(ValueError, match="scheme 'LL-R' is none of R, Ct, Cp"):
        large_loss(logits, logits, 1, "LL-R")

"""ABL against numbers of its official code, and what it does at the edges."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from scipy import stats

import methods
from methods.abl import scaled_uncertainty
from methods.base import Pool
from methods.losses import beta_loss
from tests.methods.table import PixelBackbone
from tests.methods.table import task as task_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "abl.json").read_text())


def numbers(name: str) -> torch.Tensor:
    return torch.tensor(GOLDEN[name], dtype=torch.float64)


@pytest.mark.parametrize("run", GOLDEN["losses"], ids=lambda run: f"{run['settings']}-{run['targets']}")
def test_loss_and_gradients_are_those_of_the_official_code(run):
    settings = {"gamma_neg": 4, "k": 2, **run["settings"]}
    alpha, beta = (numbers(f"{name}_noisy").requires_grad_() for name in ("alpha", "beta"))
    found = beta_loss(
        alpha, beta, numbers(run["targets"]), settings["gamma_neg"], settings["clip"], settings["k"]
    )
    found.sum().backward()
    # It holds the margin in float32.
    for value, name in ((found, "loss"), (alpha.grad, "alpha_gradient"), (beta.grad, "beta_gradient")):
        assert torch.allclose(value, torch.tensor(run[name], dtype=torch.float64), rtol=1e-6, atol=1e-8), name


@pytest.mark.parametrize(("alpha", "beta", "gamma"), [(1.0, 1.0, 1), (3.5, 1.2, 4), (1.1, 8.0, 2)])
def test_a_negative_costs_the_expected_focal_loss(alpha, beta, gamma):
    # E[p^γ · -log(1 - p)] of p ~ Beta(α, β), by numerical integration: the formula is exact without a margin.
    expected = stats.beta(alpha, beta).expect(lambda p: -(p**gamma) * math.log1p(-p))
    given = [torch.full((1, 1), value, dtype=torch.float64) for value in (alpha, beta, 0.0)]
    assert beta_loss(*given, gamma_neg=gamma, clip=0.0).item() == pytest.approx(expected, rel=1e-6)


def test_half_precision_is_computed_in_float32_and_large_evidence_stays_finite():
    alpha, beta = torch.tensor([[6e4, 1.0]]), torch.tensor([[1.0, 6e4]])
    for targets in (torch.zeros(1, 2), torch.ones(1, 2)):
        found = beta_loss(alpha.half(), beta.half(), targets)
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()
    huge = torch.tensor([[1e13]], requires_grad=True)
    beta_loss(huge, torch.ones(1, 1), torch.zeros(1, 1)).sum().backward()
    assert torch.isfinite(huge.grad).all()


def method_of(unlabelled: int, **hyper):
    labels = [[1, 0, 0], [0, 1, 1]]
    return methods.create(
        "abl", backbone=PixelBackbone(), task=task_of(labels, unlabelled), hidden=8, width=4, **hyper
    )


def log_odds(name: str) -> torch.Tensor:
    return (numbers(f"alpha_{name}") / numbers(f"beta_{name}")).log()


def test_pseudo_labels_and_image_weights_are_those_of_the_official_code():
    method = method_of(4).double()
    extra = torch.cat([log_odds("clean"), numbers("alpha_clean").sum(dim=1, keepdim=True)], dim=1)
    method.refresh(Pool(0, log_odds("noisy"), extra))
    assert torch.allclose(method.pool_targets, numbers("pseudo_labels"), rtol=1e-10)
    assert torch.allclose(method.image_weights, numbers("image_weights"), rtol=1e-10, atol=1e-12)


def test_scores_of_the_pool_are_what_refresh_reads():
    method = method_of(5)
    images = torch.rand(5, 3, 2, 2)
    scores = method.score_pool(images)
    alpha, beta = method.clean(method.backbone.features(images))
    assert torch.allclose(scores[:, :3], method.predict(images))
    assert torch.allclose(torch.sigmoid(scores[:, 3:6]), alpha / (alpha + beta), atol=1e-6)
    assert torch.allclose(scores[:, 6], alpha.sum(dim=1))
    assert ((alpha >= 1) & (beta >= 1)).all()


@pytest.mark.parametrize("images", [1, 3])
def test_equally_uncertain_images_all_count(images):
    assert torch.equal(scaled_uncertainty(torch.full((images,), 7.0), 3), torch.zeros(images))


def test_only_the_noisy_branch_learns_of_unlabelled_images(make_batch, task):
    method = methods.create("abl", backbone=PixelBackbone(), task=task, hidden=8, width=4)
    pool, classes = task.num_unlabelled, task.num_classes
    extra = torch.cat([torch.randn(pool, classes), torch.rand(pool, 1) + classes], dim=1)
    method.refresh(Pool(0, torch.randn(pool, classes), extra))
    method(make_batch(labelled=2, unlabelled=3, size=2)).losses["unlabelled"].backward()
    assert all(parameter.grad is None for parameter in method.clean.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.noisy.parameters())

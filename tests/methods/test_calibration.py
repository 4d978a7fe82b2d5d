"""Reliability of bins against numbers of DiCaP's code, and at the edges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from methods.calibration import bin_index, bin_reliability, margin_loss
from methods.errors import UserError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "reliability.json").read_text())


@pytest.mark.parametrize("repair", ["none", "monotone", "cubic"])
@pytest.mark.parametrize("run", GOLDEN["runs"], ids=lambda run: f"{run['bins']}x{len(run['labels'])}")
def test_shares_and_repairs_are_those_of_the_code(run, repair):
    found = bin_reliability(
        torch.tensor(run["probabilities"]), torch.tensor(run["labels"]), run["bins"], repair
    )
    torch.testing.assert_close(found, torch.tensor(run[repair], dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bins", [1, 2, 7, 20])
def test_every_probability_has_the_bin_that_holds_it(bins):
    values = torch.cat([torch.rand(500), torch.arange(bins + 1) / bins, torch.tensor([0.0, 1.0])])
    found = bin_index(values, bins)
    edges = (np.arange(bins + 1) / bins).astype(np.float32)
    expected = [
        min(int(np.searchsorted(edges, value, side="right")) - 1, bins - 1) for value in values.numpy()
    ]
    assert found.tolist() == expected


def test_probabilities_of_0_and_1_count_in_the_outer_bins():
    labels = torch.tensor([[0, 1, 1]])
    found = bin_reliability(torch.tensor([[0.0, 1.0, 1.0]]), labels, bins=4)
    assert found.tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("repair", ["monotone", "cubic"])
@pytest.mark.parametrize("bins", [1, 2, 3, 20])
def test_repairs_of_few_bins_and_of_empty_ones_are_shares(bins, repair):
    for probabilities in (torch.rand(50, 3), torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(0, 3)):
        found = bin_reliability(probabilities, (probabilities > 0.5).int(), bins, repair)
        assert found.shape == (bins,)
        assert ((found >= 0) & (found <= 1)).all()
        if repair == "monotone" and bins > 1:
            assert (found[:-1].diff() >= 0).all()


@pytest.mark.parametrize(
    ("probabilities", "labels", "repair", "words"),
    [
        ([[1.5]], [[1]], "none", "must lie in"),
        ([[float("nan")]], [[1]], "none", "must lie in"),
        ([[0.5, 0.5]], [[1]], "none", "shape"),
        ([[0.5]], [[1]], "monoton", "did you mean 'monotone'"),
    ],
)
def test_what_is_refused(probabilities, labels, repair, words):
    with pytest.raises(UserError, match=words):
        bin_reliability(torch.tensor(probabilities), torch.tensor(labels), repair=repair)


def test_half_precision_has_the_bins_of_float32():
    values = torch.rand(200).half()
    assert torch.equal(bin_index(values, 20), bin_index(values.float(), 20))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0])
def test_extreme_logits_and_half_precision_have_finite_losses_and_gradients(gamma):
    logits = torch.tensor([[-1e4, -200.0, -2.9, 0.0, 20.0, 200.0, 1e4]]).half().requires_grad_()
    for targets in (torch.zeros(1, 7), torch.ones(1, 7)):
        found = margin_loss(logits, targets, gamma, gamma)
        assert found.dtype == torch.float32
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert torch.isfinite(found).all()
        assert torch.isfinite(gradient).all()

"""InfoNCE between features of classes, against a loop and at the edges."""

from __future__ import annotations

import pytest
import torch

from methods.parts import class_features
from methods.parts.class_features import info_nce


@pytest.fixture(autouse=True, params=["as on a device", "as on a CPU"])
def place(request, monkeypatch):
    """Products are masked on a device, and left out on a CPU: both are tested here."""
    monkeypatch.setattr(class_features, "_reading_is_free", lambda tensor: request.param == "as on a CPU")


def test_info_nce_is_the_sum_by_hand():
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    used = (torch.rand(4, 3, generator=generator) < 0.6).double()
    entries = [(b, c) for b in range(4) for c in range(3) if used[b, c]]
    assert 2 < len(entries) < 12
    expected = 0.0
    for place in entries:
        products = torch.stack([q[place] @ k[other] / 0.7 for other in entries])
        expected -= torch.log_softmax(products, dim=0)[entries.index(place)]
    order = torch.tensor([2, 0, 3, 1])
    found = info_nce(q[:2], k[:2], used[:2], k[order], used[order], 0.7)
    found = found + info_nce(q[2:], k[2:], used[2:], k, used, 0.7)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("size", [0, 3])
def test_without_an_ambiguous_entry_info_nce_is_0_and_has_gradients_of_0(size):
    features = torch.randn(size, 2, 4, requires_grad=True)
    none = torch.zeros(size, 2)
    loss = info_nce(features, features, none, features, none, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_large_features_stay_finite_also_in_half_precision():
    features = (
        torch.full((2, 2, 512), 200.0).half().requires_grad_()
    )  # products of 2·10⁸, as float32 has them
    loss = info_nce(features, features, torch.ones(2, 2), features, torch.ones(2, 2), 0.1)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()

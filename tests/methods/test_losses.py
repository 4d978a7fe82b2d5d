import math

import pytest
import torch

import methods
from methods.losses import asymmetric_loss, binary_cross_entropy, pair_asymmetric_loss


def literal_asl(z, y, gamma_pos, gamma_neg, clip, eps=1e-8):
    """The formula of ASL (arXiv 2009.14119) for one entry, in plain Python."""
    p = 1 / (1 + math.exp(-z))
    q = min(1 - p + clip, 1.0)
    positive = y * (1 - p) ** gamma_pos * math.log(max(p, eps))
    negative = (1 - y) * (1 - q) ** gamma_neg * math.log(max(q, eps))
    return -(positive + negative)


@pytest.mark.parametrize(
    ("gamma_pos", "gamma_neg", "clip"), [(0, 4, 0.05), (1, 2, 0.05), (0, 0, 0), (2, 3, 0.2)]
)
def test_asymmetric_loss_equals_the_literal_formula(gamma_pos, gamma_neg, clip):
    logits = torch.linspace(-12, 12, 60).reshape(10, 6)
    targets = (torch.arange(60).reshape(10, 6) % 3 == 0).float()
    found = asymmetric_loss(logits, targets, gamma_pos, gamma_neg, clip)
    assert found.shape == (10, 6)
    for i in range(10):
        for k in range(6):
            expected = literal_asl(float(logits[i, k]), float(targets[i, k]), gamma_pos, gamma_neg, clip)
            assert float(found[i, k]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_public_defaults_are_those_of_cap():
    logits, targets = torch.randn(3, 4), torch.ones(3, 4)
    expected = asymmetric_loss(logits, targets, 0, 4, 0.05)
    assert torch.equal(methods.losses.asymmetric_loss(logits, targets), expected)


def test_easy_negatives_cost_nothing_and_push_nothing():
    # p < clip: the shifted probability of absence is clamped at 1.
    logits = torch.tensor([[-4.0]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.zeros(1, 1))
    loss.sum().backward()
    assert float(loss.detach()) == 0
    assert float(logits.grad) == 0


def test_focal_weight_carries_no_gradient():
    # With the weight detached d loss / d z of a positive is -(1-p)^γ (1-p).
    logits = torch.tensor([[0.3]], requires_grad=True)
    asymmetric_loss(logits, torch.ones(1, 1), gamma_pos=2).sum().backward()
    p = torch.sigmoid(logits.detach())
    assert torch.allclose(logits.grad, -((1 - p) ** 3), atol=1e-6)


def test_losses_are_float32_and_finite_for_extreme_half_precision_logits():
    logits = torch.tensor([[60000.0, -60000.0, 0.0]], dtype=torch.float16)
    for targets in (torch.zeros(1, 3), torch.ones(1, 3)):
        for loss in (
            asymmetric_loss(logits, targets),
            binary_cross_entropy(logits, targets),
            pair_asymmetric_loss(logits, -logits, targets),
        ):
            assert loss.dtype == torch.float32
            assert torch.isfinite(loss).all()


def test_autocast_does_not_change_the_loss():
    logits, targets = torch.randn(8, 5), (torch.rand(8, 5) < 0.5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = asymmetric_loss(logits, targets)
    assert torch.equal(inside, asymmetric_loss(logits, targets))


def test_pair_loss_is_the_asymmetric_loss_of_the_softmax_over_the_pair():
    torch.manual_seed(0)
    positive, negative = torch.randn(6, 4) * 3, torch.randn(6, 4) * 3
    targets = torch.randint(0, 2, (6, 4)).float()
    found = pair_asymmetric_loss(positive, negative, targets)
    for i in range(6):
        for k in range(4):
            up, down = math.exp(positive[i, k]), math.exp(negative[i, k])
            p = up / (up + down)
            z = math.log(p / (1 - p))
            expected = literal_asl(z, float(targets[i, k]), 1, 2, 0.05, eps=1e-6)
            assert float(found[i, k]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_pair_loss_drops_unknown_labels():
    targets = torch.tensor([[-1.0, 1.0, -1.0, 0.0]])
    loss = pair_asymmetric_loss(torch.ones(1, 4), -torch.ones(1, 4), targets)
    assert (loss[targets < 0] == 0).all()
    assert (loss[targets >= 0] > 0).all()

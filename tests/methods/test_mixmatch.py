"""MixMatch by hand: targets, mixing and both losses, and two processes that see half a step each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import methods
from methods.mixmatch import _places, mixing
from tests.methods.table import PixelBackbone


def sharpened(p, temperature):
    return p ** (1 / temperature) / (p ** (1 / temperature) + (1 - p) ** (1 / temperature))


def test_a_step_is_the_calculation_by_hand(make_batch, task):
    method = methods.create("mixmatch", backbone=PixelBackbone(), task=task, ramp=0.0).double()
    batch = make_batch(labelled=3, unlabelled=4, size=2)
    for name in ("weak_labelled", "strong_labelled", "targets", "weak_unlabelled", "strong_unlabelled"):
        object.__setattr__(batch, name, getattr(batch, name).double())
    output = method(batch)
    with torch.no_grad():
        weak, strong = (
            torch.sigmoid(method.predict(getattr(batch, f"{view}_unlabelled"))) for view in ("weak", "strong")
        )
        guess = sharpened((weak + strong) / 2, 0.5)
        images = torch.cat([batch.strong_labelled, batch.weak_unlabelled, batch.strong_unlabelled])
        targets = torch.cat([batch.targets, guess, guess])
        share, partners = mixing(task.seed, 0, 11, 0.5)
        images = share * images + (1 - share) * images[partners]
        targets = share * targets + (1 - share) * targets[partners]
        p = torch.sigmoid(method.predict(images))
        entropy = -(targets * p.log() + (1 - targets) * (1 - p).log())
        distance = (p - targets) ** 2
    assert torch.allclose(output.pseudo_labels.targets, guess)
    assert output.losses["labelled"].item() == pytest.approx(entropy[:3].sum().item())
    # Between means: 100 · mean over both views' entries, as a factor of the labelled mean.
    ratio = output.losses["unlabelled"] / (3 * 4)
    assert ratio.item() == pytest.approx(100 * distance[3:].mean().item())


def test_mixing_is_of_seed_and_step_and_keeps_most_of_the_image():
    found = [mixing(1, step, 9, 0.5) for step in range(200)]
    assert mixing(1, 3, 9, 0.5)[0] == found[3][0]
    assert len({share for share, _ in found}) == 200
    assert all(0.5 <= share <= 1 for share, _ in found)
    assert all(sorted(partners) == list(range(9)) for _, partners in found)
    assert mixing(2, 3, 9, 0.5)[0] != found[3][0]
    # E max(λ, 1 − λ) of Beta(½, ½), the arcsine distribution, is ½ + 1/π.
    assert np.mean([share for share, _ in found]) == pytest.approx(0.5 + 1 / np.pi, abs=0.04)


def test_an_image_twice_has_one_place_on_any_number_of_processes():
    everyone = torch.tensor([4, 7, 4, 1])
    assert _places(torch.tensor([4, 1]), everyone).tolist() == [0, 3]
    assert _places(torch.tensor([], dtype=torch.int64), everyone).tolist() == []


def test_probabilities_of_0_and_1_stay_finite(make_batch, task):
    method = methods.create("mixmatch", backbone=PixelBackbone(), task=task, temperature=0.1)
    with torch.no_grad():
        method.classifier.bias.fill_(200.0)
    batch = make_batch(labelled=2, unlabelled=2, size=2)
    output = method(batch)
    sum(output.losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    assert torch.isfinite(output.pseudo_labels.targets).all()

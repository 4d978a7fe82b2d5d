"""Soft consistency against numbers of PCLP's code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.methods.table import GOLDEN, gradients_of, same, step_of

INPUTS = GOLDEN["inputs"]
OFFICIAL = json.loads((Path(__file__).parent / "golden" / "soft_consistency.json").read_text())
LABELLED = 3 * 4  # entries; theirs is the mean over them


def test_a_step_is_the_official_one():
    method, batch = step_of("soft_consistency", INPUTS)
    output = method(batch)
    same(output.losses["labelled"] / LABELLED, OFFICIAL["labelled"])
    same(output.losses["unlabelled"] / LABELLED / 0.1, OFFICIAL["unlabelled"])
    for view, gradient in gradients_of(method, batch, output).items():
        if view in OFFICIAL["gradient"]:
            same(gradient / LABELLED, OFFICIAL["gradient"][view])
        else:  # the targets carry no gradient, and the strong views of labelled images are not used
            assert not gradient.any()


def test_every_entry_has_its_probability_as_target():
    method, batch = step_of("soft_consistency", INPUTS)
    pseudo = method(batch).pseudo_labels
    same(pseudo.targets, torch.sigmoid(torch.tensor(INPUTS["weak_unlabelled"], dtype=torch.float64)))
    assert pseudo.weighted_mask.all()


def test_the_unlabelled_loss_is_bce_whatever_the_labelled_one_is():
    found = []
    for loss in ("asl", "bce"):
        method, batch = step_of("soft_consistency", INPUTS, loss=loss)
        found.append(method(batch).losses)
    assert found[0]["unlabelled"] == found[1]["unlabelled"]
    assert found[0]["labelled"].item() != pytest.approx(found[1]["labelled"].item())

import pytest
import torch

import methods
from tests.methods.table import GOLDEN, gradients_of, numbers, same, step_of

INPUTS = GOLDEN["inputs"]
OFFICIAL = GOLDEN["defixmatch"]  # mxbh/spatiotemporal-ssl at 47e6299, run
LABELLED = 3 * 4


@pytest.mark.parametrize("run", OFFICIAL["runs"], ids=lambda run: str(run["p_cutoff"]))
def test_a_step_is_the_official_one(run):
    cut = run["p_cutoff"]
    choice = {"negative": cut[0], "positive": cut[1]} if isinstance(cut, list) else {"confidence": cut}
    method, batch = step_of("defixmatch", INPUTS, loss="bce", **choice)
    output = method(batch)
    same(output.pseudo_labels.mask, run["masking"][0])
    same(output.pseudo_labels.targets, run["gen_ulb_targets"][0])
    # All is the official mean, times the number of labelled entries; λ = 0.5 is the official one.
    same(output.losses["labelled"] / LABELLED, run["sup_loss"])
    same(output.losses["unlabelled"] / LABELLED, 0.5 * run["unsup_loss"])
    same(output.losses["correction"] / LABELLED, -0.5 * run["anti_unsup_loss"])
    same(sum(output.losses.values()) / LABELLED, run["loss"])
    for view, gradient in gradients_of(method, batch, output).items():
        same(gradient / LABELLED, run["gradient"][view])


def test_a_pool_that_is_the_labelled_set_adds_nothing():
    # Unbiased: both means are of the same images, however many copies of them there are.
    twice = {**INPUTS}
    for view in ("weak", "strong"):
        twice[f"{view}_unlabelled"] = INPUTS[f"{view}_labelled"] * 2
    method, batch = step_of("defixmatch", twice, confidence=0.7)
    losses = method(batch).losses
    assert losses["unlabelled"] > 0
    assert (losses["unlabelled"] + losses["correction"]).item() == pytest.approx(0, abs=1e-12)


def test_a_right_and_used_pseudo_label_of_a_labelled_image_cancels_its_strong_loss():
    inputs = {
        "weak_labelled": [[4.0, -4.0, 0.1]],
        "strong_labelled": [[0.3, 0.2, 0.1]],
        "weak_unlabelled": [[0.0, 0.0, 0.0]],
        "strong_unlabelled": [[0.0, 0.0, 0.0]],
        "targets": [[1.0, 1.0, 1.0]],  # right, wrong, not used
    }
    method, batch = step_of("defixmatch", inputs, loss="bce")
    found = gradients_of(method, batch, method(batch))["strong_labelled"][0]
    p = torch.sigmoid(numbers([0.3, 0.2, 0.1]))
    same(found, torch.stack([0 * p[0], 0.5 * ((p[1] - 1) - p[1]), 0.5 * (p[2] - 1)]))


def test_a_step_without_unlabelled_images_is_supervised():
    method, batch = step_of("defixmatch", {**INPUTS, "weak_unlabelled": [], "strong_unlabelled": []})
    batch.weak_unlabelled = batch.strong_unlabelled = batch.weak_labelled[:0]
    losses = method(batch).losses
    assert losses["unlabelled"] == losses["correction"] == 0
    assert losses["labelled"] > 0


def test_it_starts_from_the_warm_up_that_fixmatch_starts_from():
    ours, theirs = (methods.get(name) for name in ("defixmatch", "fixmatch"))
    assert ours.warmup_name == theirs.warmup_name
    assert ours.warmup_hyper(methods.hyper("defixmatch")) == theirs.warmup_hyper(methods.hyper("fixmatch"))

import pytest
import torch
from torch.nn import functional as F

import methods
from methods.errors import UserError
from methods.fields import identified
from tests.methods.table import GOLDEN, gradients_of, numbers, same, step_of

INPUTS = GOLDEN["inputs"]
OFFICIAL = GOLDEN["fixmatch"]  # mxbh/spatiotemporal-ssl at 47e6299, run
ENTRIES = {"labelled": 3 * 4, "unlabelled": 5 * 4}


def cutoffs(official):
    return (
        {"negative": official[0], "positive": official[1]}
        if isinstance(official, list)
        else {"confidence": official}
    )


@pytest.mark.parametrize("run", OFFICIAL["runs"], ids=lambda run: str(run["p_cutoff"]))
def test_masks_labels_losses_and_gradients_are_those_of_the_official_code(run):
    method, batch = step_of("fixmatch", INPUTS, loss="bce", **cutoffs(run["p_cutoff"]))
    output = method(batch)
    same(output.pseudo_labels.mask, run["masking"][0])
    same(output.pseudo_labels.targets, run["gen_ulb_targets"][0])
    # Its means are over all entries of a kind, ours are sums.
    same(output.losses["labelled"] / ENTRIES["labelled"], run["sup_loss"])
    same(output.losses["unlabelled"] / ENTRIES["unlabelled"], run["unsup_loss"])
    found = gradients_of(method, batch, output)
    same(found["strong_labelled"] / ENTRIES["labelled"], run["gradient"]["strong_labelled"])
    same(found["strong_unlabelled"] / ENTRIES["unlabelled"], run["gradient"]["strong_unlabelled"])
    # Its concatenated forward pass detaches the weak logits; ours has no gradients there.
    assert not found["weak_unlabelled"].any()


def test_its_weight_is_the_official_one_times_labelled_over_unlabelled_images():
    run = OFFICIAL["runs"][1]
    method, batch = step_of("fixmatch", INPUTS, loss="bce", confidence=0.8, unlabelled_weight=3 / 5)
    output = method(batch)
    same(sum(output.losses.values()) / ENTRIES["labelled"], run["loss"])


def test_the_default_pair_is_the_cutoff_that_fixmatch_has():
    pair, batch = step_of("fixmatch", INPUTS)
    one, _ = step_of("fixmatch", INPUTS, confidence=0.95)
    first, second = pair(batch), one(batch)
    assert torch.equal(first.pseudo_labels.mask, second.pseudo_labels.mask)
    assert 0 < first.pseudo_labels.mask.sum() < 20
    assert first.losses == second.losses


@pytest.mark.parametrize("choice", [{}, {"confidence": 0.9}, {"positive": 0.7, "negative": 0.05}])
def test_what_lies_between_one_half_and_the_cutoff_is_not_trained_as_negative(choice):
    # One-threshold conversions label at the cut-off and train on every entry: recall collapses.
    weak = torch.linspace(0.013, 0.987, 50)[:, None]
    inputs = {
        "weak_labelled": [[0.0]],
        "strong_labelled": [[0.0]],
        "weak_unlabelled": torch.logit(weak).tolist(),
        "strong_unlabelled": [[0.3]] * 50,
        "targets": [[1.0]],
    }
    method, batch = step_of("fixmatch", inputs, loss="bce", **choice)
    output = method(batch)
    gradient = gradients_of(method, batch, output)["strong_unlabelled"]
    positive = choice.get("positive", choice.get("confidence", 0.95))
    between = (weak >= 0.5) & (weak < positive)
    assert between.sum() >= 10
    assert not gradient[between].any()
    assert (gradient[weak >= positive] < 0).all()  # towards present
    assert (output.pseudo_labels.targets == (weak >= 0.5)).all()


def test_earlier_runs_keep_their_identity():
    values = identified(methods.hyper("fixmatch"))
    assert {"positive", "negative", "unlabelled_weight"} <= set(values)
    assert not {"confidence", "alignment"} & set(values)
    assert identified(methods.hyper("fixmatch", confidence=0.9))["confidence"] == 0.9
    assert identified(methods.hyper("fixmatch", alignment=True))["alignment"] is True
    assert methods.get("fixmatch").version == 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"confidence": 0.4}, "confidence: 0.4 is not allowed"),
        ({"confidence": 1.1}, "confidence: 1.1 is not allowed"),
        ({"confidence": 0.9, "positive": 0.7}, "confidence = 0.9 replaces the pair"),
        ({"positive": 0.4}, "0 <= negative <= 0.5 <= positive <= 1"),
        ({"negative": 0.6}, "0 <= negative <= 0.5 <= positive <= 1"),
        ({"negative": -0.1}, "0 <= negative <= 0.5 <= positive <= 1"),
    ],
)
def test_cutoffs_that_contradict_the_rule_or_each_other_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        methods.hyper("fixmatch", **values)


def test_alignment_follows_a_calculation_by_hand_over_two_steps():
    # Class 0 is on 2 of 3 labelled images, class 1 on none: targets 3/5 and 1/5.
    inputs = {
        "weak_labelled": [[0.0, 0.0]] * 3,
        "strong_labelled": [[0.0, 0.0]] * 3,
        "weak_unlabelled": [[1.0, 0.2], [-0.5, 0.4]],
        "strong_unlabelled": [[0.1, 0.1], [0.2, 0.2]],
        "targets": [[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]],
    }
    method, batch = step_of("fixmatch", inputs, alignment=True, confidence=0.6)
    mean = None
    for shift in (0.0, 1.5):
        with torch.no_grad():
            method.classifier.rows += shift
        p = torch.sigmoid(numbers(inputs["weak_unlabelled"]) + shift)
        now = p.mean(dim=0)
        mean = now if mean is None else 0.999 * mean + 0.001 * now
        method.observe(method.prepare(batch))
        pseudo = method(batch).pseudo_labels
        for i in range(2):
            for k, target in enumerate((3 / 5, 1 / 5)):
                present = float(p[i, k]) * (target + 1e-6) / (float(mean[k]) + 1e-6)
                absent = (1 - float(p[i, k])) * (1 - target + 1e-6) / (1 - float(mean[k]) + 1e-6)
                aligned = present / (present + absent)
                assert float(pseudo.targets[i, k]) == (aligned >= 0.5)
                assert float(pseudo.mask[i, k]) == (max(aligned, 1 - aligned) >= 0.6)
    # Without it the absent class is positive on every image of the first step.
    plain, batch = step_of("fixmatch", inputs, confidence=0.5)
    assert plain(batch).pseudo_labels.targets[:, 1].tolist() == [1, 1]


def test_without_alignment_nothing_is_kept_or_summed():
    method, batch = step_of("fixmatch", INPUTS)
    assert method.prepare(batch) == {}
    assert not method.state_names


def test_the_loss_is_a_sum_over_used_entries():
    method, batch = step_of("fixmatch", INPUTS, loss="bce", unlabelled_weight=0.5)
    weak, strong = (numbers(INPUTS[f"{view}_unlabelled"]) for view in ("weak", "strong"))
    p, expected = torch.sigmoid(weak), 0.0
    for i in range(5):
        for k in range(4):
            if max(float(p[i, k]), 1 - float(p[i, k])) >= 0.95:
                target = torch.tensor(float(p[i, k] >= 0.5), dtype=torch.float64)
                expected += 0.5 * float(F.binary_cross_entropy_with_logits(strong[i, k], target))
    assert method(batch).losses["unlabelled"].item() == pytest.approx(expected)

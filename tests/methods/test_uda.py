import math

import pytest
import torch

import methods
from methods.errors import UserError
from methods.losses import asymmetric_loss, binary_cross_entropy
from methods.uda import tsa_bound
from tests.methods.table import GOLDEN, gradients_of, numbers, same, step_of

INPUTS = GOLDEN["inputs"]
OFFICIAL = GOLDEN["uda"]  # microsoft/Semi-supervised-learning at 1ef4cbe, run
LABELLED = 3 * 4


def test_without_sharpening_a_step_is_the_official_one_on_binary_problems():
    # Run on B·K examples with the logits (0, z); its temperature has no effect, so T = 1 is what it computes.
    with_temperature, without = OFFICIAL["runs"]
    assert with_temperature["loss"] == without["loss"]
    for run in OFFICIAL["runs"]:
        method, batch = step_of("uda", INPUTS, loss="bce", temperature=1.0, unlabelled_weight=3 / 5)
        output = method(batch)
        same(output.pseudo_labels.mask.flatten(), run["masking"][0])
        same(sum(output.losses.values()) / LABELLED, run["loss"])
        for view, gradient in gradients_of(method, batch, output).items():
            same(gradient / LABELLED, run["gradient"][view])


@pytest.mark.parametrize("temperature", [0.4, 0.7])
def test_targets_are_sharpened(temperature):
    # The official hook, given logits instead of the probabilities that the official step gives it.
    method, batch = step_of("uda", INPUTS, temperature=temperature)
    pseudo = method(batch).pseudo_labels
    same(pseudo.targets, OFFICIAL["sharpened"][str(temperature)])
    p = torch.sigmoid(numbers(INPUTS["weak_unlabelled"]))
    powers = p ** (1 / temperature), (1 - p) ** (1 / temperature)
    same(pseudo.targets, powers[0] / (powers[0] + powers[1]))
    assert (torch.maximum(pseudo.targets, 1 - pseudo.targets) > torch.maximum(p, 1 - p)).all()
    # The mask is of the probabilities as they were.
    assert torch.equal(pseudo.mask, (torch.maximum(p, 1 - p) >= 0.8).double())


def test_the_temperature_changes_the_loss():
    found = []
    for temperature in (0.4, 1.0):
        method, batch = step_of("uda", INPUTS, loss="bce", temperature=temperature)
        found.append(method(batch).losses["unlabelled"].item())
    assert found[0] != pytest.approx(found[1])


def test_bounds_of_the_annealing_are_the_official_ones():
    for case in OFFICIAL["tsa"]:
        bound = tsa_bound(case["schedule"], case["it"] / case["num_train_iter"])
        assert bound == pytest.approx(case["bound"], rel=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "exp", "log"])
def test_labelled_entries_known_too_well_are_left_out(schedule):
    step, total = 12, 50
    method, batch = step_of("uda", INPUTS, step=step, total=total, loss="bce", tsa=schedule)
    output = method(batch)
    x = step / total
    rise = {"linear": x, "exp": math.exp(5 * (x - 1)), "log": 1 - math.exp(-5 * x)}[schedule]
    bound, expected, kept = rise / 2 + 0.5, 0.0, torch.zeros(3, 4, dtype=torch.bool)
    for i in range(3):
        for k in range(4):
            p = 1 / (1 + math.exp(-INPUTS["strong_labelled"][i][k]))
            true = p if INPUTS["targets"][i][k] else 1 - p
            if true <= bound:
                kept[i, k] = True
                expected -= math.log(true)
    assert 0 < kept.sum() < 12
    assert output.losses["labelled"].item() == pytest.approx(expected)
    gradient = gradients_of(method, batch, output, ["labelled"])["strong_labelled"]
    assert torch.equal(gradient != 0, kept)


def test_the_annealing_ends_with_every_entry():
    losses = []
    for schedule, step in (("none", 0), ("linear", 0), ("linear", 50)):
        method, batch = step_of("uda", INPUTS, step=step, total=50, tsa=schedule)
        losses.append(method(batch).losses["labelled"].item())
    assert losses[1] < losses[0]
    assert losses[2] == losses[0]


def test_a_temperature_of_nothing_and_an_unknown_schedule_are_refused():
    with pytest.raises(UserError, match="temperature: 0 is not allowed"):
        methods.hyper("uda", temperature=0.0)
    with pytest.raises(UserError, match="unknown value 'cosine'"):
        methods.hyper("uda", tsa="cosine")
    assert methods.hyper("uda", confidence=0.9).positive == 0.8  # not in the way of the one cut-off


def test_asl_moves_soft_targets_up_and_bce_leaves_them():
    # Why `loss` is "bce": where the gradient for a target is 0 is where a target of the next step comes from.
    logits = torch.linspace(-8, 8, 16001, dtype=torch.float64, requires_grad=True)
    for target in (0.05, 0.1, 0.3, 0.5):
        rests = {}
        for name, loss in (("asl", asymmetric_loss), ("bce", binary_cross_entropy)):
            targets = torch.full((len(logits), 1), target, dtype=torch.float64)
            (slope,) = torch.autograd.grad(loss(logits[:, None], targets).sum(), logits)
            rests[name] = torch.sigmoid(logits[slope.abs().argmin()]).item()
        assert rests["bce"] == pytest.approx(target, abs=1e-3)
        assert rests["asl"] > target + 0.25
        sharpened = torch.sigmoid(torch.logit(torch.tensor(rests["asl"])) / 0.4).item()
        assert sharpened > target + 0.25

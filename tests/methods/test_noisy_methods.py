"""large_loss, splc, hill, em: steps against official numbers and literal rules; the memory of LL-Cp."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import methods
from benchmarks.checks import contract
from methods.base import Task
from methods.errors import UserError
from methods.losses import binary_cross_entropy, hill_loss, splc_loss
from tests.methods.table import PixelBackbone, gradients_of, step_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "noisy.json").read_text(encoding="utf-8"))
NAMES = ("large_loss", "splc", "hill", "em")


def inputs(strong_unlabelled, strong_labelled=((0.5, -1.0, 2.0),), targets=((1.0, 0.0, 0.0),)):
    """Logits of the views; the weak ones are not for these methods to see."""
    unseen = torch.nan
    return {
        "weak_labelled": [[unseen] * len(row) for row in strong_labelled],
        "strong_labelled": strong_labelled,
        "weak_unlabelled": [[unseen] * len(row) for row in strong_unlabelled],
        "strong_unlabelled": strong_unlabelled,
        "targets": targets,
    }


def after(method, output):
    """What the trainer does after the optimiser's step."""
    method.observe_step(output.statistics)


@pytest.mark.parametrize("case", [c for c in GOLDEN["large_loss"]["cases"] if c["scheme"] == "Cp"])
@pytest.mark.parametrize("epoch", [0, 5])
def test_a_step_of_cp_is_the_official_one(case, epoch):
    """What is observed there is remembered here; its number of entries does not grow."""
    part = GOLDEN["large_loss"]
    observed = torch.tensor(part["observed"]).bool()
    given = inputs(part["logits"], [[0.0] * 5], [[0.0] * 5])
    method, batch = step_of("large_loss", given, scheme="Cp", delta=100 * case["rate"])
    batch = dataclasses.replace(batch, epoch=epoch)
    method.flipped[:6] = observed
    output = method(batch)
    assert output.losses["unlabelled"].item() / 30 == pytest.approx(case["loss"], rel=1e-6)
    found = gradients_of(method, batch, output, ["unlabelled"])["strong_unlabelled"] / 30
    official = torch.tensor(case["gradient"], dtype=torch.float64)
    torch.testing.assert_close(found, official, rtol=1e-5, atol=1e-8)
    after(method, output)
    assert (method.flipped[:6] & ~observed).nonzero().tolist() == case["flipped"]
    assert not method.flipped[6:].any()


@pytest.mark.parametrize("scheme", ["R", "Ct"])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_step_of_r_and_ct_is_the_literal_rule(scheme, epoch):
    """The official numbers have observed entries, see `test_noisy_losses`; here nothing is observed."""
    rows = GOLDEN["large_loss"]["logits"]
    method, batch = step_of("large_loss", inputs(rows, [[0.0] * 5], [[0.0] * 5]), scheme=scheme, delta=4.0)
    output = method(dataclasses.replace(batch, epoch=epoch))
    k = {0: 2, 2: 4}[epoch]  # 1.2 and 3.6 of 30
    logits = torch.tensor(rows, dtype=torch.float64)
    losses = torch.log1p(logits.exp())
    changed = losses >= losses.flatten().sort(descending=True).values[k - 1]
    assert changed.sum() == k
    expected = torch.where(changed, 0.0 if scheme == "R" else losses - logits, losses)
    torch.testing.assert_close(output.losses["unlabelled"], expected.sum())
    pseudo = output.pseudo_labels
    assert torch.equal(pseudo.mask == 0, changed if scheme == "R" else torch.zeros_like(changed))
    assert torch.equal(pseudo.targets == 1, torch.zeros_like(changed) if scheme == "R" else changed)
    after(method, output)
    assert method.flipped.shape == (0, 5)  # nothing is remembered


def test_shares_of_large_loss_grow_by_delta_and_are_exact():
    given = inputs([[0.0] * 5] * 8)
    given |= {name: [[0.0] * 5] for name in ("weak_labelled", "strong_labelled", "targets")}
    counts = {}
    for scheme in ("R", "Cp"):
        method, batch = step_of("large_loss", given, scheme=scheme, delta=7.5)
        epochs = [dataclasses.replace(batch, epoch=epoch) for epoch in (0, 1, 12, 13, 99)]
        counts[scheme] = [method.num_changed(one) for one in epochs]
    # 40 entries: 3 in an epoch, exactly; never more than all.
    assert counts == {"R": [3, 6, 39, 40, 40], "Cp": [3, 3, 3, 3, 3]}
    method, batch = step_of("large_loss", given, delta=0.0)
    assert method.num_changed(batch) == 0
    assert torch.equal(method(batch).pseudo_labels.mask, torch.ones(8, 5, dtype=torch.float64))


def test_flips_of_cp_are_for_good_and_only_of_larger_losses():
    rows = [[4.0, 3.0, -1.0], [3.0, -2.0, -3.0]]
    method, batch = step_of("large_loss", inputs(rows), scheme="Cp", delta=34.0)  # k = ceil(2.04) = 3
    output = method(batch)
    assert output.pseudo_labels.targets.tolist() == [[1, 1, 0], [1, 0, 0]]
    assert not method.flipped.any()  # not before the step is done
    after(method, output)
    assert method.flipped[:2].tolist() == [[1, 0, 0], [0, 0, 0]]  # 3.0 is the third largest
    # Flipped entries are observed: they leave their place among the largest to others.
    output = method(batch)
    assert output.pseudo_labels.targets.tolist() == [[1, 1, 1], [1, 0, 0]]
    after(method, output)
    assert method.flipped[:2].tolist() == [[1, 1, 0], [1, 0, 0]]
    other, _ = step_of("large_loss", inputs(rows), scheme="Cp", delta=34.0)
    other.load_training_state(method.training_state())
    assert torch.equal(other.flipped, method.flipped)
    assert torch.equal(other(batch).losses["unlabelled"], method(batch).losses["unlabelled"])


@pytest.mark.parametrize("scheme", ["R", "Ct", "Cp"])
@pytest.mark.parametrize("unlabelled", [6, 1])
def test_large_loss_on_two_processes_is_that_of_one(scheme, unlabelled):
    overrides = {"scheme": scheme, "delta": 20.0}
    whole = contract.started(contract.create("large_loss", overrides), torch.float64)
    parts = [contract.copy_of(whole) for _ in range(2)]
    for step in range(3):
        batch = contract.tiny_batch(3, unlabelled, step, torch.float64)
        output = contract.forward(whole, batch)
        outputs = contract.Simulated(2).run(
            lambda rank, processes, batch=batch: contract.forward(
                parts[rank], contract.share(batch, rank, 2, processes)
            )
        )
        for name, loss in output.losses.items():
            torch.testing.assert_close(loss, sum(o.losses[name] for o in outputs), rtol=1e-10, atol=0)
        for method, one in zip((whole, *parts), (output, *outputs), strict=True):
            after(method, one)
            assert torch.equal(method.flipped, whole.flipped)
    assert whole.flipped.any() == (scheme == "Cp" and unlabelled > 1)


def test_a_step_of_hill_splc_and_em_is_that_of_their_losses():
    rows = [[2.0, -1.0, 0.3], [0.5, 4.0, -6.0]]
    labelled, targets = [[0.5, 1.0, 2.0]], [[1.0, 0.0, 0.0]]
    z = torch.tensor(rows, dtype=torch.float64)
    known, y = (torch.tensor(value, dtype=torch.float64) for value in (labelled, targets))
    p = torch.sigmoid(z)
    entropy = -p * torch.log(p) - (1 - p) * torch.log(1 - p)
    negative = torch.zeros_like(z)
    expected = {
        "hill": (hill_loss(known, y), hill_loss(z, negative)),
        # The labelled 2.0 has p = .88 > τ and is a negative all the same.
        "splc": (splc_loss(known, y, correct=False), splc_loss(z, negative, correct=True)),
        "em": (binary_cross_entropy(known, y), -0.1 * entropy),
    }
    for name, (first, second) in expected.items():
        for weight in (1.0, 0.5):
            method, batch = step_of(name, inputs(rows, labelled, targets), unlabelled_weight=weight)
            output = method(batch)
            torch.testing.assert_close(output.losses["labelled"], first.sum())
            torch.testing.assert_close(output.losses["unlabelled"], weight * second.sum())
        if name == "em":
            assert output.pseudo_labels is None  # it takes no label for true
            slope = gradients_of(method, batch, output, ["unlabelled"])["strong_unlabelled"]
            torch.testing.assert_close(slope, 0.5 * 0.1 * z * p * (1 - p))
        else:
            taken = (p > 0.6) if name == "splc" else torch.zeros_like(p)
            assert torch.equal(output.pseudo_labels.targets, taken.double())
            assert (output.pseudo_labels.mask == 1).all()


def test_splc_corrects_from_its_epoch_on():
    given = inputs([[2.0, -1.0, 0.3]])
    method, batch = step_of("splc", given, change_epoch=1)
    plain = method(batch)
    assert not plain.pseudo_labels.targets.any()
    corrected = method(dataclasses.replace(batch, epoch=1))
    assert corrected.pseudo_labels.targets.tolist() == [[1, 0, 0]]
    assert corrected.losses["unlabelled"] < plain.losses["unlabelled"]


def test_they_start_from_the_warm_up_of_all_others():
    shared = methods.get("fixmatch").warmup_hyper(methods.hyper("fixmatch"))
    for name in (*NAMES, "cap", "top_k", "iat"):
        assert methods.get(name).warmup_name == "supervised"
        assert methods.get(name).warmup_hyper(methods.hyper(name)) == shared


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("images", "classes"), [(5, 4), (1, 4), (5, 1)])
def test_few_images_and_one_class_are_no_trouble(name, images, classes):
    # Five labelled images, a class that none of them shows, pools of fewer images than a batch.
    labels = torch.zeros(images, classes)
    labels[0, 0] = 1
    names = tuple(f"class {k}" for k in range(classes))
    method = methods.create(name, backbone=PixelBackbone(), task=Task(names, names, labels, 2, seed=0))
    generator = torch.Generator().manual_seed(0)
    batch = contract.tiny_batch(images, 2)
    views = {
        field.name: torch.rand(len(getattr(batch, field.name)), 3, 2, 2, generator=generator)
        for field in dataclasses.fields(batch)
        if field.name.startswith(("weak", "strong"))
    }
    batch = dataclasses.replace(batch, **views, targets=labels)
    for _ in range(3):
        output = method(batch)
        assert all(torch.isfinite(loss) for loss in output.losses.values())
        sum(output.losses.values()).backward()
        assert all(torch.isfinite(p.grad).all() for p in method.parameters())
        if output.statistics is not None:
            after(method, output)


@pytest.mark.parametrize(
    ("name", "field", "value", "words"),
    [
        ("large_loss", "delta", 101.0, "delta: 101 is not allowed; it must be between 0 and 100"),
        ("large_loss", "scheme", "LL-R", "scheme: unknown value 'LL-R'"),
        ("splc", "threshold", 0.4, "threshold: 0.4 is not allowed; it must be between 0.5 and 1"),
        ("splc", "change_epoch", -1, "change_epoch: -1 is not allowed"),
        ("hill", "hill", 0.9, "hill: 0.9 is not allowed; it must be at least 1"),
        ("hill", "margin", -1.0, "margin: -1 is not allowed"),
        ("em", "alpha", -0.1, "alpha: -0.1 is not allowed"),
    ],
)
def test_hyper_parameters_out_of_range_are_named(name, field, value, words):
    with pytest.raises(UserError, match=words):
        methods.hyper(name, **{field: value})

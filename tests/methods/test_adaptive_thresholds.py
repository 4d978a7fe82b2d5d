"""FlexMatch, FreeMatch, SoftMatch, AdaMatch: numbers of the official code, calculations by hand.

The numbers in golden/usb_family.json were made by running the classes named below, in float64, on random
logits. A method's classifier is replaced by the identity, so that "images" are logits.
"""

from __future__ import annotations

import dataclasses
import doctest
import functools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import methods
from benchmarks.checks import contract
from methods import flexmatch
from methods.base import Batch, StepMethod, StepOutput, Task

GOLDEN = json.loads((Path(__file__).parent / "golden" / "usb_family.json").read_text())
WORDS = ("cat", "dog", "bird")
FIVE = [[1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]]
"""Five labelled images; none shows the second class."""


backbone = functools.cache(contract.tiny_backbone)  # nothing of it is used


def double(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def build(name: str, labels=FIVE, pool: int = 20, dtype: torch.dtype = torch.float64, **hyper) -> StepMethod:
    """A method whose images are (B, K) logits."""
    words = WORDS[: len(labels[0])]
    task = Task(words, words, torch.tensor(labels).float(), num_unlabelled=pool, seed=1)
    method = methods.create(name, backbone=backbone(), task=task, loss="bce", **hyper)
    method.classifier = nn.Identity()
    return method.to(dtype).train()


def batch_of(
    weak: Tensor, strong: Tensor | None = None, labelled: Tensor | None = None, start: int = 0
) -> Batch:
    """A step on images that are logits; labelled ones have the same in both views."""
    labelled = weak.new_zeros(1, weak.shape[1]) if labelled is None else labelled
    return Batch(
        epoch=0,
        step=0,
        labelled=torch.arange(len(labelled)),
        weak_labelled=labelled,
        strong_labelled=labelled,
        targets=torch.zeros_like(labelled),
        unlabelled=torch.arange(start, start + len(weak)),
        weak_unlabelled=weak,
        strong_unlabelled=weak if strong is None else strong,
        global_labelled=len(labelled),
        global_unlabelled=len(weak),
    )


def step(method: StepMethod, batch: Batch) -> StepOutput:
    """A whole step without the optimiser's part."""
    output = contract.forward(method, batch)
    contract.after(method, batch, output)
    return output


def close(found: Tensor, expected, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, double(expected), rtol=tolerance, atol=1e-15)


def gradient(output: StepOutput, strong: Tensor) -> Tensor:
    """Of the losses on unlabelled images, per entry: the official ones are means over all entries."""
    losses = [loss for name, loss in output.losses.items() if name != "labelled"]
    return torch.autograd.grad(sum(losses), strong)[0] / strong.numel()


# -- the official numbers ------------------------------------------------------------------------------------


def test_freematch_has_the_numbers_of_its_binary_form():
    """mxbh/spatiotemporal-ssl 47e6299: FreeMatchThresholdingHook(multilabel=True), binary_entropy_loss."""
    golden = GOLDEN["freematch"]
    # The code adds the term up over three classes; here it is their mean.
    weight = 3 * golden["entropy_weight"]
    method = build("freematch", momentum=golden["momentum"], fairness_weight=weight)
    for row in golden["steps"]:
        strong = double(row["strong"]).requires_grad_()
        output = step(method, batch_of(double(row["weak"]), strong))
        assert output.pseudo_labels.mask.tolist() == row["mask"]
        assert torch.equal(output.pseudo_labels.targets, (double(row["weak"]) >= 0).double())
        close(method.confidence, row["time_p"])
        close(method.probability, row["p_model"])
        close(method.histogram, row["label_hist"], 1e-7)  # the code computes this one in float32
        close(output.losses["unlabelled"] / strong.numel(), row["unsup"])
        close(output.losses["fairness"] / strong.numel(), golden["entropy_weight"] * row["entropy"], 1e-7)
        close(gradient(output, strong), row["gradient"], 1e-6)
    assert min(min(min(mask)) for row in golden["steps"] for mask in [row["mask"]]) == 0


def test_softmatch_has_the_numbers_of_its_binary_form():
    """mxbh/spatiotemporal-ssl 47e6299: DistAlignEMAHook, SoftMatchWeightingHook(multilabel=True)."""
    golden = GOLDEN["softmatch"]
    method = build("softmatch", momentum=golden["momentum"])
    method.alignment_target = double(golden["frequencies"])  # the code does not smooth them
    for row in golden["steps"]:
        strong = double(row["strong"]).requires_grad_()
        output = step(method, batch_of(double(row["weak"]), strong))
        close(output.pseudo_labels.weight, row["weight"])
        close(method.alignment_mean, row["p_model"])
        close(method.mean, row["mu"])
        close(method.variance, row["var"])
        close(output.losses["unlabelled"] / strong.numel(), row["unsup"])
        close(gradient(output, strong), row["gradient"])


def test_adamatch_has_the_numbers_of_the_code_for_two_classes():
    """Semi-supervised-learning 1ef4cbe with the classes absent and present: one binary problem of ours."""
    golden = GOLDEN["adamatch"]
    method = build("adamatch", [[1], [0], [0]], momentum=golden["momentum"])
    method.alignment_target = double([0.5])  # the start of the code
    used = []
    for row in golden["steps"]:
        strong = double(row["strong"]).requires_grad_()
        output = step(method, batch_of(double(row["weak"]), strong, double(row["labelled"])))
        assert output.pseudo_labels.targets.tolist() == row["target"]
        assert output.pseudo_labels.mask.tolist() == row["mask"]
        close(method.alignment_target, row["p_target"])
        close(method.alignment_mean, row["p_model"])
        close(output.losses["unlabelled"] / strong.numel(), row["unsup"])
        close(gradient(output, strong), row["gradient"])
        used += row["mask"]
    assert {0.0, 1.0} == {value for row in used for value in row}


@pytest.mark.parametrize("warmup", [True, False])
def test_flexmatch_has_the_counts_and_thresholds_of_the_code(warmup):
    """Semi-supervised-learning 1ef4cbe, FlexMatchThresholdingHook, on soft-max rows of three classes.

    A row has one class from .95, and then the others are below .05, or none below .05: the memory has the
    same contents.
    """
    golden = GOLDEN["flexmatch"]
    method = build("flexmatch", pool=10, threshold_warmup=warmup)
    rows = golden["warmup" if warmup else "plain"]
    seen = set()
    for images, p, row in zip(golden["images"], golden["probabilities"], rows, strict=True):
        p = double(p)
        batch = dataclasses.replace(batch_of(torch.logit(p)), unlabelled=torch.tensor(images))
        output = step(method, batch)
        top, best = p.max(dim=1)
        # From .5 on ours is the code's rule; below, an entry is no positive here.
        ours = output.pseudo_labels.mask[torch.arange(len(p)), best][top >= 0.5]
        assert ours.tolist() == double(row["mask"])[top >= 0.5].tolist()
        seen |= set(ours.tolist())
        selected = torch.tensor(row["selected"])
        assert torch.equal(method.selected, torch.arange(3) == selected[:, None])
        largest = max(int(method.counts.max()), int(method.unselected) if warmup else 0)
        close(method.counts.double() / largest, row["classwise_acc"])
    assert seen == {0.0, 1.0}


# -- two steps by hand ---------------------------------------------------------------------------------------

FIRST, SECOND = [[0.9, 0.1], [0.3, 0.6]], [[0.8, 0.3], [0.6, 0.2], [0.4, 0.02]]
TWO = [[1, 0], [0, 1], [1, 0]]


def probabilities(rows) -> Tensor:
    return torch.logit(double(rows))


def test_freematch_by_hand():
    """Means are moved before they are used."""
    method = build("freematch", TWO, momentum=0.5)
    tau, mean, share = [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]
    for rows in (FIRST, SECOND):
        found = step(method, batch_of(probabilities(rows))).pseudo_labels
        expected = []
        for k in range(2):
            p = [row[k] for row in rows]
            tau[k] = 0.5 * tau[k] + 0.5 * sum(max(v, 1 - v) for v in p) / len(p)
            mean[k] = 0.5 * mean[k] + 0.5 * sum(p) / len(p)
            share[k] = 0.5 * share[k] + 0.5 * sum(v >= 0.5 for v in p) / len(p)
            top = max(mean[k], 1 - mean[k])
            bars = [tau[k] * (mean[k] if v >= 0.5 else 1 - mean[k]) / top for v in p]
            expected.append([float(max(v, 1 - v) >= bar) for v, bar in zip(p, bars, strict=True)])
        assert found.mask.T.tolist() == expected
        close(method.confidence, tau)
        close(method.probability, mean)
        close(method.histogram, share)
    assert found.mask.T.tolist() == [[1, 0, 1], [0, 1, 1]]


def test_softmatch_by_hand():
    """The alignment's running mean, then mean and unbiased variance of c, are moved before they are used."""
    method = build("softmatch", TWO, momentum=0.5, n_sigma=3.0)
    target, mean, mu, variance = [3 / 5, 2 / 5], [0.0, 0.0], [0.5, 0.5], [1.0, 1.0]
    for number, rows in enumerate((FIRST, SECOND)):
        found = step(method, batch_of(probabilities(rows))).pseudo_labels
        for k in range(2):
            p = [row[k] for row in rows]
            new = sum(p) / len(p)
            mean[k] = 0.5 * mean[k] + 0.5 * new if number else new
            e, t, m = 1e-6, target[k], mean[k]
            one = [v * (t + e) / (m + e) for v in p]
            zero = [(1 - v) * (1 - t + e) / (1 - m + e) for v in p]
            aligned = [a / (a + b) for a, b in zip(one, zero, strict=True)]
            c = [max(v, 1 - v) for v in aligned]
            centre = sum(c) / len(c)
            mu[k] = 0.5 * mu[k] + 0.5 * centre
            variance[k] = 0.5 * variance[k] + 0.5 * sum((v - centre) ** 2 for v in c) / (len(c) - 1)
            weight = [math.exp(-(min(v - mu[k], 0) ** 2) / (2 * variance[k] / 9)) for v in c]
            close(found.weight[:, k], weight)
            assert found.targets[:, k].tolist() == [float(v >= 0.5) for v in p]
        close(method.mean, mu)
        close(method.variance, variance)
    assert found.mask.min() == 1


def test_adamatch_by_hand():
    """Thresholds of the step's labelled images, for each class; targets follow their predictions."""
    method = build("adamatch", TWO, momentum=0.5)
    target, mean = [3 / 5, 2 / 5], [0.0, 0.0]
    labelled = [[[0.9, 0.2]], [[0.7, 0.4], [0.9, 0.5]]]
    for number, (rows, sure) in enumerate(zip((FIRST, SECOND), labelled, strict=True)):
        batch = batch_of(probabilities(rows), None, probabilities(sure))
        found = step(method, batch).pseudo_labels
        for k in range(2):
            p, known = [row[k] for row in rows], [row[k] for row in sure]
            new = sum(p) / len(p)
            mean[k] = 0.5 * mean[k] + 0.5 * new if number else new
            target[k] = 0.5 * target[k] + 0.5 * sum(known) / len(known)
            bar = 0.95 * sum(max(v, 1 - v) for v in known) / len(known)
            odds = [v / (1 - v) * target[k] / mean[k] * (1 - mean[k]) / (1 - target[k]) for v in p]
            aligned = [o / (1 + o) for o in odds]
            assert found.targets[:, k].tolist() == [float(v >= 0.5) for v in aligned]
            assert found.mask[:, k].tolist() == [float(max(v, 1 - v) >= bar) for v in aligned]
        close(method.alignment_target, target)
        close(method.threshold, [0.95 * sum(max(r[k], 1 - r[k]) for r in sure) / len(sure) for k in range(2)])
    nobody = batch_of(probabilities(SECOND), None, torch.empty(0, 2, dtype=torch.float64))
    before = method.threshold.clone()
    step(method, nobody)
    assert torch.equal(method.threshold, before)


def test_flexmatch_by_hand():
    """A step uses the counts of the steps before; its own rows are written afterwards."""
    method = build("flexmatch", TWO, pool=4, threshold=0.8)
    memory = {image: [0, 0] for image in range(4)}
    steps = [
        ([0, 1, 2], [[0.9, 0.1], [0.9, 0.85], [0.55, 0.6]]),
        ([2, 3], [[0.85, 0.3], [0.7, 0.1]]),
        ([0, 1, 2], [[0.15, 0.55], [0.6, 0.1], [0.79, 0.1]]),
        ([3, 0], [[0.7, 0.21], [0.81, 0.19]]),
    ]
    used = []
    for images, rows in steps:
        batch = dataclasses.replace(batch_of(probabilities(rows)), unlabelled=torch.tensor(images))
        found = step(method, batch).pseudo_labels
        counts = [sum(bits[k] for bits in memory.values()) for k in range(2)]
        largest = max([*counts, sum(not any(bits) for bits in memory.values())])
        expected = []
        for row in rows:
            entries = []
            for k, p in enumerate(row):
                a = counts[k] / largest
                entries.append(float(p >= max(0.5, 0.8 * a / (2 - a)) if p >= 0.5 else 1 - p >= 0.8))
            expected.append(entries)
        assert found.mask.tolist() == expected
        assert found.targets.tolist() == [[float(p >= 0.5) for p in row] for row in rows]
        used.append(expected)
        for image, row in zip(images, rows, strict=True):
            for k, p in enumerate(row):
                if p >= 0.8:
                    memory[image][k] = 1
                elif 1 - p >= 0.8:
                    memory[image][k] = 0
        assert method.selected.long().tolist() == [memory[image] for image in range(4)]
        assert method.counts.tolist() == [sum(bits[k] for bits in memory.values()) for k in range(2)]
        assert method.unselected == sum(not any(bits) for bits in memory.values())
    assert used[0][2] == [1, 1]  # nothing counted yet: every predicted positive
    assert used[2][1:] == [[0, 1], [0, 1]]  # the first class has three images: .8
    # The first of them lost its class, and two are left: .8 still. The second class has no image any more.
    assert used[3] == [[0, 0], [1, 1]]


def test_examples():
    assert doctest.testmod(flexmatch).failed == 0

"""Distribution alignment: the official numbers, a calculation by hand, and what must not happen."""

from __future__ import annotations

import copy
import doctest
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.checks import contract
from methods.base import Batch, StepMethod, Task
from methods.fixmatch import FixMatch
from methods.parts import alignment, running
from methods.parts.alignment import DistributionAlignment, align, smoothed_frequencies
from methods.parts.linear import LinearHyper
from methods.parts.pseudo_labelling import PseudoLabelMethod
from methods.thresholds import fixed_pseudo_labels

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "usb_family.json").read_text())


class Holder(StepMethod):
    """Holds an alignment; its predictions are what it is given."""

    name = "holder"

    def __init__(self, task: Task, momentum: float = 0.9, follow_labelled: bool = False) -> None:
        super().__init__(nn.Identity(), task, LinearHyper())
        self.alignment = DistributionAlignment(self, momentum, follow_labelled)


def task_of(labels: list[list[float]]) -> Task:
    names = tuple(f"class {k}" for k in range(len(labels[0])))
    return Task(names, names, torch.tensor(labels), num_unlabelled=10, seed=1)


FIVE = task_of([[1, 0], [1, 0], [0, 0], [1, 0], [0, 0]])


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("module", [alignment, running])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


def test_targets_are_labelled_frequencies_smoothed_by_one_image_each_way():
    assert smoothed_frequencies(FIVE).tolist() == [4 / 7, 1 / 7]
    assert Holder(FIVE).alignment_target.tolist() == [4 / 7, 1 / 7]


def test_numbers_of_the_official_code():
    """mxbh/spatiotemporal-ssl 47e6299: DistAlignEMAHook(multilabel=True, p_target_type="gt")."""
    golden = GOLDEN["softmatch"]
    method = Holder(task_of([[0, 0, 0]]), golden["momentum"])
    method.alignment_target = double(golden["frequencies"])
    for step in golden["steps"]:
        p = torch.sigmoid(double(step["weak"]))
        method.alignment.update(method.alignment.sums(p))
        torch.testing.assert_close(method.alignment_mean, double(step["p_model"]), rtol=1e-12, atol=0)
        torch.testing.assert_close(method.alignment(p), double(step["aligned"]), rtol=1e-12, atol=0)


def test_two_steps_by_hand():
    """The first mean replaces the start; the second is averaged with it, and its images are aligned after."""
    method = Holder(FIVE, momentum=0.75)
    first, second = double([[0.2, 0.4], [0.6, 0.4]]), double([[0.8, 0.2]])
    assert torch.allclose(method.alignment(first), first, rtol=0, atol=1e-12)  # nothing known: nothing moved
    method.alignment.update(method.alignment.sums(first))
    assert torch.allclose(method.alignment_mean, double([0.4, 0.4]), rtol=0, atol=1e-15)
    method.alignment.update(method.alignment.sums(second[:0]))  # a step without unlabelled images
    assert torch.allclose(method.alignment_mean, double([0.4, 0.4]), rtol=0, atol=1e-15)
    assert method.alignment_steps == 1
    method.alignment.update(method.alignment.sums(second))
    mean = [0.75 * 0.4 + 0.25 * 0.8, 0.75 * 0.4 + 0.25 * 0.2]
    assert torch.allclose(method.alignment_mean, double(mean), rtol=0, atol=1e-15)
    e = 1e-6
    expected = []
    for p, m, t in zip([0.8, 0.2], mean, [4 / 7, 1 / 7], strict=True):
        one, zero = p * (t + e) / (m + e), (1 - p) * (1 - t + e) / (1 - m + e)
        expected.append(one / (one + zero))
    assert torch.allclose(method.alignment(second), double([expected]), rtol=0, atol=1e-15)


def test_the_mean_is_of_the_step_and_not_of_the_processes():
    """Sums and counts of processes of unequal size add up to those of all images."""
    p = torch.rand(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, parts = Holder(FIVE), Holder(FIVE)
    for _ in range(2):
        whole.alignment.update(whole.alignment.sums(p))
        first, second = parts.alignment.sums(p[:6]), parts.alignment.sums(p[6:])
        parts.alignment.update({name: first[name] + second[name] for name in first})
    torch.testing.assert_close(whole.alignment_mean, parts.alignment_mean, rtol=1e-14, atol=0)


def test_a_target_that_follows_the_labelled_predictions():
    method = Holder(FIVE, momentum=0.5, follow_labelled=True)
    sums = method.alignment.sums(double([[0.5, 0.5]]), double([[0.9, 0.3], [0.7, 0.1]]))
    method.alignment.update(sums)
    target = [0.5 * 4 / 7 + 0.5 * 0.8, 0.5 * 1 / 7 + 0.5 * 0.2]
    assert torch.allclose(method.alignment_target, double(target), rtol=0, atol=1e-15)
    nobody = method.alignment.sums(double([[0.5, 0.5]]), torch.empty(0, 2, dtype=torch.float64))
    method.alignment.update(nobody)
    assert torch.allclose(method.alignment_target, double(target), rtol=0, atol=1e-15)
    with pytest.raises(ValueError, match="belong to an alignment with follow_labelled"):
        method.alignment.sums(double([[0.5, 0.5]]))
    with pytest.raises(ValueError, match="belong to an alignment with follow_labelled"):
        Holder(FIVE).alignment.sums(double([[0.5, 0.5]]), double([[0.5, 0.5]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_predictions_and_absent_classes_stay_finite(dtype):
    """0 and 1 stay what they are; a class that nobody has seen does not become positive everywhere."""
    edge = torch.tensor([[0.0, 1.0, 1e-30, 1 - 1e-7]], dtype=dtype)
    for mean in (0.0, 1e-12, 0.5, 1.0):
        for target in (1e-9, 0.5, 1.0):
            found = align(edge, torch.full((4,), mean), torch.full((4,), target))
            assert found.dtype == dtype
            assert torch.isfinite(found).all()
            assert found[0, :2].tolist() == [0, 1]
    method = Holder(FIVE).to(dtype)
    p = torch.linspace(0.001, 0.02, 40, dtype=dtype)[:, None].repeat(1, 2)
    method.alignment.update(method.alignment.sums(p))
    found = method.alignment(p)
    # The smoothed frequency 1/7 of the second class bounds the share of its positives.
    assert found[:, 1].mean() < 2 / 7
    assert (found[:, 1] >= 0.5).double().mean() < 2 / 7


def test_alignment_works_in_a_copy_and_goes_on_from_saved_state():
    """The moving average holds a copy, whose part reads the copy's state."""
    method = Holder(FIVE)
    method.alignment.update(method.alignment.sums(double([[0.1, 0.2]])))
    other = copy.deepcopy(method)
    assert other.alignment.method is other
    fresh = Holder(FIVE)
    fresh.load_training_state(method.training_state())
    p = double([[0.6, 0.3]])
    for one in (method, fresh):
        one.alignment.update(one.alignment.sums(p))
    assert torch.equal(fresh.alignment(p), method.alignment(p))
    assert not torch.equal(other.alignment_mean, method.alignment_mean)


def test_aligned_pseudo_labels_in_a_method_do_not_depend_on_the_processes():
    """The recipe of the module's docstring, through the contract's simulated processes."""

    class Aligned(PseudoLabelMethod):
        name = "aligned"
        Hyper = FixMatch.Hyper

        def __init__(self, backbone, task, hyper):
            super().__init__(backbone, task, hyper)
            self.alignment = DistributionAlignment(self, 0.9)

        def prepare(self, batch: Batch):
            self._weak = self.weak_probabilities(batch)
            return self.alignment.sums(self._weak)

        def observe(self, statistics):
            self.alignment.update(statistics)

        def pseudo_labels(self, batch: Batch):
            return fixed_pseudo_labels(self.alignment(self._weak), 0.6, 0.4)

    def build():
        return contract.started(
            Aligned(contract.tiny_backbone(), contract.tiny_task(), FixMatch.Hyper()), torch.float64
        )

    torch.manual_seed(0)
    whole = build()
    parts = [contract.copy_of(whole) for _ in range(2)]
    for step in range(2):
        batch = contract.tiny_batch(3, 3, step, torch.float64)
        output = contract.forward(whole, batch)

        def work(rank, processes, batch=batch):
            return contract.forward(parts[rank], contract.share(batch, rank, 2, processes))

        outputs = contract.Simulated(2).run(work)
        for name, loss in output.losses.items():
            torch.testing.assert_close(loss, sum(part.losses[name] for part in outputs), rtol=1e-10, atol=0)
        for part in parts:
            torch.testing.assert_close(part.alignment_mean, whole.alignment_mean, rtol=1e-12, atol=0)

import copy

import pytest
import torch

from methods.base import PseudoLabels
from tests.methods.table import GOLDEN, VIEWS, gradients_of, numbers, same, step_of

INPUTS = GOLDEN["inputs"]
OFFICIAL = GOLDEN["mean_teacher"]  # ytaek-oh/mlssl-simple at 027be6c, run
LABELLED = 3 * 4


def step_with_teacher(teacher, **arguments):
    """A step whose teacher answers the weak views of unlabelled images with given logits."""
    method, batch = step_of("mean_teacher", INPUTS, **arguments)
    other = copy.deepcopy(method).eval().requires_grad_(False)
    first = sum(len(INPUTS[view]) for view in VIEWS[:2])
    other.classifier.rows[first : first + len(teacher)] = numbers(teacher)
    method.set_teacher(other)
    return method, batch


@pytest.mark.parametrize("run", OFFICIAL["runs"], ids=lambda run: f"step {run['step']}")
def test_a_step_is_the_official_one(run):
    method, batch = step_with_teacher(
        OFFICIAL["teacher"], step=run["step"], total=run["total"], loss="bce", unlabelled_weight=run["weight"]
    )
    output = method(batch)
    # All is the official mean, times the number of labelled entries; the ramp is inside.
    same(output.losses["labelled"] / LABELLED, run["l_loss"])
    same(output.losses["unlabelled"] / LABELLED, run["ul_loss"])
    for view, gradient in gradients_of(method, batch, output).items():
        same(gradient / LABELLED, run["gradient"][view])


def test_the_consistency_has_a_gradient_and_it_is_that_of_the_hand():
    # In Semi-supervised-learning at 1ef4cbe the student's logits are overwritten with the teacher's.
    assert GOLDEN["usb_mean_teacher"]["largest_unlabelled_gradient"] == 0
    method, batch = step_with_teacher(OFFICIAL["teacher"], unlabelled_weight=7.0)
    found = gradients_of(method, batch, method(batch), ["unlabelled"])
    for view in ("weak_labelled", "strong_labelled", "weak_unlabelled"):
        assert not found[view].any()
    student = torch.sigmoid(numbers(INPUTS["strong_unlabelled"]))
    teacher = torch.sigmoid(numbers(OFFICIAL["teacher"]))
    expected = 7.0 * (3 / 5) * 2 * (student - teacher) * student * (1 - student)
    same(found["strong_unlabelled"], expected)
    assert expected.abs().max() > 0.1


def test_targets_are_the_teachers_and_follow_it_not_the_student():
    method, batch = step_with_teacher(OFFICIAL["teacher"])
    first = method(batch).pseudo_labels
    assert isinstance(first, PseudoLabels)
    same(first.targets, torch.sigmoid(numbers(OFFICIAL["teacher"])))
    assert first.mask.all()
    with torch.no_grad():
        method.classifier.rows += 1  # the student
    assert torch.equal(method(batch).pseudo_labels.targets, first.targets)
    with torch.no_grad():
        method.teacher.classifier.rows += 1
    assert (method(batch).pseudo_labels.targets > first.targets).all()


def test_a_student_that_agrees_with_its_teacher_feels_nothing():
    method, batch = step_with_teacher(INPUTS["strong_unlabelled"])
    output = method(batch)
    assert not output.losses["unlabelled"]
    assert not gradients_of(method, batch, output)["strong_unlabelled"].any()


def test_the_weight_rises_over_the_first_part_of_the_training():
    sizes = []
    for step in (0, 1, 9, 10, 24):
        method, batch = step_with_teacher(OFFICIAL["teacher"], step=step, total=25)
        sizes.append(method(batch).losses["unlabelled"].item())
    assert [size / sizes[-1] for size in sizes] == pytest.approx([0.1, 0.2, 1, 1, 1])

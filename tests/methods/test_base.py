import doctest

import pytest
import torch

import methods
import methods.exchange
from methods.base import Task, seeded_rng
from methods.errors import UserError


def test_task_counts_must_agree():
    with pytest.raises(UserError, match="2 classes, 2 prompts and 3 label columns"):
        Task(("a", "b"), ("a", "b"), torch.zeros(4, 3), 0, 0)


def test_prior_is_the_frequency_kept_away_from_certainty():
    labels = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    task = Task(("a", "b", "c"), ("a", "b", "c"), labels, 0, 0)
    assert task.frequencies.tolist() == pytest.approx([1, 0, 1 / 3])
    assert task.prior.tolist() == pytest.approx([3.5 / 4, 0.5 / 4, 1.5 / 4])


def test_seeded_block_draws_the_same_and_leaves_no_trace():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded_rng(9):
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)


def test_saved_state_of_another_shape_of_method_is_refused(load, task):
    method = methods.create("dualcoop", backbone=load(), task=task)
    state = method.training_state()
    assert not any(
        "visual" in name and "running" not in name and "num_b" not in name for name in state
    )  # a frozen tower is not saved again and again
    del state["positive.context"]
    with pytest.raises(ValueError, match=r"missing \['positive.context'\]"):
        method.load_training_state(state)
    with pytest.raises(ValueError, match=r"unknown \['nonsense'\]"):
        method.load_training_state({**method.training_state(), "nonsense": torch.zeros(1)})


def test_examples_of_what_goes_to_and_fro():
    found = doctest.testmod(methods.exchange)
    assert found.failed == 0
    assert found.attempted > 3

"""Classifiers with learnt prompts: a step of every method that takes one, and the contract on some."""

from __future__ import annotations

import functools

import pytest
import torch

import methods
from benchmarks.checks import contract, contract_suite
from methods.parts.linear import LinearMethod

torch.set_num_threads(1)
NAMES = [name for name in methods.available() if issubclass(methods.get(name), LinearMethod)]
CLASSIFIERS = {
    "aligned": {"context_length": 2},
    "dualcoop": {"context_words": "photo of", "negative_words": "no"},
}
SOME = ("cap", "freematch")
CHECKS = (
    contract_suite.test_gradients_reach_all_that_is_trainable_and_nothing_else,
    contract_suite.test_half_precision_steps_stay_finite_and_scores_float32,
    contract_suite.test_steps_and_scores_depend_on_nothing_hidden,
    contract_suite.test_training_state_restores_a_method,
    functools.partial(contract_suite.test_two_processes_do_what_one_does, labelled=1, unlabelled=4),
    functools.partial(contract_suite.test_a_process_may_get_no_image_of_a_kind, labelled=0, unlabelled=3),
)


@pytest.fixture(params=CLASSIFIERS)
def overrides(request):
    return {"classifier": request.param, **CLASSIFIERS[request.param]}


@pytest.fixture
def build(overrides):
    def make(name, dtype=torch.float32):
        return contract.started(contract.create(name, overrides), dtype)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_a_step_trains_the_prompts_and_the_network(name, build):
    method = build(name)
    output = contract.forward(method, contract.tiny_batch(3, 4, method=method))
    torch.stack(list(output.losses.values())).sum().backward()
    trained = [parameter for group in method.param_groups() for parameter in group["params"]]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    for prompt in method.classifier.prompts.values():
        assert prompt.context.grad.abs().sum() > 0
    assert sum(
        float(p.grad.abs().sum()) for p in method.classifier.vlm.visual.parameters() if p.requires_grad
    )
    with torch.no_grad():
        assert method.eval().predict(contract.tiny_images(2, method)).shape == (2, 4)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: getattr(check, "func", check).__name__[5:45])
@pytest.mark.parametrize("name", SOME)
def test_the_contract(name, check, build):
    check(step_name=name, build=build)


@pytest.mark.parametrize("name", SOME)
def test_the_warm_up(name, overrides):
    contract_suite.test_warm_up_is_labelled_only_and_hands_its_weights_on(name, overrides)

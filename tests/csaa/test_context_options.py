"""CSAA's further readings of contexts, each against a literal loop."""

from __future__ import annotations

import math

import pytest
import torch

import methods
from benchmarks.checks import contract, contract_suite
from csaa.contexts import noisy_or
from csaa.hyper import CSAAHyper
from csaa.method import CSAA
from csaa.refinement import Refinement, conditional_graph, context_graph
from methods.base import Pool
from methods.errors import UserError
from methods.fields import identified
from methods.losses import asymmetric_loss
from tests.csaa.test_csaa import POOL, batch, build, labels, refreshed

torch.set_num_threads(1)
READ = {"context_scores": "noisy-or", "context_loss": "asl", "context_weight": 0.1}
CONTEXTS = torch.tensor([0, 1, 0, 1, 1])


def logistic(value):
    return 1 / (1 + math.exp(-value))


# --- context scores that are read from the class scores ---------------------------------------------------


def test_noisy_or_against_a_literal_loop():
    logits = 3 * torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = noisy_or(logits, CONTEXTS, 2)
    for j in range(6):
        for m in range(2):
            absent = 1.0
            for k in range(5):
                if CONTEXTS[k] == m:
                    absent *= 1 - logistic(float(logits[j, k]))
            assert float(found[j, m]) == pytest.approx(math.log((1 - absent) / absent), rel=1e-9)


@pytest.mark.parametrize("value", [-200.0, -90.0, -20.0, 0.0, 20.0, 200.0])
def test_noisy_or_and_its_slope_are_finite_in_float32(value):
    logits = torch.full((1, 5), value, requires_grad=True)
    found = noisy_or(logits, CONTEXTS, 2)
    found.sum().backward()
    assert found.isfinite().all()
    assert logits.grad.isfinite().all()
    if value <= -20:  # the union of n rare events: log n more than one of them, and a slope of 1 in all
        if value > -80:
            torch.testing.assert_close(found, torch.tensor([[value + math.log(2), value + math.log(3)]]))
            assert logits.grad[0, 0] + logits.grad[0, 2] == pytest.approx(1)
    elif value >= 20:
        torch.testing.assert_close(found, torch.tensor([[2 * value, 3 * value]]))


def test_losses_of_contexts_that_are_read_from_class_scores():
    method = refreshed(build(**READ))
    assert not any("context_head" in name for name in method.state_dict())
    data = batch()
    output = method.training_step(data)
    logits = method.classifier(torch.cat([data.strong_labelled, data.strong_unlabelled]))
    scores = noisy_or(logits, method.contexts, 2)
    labelled = unlabelled = 0.0
    for j in range(4):
        for m in range(2):
            shown = any(data.targets[j, k] for k in range(5) if method.contexts[k] == m)
            labelled += asymmetric_loss(scores[j, m], torch.tensor(float(shown)), 0, 4, 0.05)
    for j, row in enumerate(data.unlabelled):
        for m in range(2):
            element = asymmetric_loss(scores[4 + j, m], method.context_targets[row, m].float(), 0, 4, 0.05)
            unlabelled += element * method.context_mask[row, m]
    torch.testing.assert_close(output.losses["context"], 0.1 * labelled)
    torch.testing.assert_close(output.losses["context_unlabelled"], 0.1 * unlabelled)
    gradient = torch.autograd.grad(output.losses["context"], method.classifier.prompt("class").context)[0]
    assert gradient.abs().sum() > 0  # the task reaches the classifier without a head


def test_pool_scores_have_what_becomes_pseudo_labels_of_contexts():
    method = build(**READ, refinement="context")
    images = batch().weak_unlabelled
    with torch.no_grad():
        logits = method.classifier(images)
        found = method.score_pool(images)
    torch.testing.assert_close(found[:, :5], method.refinement(logits))
    torch.testing.assert_close(found[:, 5:], noisy_or(logits, method.contexts, 2))  # of scores as they are
    extra = torch.randn(POOL, 2, generator=torch.Generator().manual_seed(3))
    method.refresh(Pool(0, torch.randn(POOL, 5), extra))
    for m in range(2):  # both contexts occur in half of the labelled images
        highest = set(extra[:, m].topk(6).indices.tolist())
        assert set(method.context_targets[:, m].nonzero()[:, 0].tolist()) == highest


def test_the_head_can_start_at_the_frequencies():
    zero, method = build().context_head, build(context_bias="frequency")
    assert zero.bias.tolist() == [0, 0]
    assert torch.equal(method.context_head.weight, zero.weight)
    bias = method.context_head.bias.tolist()
    for m in range(2):
        classes = [k for k in range(5) if method.contexts[k] == m]
        shown = sum(any(row[k] for k in classes) for row in labels())
        assert logistic(bias[m]) == pytest.approx((shown + 0.5) / 5)


# --- refinement ---------------------------------------------------------------------------------------------


def test_graphs_against_literal_loops():
    known = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0.0]])
    graph = conditional_graph(known)
    for k in range(4):
        for j in range(4):
            shown = [row for row in known if row[j]]
            share = sum(float(row[k]) for row in shown) / len(shown) if shown and k != j else 0.0
            assert float(graph[k, j]) == pytest.approx(share)
            same = float(k != j and CONTEXTS[k] == CONTEXTS[j])
            assert context_graph(CONTEXTS)[k, j] == same


@pytest.mark.parametrize("graph", ["context", "conditional"])
def test_scores_are_refined_as_written(graph):
    method = build(refinement=graph, refinement_start=0.4)
    images = batch().weak_labelled
    with torch.no_grad():
        method.classifier.bias.normal_(-3, 2)
        logits, found = method.classifier(images), method.predict(images)
    for j in range(4):
        for k in range(5):
            total = 0.0
            for other in range(5):
                if other == k:
                    continue
                if graph == "context":
                    weight = float(method.contexts[k] == method.contexts[other])
                else:
                    weight = float(labels()[:, k] @ labels()[:, other] / labels()[:, other].sum())
                total += weight * logistic(float(logits[j, other]))
            assert float(found[j, k]) == pytest.approx(float(logits[j, k]) + 0.4 * total, abs=1e-5)


def test_the_sum_has_no_gradient_and_gamma_is_learnt():
    refinement = Refinement(context_graph(CONTEXTS), 0.25, learnt=True)
    logits = torch.randn(3, 5, requires_grad=True)
    refinement(logits)[:, 2].sum().backward()
    assert torch.equal(logits.grad, torch.eye(5)[2].expand(3, 5))
    assert float(refinement.gamma.grad) == pytest.approx(float(logits[:, 0].detach().sigmoid().sum()))
    method = refreshed(build(refinement="context", lr_prompts=3e-3, lr_head=1e-2))
    sum(method.training_step(batch()).losses.values()).backward()
    assert method.refinement.gamma.grad != 0
    (group,) = (g for g in method.param_groups() if any(p is method.refinement.gamma for p in g["params"]))
    assert (group["lr"], group["weight_decay"]) == (3e-3, 0.0)


@pytest.mark.parametrize("graph", ["context", "conditional"])
@pytest.mark.parametrize("start", [0.0, 0.25, 1.0])
def test_what_was_refined_is_found_again(graph, start):
    torch.manual_seed(0)
    found = context_graph(torch.zeros(60, dtype=torch.long))
    if graph == "conditional":
        found = conditional_graph((torch.rand(200, 60) < torch.linspace(0, 0.9, 60)).float())
    refinement = Refinement(found, start, learnt=True).double()
    logits = 4 * torch.randn(7, 60, dtype=torch.float64) + 3
    torch.testing.assert_close(refinement.inverse(refinement(logits).detach()), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("graph", ["none", "context", "conditional"])
def test_refined_scores_start_at_the_labelled_frequencies(graph):
    method = build(refinement=graph, refinement_start=0.25 if graph == "none" else 1.0)
    images = torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        method.calibrate(method.predict(images))
        mean = method.predict(images).sigmoid().mean(dim=0)
    torch.testing.assert_close(mean, labels().mean(dim=0), atol=1e-3, rtol=0)


def test_the_teacher_alone_may_refine():
    plain, method = build(), build(refinement="conditional", refined_scores="teacher")
    images = batch().weak_unlabelled
    with torch.no_grad():
        assert torch.equal(method.predict(images), plain.predict(images))
        logits, pool = method.predict(images), method.score_pool(images)
    torch.testing.assert_close(pool[:, :5], logits + 0.25 * logits.sigmoid() @ conditional_graph(labels()).T)
    losses, same = (refreshed(each).training_step(batch()).losses for each in (method, plain))
    assert {name: loss.item() for name, loss in losses.items()} == {
        n: loss.item() for n, loss in same.items()
    }
    assert not method.refinement.gamma.requires_grad
    assert "refinement.gamma" not in method.training_state()


# --- what may be combined, identities, warm-ups ------------------------------------------------------------


REFUSED = [
    ({"context_weight": 0, "context_scores": "noisy-or"}, "'noisy-or' belongs to the context task"),
    ({"context_weight": 0, "context_loss": "asl"}, "leave it out with context_weight = 0, which removes it"),
    ({"context_weight": 0, "context_bias": "frequency"}, "context_bias = 'frequency' belongs to the context"),
    (
        {"context_scores": "noisy-or", "context_bias": "frequency"},
        "belongs to the context head; leave it out",
    ),
    ({"context_scores": "noisy-or", "context_feature": "label-specific"}, "which has none"),
    ({"refinement_start": 0.5}, "refinement_start = 0.5 belongs to a refinement; leave it out with refine"),
    ({"refined_scores": "teacher"}, "belongs to a refinement; leave it out with refinement = 'none'"),
    ({"refinement": "context", "refinement_start": 1.5}, "refinement_start"),
    (
        {"refinement": "context", "refined_scores": "teacher", "pseudo_labels": "none"},
        "belongs to pseudo-labels",
    ),
    ({"refinement": "contexts"}, "did you mean 'context'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_would_do_nothing_is_refused_in_a_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        methods.hyper("csaa", **changes)
    assert "\n" not in str(caught.value)


def test_a_frozen_tower_takes_contexts_that_are_read_from_class_scores():
    method = refreshed(build(**READ, freeze_visual=True))
    losses = method.training_step(batch()).losses
    assert (
        torch.autograd.grad(losses["context"], method.classifier.prompt("class").context)[0].abs().sum() > 0
    )


def test_identities_of_earlier_results_stay():
    fields = set(CSAAHyper.later)
    assert not fields & set(identified(CSAAHyper()))
    chosen = identified(CSAAHyper(**READ, refinement="conditional", refined_scores="teacher"))
    assert {name: chosen[name] for name in fields & set(chosen)} == {
        "context_scores": "noisy-or",
        "context_loss": "asl",
        "refinement": "conditional",
        "refined_scores": "teacher",
    }


def test_contexts_are_counted_for_the_graph_too():
    def contexts(**changes):
        return CSAA.resolve_hyper(CSAAHyper(context_weight=0.0, **changes), 20, None).num_contexts

    assert (contexts(), contexts(refinement="conditional"), contexts(refinement="context")) == (0, 0, 10)
    hyper = CSAAHyper(context_weight=0.0, refinement="context", num_contexts=30)
    with pytest.raises(UserError, match="num_contexts"):
        CSAA.check_task(hyper, 20, None)
    method = build(context_weight=0.0, refinement="context")
    assert "contexts" in method.state_dict()
    assert set(refreshed(method).training_step(batch()).losses) == {"labelled", "unlabelled"}


def test_warm_ups_are_shared_where_the_labelled_training_is_the_same():
    def warmup(**changes):
        return CSAA.warmup_hyper(CSAAHyper(**changes))

    assert warmup(refinement="context", refined_scores="teacher") == warmup()
    none = {"context_weight": 0.0}
    assert warmup(**none, refinement="context", refined_scores="teacher", num_contexts=7) == warmup(**none)
    assert warmup(**none, refinement="context", num_contexts=7) != warmup(
        **none, refinement="context", num_contexts=8
    )
    assert warmup(refinement="context") != warmup(refinement="conditional") != warmup()
    assert warmup(**READ, lr_head=1.0) == warmup(**READ)
    assert len({warmup(), warmup(**READ), warmup(context_bias="frequency"), warmup(context_loss="asl")}) == 4


# --- the contract ------------------------------------------------------------------------------------------

VARIANTS = {
    "both": {**READ, "refinement": "context"},
    "teacher": {**READ, "refinement": "conditional", "refined_scores": "teacher"},
    "head": {"context_bias": "frequency", "context_loss": "asl", "refinement": "conditional"},
}


@pytest.fixture(params=VARIANTS)
def overrides(request):
    return {"num_contexts": 2, "context_length": 2, **VARIANTS[request.param]}


@pytest.fixture
def prepared(overrides):
    def make(name, dtype=torch.float32):
        return contract.started(contract.create(name, overrides), dtype)

    return make


def test_the_contract(prepared, overrides):
    contract_suite.test_gradients_reach_all_that_is_trainable_and_nothing_else("csaa", prepared)
    contract_suite.test_half_precision_steps_stay_finite_and_scores_float32("csaa", prepared)
    contract_suite.test_two_processes_do_what_one_does("csaa", prepared, 1, 4)
    contract_suite.test_a_process_may_get_no_image_of_a_kind("csaa", prepared, 0, 3)
    contract_suite.test_training_state_restores_a_method("csaa", prepared)
    contract_suite.test_warm_up_is_labelled_only_and_hands_its_weights_on("csaa", overrides)
    method = prepared("csaa")
    logits = torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # neither product is one of half precision
        refined, contexts = method.refinement(logits), noisy_or(logits, method.contexts, 2)
    assert torch.equal(refined, method.refinement(logits))
    assert torch.equal(contexts, noisy_or(logits, method.contexts, 2))

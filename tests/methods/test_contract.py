"""Every registered method, third-party ones included, through the same checks."""

import copy
import dataclasses

import pytest
import torch

import methods
from methods.base import (
    OPTIMIZERS,
    SCHEDULES,
    Batch,
    FitMethod,
    Pool,
    PseudoLabels,
    StepMethod,
    Task,
)

SMALL = {"csaa": {"num_contexts": 2}}  # values that fit four classes
STEP = [n for n in methods.available() if issubclass(methods.get(n), StepMethod)]
FIT = [n for n in methods.available() if issubclass(methods.get(n), FitMethod)]


@pytest.fixture
def build(load, task):
    """Function from a name to a fresh method that has seen pool scores if it wants them."""

    def make(name, **overrides):
        method = methods.create(name, backbone=load(), task=task, **{**SMALL.get(name, {}), **overrides})
        if method.wants_pool(0):
            generator = torch.Generator().manual_seed(2)
            columns = method.score_pool(torch.rand(2, 3, 64, 64, generator=generator)).shape[1]
            scores = torch.randn(task.num_unlabelled, columns, generator=generator)
            method.refresh(Pool(0, scores[:, : task.num_classes], scores[:, task.num_classes :]))
        return method.train()

    return make


def total(output):
    return torch.stack(list(output.losses.values())).sum()


def part(batch, labelled, unlabelled):
    """The rows of a batch that one of two processes would get."""
    changed = {}
    for field in dataclasses.fields(Batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            mine = unlabelled if "unlabelled" in field.name else labelled
            changed[field.name] = value[mine]
    return dataclasses.replace(batch, **changed)


def in_float64(batch):
    """The same batch as the trainer makes it for precision "fp64"."""
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(Batch)}
    floats = {k: v.double() for k, v in values.items() if torch.is_tensor(v) and v.is_floating_point()}
    return dataclasses.replace(batch, **floats)


def test_nothing_handed_to_a_method_can_hold_a_hidden_label():
    # Labels exist for the labelled images only; a new field has to be thought about here.
    assert {f.name for f in dataclasses.fields(Task)} == {
        "classes",
        "prompts",
        "labels",
        "num_unlabelled",
        "seed",
    }
    assert {f.name for f in dataclasses.fields(Batch)} == {
        "epoch",
        "step",
        "labelled",
        "weak_labelled",
        "strong_labelled",
        "targets",
        "unlabelled",
        "weak_unlabelled",
        "strong_unlabelled",
        "global_labelled",
        "global_unlabelled",
        "processes",
    }
    assert {f.name for f in dataclasses.fields(Pool)} == {
        "epoch",
        "scores",
        "extra",
        "labelled",
        "model_scores",
    }


@pytest.mark.parametrize("name", STEP)
def test_losses_are_finite_scalars(name, build, make_batch):
    method = build(name)
    output = method(make_batch())
    assert output.losses
    for loss in output.losses.values():
        assert loss.shape == ()
        assert torch.isfinite(loss)
    assert method.optimizer in OPTIMIZERS
    assert method.schedule in SCHEDULES
    if output.pseudo_labels is not None:
        assert isinstance(output.pseudo_labels, PseudoLabels)
        for entries in (output.pseudo_labels.targets, output.pseudo_labels.mask):
            assert entries.shape == (6, 4)
            assert set(entries.unique().tolist()) <= {0.0, 1.0}
            assert not entries.requires_grad


@pytest.mark.parametrize("name", STEP)
def test_gradients_reach_all_that_is_trainable_and_nothing_else(name, build, make_batch):
    method = build(name)
    total(method(make_batch())).backward()
    parameters = dict(method.named_parameters())
    grouped = [p for group in method.param_groups() for p in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in parameters.values() if p.requires_grad}
    for group in method.param_groups():
        assert group["lr"] > 0
        assert group["weight_decay"] >= 0
    for key, parameter in parameters.items():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    assert sum(float(p.grad.abs().sum()) for p in grouped) > 0
    assert method.frozen_names == {k for k, p in parameters.items() if not p.requires_grad}


@pytest.mark.parametrize("name", STEP)
def test_a_gradient_step_lowers_the_loss_of_a_fixed_batch(name, build, make_batch):
    method = build(name)
    batch = make_batch(labelled=6, unlabelled=0)  # pseudo-labels may change with the model
    before = total(method(batch))
    before.backward()
    groups = [p for group in method.param_groups() for p in group["params"]]
    slope = sum(float(p.grad.square().sum()) for p in groups)
    with torch.no_grad():
        for parameter in groups:  # aims at lowering the loss by 1 %
            parameter -= 0.01 * float(before) / slope * parameter.grad
        after = total(method(batch))
    assert float(after) < float(before.detach())


@pytest.mark.parametrize("name", STEP)
def test_losses_of_the_parts_of_a_batch_add_up(name, build, make_batch):
    # Two processes with half the images each follow the same objective as one. In float64, which
    # a method must not leave: in float32 the tolerance would have to hide small faults.
    method = build(name).double()
    batch = in_float64(make_batch(labelled=5, unlabelled=6))
    first = part(batch, torch.tensor([0, 2, 4]), torch.tensor([0, 2, 4]))
    second = part(batch, torch.tensor([1, 3]), torch.tensor([1, 3, 5]))
    trained = [p for group in method.param_groups() for p in group["params"]]
    losses, gradients = [], []
    for one in (batch, first, second):
        output = method(one)
        losses.append(output.losses)
        gradients.append(torch.autograd.grad(total(output), trained))
    for key, loss in losses[0].items():
        assert loss.dtype == torch.float64
        torch.testing.assert_close(loss, losses[1][key] + losses[2][key], rtol=1e-10, atol=0)
    for whole, *parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, sum(parts), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        assert method.predict(batch.weak_labelled).dtype == torch.float64
        assert method.score_pool(batch.weak_unlabelled).dtype == torch.float64


@pytest.mark.parametrize("name", STEP)
@pytest.mark.parametrize(("labelled", "unlabelled"), [(0, 3), (2, 0)])
def test_a_process_may_get_no_image_of_a_kind(name, build, make_batch, labelled, unlabelled):
    method = build(name)
    output = method(make_batch(labelled, unlabelled))
    loss = total(output)
    assert torch.isfinite(loss)
    loss.backward()
    assert all(p.grad is not None for group in method.param_groups() for p in group["params"])


@pytest.mark.parametrize("name", STEP)
def test_steps_and_scores_depend_on_nothing_hidden(name, build, make_batch, task):
    method = build(name)
    labels = task.labels.clone()
    batch = make_batch()
    kept = copy.deepcopy(batch)
    first, second = (total(method(batch)).detach() for _ in range(2))
    assert torch.equal(first, second)
    for field in dataclasses.fields(Batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(kept, field.name)), f"{field.name} was written to"
    assert torch.equal(task.labels, labels)
    method.eval()
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        scores = method.predict(images)
        alone = torch.cat([method.predict(image[None]) for image in images])
    assert scores.shape == (3, 4)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, alone, atol=1e-4)


@pytest.mark.parametrize("name", STEP)
def test_half_precision_steps_stay_finite_and_scores_float32(name, build, make_batch):
    method = build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(make_batch())
        with torch.no_grad():
            scores = method.predict(torch.rand(2, 3, 64, 64))
            pool = method.score_pool(torch.rand(2, 3, 64, 64))
    loss = total(output)
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32
    loss.backward()
    assert scores.dtype == torch.float32
    assert pool.dtype == torch.float32


@pytest.mark.parametrize("name", STEP)
def test_training_state_restores_a_method(name, build):
    trained, fresh = build(name), build(name)
    with torch.no_grad():
        for group in trained.param_groups():
            for parameter in group["params"]:
                parameter.add_(0.01 * torch.randn(parameter.shape))
    images = torch.rand(2, 3, 64, 64)
    state = copy.deepcopy(trained.training_state())
    # An average has all gradients switched off; what belongs to its state must not depend on that.
    assert set(copy.deepcopy(trained).requires_grad_(False).training_state()) == set(state)
    _, unexpected = fresh.load_state_dict(state, strict=False)
    assert not unexpected
    with torch.no_grad():
        assert torch.equal(trained.eval().predict(images), fresh.eval().predict(images))


@pytest.mark.parametrize("name", STEP)
def test_warm_up_is_labelled_only_and_hands_its_weights_on(name, build, load, task, make_batch):
    method = build(name)
    hyper = type(method).warmup_hyper(method.hyper)
    if hyper is None:
        assert not method.uses_unlabelled, "a method with a pool needs a warm-up"
        return
    warm_task = dataclasses.replace(task, num_unlabelled=0)
    warm = methods.create(
        method.warmup_name or name, backbone=load(), task=warm_task, **dataclasses.asdict(hyper)
    ).train()
    assert not warm.wants_pool(0)
    optimizer = torch.optim.SGD(warm.param_groups(), lr=1e-3)
    total(warm(make_batch(unlabelled=0))).backward()
    optimizer.step()
    images = torch.rand(2, 3, 64, 64)
    method.load_warmup(warm.training_state())
    with torch.no_grad():
        assert torch.equal(warm.eval().predict(images), method.eval().predict(images))
    state = dict(warm.training_state())
    del state[next(key for key, p in method.named_parameters() if p.requires_grad)]
    with pytest.raises(ValueError, match="lacks 1 parameters"):
        method.load_warmup(state)


@pytest.mark.parametrize("name", FIT)
def test_fit_methods_score_features(name, load, task):
    backbone = load()
    features = torch.randn(20, backbone.dim)
    scores = []
    for _ in range(2):
        method = methods.create(name, backbone=backbone, task=task, **SMALL.get(name, {}))
        method.fit(features[:8], seed=1)
        scores.append(method.predict(features))
    assert scores[0].shape == (20, 4)
    assert scores[0].dtype == torch.float32
    assert torch.isfinite(scores[0]).all()
    assert torch.equal(*scores)
    assert torch.allclose(method.predict(features[3:5]), scores[0][3:5], atol=1e-5)

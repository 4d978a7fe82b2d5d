"""What every registered method has to keep to, as tests for pytest; see `benchmarks.checks.contract`.

`contract.run` runs them on some methods, `tests/methods/test_contract.py` on all registered ones.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import methods
from benchmarks.checks import contract
from methods.base import (
    OPTIMIZERS,
    SCHEDULES,
    Batch,
    Pool,
    Processes,
    PseudoLabels,
    StepMethod,
    StepOutput,
    Task,
)

Build = Callable[..., StepMethod]


def pytest_generate_tests(metafunc: Any) -> None:
    """Run a test that takes ``step_name`` or ``fit_name`` for each method of that kind."""
    selection = contract.selection_of(metafunc.config)
    for kind in ("step", "fit"):
        if f"{kind}_name" in metafunc.fixturenames:
            metafunc.parametrize(f"{kind}_name", getattr(selection, kind))


@pytest.fixture
def overrides(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Hyper-parameters of the test's method that fit the tiny task."""
    name = request.getfixturevalue("step_name" if "step_name" in request.fixturenames else "fit_name")
    return dict(contract.selection_of(request.config).overrides.get(name, {}))


@pytest.fixture
def build(overrides: dict[str, Any]) -> Build:
    """Function from a name to a fresh method as at its first step."""

    def make(name: str, dtype: torch.dtype = torch.float32) -> StepMethod:
        return contract.started(contract.create(name, overrides), dtype)

    return make


def total(output: StepOutput) -> Tensor:
    """The sum of a step's losses."""
    return torch.stack(list(output.losses.values())).sum()


def trained(method: StepMethod) -> list[torch.nn.Parameter]:
    """The parameters that the optimiser is given."""
    return [parameter for group in method.param_groups() for parameter in group["params"]]


def test_nothing_handed_to_a_method_can_hold_a_hidden_label() -> None:
    """Labels exist for the labelled images only; a new field has to be thought about here."""
    fields = {kind: {f.name for f in dataclasses.fields(kind)} for kind in (Task, Batch, Pool)}
    assert fields[Task] == {"classes", "prompts", "labels", "num_unlabelled", "seed", "estimation"}
    assert fields[Batch] == {
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
        "global_step",
        "total_steps",
        "phase",
    }
    assert fields[Pool] == {"epoch", "scores", "extra", "labelled", "model_scores", "model_labelled"}


def test_losses_are_finite_scalars(step_name: str, build: Build) -> None:
    """Losses are scalars; pseudo-labels, if there are some, fit the batch."""
    method = build(step_name)
    output = contract.forward(method, contract.tiny_batch(method=method))
    assert output.losses
    for loss in output.losses.values():
        assert loss.shape == ()
        assert torch.isfinite(loss)
    assert method.optimizer in OPTIMIZERS
    assert method.schedule in SCHEDULES
    if output.pseudo_labels is not None:
        assert isinstance(output.pseudo_labels, PseudoLabels)
        targets, mask, weight = dataclasses.astuple(output.pseudo_labels)
        for entries in (targets, mask, weight):
            if entries is not None:
                assert entries.shape == (6, 4)
                assert ((entries >= 0) & (entries <= 1)).all()
                assert not entries.requires_grad
        assert set(mask.unique().tolist()) <= {0.0, 1.0}


def test_gradients_reach_all_that_is_trainable_and_nothing_else(step_name: str, build: Build) -> None:
    """The groups hold every trainable parameter once, and each gets a gradient."""
    method = build(step_name)
    total(contract.forward(method, contract.tiny_batch(method=method))).backward()
    parameters = dict(method.named_parameters())
    grouped = trained(method)
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in parameters.values() if p.requires_grad}
    for group in method.param_groups():
        assert group["lr"] > 0
        assert group["weight_decay"] >= 0
    for key, parameter in parameters.items():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    assert sum(float(p.grad.abs().sum()) for p in grouped if p.grad is not None) > 0
    assert method.frozen_names == {k for k, p in parameters.items() if not p.requires_grad}


def test_a_gradient_step_lowers_the_loss_of_a_fixed_batch(step_name: str, build: Build) -> None:
    """The gradient is that of the losses."""
    method = build(step_name)
    batch = contract.tiny_batch(
        labelled=6, unlabelled=0, method=method
    )  # pseudo-labels may change with the model
    before = total(contract.forward(method, batch))
    before.backward()
    groups = trained(method)
    slope = sum(float(p.grad.square().sum()) for p in groups if p.grad is not None)
    with torch.no_grad():
        for parameter in groups:  # aims at lowering the loss by 1 %
            assert parameter.grad is not None
            parameter.sub_(0.01 * float(before) / slope * parameter.grad)
        after = total(method(batch))
    assert float(after) < float(before.detach())


@pytest.mark.parametrize(("labelled", "unlabelled"), [(5, 6), (5, 1), (1, 4)])
def test_two_processes_do_what_one_does(step_name: str, build: Build, labelled: int, unlabelled: int) -> None:
    """Two processes with half the images each have the losses, gradients and state of one.

    In float64, which a method must not leave: in float32 the tolerance would have to hide small
    faults. A process may have no image of a kind, and the second has no positive of class 0.
    """
    whole = build(step_name, torch.float64)
    parts = [contract.copy_of(whole) for _ in range(2)]
    for step in range(3):
        batch = contract.tiny_batch(labelled, unlabelled, step, torch.float64, whole)
        batch.targets[1::2, 0] = 0
        output = contract.forward(whole, batch)
        gradients = torch.autograd.grad(total(output), trained(whole))
        shares: list[Any] = [None, None]

        def work(
            rank: int, processes: Processes, batch: Batch = batch, shares: list[Any] = shares
        ) -> StepOutput:
            shares[rank] = contract.share(batch, rank, 2, processes)
            return contract.forward(parts[rank], shares[rank])

        outputs = contract.Simulated(2).run(work)
        # A process without images of a kind may leave their losses out.
        assert {key for part in outputs for key in part.losses} <= set(output.losses)
        for key, loss in output.losses.items():
            assert loss.dtype == torch.float64
            found = sum(part.losses[key] for part in outputs if key in part.losses)
            torch.testing.assert_close(loss, found, rtol=1e-10, atol=0)
        own = [parameter for part in parts for parameter in trained(part)]
        both = torch.autograd.grad(sum(map(total, outputs)), own)  # type: ignore[arg-type]
        count = len(gradients)
        summed = [one + two for one, two in zip(both[:count], both[count:], strict=True)]
        for ours, theirs in zip(gradients, summed, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        _check_pseudo_labels(output.pseudo_labels, [part.pseudo_labels for part in outputs])
        size = 0.01 / max(1.0, float(torch.stack([g.norm() for g in gradients]).norm()))
        with torch.no_grad():
            for method in (whole, *parts):
                for parameter, gradient in zip(trained(method), gradients, strict=True):
                    parameter.sub_(size * gradient)
        contract.after(whole, batch, output)
        contract.Simulated(2).run(partial(_after, parts, shares, outputs))
        for name, value in whole.named_buffers():
            one, two = (part.get_buffer(name) for part in parts)
            assert torch.equal(one, two), f"{name} differs between processes"
            message = f"{name} depends on the number of processes"
            torch.testing.assert_close(value, one, rtol=1e-9, atol=1e-9, msg=message)
    with torch.no_grad():
        assert whole.predict(batch.weak_labelled).dtype == torch.float64
        assert whole.score_pool(batch.weak_unlabelled).dtype == torch.float64


def _after(
    parts: list[StepMethod], shares: list[Batch], outputs: list[StepOutput], rank: int, processes: Processes
) -> None:
    """What one simulated process does after the optimiser's step."""
    contract.after(parts[rank], dataclasses.replace(shares[rank], processes=processes), outputs[rank])


def _check_pseudo_labels(whole: PseudoLabels | None, parts: list[PseudoLabels | None]) -> None:
    """A process has the rows of its images of the pseudo-labels that one process has."""
    if whole is None:
        assert parts == [None, None]
        return
    for rank, part in enumerate(parts):
        if part is None:  # allowed to a process without unlabelled images
            assert not len(whole.targets[rank::2])
            continue
        for ours, theirs in zip(dataclasses.astuple(whole), dataclasses.astuple(part), strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours[rank::2], theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("labelled", "unlabelled"), [(0, 3), (2, 0)])
def test_a_process_may_get_no_image_of_a_kind(
    step_name: str, build: Build, labelled: int, unlabelled: int
) -> None:
    """Losses stay finite and gradients exist; statistics have the same names, shapes and dtypes."""
    method = build(step_name)
    batch = dataclasses.replace(
        contract.tiny_batch(labelled, unlabelled, method=method), global_labelled=4, global_unlabelled=6
    )
    output = contract.forward(method, batch)
    loss = total(output)
    assert torch.isfinite(loss)
    loss.backward()
    assert all(p.grad is not None for p in trained(method))
    full, other = contract.tiny_batch(method=method), build(step_name)
    whole = contract.forward(other, full)
    with torch.no_grad():
        assert _layout(method.prepare(batch)) == _layout(other.prepare(full))
    assert _layout(output.statistics) == _layout(whole.statistics)
    assert (output.statistics is not None) == (type(method).observe_step is not StepMethod.observe_step)


def _layout(statistics: dict[str, Tensor] | None) -> list[tuple[str, torch.Size, torch.dtype]]:
    assert all(value.dtype != torch.bool for value in (statistics or {}).values())
    return [(name, value.shape, value.dtype) for name, value in (statistics or {}).items()]


def test_steps_and_scores_depend_on_nothing_hidden(step_name: str, build: Build) -> None:
    """A step writes to nothing it was given, and a score does not depend on its neighbours."""
    method = build(step_name)
    labels = method.task.labels.clone()
    batch = contract.tiny_batch(method=method)
    kept = copy.deepcopy(batch)
    contract.forward(method, batch)
    first, second = (total(method(batch)).detach() for _ in range(2))
    assert torch.equal(first, second)
    for field in dataclasses.fields(Batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            assert torch.equal(value, getattr(kept, field.name)), f"{field.name} was written to"
    assert torch.equal(method.task.labels, labels)
    method.eval()
    images = contract.tiny_images(3, method)
    with torch.no_grad():
        scores = method.predict(images)
        alone = torch.cat([method.predict(image[None]) for image in images])
    assert scores.shape == (3, 4)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, alone, atol=1e-4)


def test_half_precision_steps_stay_finite_and_scores_float32(step_name: str, build: Build) -> None:
    """Under autocast to bfloat16."""
    method = build(step_name)
    images = contract.tiny_images(2, method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = contract.forward(method, contract.tiny_batch(method=method))
        with torch.no_grad():
            scores, pool = method.predict(images), method.score_pool(images)
    loss = total(output)
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32
    loss.backward()
    assert scores.dtype == torch.float32
    assert pool.dtype == torch.float32


def test_training_state_restores_a_method(step_name: str, build: Build) -> None:
    """Scores and state come back; what belongs to them does not depend on requires_grad."""
    method, fresh = build(step_name), build(step_name)
    batch = contract.tiny_batch(method=method)
    contract.after(method, batch, contract.forward(method, batch))
    with torch.no_grad():
        for parameter in trained(method):
            parameter.add_(0.01 * torch.randn(parameter.shape))
    images = contract.tiny_images(2, method)
    state = copy.deepcopy(method.training_state())
    # An average has all gradients switched off; what belongs to its state must not depend on that.
    assert set(copy.deepcopy(method).requires_grad_(False).training_state()) == set(state)
    assert method.state_names <= set(state)
    fresh.load_training_state(state)
    for name, value in fresh.training_state().items():
        assert torch.equal(value, state[name]), name
    with torch.no_grad():
        assert torch.equal(method.eval().predict(images), fresh.eval().predict(images))


def test_the_teacher_is_no_part_of_the_method(step_name: str, build: Build) -> None:
    """Neither saved nor trained; and a method that does not ask for one has none."""
    method = build(step_name)
    if not method.wants_teacher:
        with pytest.raises(RuntimeError, match="has no teacher"):
            _ = method.teacher
        return
    teacher = method.teacher
    kept = copy.deepcopy(teacher.state_dict())
    total(contract.forward(method, contract.tiny_batch(method=method))).backward()
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in method.parameters()}
    assert set(method.state_dict()) == set(teacher.state_dict())
    for name, value in teacher.state_dict().items():
        assert name in method.state_names or torch.equal(value, kept[name]), f"{name} of the teacher changed"
    with pytest.raises(RuntimeError, match="has no teacher"):
        _ = copy.deepcopy(method).teacher


def test_warm_up_is_labelled_only_and_hands_its_weights_on(step_name: str, overrides: dict[str, Any]) -> None:
    """The warm-up's scores are those of the method before it has seen the pool."""
    method = contract.create(step_name, overrides)
    hyper = type(method).warmup_hyper(method.hyper)
    if phases := method.phases(method.hyper):
        assert hyper is None, "a method with phases has no warm-up beside them"
        assert len({phase.name for phase in phases}) == len(phases)
        return
    if hyper is None:
        assert not method.uses_unlabelled, "a method with a pool needs a warm-up"
        return
    task = dataclasses.replace(contract.tiny_task(), num_unlabelled=0)
    name = method.warmup_name or step_name
    warm: StepMethod = contract.create(name, dataclasses.asdict(hyper), task).train()
    assert not warm.wants_pool(0)
    optimizer = torch.optim.SGD(warm.param_groups(), lr=1e-3)
    total(contract.forward(warm, contract.tiny_batch(unlabelled=0, method=warm))).backward()
    optimizer.step()
    images = contract.tiny_images(2, method)
    method.load_warmup(warm.training_state())
    with torch.no_grad():
        assert torch.equal(warm.eval().predict(images), method.eval().predict(images))
    state = dict(warm.training_state())
    del state[next(key for key, p in method.named_parameters() if p.requires_grad)]
    with pytest.raises(ValueError, match="lacks 1 parameters"):
        method.load_warmup(state)


def test_fit_methods_score_features(fit_name: str, overrides: dict[str, Any]) -> None:
    """The same scores each time, one image's independent of the others."""
    backbone, task = contract.tiny_backbone(), contract.tiny_task()
    features = torch.randn(20, backbone.dim)
    given, labels, scores = features.clone(), task.labels.clone(), []
    for _ in range(2):
        method: Any = methods.create(fit_name, backbone=backbone, task=task, **overrides)
        if count := method.cached_views(method.hyper):
            noise = torch.randn(count, 8, backbone.dim, generator=torch.Generator().manual_seed(2))
            method.take_views(features[:8] + 0.1 * noise)
        method.fit(features[:8], seed=1)
        scores.append(method.predict(features))
    assert torch.equal(features, given), "the features were written to"
    assert torch.equal(task.labels, labels), "the labels were written to"
    assert scores[0].shape == (20, 4)
    assert scores[0].dtype == torch.float32
    assert torch.isfinite(scores[0]).all()
    assert torch.equal(*scores)
    assert not scores[0].requires_grad
    # What a run keeps of a fitted method are the tensors among its attributes (docs/models.md).
    kept: Any = methods.create(fit_name, backbone=backbone, task=task, **overrides)
    for attribute, value in vars(method).items():
        if isinstance(value, torch.Tensor):
            setattr(kept, attribute, value.detach().clone())
    assert torch.equal(kept.predict(features), scores[0]), "`predict` reads what is in no tensor attribute"
    assert torch.allclose(method.predict(features[3:5]), scores[0][3:5], atol=1e-5)

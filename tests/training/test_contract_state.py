"""A method's own state and teacher beside the moving average, and pseudo-labels with weights."""

import copy
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from benchmarks.training.ema import Ema
from benchmarks.training.hidden_labels import HiddenLabels
from benchmarks.training.metrics import pseudo_label_quality
from methods.base import PseudoLabels, StepMethod
from methods.errors import UserError

HYPER = SimpleNamespace(optimizer="adam", schedule="constant")


class Remembers(StepMethod):
    name = "remembers"
    wants_teacher = True

    def __init__(self):
        super().__init__(None, None, HYPER)
        self.head = nn.Linear(2, 2)
        self.register_buffer("running", torch.zeros(2))
        self.register_state("mean", torch.zeros(2))
        self.register_state("table", torch.zeros(3, 2, dtype=torch.bool))
        self.register_state("count", torch.zeros((), dtype=torch.int64))

    def predict(self, images):
        return self.head(images) + self.mean


def test_state_is_written_in_place_with_its_own_shape_and_dtype():
    method = Remembers()
    buffer = method.mean
    method.mean = 0.5 * method.mean + torch.ones(2, dtype=torch.float64, requires_grad=True)
    assert method.mean is buffer
    assert buffer.tolist() == [1, 1]
    assert not buffer.requires_grad
    method.count = method.count + 3
    method.table[1] = True
    assert method.table.sum() == 2
    with pytest.raises(ValueError, match=r"remembers\.mean has shape \(2,\), not \(1,\)"):
        method.mean = torch.zeros(1)
    with pytest.raises(
        TypeError, match=r"remembers\.count holds torch\.int64 and cannot take torch\.float32"
    ):
        method.count = torch.tensor(0.5)
    with pytest.raises(TypeError, match=r"remembers\.mean is state: assign a tensor, not float"):
        method.mean = 0.5
    method.double()
    assert method.mean.dtype == torch.float64


def test_the_average_reads_the_methods_state_and_has_none_of_its_own():
    method = Remembers()
    ema = Ema(method, 0.5)
    with torch.no_grad():
        method.mean, method.running = torch.ones(2), torch.ones(2)
    method.table[0] = True
    assert ema.module.mean is method.mean
    images = torch.zeros(1, 2)
    torch.testing.assert_close(ema.module.predict(images), method.predict(images))
    ema.update()
    assert ema.module.running.tolist() == [0.5, 0.5]  # other buffers are averaged as before
    assert method.mean.tolist() == [1, 1]
    state = ema.state()
    assert set(state) == {"head.weight", "head.bias", "running"}
    assert set(method.training_state()) == {*state, "mean", "table", "count"}
    # A checkpoint of an older version holds the average's copies.
    old = {
        **copy.deepcopy(state),
        "table": torch.ones(3, 2, dtype=torch.bool),
        "running": torch.full((2,), 9.0),
    }
    ema.load(old)
    assert ema.module.running.tolist() == [9, 9]
    assert method.table.tolist() == [[True, True], [False, False], [False, False]]
    with pytest.raises(ValueError, match=r"missing \['running'\]"):
        ema.load({name: value for name, value in state.items() if name != "running"})


def test_state_is_not_taken_from_a_warm_up():
    warm, method = Remembers(), Remembers()
    warm.mean, warm.running = torch.ones(2), torch.ones(2)
    method.load_warmup(warm.training_state())
    assert torch.equal(method.head.weight, warm.head.weight)
    assert method.running.tolist() == [1, 1]
    assert method.mean.tolist() == [0, 0]


def test_a_teacher_is_seen_by_nobody_but_the_method():
    method = Remembers()
    with pytest.raises(RuntimeError, match="method 'remembers' has no teacher: it is not being trained"):
        _ = method.teacher
    names, count = set(method.state_dict()), len(list(method.modules()))
    ema = Ema(method, 0.9)
    method.set_teacher(ema.module)
    assert method.teacher is ema.module
    assert set(method.state_dict()) == names
    assert len(list(method.modules())) == count
    method.train()
    method.double()
    assert not method.teacher.training
    assert method.teacher.head.weight.dtype == torch.float32
    for other in (copy.deepcopy(method), torch.load(saved(method), weights_only=False)):
        with pytest.raises(RuntimeError, match="has no teacher"):
            _ = other.teacher
    assert not method.teacher.predict(torch.zeros(1, 2)).requires_grad


def saved(method: StepMethod) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(method, buffer)
    buffer.seek(0)
    return buffer


def test_a_pool_field_that_does_not_exist_is_refused():
    class Wants(Remembers):
        pool_wants = frozenset({"labeled"})

    with pytest.raises(
        UserError, match=r"remembers\.pool_wants: unknown value 'labeled'; did you mean 'labelled'"
    ):
        Wants()


def counter(hidden: np.ndarray):
    return HiddenLabels(torch.from_numpy(hidden), Accelerator(cpu=True))


@pytest.fixture
def drawn():
    generator = np.random.default_rng(5)
    hidden = generator.random((120, 4)) < 0.3
    targets, weight = generator.random((120, 4)), generator.random((120, 4))
    mask = generator.random((120, 4)) < 0.8
    return hidden, *(torch.from_numpy(part.astype(np.float64)) for part in (targets, mask, weight))


def test_weights_count_as_in_a_literal_loop_and_in_any_order(drawn):
    hidden, targets, mask, weight = drawn
    one, many = counter(hidden), [counter(hidden) for _ in range(3)]
    one.update(torch.arange(120), PseudoLabels(targets, mask, weight))
    for k, part in enumerate(np.array_split(np.random.default_rng(1).permutation(120), 7)):
        rows = torch.from_numpy(part)
        many[k % 3].update(rows, PseudoLabels(targets, mask, weight)[rows])
    # Integers: the order and the processes leave no trace.
    assert torch.equal(one.counts, many[0].counts + many[1].counts + many[2].counts)
    hits = false = used = 0.0
    for i in range(120):
        for k in range(4):
            w = float(mask[i, k] * weight[i, k])
            positive = float(targets[i, k]) >= 0.5
            used += w
            hits += w * (positive and hidden[i, k])
            false += w * (positive and not hidden[i, k])
    summary = one.summary()
    assert summary["OP"] == pytest.approx(100 * hits / (hits + false), rel=1e-5)
    assert summary["OR"] == pytest.approx(100 * hits / hidden.sum(), rel=1e-5)
    assert summary["coverage"] == pytest.approx(100 * used / 480, rel=1e-5)


def test_without_weights_figures_are_those_of_plain_counts_to_the_bit(drawn):
    hidden, targets, mask, _ = drawn
    plain, ones = counter(hidden), counter(hidden)
    plain.update(torch.arange(120), PseudoLabels((targets >= 0.5).float(), mask.float()))
    ones.update(torch.arange(120), PseudoLabels(targets, mask, torch.ones_like(mask)))
    assert plain.summary() == ones.summary()
    used, positive = mask.bool().numpy(), (targets >= 0.5).numpy() & mask.bool().numpy()
    counts = {
        "tp": (positive & hidden).sum(0),
        "fp": (positive & ~hidden).sum(0),
        "fn": (hidden & ~positive).sum(0),
        "tn": (used & ~positive & ~hidden).sum(0),
        "used": used.sum(0),
    }
    assert plain.summary() == pseudo_label_quality({**counts, "total": 120})
    # A checkpoint from before there were weights holds these numbers.
    old = counter(hidden)
    old.load({"counts": torch.from_numpy(np.stack(list(counts.values())))})
    assert old.summary() == plain.summary()
    again = counter(hidden)
    again.load(plain.state())
    assert torch.equal(again.counts, plain.counts)


def test_adam_couples_its_weight_decay():
    from benchmarks.training.schedule import build_optimizer

    method = Remembers()
    group = {"params": list(method.head.parameters()), "lr": 1e-3, "weight_decay": 0.1}
    method.param_groups = lambda: [group]
    optimizer, _ = build_optimizer(method, SimpleNamespace(schedule_epochs=1), 4)
    assert type(optimizer) is torch.optim.Adam
    before = method.head.weight.detach().clone()
    for parameter in method.head.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # The decay is the whole gradient, which Adam scales to steps of the learning rate.
    torch.testing.assert_close(method.head.weight, before - 1e-3 * before.sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", range(1, 13))
def test_one_cycle_rises_and_falls_whatever_the_number_of_steps(steps):
    from benchmarks.training.schedule import build_optimizer

    method = Remembers()
    group = {"params": list(method.head.parameters()), "lr": 1e-3, "weight_decay": 0.0}
    method.param_groups = lambda: [group]
    method.hyper = SimpleNamespace(**{**vars(method.hyper), "schedule": "onecycle", "optimizer": "adamw"})
    optimizer, scheduler = build_optimizer(method, SimpleNamespace(schedule_epochs=1), steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert all(0 < rate <= 1e-3 for rate in rates)
    top = rates.index(max(rates))
    assert rates == sorted(rates[: top + 1]) + sorted(rates[top + 1 :], reverse=True)
    assert steps < 3 or min(rates) < 1e-6  # it ends near 0

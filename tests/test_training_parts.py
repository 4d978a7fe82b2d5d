"""The trainer's parts on their own: checkpoints, moving average, probe."""

import logging

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import precision_score, recall_score
from torch import nn

from benchmarks.checkpoint import Checkpoints
from benchmarks.ema import Ema
from benchmarks.probe import PseudoLabelProbe
from methods.base import PseudoLabels


def test_the_newest_sound_checkpoint_is_used_and_two_are_kept(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path / "c", 0.0)
    assert checkpoints.load() is None
    for step in range(5):
        checkpoints.save({"step": step, "weights": torch.full((3,), float(step))}, 0, step)
    files = sorted((tmp_path / "c").iterdir())
    assert len(files) == 2
    assert checkpoints.load()["step"] == 4
    files[-1].write_bytes(files[-1].read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.load()["step"] == 3
    assert files[-1].name in caplog.text
    checkpoints.clear()
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_executes_nothing(tmp_path, caplog):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (tmp_path / "c").mkdir()
    torch.save({"model": Payload()}, tmp_path / "c" / "00000-0000001.pt")
    with caplog.at_level(logging.WARNING):
        assert Checkpoints(tmp_path / "c", 0.0).load() is None
    assert not (tmp_path / "owned").exists()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)


def test_ema_against_the_literal_recursion():
    torch.manual_seed(0)
    net = Net()
    ema = Ema(net, 0.9)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    for _ in range(7):
        net.norm(torch.randn(8, 3))  # moves the running statistics
        with torch.no_grad():
            for value in net.head.parameters():
                value += torch.randn_like(value)
        ema.update(net)
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                expected[name] = 0.9 * expected[name] + 0.1 * value
            else:
                expected[name] = value.clone()
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_ema_shares_frozen_weights_and_never_trains():
    net = Net()
    ema = Ema(net, 0.9)
    assert ema.module.frozen.weight.data_ptr() == net.frozen.weight.data_ptr()
    assert ema.module.head.weight.data_ptr() != net.head.weight.data_ptr()
    assert not any(value.requires_grad for value in ema.module.parameters())
    assert not ema.module.training


def test_probe_against_scikit_learn_over_batches():
    generator = np.random.default_rng(3)
    hidden = generator.random((200, 6)) < 0.3
    targets = generator.random((200, 6)) < 0.4
    mask = generator.random((200, 6)) < 0.8
    probe = PseudoLabelProbe(torch.from_numpy(hidden), Accelerator(cpu=True))
    assert probe.summary() is None
    order = generator.permutation(200)
    for some in np.array_split(order, 7):
        pseudo = PseudoLabels(
            torch.from_numpy(targets[some]).float(), torch.from_numpy(mask[some]).float()
        )
        probe.update(torch.from_numpy(some), pseudo)
    found = probe.summary()
    used = targets & mask
    assert found["OP"] == pytest.approx(100 * precision_score(hidden, used, average="micro"))
    assert found["OR"] == pytest.approx(100 * recall_score(hidden, used, average="micro"))
    assert found["CP"] == pytest.approx(100 * precision_score(hidden, used, average="macro"))
    assert found["CR"] == pytest.approx(100 * recall_score(hidden, used, average="macro"))
    assert found["coverage"] == pytest.approx(100 * mask.mean())
    # A checkpoint in the middle of an epoch carries the counts.
    other = PseudoLabelProbe(torch.from_numpy(hidden), Accelerator(cpu=True))
    other.load(probe.state())
    assert other.summary() == found

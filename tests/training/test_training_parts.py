"""The trainer's parts on their own: checkpoints, moving average, hidden labels, losses."""

import logging
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import precision_score, recall_score
from torch import nn

from benchmarks.plan.recipe import ema_decay, starting_share
from benchmarks.training.checkpoint import Checkpoints, Place
from benchmarks.training.ema import Ema
from benchmarks.training.epoch_losses import EpochLosses
from benchmarks.training.group import Group
from benchmarks.training.hidden_labels import HiddenLabels
from benchmarks.training.strategy import check_statistics
from methods.base import PseudoLabels, StepMethod
from methods.errors import UserError
from results.errors import LeaseLostError


def state(step: int) -> dict:
    weights = torch.full((3,), float(step))
    return {
        "model": {"a.weight": weights, "tied": weights},  # safetensors knows no shared memory
        "scheduler": {"last_epoch": step},
        "empty": {},
        "progress": {"step": step, "best": None},
    }


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_two_checkpoints_are_kept_and_come_back_as_they_were(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", 0.0)
    assert checkpoints.newest() is None
    for step in range(5):
        checkpoints.save(state(step), 0, step)
    assert files_of(tmp_path / "c") == ["00000-0000003", "00000-0000004"]
    assert checkpoints.newest() == Place(0, 0, 4)
    loaded = checkpoints.load(Place(0, 0, 4))
    assert torch.equal(loaded["model"].pop("tied"), loaded["model"]["a.weight"])
    assert torch.equal(loaded.pop("model")["a.weight"], torch.full((3,), 4.0))
    assert loaded == {key: value for key, value in state(4).items() if key != "model"}
    names = files_of(tmp_path / "c" / "00000-0000004")
    assert names == ["COMPLETE.json", "model.safetensors", "state.pt"]
    checkpoints.save(state(4), 0, 4)  # continued from it and asked to stop at once
    assert checkpoints.newest() == Place(0, 0, 4)
    checkpoints.clear()
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "COMPLETE.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, name, damage):
    checkpoints = Checkpoints(tmp_path / "c", 0.0)
    for step in (1, 2):
        checkpoints.save(state(step), 7, step)
    file = tmp_path / "c" / "00007-0000002" / name
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        if damage == "flipped":
            data[len(data) // 2] ^= 4
        file.write_bytes({"cut": data[:-9], "flipped": data, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest() == Place(0, 7, 1)
    assert "00007-0000002 is damaged" in caplog.text
    assert checkpoints.load(Place(0, 7, 1))["progress"]["step"] == 1


@pytest.mark.parametrize(
    "text", ["[]", '{"files": []}', '{"files": {}}', '{"files": {"state.pt": 1}}', "[" * 99999]
)
def test_a_training_whose_only_checkpoint_has_a_foreign_seal_starts_anew(tmp_path, caplog, text):
    checkpoints = Checkpoints(tmp_path / "c", 0.0)
    checkpoints.save(state(1), 7, 1)
    (tmp_path / "c" / "00007-0000001" / "COMPLETE.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest() is None
    assert "the training starts anew" in caplog.text


def test_files_that_are_not_of_a_checkpoint_are_not_loaded(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", 0.0)
    checkpoints.save(state(1), 7, 1)
    (tmp_path / "c" / "00007-0000001" / "other.safetensors").write_bytes(b"x")
    assert checkpoints.load(Place(0, 7, 1))["progress"]["step"] == 1


def test_a_half_written_checkpoint_does_not_count_and_is_swept_away(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", 0.0)
    checkpoints.save(state(1), 0, 1)
    checkpoints.stage(0, 2)
    checkpoints.write(state(2), 0, 2)  # killed here: never sealed
    assert Checkpoints(tmp_path / "c", 0.0).newest() == Place(0, 0, 1)
    checkpoints.save(state(3), 0, 3)
    assert files_of(tmp_path / "c") == ["00000-0000001", "00000-0000003"]


def test_a_process_that_was_overtaken_touches_no_checkpoint_of_its_successor(tmp_path):
    lost = False

    def require():
        if lost:
            raise LeaseLostError("taken over")

    sleeper = Checkpoints(tmp_path / "c", 0.0, 1, require)
    sleeper.save(state(3), 0, 3)
    sleeper.stage(0, 5)
    sleeper.write(state(50), 0, 5)  # stopped here
    holder = Checkpoints(tmp_path / "c", 0.0, 2)
    assert holder.newest() == Place(1, 0, 3)
    holder.save(state(4), 0, 4)  # sweeps what the sleeper has begun
    holder.stage(0, 5)
    holder.write(state(5), 0, 5)
    with pytest.raises(FileNotFoundError):
        sleeper.seal(0, 5)
    lost = True
    for act in (lambda: sleeper.stage(0, 6), lambda: sleeper.save(state(60), 0, 6)):
        with pytest.raises(LeaseLostError):
            act()
    lost = False  # it looked just before it was stopped: nothing holds it back but the names
    sleeper.save(state(90), 0, 9)
    sleeper.clear()
    holder.seal(0, 5)
    assert files_of(tmp_path / "c") == ["00000-0000004.000002", "00000-0000005.000002"]
    sleeper.save(state(90), 0, 9)
    assert Checkpoints(tmp_path / "c", 0.0, 3).newest() == Place(2, 0, 5)
    assert holder.load(Place(2, 0, 5))["progress"]["step"] == 5
    holder.clear()
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_of_an_earlier_version_is_continued_and_then_removed(tmp_path):
    Checkpoints(tmp_path / "c", 0.0).save(state(2), 0, 2)
    assert files_of(tmp_path / "c") == ["00000-0000002"]
    later = Checkpoints(tmp_path / "c", 0.0, 4)
    assert later.newest() == Place(0, 0, 2)
    for step in (3, 4):
        later.save(state(step), 0, step)
    assert files_of(tmp_path / "c") == ["00000-0000003.000004", "00000-0000004.000004"]


def test_a_checkpoint_executes_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    checkpoints = Checkpoints(tmp_path / "c", 0.0)
    checkpoints.save({"progress": Payload()}, 0, 1)
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.load(Place(0, 0, 1))
    assert not (tmp_path / "owned").exists()


class Net(StepMethod):
    name = "net"

    def __init__(self):
        super().__init__(None, None, SimpleNamespace(optimizer="adam", schedule="constant"))
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("warmup", "decays"),
    [
        (False, [0.4] * 9),
        (True, [1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 0.4, 0.4, 0.4]),  # 6 / 15 is 0.4 itself
    ],
)
def test_ema_against_the_literal_recursion(warmup, decays):
    torch.manual_seed(0)
    net = Net()
    ema = Ema(net, 0.4, warmup)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    for decay in decays:
        net.norm(torch.randn(8, 3))  # moves the running statistics
        with torch.no_grad():
            for value in net.head.parameters():
                value += torch.randn_like(value)
        ema.update()
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value.clone()
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_without_a_decay_the_reported_weights_are_the_raw_ones():
    net = Net()
    ema = Ema(net, 0.0, True)
    for _ in range(3):
        with torch.no_grad():
            for value in net.head.parameters():
                value += torch.randn_like(value)
        ema.update()
    assert all(map(torch.equal, net.state_dict().values(), ema.module.state_dict().values()))


def test_the_share_of_the_starting_weights_against_the_literal_product():
    for decay in (0.0, 0.05, 0.5, 0.9, 0.99, 0.9997):
        for warmup in (False, True):
            product = 1.0
            for step in range(400):
                assert starting_share(step, decay, warmup) == pytest.approx(product, rel=1e-9, abs=1e-300)
                product *= ema_decay(step, decay, warmup)
    assert starting_share(720, 0.9997, False) == pytest.approx(0.806, abs=5e-4)
    assert starting_share(720, 0.9997, True) < 1e-15


def test_ema_shares_frozen_weights_and_never_trains():
    net = Net()
    ema = Ema(net, 0.9)
    assert ema.module.frozen.weight.data_ptr() == net.frozen.weight.data_ptr()
    assert ema.module.head.weight.data_ptr() != net.head.weight.data_ptr()
    assert not any(value.requires_grad for value in ema.module.parameters())
    assert not ema.module.training


def test_pseudo_labels_against_scikit_learn_over_batches():
    generator = np.random.default_rng(3)
    hidden = generator.random((200, 6)) < 0.3
    targets = generator.random((200, 6)) < 0.4
    mask = generator.random((200, 6)) < 0.8
    scored = HiddenLabels(torch.from_numpy(hidden), Accelerator(cpu=True))
    assert scored.summary() is None
    order = generator.permutation(200)
    for some in np.array_split(order, 7):
        pseudo = PseudoLabels(torch.from_numpy(targets[some]).float(), torch.from_numpy(mask[some]).float())
        scored.update(torch.from_numpy(some), pseudo)
    found = scored.summary()
    used = targets & mask
    assert found["OP"] == pytest.approx(100 * precision_score(hidden, used, average="micro"))
    assert found["OR"] == pytest.approx(100 * recall_score(hidden, used, average="micro"))
    assert found["CP"] == pytest.approx(100 * precision_score(hidden, used, average="macro"))
    assert found["CR"] == pytest.approx(100 * recall_score(hidden, used, average="macro"))
    assert found["coverage"] == pytest.approx(100 * mask.mean())
    # A checkpoint in the middle of an epoch carries the counts.
    other = HiddenLabels(torch.from_numpy(hidden), Accelerator(cpu=True))
    other.load(scored.state())
    assert other.summary() == found


def test_batch_statistics_of_a_part_of_the_batch_are_refused():
    net = Net()
    check_statistics(net, 1)
    with pytest.raises(UserError, match=r"freeze_bn = false\) would depend on the 2 processes"):
        check_statistics(net, 2)
    net.train = lambda mode=True: net  # as a backbone with frozen statistics does
    net.norm.eval()
    check_statistics(net, 2)


def test_losses_of_processes_are_summed_by_name_whatever_they_met_first():
    class TwoRanks(Group):
        """A group whose other rank met the names in another order, and one of them never."""

        def all_gather_object(self, value):
            return [value, {"context": 10.0, "labelled": 20.0}]

    losses = EpochLosses("csaa", SimpleNamespace(), TwoRanks(0, 2))
    batch = SimpleNamespace(epoch=0, step=0, labelled=torch.arange(1), unlabelled=torch.arange(1))
    for values in ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]):
        losses.add(batch, ["labelled", "unlabelled", "context"], torch.tensor(values))
    assert losses.total() == {"labelled": 25.0, "unlabelled": 7.0, "context": 19.0}

"""Which evaluation is reported: the choices of the rules val and oracle, and peak memory beside them."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.training import peak_memory
from benchmarks.training.peak_memory import PeakMemory
from benchmarks.training.selection import Selection


def score(value: float) -> torch.Tensor:
    return torch.tensor([[value]])


def by_value(name: str):
    return lambda scores: {"mAP": float(scores), "of": name}


def test_the_best_evaluation_of_each_rule_is_kept_and_the_earlier_of_two_equal_ones():
    selection = Selection(by_value("test"), by_value("held out"))
    assert selection.state() == {"oracle": None, "val": None}
    assert selection.consider(0, score(5), score(7), score(3)) == {"mAP_ema": 5, "mAP_model": 7, "mAP_val": 3}
    assert selection.oracle == {"mAP": 7, "of": "test", "epoch": 0, "weights": "model"}
    assert selection.val == {"mAP": 5, "of": "test", "epoch": 0, "val_mAP": 3}
    selection.consider(1, score(7), score(6), score(3))
    assert (selection.oracle["epoch"], selection.val["epoch"]) == (0, 0)
    selection.consider(2, score(8), score(8), score(4))
    assert (selection.oracle["epoch"], selection.oracle["weights"]) == (2, "ema")
    assert selection.val == {"mAP": 8, "of": "test", "epoch": 2, "val_mAP": 4}
    other = Selection(by_value("test"), by_value("held out"))
    other.load(selection.state())
    assert other.state() == selection.state()


def test_without_held_out_images_only_the_oracle_chooses():
    selection = Selection(by_value("test"), by_value("held out"))
    assert selection.consider(4, score(5)) == {"mAP_ema": 5}
    assert selection.val is None
    assert selection.oracle["epoch"] == 4


def test_peak_memory_covers_what_was_freed_again():
    memory = PeakMemory(torch.device("cpu"))
    before = memory.read()
    block = np.ones(200 * 2**20, dtype=np.uint8)
    del block
    after = memory.read()
    assert before["device"] is after["device"] is None
    assert after["host"] >= 200 * 2**20
    # Where the measurement starts anew, a small process's block shows; a larger peak before it may hide it.
    assert after["host"] >= before["host"]


def test_peak_memory_without_proc_is_that_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(peak_memory, "_CLEAR_REFS", tmp_path / "none" / "clear_refs")
    monkeypatch.setattr(peak_memory, "_STATUS", tmp_path / "none" / "status")
    assert PeakMemory(torch.device("cpu")).read()["host"] > 2**20


def test_without_a_moving_average_the_chosen_weights_are_called_raw():
    selection = Selection(by_value("test"), by_value("held out"), averaged=False)
    selection.consider(0, score(5), score(5))
    assert selection.oracle["weights"] == "model"

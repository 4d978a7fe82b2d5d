"""Whole trainings of methods that remember labels of the pool: LL-Cp's flips, CAP's table of an epoch."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import grid_text
from tests.training.test_two_processes import assert_alike, outcome

pytestmark = pytest.mark.slow
SAVE_AT = 3  # an epoch has four steps
ROWS = {
    "large_loss": '{ name = "large_loss", hyper = { scheme = "Cp", delta = 5.0 } }',
    "cap": '"cap"',
}
STATE = {"large_loss": "flipped", "cap": "pool_targets"}


@pytest.fixture(scope="module")
def grid(tmp_path_factory, voc_root):
    """45 unlabelled images: neither the batches nor the pool divide by two."""
    folder = tmp_path_factory.mktemp("grids")

    def write(method: str):
        path = folder / f"{method}.toml"
        sizes = {"batch_labelled": 5, "batch_unlabelled": 13, "precision": '"fp64"'}
        path.write_text(grid_text(voc_root, f"[{ROWS[method]}]", **sizes))
        return path

    return write


@pytest.mark.parametrize("method", ROWS)
def test_two_processes_and_a_continued_one_end_where_one_does(tmp_path, grid, method):
    one = outcome(1, grid(method), tmp_path, method)
    state = one[3][STATE[method]]
    assert 0 < state.double().mean() < 1
    assert STATE[method] not in one[4]  # saved once, with the method
    assert_alike(one, outcome(2, grid(method), tmp_path, method))
    outcome(1, grid(method), tmp_path, method, stop=SAVE_AT)
    again = outcome(1, grid(method), tmp_path, method)
    assert torch.equal(one[0], again[0])
    for first, second in zip(one[3:], again[3:], strict=True):
        assert all(torch.equal(value, second[name]) for name, value in first.items())

"""Whole trainings of methods with statistics, a memory of all images, a teacher, and scores of the pool."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import ROOT, grid_text
from tests.training.test_two_processes import assert_alike, outcome

MODULE = ROOT / "benchmarks" / "checks" / "sample_methods.py"
SAVE_AT = 3  # an epoch has four steps
STATES = {
    "agreeing_teacher": "agreement",
    "flexmatch": "selected",
    "freematch": "confidence",
    "softmatch": "alignment_mean",
    "adamatch": "alignment_target",
}
"""A state of each method that has to have moved."""


@pytest.fixture(scope="module")
def grid(tmp_path_factory, voc_root):
    """45 unlabelled images: neither the batches nor the pool divide by two."""
    folder = tmp_path_factory.mktemp("grids")

    def write(method: str):
        path = folder / f"{method}.toml"
        sizes = {"batch_labelled": 5, "batch_unlabelled": 13, "clip_norm": 20.0, "precision": '"fp64"'}
        text = f'modules = ["{MODULE}"]' + grid_text(voc_root, f'["{method}"]', **sizes)
        # Few steps: a memory that fills, means that move.
        text += "[hyper.flexmatch]\nthreshold = 0.7\n"
        text += "".join(
            f"[hyper.{name}]\nmomentum = 0.8\n" for name in ("freematch", "softmatch", "adamatch")
        )
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module")
def alone(tmp_path_factory, grid):
    """What undisturbed trainings by one process end with; each is done once."""
    folder, found = tmp_path_factory.mktemp("alone"), {}

    def get(method: str):
        if method not in found:
            found[method] = outcome(1, grid(method), folder, method)
        return found[method]

    return get


@pytest.mark.parametrize(
    "method",
    [
        "flexmatch",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("agreeing_teacher", "freematch", "softmatch", "adamatch")
        ),
    ],
)
def test_two_processes_end_where_one_does(tmp_path, grid, alone, method):
    one = alone(method)
    assert_alike(one, outcome(2, grid(method), tmp_path, method))
    state = one[3][STATES[method]]
    assert 0 < state.double().mean() < 1
    assert STATES[method] not in one[4]  # saved once, with the method


# Two processes that are asked at a step stop after the next.
@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 1), (2, 1)])
def test_a_run_goes_on_with_its_table_and_counts(tmp_path, grid, alone, first, then):
    method = "flexmatch"
    outcome(first, grid(method), tmp_path, method, stop=SAVE_AT - (first > 1))
    expected, again = alone(method), outcome(then, grid(method), tmp_path, method)
    assert_alike(expected, again)
    if first == then:
        assert torch.equal(expected[0], again[0])
        for one, two in zip(expected[3:], again[3:], strict=True):
            assert one.keys() == two.keys()
            assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adsh", "mean_teacher"])
def test_built_in_methods_with_scores_of_the_pool_and_a_teacher(tmp_path, grid, alone, method):
    expected = alone(method)
    assert_alike(expected, outcome(2, grid(method), tmp_path / "two", method))
    folder = tmp_path / "stopped"
    outcome(1, grid(method), folder, method, stop=SAVE_AT)
    again = outcome(1, grid(method), folder, method)
    assert torch.equal(expected[0], again[0])
    for one, two in zip(expected[3:], again[3:], strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[name]) for name, value in one.items())
    if method == "adsh":
        assert torch.isfinite(again[3]["thresholds"]).any()

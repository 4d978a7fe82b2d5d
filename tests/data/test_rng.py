from __future__ import annotations

import hashlib

import numpy as np
import pytest

from benchmarks.data.rng import permutation, uniforms

MASK = 2**64 - 1


def mix(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def literal_key(seed: int, epoch: int, stream: str, index: int) -> int:
    text = f"{seed & MASK}/{epoch & MASK}/{stream}".encode()
    head = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
    return mix(head ^ mix((index + 1) * 0x9E3779B97F4A7C15 & MASK))


def test_uniforms_equal_a_literal_loop_over_python_integers():
    for seed, epoch, stream in ((1, 0, "weak"), (2**63 + 5, 7, "strong"), (0, -1, "ü")):
        indices = np.array([0, 1, 5, 81_999, 2**40])
        expected = [
            [
                (mix(literal_key(seed, epoch, stream, int(i)) + (j + 1) * 0x9E3779B97F4A7C15 & MASK) >> 11)
                * 2.0**-53
                for j in range(4)
            ]
            for i in indices
        ]
        assert uniforms(seed, epoch, indices, stream, 4).tolist() == expected


def test_permutation_equals_a_literal_sort():
    keys = [literal_key(3, 2, "order", i) for i in range(500)]
    assert permutation(3, 2, 500, "order").tolist() == sorted(range(500), key=keys.__getitem__)


def test_draws_are_pure_and_rows_depend_on_their_index_only():
    indices = np.array([9, 4, 4, 700])
    draws = uniforms(1, 3, indices, "s", 6)
    assert (uniforms(1, 3, indices[::-1].copy(), "s", 6)[::-1] == draws).all()
    assert (uniforms(1, 3, indices, "s", 2) == draws[:, :2]).all()
    assert (draws[1] == draws[2]).all()


def test_every_part_of_the_key_changes_the_draws():
    indices = np.arange(1000)
    base = uniforms(1, 0, indices, "weak", 1)
    for other in (
        uniforms(2, 0, indices, "weak", 1),
        uniforms(1, 1, indices, "weak", 1),
        uniforms(1, 0, indices, "strong", 1),
        uniforms(1, 0, indices + 1, "weak", 1),
    ):
        assert abs(np.corrcoef(base[:, 0], other[:, 0])[0, 1]) < 0.12
        assert (base != other).all()


def test_draws_are_uniform():
    draws = uniforms(1, 0, np.arange(20_000), "u", 5)
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    counts, _ = np.histogram(draws, bins=50, range=(0, 1))
    # chi-square with 49 degrees of freedom: 99.99 % quantile is about 95
    assert ((counts - 2000.0) ** 2 / 2000.0).sum() < 95
    assert np.abs(np.corrcoef(draws.T) - np.eye(5)).max() < 0.04
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.04


def test_permutations_are_permutations_and_differ():
    first, second = permutation(1, 0, 1000, "o"), permutation(1, 1, 1000, "o")
    assert sorted(first) == list(range(1000))
    assert (first != second).any()
    assert permutation(1, 0, 0, "o").shape == (0,)


@pytest.mark.parametrize("indices", [np.zeros((2, 2), int), np.array([0.5]), 3])
def test_indices_of_a_wrong_kind_are_refused(indices):
    with pytest.raises(ValueError, match="indices"):
        uniforms(1, 0, indices, "s", 1)

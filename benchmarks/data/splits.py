"""Which training images are labelled."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from methods.errors import UserError


def labelled_indices(
    n_train: int, ratio: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The published split: a prefix of a seeded permutation (xiemk/SSMLL-CAP).

    Args:
        n_train: number of training images.
        ratio: labelled share p in (0, 1]; with 1 the unlabelled pool is empty.
        seed: seed of the permutation, 0 to 2^32 - 1; published results use 1.

    Returns:
        Labelled and unlabelled positions, int64, both in the permutation's order: the first
        `int(ratio * n_train)` of `RandomState(seed).permutation(n_train)`, then the rest.

    Raises:
        UserError: a ratio outside (0, 1], one that leaves no labelled image, or a bad seed.
    """
    if not 0.0 < ratio <= 1.0:
        raise UserError(f"ratio is {ratio:g}; the labelled share must lie in (0, 1]")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must lie in 0 … {2**32 - 1}")
    count = int(ratio * n_train)
    if count == 0:
        raise UserError(
            f"ratio {ratio:g} of {n_train} training images is no labelled image; "
            f"use at least {1 / n_train:.2g}" if n_train else "there is no training image"
        )  # fmt: skip
    order = np.random.RandomState(seed).permutation(n_train).astype(np.int64)
    return order[:count], order[count:]


def split_digest(labelled: NDArray[np.int64]) -> str:
    """SHA-256 over the labelled positions in their order, hexadecimal."""
    return hashlib.sha256(np.asarray(labelled).astype("<i8").tobytes()).hexdigest()

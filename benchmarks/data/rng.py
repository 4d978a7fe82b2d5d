"""Counter-based random numbers: pure functions of seed, epoch, index and stream.

No generator has state: a draw depends only on (seed, epoch, index, stream) and its own number. It is
therefore the same for any world size, batch composition or point of resumption. The mixing function is the
finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MASK = 2**64 - 1


def uniforms(seed: int, epoch: int, indices: ArrayLike, stream: str, count: int) -> NDArray[np.float64]:
    """Uniform numbers for each index.

    Args:
        seed: any integer, modulo 2^64.
        epoch: any integer, modulo 2^64.
        indices: (B,) integers, such as positions of images.
        stream: purpose of the numbers; different names give independent numbers.
        count: numbers per index.

    Returns:
        (B, count) float64 in [0, 1), multiples of 2^-53. Row b depends on `indices[b]` only, and
        its first columns do not depend on `count`.
    """
    counters = np.asarray(indices)
    if counters.ndim != 1 or (counters.size and counters.dtype.kind not in "iu"):
        raise ValueError(f"indices must be one-dimensional integers, not {counters.dtype} {counters.shape}")
    keys = _mix(_key(seed, epoch, stream) ^ _mix(_index(counters)))
    numbers = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    return (_mix(keys[:, None] + numbers) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, n: int, stream: str) -> NDArray[np.int64]:
    """A random order of 0 … n − 1, (n,) int64: the positions sorted by one random key each."""
    keys = _mix(_key(seed, epoch, stream) ^ _mix(_index(np.arange(n))))
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def _index(counters: NDArray) -> NDArray[np.uint64]:
    return (counters.astype(np.int64).astype(np.uint64) + np.uint64(1)) * _STEP


def _key(seed: int, epoch: int, stream: str) -> np.uint64:
    """One 64-bit key per (seed, epoch, stream): the head of a SHA-256 over their text."""
    text = f"{seed & _MASK}/{epoch & _MASK}/{stream}".encode()
    return np.uint64(int.from_bytes(hashlib.sha256(text).digest()[:8], "little"))


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser; unsigned overflow is intended."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

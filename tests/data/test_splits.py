from __future__ import annotations

import numpy as np
import pytest

from benchmarks.data.splits import labelled_indices, split_digest
from methods.errors import UserError


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (5717, (285, 571, 857, 1143)),
        (82081, (4104, 8208, 12312, 16416)),
        (150000, (7500, 15000, 22500, 30000)),
    ],
)
def test_sizes_of_the_published_protocol(n, sizes):
    for ratio, size in zip((0.05, 0.1, 0.15, 0.2), sizes, strict=True):
        labelled, unlabelled = labelled_indices(n, ratio, 1)
        assert len(labelled) == size
        assert len(unlabelled) == n - size


def test_the_split_is_a_prefix_of_the_seeded_permutation():
    np.random.seed(1)  # the published code seeds the global generator the same way
    order = np.random.permutation(5717)
    labelled, unlabelled = labelled_indices(5717, 0.05, 1)
    assert labelled.tolist() == order[:285].tolist()
    assert unlabelled.tolist() == order[285:].tolist()
    assert labelled.dtype == unlabelled.dtype == np.int64
    larger, _ = labelled_indices(5717, 0.2, 1)
    assert larger[:285].tolist() == labelled.tolist()


def test_all_labelled_leaves_an_empty_pool():
    labelled, unlabelled = labelled_indices(50, 1.0, 3)
    assert sorted(labelled) == list(range(50))
    assert unlabelled.shape == (0,)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(UserError, match=r"ratio is .*\(0, 1\]"):
        labelled_indices(100, ratio, 1)


def test_a_ratio_that_labels_nothing_is_refused():
    with pytest.raises(UserError, match=r"0\.05 of 19 training images is no labelled image"):
        labelled_indices(19, 0.05, 1)


def test_a_negative_seed_is_refused():
    with pytest.raises(UserError, match="seed is -1"):
        labelled_indices(100, 0.5, -1)


def test_the_digest_tells_splits_apart():
    digests = {split_digest(labelled_indices(200, p, s)[0]) for p in (0.1, 0.2) for s in (1, 2, 3)}
    assert len(digests) == 6
    assert split_digest(labelled_indices(200, 0.1, 1)[0]) in digests

import numpy as np
import pytest
import torch

from csaa.contexts import co_occurrence_affinity, context_targets, label_contexts
from methods.errors import UserError


def block_labels(blocks: list[list[int]], images: int, seed: int, noise: float = 0.02):
    """Images whose labels come from one block each, with a little of everything else."""
    rng = np.random.default_rng(seed)
    count = sum(map(len, blocks))
    labels = rng.random((images, count)) < noise
    for row in labels:
        block = blocks[rng.integers(len(blocks))]
        row[block] |= rng.random(len(block)) < 0.6
    return labels.astype(np.float32)


def test_affinity_against_a_literal_loop():
    labels = np.random.default_rng(0).random((50, 7)) < 0.3
    expected = {name: np.zeros((7, 7)) for name in ("conditional", "sqrt-conditional", "jaccard")}
    for a in range(7):
        for b in range(7):
            if a == b:
                continue
            both = sum(1 for row in labels if row[a] and row[b])
            n_a, n_b = labels[:, a].sum(), labels[:, b].sum()
            given_a, given_b = both / n_a, both / n_b
            expected["conditional"][a, b] = (given_a + given_b) / 2
            expected["sqrt-conditional"][a, b] = (given_a**0.5 + given_b**0.5) / 2
            expected["jaccard"][a, b] = both / (n_a + n_b - both)
    for name, matrix in expected.items():
        np.testing.assert_allclose(co_occurrence_affinity(labels, name), matrix, atol=1e-12)


def test_absent_label_has_no_affinity_and_no_nan():
    labels = np.array([[1, 1, 0], [1, 0, 0]])
    for name in ("conditional", "sqrt-conditional", "jaccard"):
        affinity = co_occurrence_affinity(labels, name)
        assert np.isfinite(affinity).all()
        assert (affinity[2] == 0).all()
        assert (affinity[:, 2] == 0).all()


def test_planted_blocks_are_found_whatever_the_order_of_labels():
    blocks = [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8, 10, 11]]
    labels = block_labels(blocks, images=400, seed=1)
    contexts = label_contexts(labels, 3, seed=0)
    assert contexts.shape == (12,)
    assert contexts.dtype == np.int64
    for block in blocks:
        assert len({contexts[k] for k in block}) == 1
    assert set(contexts) == {0, 1, 2}
    # Numbered by first label, whatever k-means called them.
    assert contexts[0] == 0
    assert contexts[1] == 1
    assert contexts[2] == 2


def test_same_seed_same_contexts_and_tensor_input():
    labels = block_labels([[0, 1, 2], [3, 4, 5], [6, 7]], images=60, seed=2, noise=0.1)
    first = label_contexts(labels, 4, seed=3)
    second = label_contexts(torch.from_numpy(labels), 4, seed=3)
    np.testing.assert_array_equal(first, second)


def test_one_context_per_label():
    np.testing.assert_array_equal(label_contexts(np.eye(4), 4, seed=0), np.arange(4))


@pytest.mark.parametrize("count", [0, 1, 9])
def test_impossible_number_of_contexts_is_a_clear_error(count):
    with pytest.raises(UserError, match="between 2 and 8"):
        label_contexts(np.ones((3, 8)), count, seed=0)


def test_unknown_affinity_names_the_nearest():
    with pytest.raises(UserError, match="conditional"):
        co_occurrence_affinity(np.ones((3, 3)), "condtional")


def test_context_targets_are_the_max_over_a_context():
    targets = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    contexts = torch.tensor([0, 1, 1, 2])
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0]])
    assert torch.equal(context_targets(targets, contexts, 3), expected)

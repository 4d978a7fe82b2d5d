from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from benchmarks.data.sampler import SemiSampler


def epoch_of(sampler, epoch):
    return [sampler.batch(epoch, step) for step in range(sampler.steps_per_epoch)]


def test_every_epoch_covers_the_pool_once_and_drops_nothing():
    sampler = SemiSampler(7, 50, 3, 8, seed=1)
    assert sampler.steps_per_epoch == 7
    orders = []
    for epoch in range(3):
        pools = [pool for _, pool in epoch_of(sampler, epoch)]
        assert [len(pool) for pool in pools] == [8] * 6 + [2]
        orders.append(np.concatenate(pools).tolist())
        assert sorted(orders[-1]) == list(range(50))
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize(("labelled", "batch"), [(7, 3), (5, 5), (4, 11), (1, 2)])
def test_the_labelled_stream_is_a_concatenation_of_permutations_across_epochs(labelled, batch):
    sampler = SemiSampler(labelled, 20, batch, 6, seed=2)
    stream = np.concatenate([b for epoch in range(6) for b, _ in epoch_of(sampler, epoch)])
    assert len(stream) == 6 * 4 * batch
    whole = len(stream) // labelled
    rounds = stream[: whole * labelled].reshape(whole, labelled)
    assert (np.sort(rounds, axis=1) == np.arange(labelled)).all()
    counts = Counter(stream.tolist())
    assert max(counts.values()) - min(counts.values()) <= 1
    if labelled > 4:
        assert len({tuple(r) for r in rounds.tolist()}) > 1


def test_passes_number_every_appearance_of_an_image_once():
    for sampler in (SemiSampler(7, 20, 3, 6, seed=2), SemiSampler(7, 0, 3, 0, seed=2)):
        seen = Counter()
        for epoch in range(5):
            for step in range(sampler.steps_per_epoch):
                labelled, _ = sampler.batch(epoch, step)
                passes = sampler.passes(epoch, step)
                assert passes.shape == labelled.shape
                seen.update(zip(passes.tolist(), labelled.tolist(), strict=True))
        assert set(seen.values()) == {1}


@pytest.mark.parametrize(("pool", "batch_pool"), [(0, 0), (30, 0), (0, 8)])
def test_without_a_pool_an_epoch_is_one_pass_over_the_labelled_images(pool, batch_pool):
    sampler = SemiSampler(10, pool, 4, batch_pool, seed=1)
    assert sampler.steps_per_epoch == 3
    for epoch in range(3):
        batches = epoch_of(sampler, epoch)
        assert [len(labelled) for labelled, _ in batches] == [4, 4, 2]
        assert all(unlabelled.shape == (0,) for _, unlabelled in batches)
        assert sorted(np.concatenate([b for b, _ in batches])) == list(range(10))


def test_a_batch_does_not_depend_on_what_was_asked_before():
    fresh = [SemiSampler(9, 40, 4, 7, seed=5).batch(e, s) for e in (0, 3, 1) for s in (5, 0, 2)]
    used = SemiSampler(9, 40, 4, 7, seed=5)
    again = [used.batch(e, s) for e in (0, 3, 1) for s in (5, 0, 2)]
    for (a, b), (c, d) in zip(fresh, again, strict=True):
        assert a.tolist() == c.tolist()
        assert b.tolist() == d.tolist()
        assert a.dtype == b.dtype == np.int64


def test_seeds_give_other_orders():
    one, two = (SemiSampler(50, 50, 50, 50, seed=s).batch(0, 0) for s in (1, 2))
    assert one[0].tolist() != two[0].tolist()
    assert one[1].tolist() != two[1].tolist()
    assert one[0].tolist() != one[1].tolist()  # the two streams are independent


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_shards_of_all_processes_make_up_the_global_batch(world):
    positions = SemiSampler(9, 40, 4, 7, seed=5).batch(0, 1)[1]
    shards = [SemiSampler.shard(positions, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shards)) == sorted(positions)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    for rank, shard in enumerate(shards):
        assert shard.tolist() == positions.tolist()[rank::world]


def test_a_changed_batch_does_not_change_the_next_call():
    sampler = SemiSampler(9, 40, 4, 7, seed=5)
    labelled, pool = sampler.batch(0, 1)
    before = labelled.tolist(), pool.tolist()
    labelled[:] = pool[:] = 0
    assert tuple(b.tolist() for b in sampler.batch(0, 1)) == before


def test_a_batch_costs_no_pass_over_a_large_pool():
    sampler = SemiSampler(7500, 142_500, 16, 48, seed=1)
    sampler.batch(0, 0)
    start = time.process_time()  # other processes do not count
    for step in range(1, 1001):
        sampler.batch(0, step)
    assert time.process_time() - start < 1.0  # about 20 ms; sorting the pool each time takes 15 s


@pytest.mark.parametrize(("epoch", "step"), [(0, 7), (0, -1), (-1, 0)])
def test_a_step_outside_the_epoch_is_refused(epoch, step):
    with pytest.raises(IndexError, match="7 steps"):
        SemiSampler(7, 50, 3, 8, seed=1).batch(epoch, step)


def test_impossible_sizes_are_refused():
    for sizes in ((0, 5, 1, 1), (5, 5, 0, 1), (5, -1, 1, 1), (5, 5, 1, -1)):
        with pytest.raises(ValueError, match="images in batches of"):
            SemiSampler(*sizes, seed=1)


@pytest.mark.parametrize(("labelled", "pool", "batch_pool"), [(7, 20, 6), (9, 4, 11), (3, 50, 8)])
def test_an_epoch_can_be_a_pass_over_the_labelled_images_while_the_pool_goes_on(labelled, pool, batch_pool):
    sampler = SemiSampler(labelled, pool, 3, batch_pool, seed=2, over="labelled")
    assert sampler.steps_per_epoch == -(-labelled // 3)
    stream, passes = [], []
    for epoch in range(5):
        batches = epoch_of(sampler, epoch)
        assert sorted(np.concatenate([b for b, _ in batches])) == list(range(labelled))
        assert all(len(unlabelled) == batch_pool for _, unlabelled in batches)
        stream += [unlabelled for _, unlabelled in batches]
        passes += [sampler.pool_passes(epoch, step) for step in range(sampler.steps_per_epoch)]
    stream, passes = np.concatenate(stream), np.concatenate(passes)
    counts = Counter(stream.tolist())
    assert max(counts.values()) - min(counts.get(k, 0) for k in range(pool)) <= 1
    assert len(set(zip(passes.tolist(), stream.tolist(), strict=True))) == len(stream)


def test_passes_over_the_pool_are_epochs_where_these_pass_over_it():
    sampler = SemiSampler(7, 20, 3, 6, seed=2)
    for epoch in range(3):
        for step in range(sampler.steps_per_epoch):
            assert (sampler.pool_passes(epoch, step) == epoch).all()

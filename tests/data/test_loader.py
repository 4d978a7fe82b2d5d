from __future__ import annotations

import gc
import itertools
import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch

from benchmarks.data import loader
from benchmarks.data.cache.prepared import prepare
from benchmarks.data.loader import AHEAD, Loader, carried
from methods.errors import UserError

TRAIN, TEST = 40, 13


@pytest.fixture
def prepared(tmp_path, build_dataset):
    return prepare(build_dataset(tmp_path / "files", TRAIN, TEST), 16, tmp_path, workers=1)


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    gc.collect()
    left = [t for t in set(threading.enumerate()) - before if t.name == "loader"]
    assert not left


class SlowLane:
    """A lane whose copies happen as late as they may: when somebody waits for them."""

    def __init__(self):
        self.buffers, self.started, self.largest = [], 0, 0
        self.under_way = []

    def buffer(self, shape):
        self.buffers.append(torch.full(shape, 77, dtype=torch.uint8))
        return self.buffers[-1]

    def start(self, host):
        there = torch.full_like(host, 99)
        self.started += 1
        copy = Copy(host, there)
        self.under_way.append(copy)
        self.largest = max(self.largest, sum(not c.ended for c in self.under_way))
        return there, copy

    def arrive(self, there, done):
        done.synchronize()


class Copy:
    def __init__(self, host, there):
        self.host, self.there, self.ended = host, there, False
        self.lock = threading.Lock()

    def synchronize(self):
        with self.lock:
            if not self.ended:
                self.there.copy_(self.host)
                self.ended = True


def on_cpu(prepared, split, batches):
    return Loader(prepared, "cpu").stream(split, batches)


def over_a_lane(prepared, split, batches):
    pixels = prepared.train if split == "train" else prepared.test
    return carried(pixels, loader.announced(pixels, batches), SlowLane())


WAYS = pytest.mark.parametrize("stream", [on_cpu, over_a_lane])
RAGGED = (5, 8, 0, 1, 16, 3, 0, 0, 30, 2)


def random_batches(count, sizes=RAGGED):
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(0, count, size)) for size in sizes]


@WAYS
@pytest.mark.parametrize(("split", "count"), [("train", TRAIN), ("test", TEST)])
def test_batches_equal_the_cache_in_order(prepared, stream, split, count):
    batches = random_batches(count)
    found = list(stream(prepared, split, iter(batches)))
    assert len(found) == len(batches)
    for images, positions in zip(found, batches, strict=True):
        assert images.dtype == torch.uint8
        assert images.is_contiguous()
        assert torch.equal(images, prepared.images(split, positions))


@WAYS
def test_no_batches_give_nothing(prepared, stream):
    assert list(stream(prepared, "train", [])) == []


@WAYS
def test_a_batch_is_not_written_to_again(prepared, stream):
    batches = random_batches(TRAIN, [4] * 12)
    found = list(stream(prepared, "train", batches))
    for images, positions in zip(found, batches, strict=True):
        assert torch.equal(images, prepared.images("train", positions))
        images.zero_()  # and may be changed
    assert prepared.train.any()


@WAYS
@pytest.mark.parametrize("wrong", [TRAIN, -1, 10**9])
def test_a_position_outside_the_split_comes_after_the_batches_before_it(prepared, stream, wrong):
    batches = [*random_batches(TRAIN, [3, 3, 3]), torch.tensor([0, wrong]), torch.tensor([1])]
    iterator = stream(prepared, "train", batches)
    for positions in batches[:3]:
        assert torch.equal(next(iterator), prepared.images("train", positions))
    with pytest.raises(IndexError, match=f"position {wrong} of {TRAIN} images"):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


@WAYS
def test_what_the_batches_raise_reaches_the_consumer(prepared, stream):
    def batches():
        yield torch.tensor([1, 2])
        raise RuntimeError("the sampler broke")

    iterator = stream(prepared, "train", batches())
    assert len(next(iterator)) == 2
    with pytest.raises(RuntimeError, match="the sampler broke"):
        next(iterator)


@WAYS
def test_an_endless_stream_can_be_left(prepared, stream):
    drawn = itertools.count()
    batches = (torch.tensor([next(drawn) % TRAIN]) for _ in itertools.count())
    iterator = stream(prepared, "train", batches)
    for k in range(7):
        assert torch.equal(next(iterator)[0], prepared.images("train", [k])[0])
    iterator.close()
    time.sleep(0.02)
    assert next(drawn) <= 7 + 1 + AHEAD + 1  # batches are drawn early, but not without bound
    unused = stream(prepared, "train", batches)
    del unused


def test_a_dropped_iterator_ends_its_thread(prepared):
    iterator = over_a_lane(prepared, "train", itertools.repeat(torch.tensor([3])))
    next(iterator)
    assert any(thread.name == "loader" for thread in threading.enumerate())
    del iterator
    gc.collect()
    assert not any(thread.name == "loader" for thread in threading.enumerate())


def test_a_lanes_buffers_are_few_and_filled_only_after_their_copy(prepared):
    class Later(SlowLane):
        """Copies end when their result is looked at, long after the batch was handed over."""

        def arrive(self, there, done):
            self.latest = done

    batches = random_batches(TRAIN, [6] * 20)
    lane = Later()
    stream = carried(prepared.train, loader.announced(prepared.train, batches), lane)
    for images, positions in zip(stream, batches, strict=True):
        latest = lane.latest
        time.sleep(0.003)  # the thread gets as far ahead as it may
        latest.synchronize()
        assert torch.equal(images, prepared.images("train", positions))
    assert len(lane.buffers) == AHEAD
    assert lane.largest <= AHEAD


def test_a_lane_that_breaks_is_reported(prepared):
    class Broken(SlowLane):
        def start(self, host):
            if self.started == 2:
                raise RuntimeError("out of memory")
            return super().start(host)

    batches = loader.announced(prepared.train, random_batches(TRAIN, [2] * 9))
    iterator = carried(prepared.train, batches, Broken())
    next(iterator), next(iterator)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(iterator)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise (Linux)")
def test_the_kernel_gets_each_run_of_neighbours_once(prepared, monkeypatch):
    advised = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *what: advised.append(what[:2]))
    image = 3 * 16 * 16
    batches = [torch.tensor([9, 3, 4, 5, 3, 11, 10]), torch.tensor([], dtype=torch.int64)]
    iterator = Loader(prepared, "cpu").stream("train", [*batches, torch.tensor([39])])
    next(iterator)
    assert advised == [(3 * image, 3 * image), (9 * image, 3 * image)]
    list(iterator)
    assert advised[2:] == [(39 * image, image)]


def test_nothing_is_read_ahead_where_the_system_cannot(prepared, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert len(list(Loader(prepared, "cpu").stream("test", random_batches(TEST)))) == len(RAGGED)


@WAYS
def test_a_cache_that_is_removed_serves_those_who_have_mapped_it(prepared, stream):
    batches = [torch.arange(TRAIN), torch.tensor([3, 1])]
    expected = [prepared.images("train", batch) for batch in batches]
    shutil.rmtree(prepared.directory)
    found = list(stream(prepared, "train", iter(batches)))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    with pytest.raises(UserError, match=r"test.u8 is gone: the cache of \w+ was removed .* run again"):
        prepared.images("test", [0])


def test_wrong_splits_are_refused_at_once(prepared):
    with pytest.raises(ValueError, match="no split 'val'"):
        Loader(prepared, "cpu").stream("val", [])


def test_files_are_closed(prepared):
    def descriptors():
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    assert len(prepared.train) == TRAIN  # the map holds a file of its own
    before = descriptors()
    list(Loader(prepared, "cpu").stream("train", random_batches(TRAIN)))
    iterator = Loader(prepared, "cpu").stream("train", random_batches(TRAIN))
    next(iterator)
    iterator.close()
    gc.collect()
    assert descriptors() == before


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: run on a machine with an NVIDIA GPU"
)
def test_batches_on_a_gpu_equal_the_cache(prepared):
    batches = random_batches(TRAIN, RAGGED * 20)
    for images, positions in zip(Loader(prepared, "cuda").stream("train", batches), batches, strict=True):
        assert images.device.type == "cuda"
        torch.cuda._sleep(1_000_000)  # the copies of later batches run into this
        assert torch.equal(images.cpu(), prepared.images("train", positions))

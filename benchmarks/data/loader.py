"""Batches of cached images on a device, read ahead.

On the CPU there is no thread: the cores are busy with views and training, and the kernel reads ahead by
itself after a hint of what comes next. Measured with weak and strong views of 64 images at 224 pixels, one
core of two: from a cold page cache 2,800 pairs a second with the hint, 1,600 with a reading thread, 1,700
with neither; from a warm one 3,400, 2,800 and 3,500.

On a CUDA device a thread gathers into pinned buffers, which a separate stream copies while the device
computes.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.data.cache.prepared import Prepared

AHEAD = 2
"""Batches that are being copied to a CUDA device before the consumer asks for them."""

Positions = NDArray[np.int64]


class Loader:
    """Batches of a prepared dataset on a device.

    Args:
        prepared: the cached images.
        device: the device of the batches.
    """

    def __init__(self, prepared: Prepared, device: torch.device | str) -> None:
        self.prepared, self.device = prepared, torch.device(device)

    def stream(self, split: str, batches: Iterable[Tensor | Positions]) -> Iterator[Tensor]:
        """Gather batches in their order.

        Args:
            split: "train" or "test".
            batches: (B,) int64 positions in the split, on the CPU; B may vary. They are drawn one to three
                batches early, and for a CUDA device in a thread.

        Yields:
            (B, 3, S, S) uint8 on the device, one for each of `batches`; not written to again.

        Raises:
            IndexError: a position outside the split. This, and errors of `batches`, are raised after the
                earlier batches have been yielded.
        """
        if split not in ("train", "test"):
            raise ValueError(f"no split {split!r}; there are 'train' and 'test'")
        pixels = self.prepared.train if split == "train" else self.prepared.test
        positions = announced(pixels, batches)
        if self.device.type == "cuda":
            return carried(pixels, positions, CudaLane(self.device))
        return (torch.from_numpy(_gather(pixels, some)).to(self.device) for some in positions)


class Lane(Protocol):
    """Copies batches from the CPU to a device, concurrently with both."""

    def buffer(self, shape: tuple[int, ...]) -> Tensor:
        """Uint8 memory on the CPU that the lane can copy from."""

    def start(self, host: Tensor) -> tuple[Tensor, Any]:
        """Start a copy; returns it and an event whose `synchronize` waits for its end."""

    def arrive(self, there: Tensor, done: Any) -> None:
        """Let the calling thread's work on the device wait for the copy."""


class CudaLane:
    """Copies to a CUDA device, with pinned memory and a separate stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def buffer(self, shape: tuple[int, ...]) -> Tensor:
        """Pinned memory; a copy from other memory would block."""
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def start(self, host: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Copy on the lane's stream."""
        with torch.cuda.stream(self.stream):
            there = host.to(self.device, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self.stream)
        return there, done

    def arrive(self, there: Tensor, done: torch.cuda.Event) -> None:
        """Wait on the consumer's stream, not on the CPU."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(done)
        # The allocator knows the memory as the lane's: without this it could reuse it for the next copy
        # while the consumer's kernels still read it.
        there.record_stream(current)


def carried(pixels: NDArray[np.uint8], batches: Iterable[Positions], lane: Lane) -> Iterator[Tensor]:
    """Gather batches in a thread and copy them over a lane, up to `AHEAD` batches before they are consumed.

    Closing the iterator ends the thread; errors in the thread are raised here.

    Args:
        pixels: (N, 3, S, S) uint8 images.
        batches: (B,) int64 positions, checked (see `announced`).
        lane: copies to the device.

    Yields:
        (B, 3, S, S) uint8 on the device.
    """
    ready: queue.SimpleQueue[tuple[Tensor, Any] | Exception | None] = queue.SimpleQueue()
    room = threading.Semaphore(AHEAD)
    stop = threading.Event()

    def work() -> None:
        buffers: list[tuple[Tensor, Any] | None] = [None] * AHEAD
        try:
            for number, positions in enumerate(batches):
                room.acquire()
                if stop.is_set():
                    return
                last, host = buffers[number % AHEAD], None
                if last:
                    host, done = last
                    done.synchronize()  # the copy from it must end before it is filled again
                if host is None or len(host) < len(positions):
                    host = lane.buffer((len(positions), *pixels.shape[1:]))
                filled = host[: len(positions)]
                _gather(pixels, positions, filled.numpy())
                there, done = lane.start(filled)
                buffers[number % AHEAD] = host, done
                ready.put((there, done))
            ready.put(None)
        except Exception as error:  # every error is raised in the consumer's thread
            ready.put(error)

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            lane.arrive(*item)
            room.release()
            yield item[0]
    finally:
        stop.set()
        room.release()
        thread.join()


def announced(pixels: np.memmap, batches: Iterable[Tensor | Positions]) -> Iterator[Positions]:
    """The batches as checked arrays; before each is yielded, the kernel starts to read the next one.

    Args:
        pixels: memory map of the images.
        batches: (B,) positions.

    Raises:
        IndexError: a position outside the images. This, and errors of `batches`, are raised after the earlier
            batches have been yielded.
    """
    image, waiting, failure = pixels[:1].nbytes, None, None
    upcoming = iter(batches)
    with _reading_ahead(str(pixels.filename)) as descriptor:
        while True:
            try:
                positions = _checked(next(upcoming), len(pixels))
            except StopIteration:
                break
            except Exception as error:  # raised below, after the batch before it
                failure = error
                break
            if descriptor is not None:
                _will_need(descriptor, positions, image)
            if waiting is not None:
                yield waiting
            waiting = positions
        if waiting is not None:
            yield waiting
        if failure is not None:
            raise failure


@contextmanager
def _reading_ahead(path: str) -> Iterator[int | None]:
    """A descriptor of a file for `_will_need`; None where there is nothing to read ahead from.

    The name may be gone: a cache that is removed while runs use it stays on the disk for who has mapped it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _checked(batch: Tensor | Positions, count: int) -> Positions:
    positions = np.asarray(batch, dtype=np.int64)
    outside = positions[(positions < 0) | (positions >= count)]
    if len(outside):
        raise IndexError(f"position {outside[0]} of {count} images")
    return positions


def _will_need(descriptor: int, positions: Positions, image: int) -> None:
    """Ask the kernel to read images into the page cache, one call for each run of neighbours.

    It takes four to seven microseconds an image of 224 pixels when they are in the cache already.
    """
    if not hasattr(os, "posix_fadvise"):  # macOS and Windows: nothing is read ahead
        return
    images = np.unique(positions)
    first = np.diff(images, prepend=-2) != 1
    starts = images[first]
    counts = np.diff(np.flatnonzero(first), append=len(images))
    for start, count in zip((starts * image).tolist(), (counts * image).tolist(), strict=True):
        os.posix_fadvise(descriptor, start, count, os.POSIX_FADV_WILLNEED)


def _gather(
    pixels: NDArray[np.uint8], positions: Positions, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    # Positions have been checked; "clip" avoids a second check and, with `out`, a copy.
    return np.asarray(pixels).take(positions, axis=0, out=out, mode="clip")

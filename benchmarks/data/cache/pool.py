"""Decoding in several processes.

They are plain child processes that run `benchmarks.data.cache.decode`. Processes of `multiprocessing` would
import the caller's main module again, with torch, and fail where it cannot be imported (a notebook, a script
on standard input) or has no `__main__` guard.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import IO, cast

from benchmarks.data.cache.decode import Chunk, Decoded, decode_chunk
from benchmarks.signals import STOP_SIGNALS
from methods.errors import UserError

_START = (
    "import sys; sys.path[:] = sys.argv[2:]; from benchmarks.data.cache.decode import serve; "
    "serve(map(int, sys.argv[1].split(',')))"
)


def decode(chunks: Sequence[Chunk], workers: int) -> Generator[Decoded, None, None]:
    """Decode chunks, in any order.

    Args:
        chunks: images and where their pixels go.
        workers: number of processes; 1 decodes in this process.

    Yields:
        The result of each chunk when it is finished.

    Raises:
        OSError: a cache file cannot be written.
        UserError: a process died.
    """
    workers = min(workers, len(chunks))
    if workers <= 1:
        yield from map(decode_chunk, chunks)
        return
    processes = [_Process() for _ in range(workers)]
    idle: SimpleQueue[_Process] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def work(chunk: Chunk) -> Decoded:
        process = idle.get()
        try:
            return process.decode(chunk)
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(workers)
    try:
        for job in as_completed([threads.submit(work, chunk) for chunk in chunks]):
            yield job.result()
    finally:
        threads.shutdown(cancel_futures=True)  # chunks that have started are finished
        for process in processes:
            process.end()


class _Process:
    """One decoding process."""

    def __init__(self) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", _START, ",".join(str(int(n)) for n in STOP_SIGNALS), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def decode(self, chunk: Chunk) -> Decoded:
        orders, answers = cast(IO[bytes], self.child.stdin), cast(IO[bytes], self.child.stdout)
        try:
            pickle.dump(chunk, orders)
            orders.flush()
            answer = pickle.load(answers)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise UserError(
                f"a decoding process died at {chunk.paths[0]} and the {len(chunk.paths) - 1} "
                "images after it (out of memory?); run again with fewer workers, finished parts "
                "are kept"
            ) from None
        if isinstance(answer, OSError):
            raise answer
        return answer

    def end(self) -> None:
        self.child.communicate()  # closing its input ends it

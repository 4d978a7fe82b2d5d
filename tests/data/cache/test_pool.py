from __future__ import annotations

import signal
import time

import numpy as np

from benchmarks.data.cache.decode import chunks_of, load_image
from benchmarks.data.cache.pool import _Process


def test_a_decoding_process_leaves_stop_signals_to_its_parent(tmp_path, save_jpeg):
    paths = [save_jpeg(tmp_path / f"{k}.jpg", k) for k in range(3)]
    file = tmp_path / "train.u8"
    file.write_bytes(bytes(3 * 3 * 32 * 32))
    first, second = chunks_of("train", paths, 32, file, 2, [None] * 3)
    process = _Process()
    assert process.decode(first).sha256  # it has started
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        process.child.send_signal(number)
    time.sleep(0.2)
    assert process.decode(second).sha256
    process.end()
    pixels = np.frombuffer(file.read_bytes(), np.uint8).reshape(3, 3, 32, 32)
    for image, path in zip(pixels, paths, strict=True):
        assert np.array_equal(image, load_image(path, 32))

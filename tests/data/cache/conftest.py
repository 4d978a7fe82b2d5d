"""A small dataset, and caches that are written in chunks of four images."""

from __future__ import annotations

import pytest

from benchmarks.data.cache import prepared
from benchmarks.data.cache.decode import load_image


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    monkeypatch.setattr(prepared, "CHUNK", 4)


@pytest.fixture
def dataset(tmp_path, build_dataset):
    """20 training and 9 test images."""
    return build_dataset(tmp_path / "images", 20, 9)


@pytest.fixture
def decoded(monkeypatch):
    """The files that are decoded, to be cached or to find unreadable ones, in a list."""
    seen = []

    def watched(path, size):
        seen.append(path)
        return load_image(path, size)

    monkeypatch.setattr("benchmarks.data.cache.decode.load_image", watched)
    monkeypatch.setattr("benchmarks.data.cache.skipped.load_image", watched)
    return seen

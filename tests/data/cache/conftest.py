"""A small dataset, and caches that are written in chunks of four images."""

from __future__ import annotations

import pytest

from benchmarks.data.cache import prepared


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    monkeypatch.setattr(prepared, "CHUNK", 4)


@pytest.fixture
def dataset(tmp_path, build_dataset):
    """20 training and 9 test images."""
    return build_dataset(tmp_path / "images", 20, 9)

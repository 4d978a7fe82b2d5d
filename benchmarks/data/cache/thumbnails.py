"""Small pictures of test images, from the cache that a run was trained on."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.data.cache import folders
from methods.errors import UserError

LARGEST = 160
"""Side in pixels of the largest thumbnail."""


@dataclass(frozen=True)
class Thumbnails:
    """The test images of a finished cache.

    Attributes:
        pixels: (N, 3, S, S) uint8 RGB, a memory map.
    """

    pixels: np.memmap

    @classmethod
    def of(cls, cache_root: Path, digest: str, count: int) -> Thumbnails:
        """Those of the prepared dataset that a run names.

        Args:
            cache_root: folder of all caches.
            digest: of the dataset, in the run's identity.
            count: number of test images.

        Raises:
            UserError: the cache is not here, or damaged.
        """
        for directory in sorted(cache_root.glob(f"*-{digest[:12]}-*")):
            if not folders.is_complete(directory):
                continue
            meta = folders.read_meta(directory)
            if meta.get("digest") != digest:
                continue
            size, file = meta["size"], directory / "test.u8"
            if meta["test"] != count or file.stat().st_size != count * 3 * size * size:
                raise folders.DamagedCacheError(directory, f"test.u8 is not of {count} images")
            return cls(np.memmap(file, dtype=np.uint8, mode="r", shape=(count, 3, size, size)))
        raise UserError(
            f"{cache_root} has no cache of this run's images ({digest[:12]}); `prepare` makes it, or name "
            "the folder of the data with --data"
        )

    def jpeg(self, row: int) -> bytes:
        """The image of a row as JPEG."""
        image = Image.fromarray(np.ascontiguousarray(self.pixels[row].transpose(1, 2, 0)))
        image.thumbnail((LARGEST, LARGEST))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

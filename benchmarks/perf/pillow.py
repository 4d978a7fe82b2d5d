"""Reference for the input benchmark: per-image Pillow transforms in a DataLoader.

Our implementation of the input pipeline of the CAP family's published code (xiemk/SSMLL-CAP,
`lib/dataset`; PyPI `randaugment` 1.0.2): each sample opens and decodes one image and makes both
views from it: weak = mirror, resize, to tensor; strong = mirror, resize,
cutout, RandAugment, to tensor. The default collation joins the samples.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision import transforms

GREY = (128, 128, 128)
Picture = Image.Image


class WeakStrong(Dataset):
    """Pairs of views of image files.

    Args:
        paths: files.
        size: side of the views in pixels.
    """

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = [str(path) for path in paths]
        start = [transforms.RandomHorizontalFlip(), transforms.Resize((size, size))]
        self.weak = transforms.Compose([*start, transforms.ToTensor()])
        self.strong = transforms.Compose([*start, cutout, rand_augment, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture = Image.open(self.paths[index]).convert("RGB")
        return self.weak(picture), self.strong(picture)


class RandomPositions(Sampler):
    """Yields `count` random positions."""

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return (random.randrange(self.size) for _ in range(self.count))


class Batches:
    """A DataLoader whose workers start once and wait between measurements.

    Args:
        paths: image files, drawn with replacement.
        size: side of the views in pixels.
        batch: pairs of views in a batch.
        workers: worker processes.
    """

    def __init__(self, paths: Sequence[Path], size: int, batch: int, workers: int) -> None:
        self.sampler, self.batch = RandomPositions(len(paths)), batch
        self.loader = DataLoader(
            WeakStrong(paths, size),
            batch,
            sampler=self.sampler,
            num_workers=workers,
            persistent_workers=True,
            multiprocessing_context="spawn",
            collate_fn=collate,
        )

    def draw(self, count: int) -> Iterator[tuple[int, float]]:
        """Draw `count` batches; yield the process that made each and its processor time so far (s)."""
        self.sampler.count = count * self.batch
        for _, process, seconds in self.loader:
            yield process, seconds


def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Any, int, float]:
    """Collate by default; add the process id and its processor time in seconds."""
    return default_collate(samples), os.getpid(), time.process_time()


def cutout(picture: Picture) -> Picture:
    """Fill a rectangle of half the side around a random pixel with one random colour."""
    width, height = picture.size
    x, y = random.randrange(width), random.randrange(height)
    half_x, half_y = int(0.5 * width + 0.5) // 2, int(0.5 * height + 0.5) // 2
    corners = (max(0, x - half_x), max(0, y - half_y), min(width, x + half_x), min(height, y + half_y))
    colour = tuple(random.randint(0, 255) for _ in range(3))
    ImageDraw.Draw(picture).rectangle(corners, fill=colour)
    return picture


def rand_augment(picture: Picture) -> Picture:
    """Draw two of fifteen operations; apply each with probability 0.5 at level 1 … 9 of 9."""
    for operation in random.choices(OPERATIONS, k=2):
        share = random.randint(1, 9) / 9
        if random.random() < 0.5:
            picture = operation(picture, share)
    return picture


def _sign() -> int:
    return random.choice((-1, 1))


def _affine(picture: Picture, matrix: tuple[float, ...], resample: Image.Resampling) -> Picture:
    method = Image.Transform.AFFINE
    return picture.transform(picture.size, method, matrix, resample, fillcolor=GREY)


def _shear_x(picture: Picture, share: float) -> Picture:
    matrix = (1, _sign() * 0.3 * share, 0, 0, 1, 0)
    return _affine(picture, matrix, Image.Resampling.BICUBIC)


def _shear_y(picture: Picture, share: float) -> Picture:
    matrix = (1, 0, 0, _sign() * 0.3 * share, 1, 0)
    return _affine(picture, matrix, Image.Resampling.BICUBIC)


def _translate_x(picture: Picture, share: float) -> Picture:
    shift = _sign() * 150 / 331 * share * picture.width
    return _affine(picture, (1, 0, shift, 0, 1, 0), Image.Resampling.NEAREST)


def _translate_y(picture: Picture, share: float) -> Picture:
    shift = _sign() * 150 / 331 * share * picture.height
    return _affine(picture, (1, 0, 0, 0, 1, shift), Image.Resampling.NEAREST)


def _rotate(picture: Picture, share: float) -> Picture:
    turned = picture.convert("RGBA").rotate(30 * share)
    behind = Image.new("RGBA", turned.size, (128,) * 4)
    return Image.composite(turned, behind, turned).convert(picture.mode)


def _cut(picture: Picture, share: float) -> Picture:
    half = int(20 * share) // 2
    x, y = random.randrange(picture.width), random.randrange(picture.height)
    result = picture.copy()
    ImageDraw.Draw(result).rectangle(
        (max(0, x - half), max(0, y - half), x + half, y + half), fill=(125, 122, 113)
    )
    return result


def _enhance(kind: Callable[[Picture], Any]) -> Callable[[Picture, float], Picture]:
    return lambda picture, share: kind(picture).enhance(1 + _sign() * 0.9 * share)


OPERATIONS: list[Callable[[Picture, float], Picture]] = [
    lambda picture, share: ImageOps.invert(picture),
    _cut,
    _enhance(ImageEnhance.Sharpness),
    lambda picture, share: ImageOps.autocontrast(picture),
    lambda picture, share: ImageOps.posterize(picture, round(8 - 4 * share)),
    _shear_x,
    _translate_x,
    _translate_y,
    _shear_y,
    _rotate,
    lambda picture, share: ImageOps.equalize(picture),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Color),
    lambda picture, share: ImageOps.solarize(picture, int(256 - 256 * share)),
    _enhance(ImageEnhance.Brightness),
]

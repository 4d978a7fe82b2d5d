"""Image-caption pairs for the pre-training of GlyphCLIP: captions like web text, rendered scenes.

Captions name only some of the objects, in any order, with adjectives, and now and then an object that is not
in the image. This module does not import torch, so that rendering processes start fast.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.data.glyphscenes import scenes

_NAMED = 0.6
"""Probability that a caption names an object."""
_WRONG = 0.1
"""Probability that a caption also names a random class."""
TEMPLATES = (
    "a photo of {}.",
    "a photo of {}.",
    "a picture of {}.",
    "{} on a colourful background.",
    "an image with {}.",
    "{}.",
    "my favourite {}!",
    "clip art: {}",
    "{} | free download",
    "there is {} here.",
)
ADJECTIVES = ("small", "big", "old", "nice", "simple", "modern", "funny", "beautiful")


def caption(rng: np.random.Generator, names: list[str]) -> str:
    """Write a caption that names some of the objects.

    Args:
        rng: source of randomness.
        names: class names in the image, without repetitions; at least one.
    """
    kept = [name for name in names if rng.random() < _NAMED]
    if not kept:
        kept = [names[rng.integers(len(names))]]
    if rng.random() < _WRONG:
        classes = scenes.class_names()
        kept.append(classes[rng.integers(len(classes))])
    words = []
    for position in rng.permutation(len(kept)):
        name = kept[position]
        if rng.random() < 0.25:
            name = f"{ADJECTIVES[rng.integers(len(ADJECTIVES))]} {name}"
        words.append(f"a {name}" if rng.random() < 0.7 else name)
    joined = words[0]
    if len(words) > 1:
        glue = " and " if rng.random() < 0.7 else ", "
        joined = ", ".join(words[:-1]) + glue + words[-1]
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(joined)


def _render_block(
    path: str, shape: tuple[int, ...], split: str, seed: int, start: int, stop: int
) -> list[str]:
    """Render the images [start, stop) into the memory-mapped file and return their captions."""
    pixels = np.memmap(path, np.uint8, "r+", shape=shape)
    captions = []
    for index in range(start, stop):
        image, objects = scenes.render(seed, index, split)
        pixels[index] = np.asarray(image.reduce(scenes.SIZE // shape[1]))
        labels = list(dict.fromkeys(o.name for o in objects if o.is_label))
        rng = np.random.Generator(np.random.Philox(key=[seed, index]))
        captions.append(caption(rng, labels or [objects[0].name]))
    pixels.flush()
    return captions


def render_pairs(
    folder: Path, split: str, total: int, size: int, seed: int, workers: int
) -> tuple[np.memmap, list[str]]:
    """Render image-caption pairs in several processes.

    Args:
        folder: folder of the memory-mapped file.
        split: "icons" or "pretrain", see `scenes.render`.
        total: number of pairs.
        size: side of the images in pixels, a divisor of `scenes.SIZE`.
        seed: seed of the scenes and captions.
        workers: number of rendering processes.

    Returns:
        Pixels, a memory map (total, size, size, 3) uint8, and the captions in the same order.
    """
    path, shape, block = folder / f"{split}.bin", (total, size, size, 3), 1000
    pixels = np.memmap(path, np.uint8, "w+", shape=shape)
    started = time.monotonic()
    captions: list[str] = []
    jobs = [(str(path), shape, split, seed, a, min(a + block, total)) for a in range(0, total, block)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for number, found in enumerate(pool.map(_render_block, *zip(*jobs, strict=True)), 1):
            captions += found
            if number % 20 == 0 or number == len(jobs):
                rate = len(captions) / (time.monotonic() - started)
                print(f"{split}: rendered {len(captions)}/{total}, {rate:.0f}/s", flush=True)
    return pixels, captions

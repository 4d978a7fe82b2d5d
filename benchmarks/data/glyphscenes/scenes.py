"""GlyphScenes: a rendered multi-label dataset, so that nothing has to be downloaded.

Forty pictographs of the DejaVu Sans font that matplotlib ships are placed in cluttered scenes. A
scene has one or two random contexts (weather, office, chess, ...) and most of its objects are from
them, so that labels co-occur; class frequencies have a long tail. Objects differ in size, rotation,
aspect, colour, style and blur, may be cut by the border and may be covered by others. An object
counts as a label when at least `MIN_VISIBLE` of its area is visible.

Every image is a pure function of (seed, split, index): a Philox generator is keyed with their hash, and
Pillow draws with integer arithmetic. Images can therefore be rendered in any order, by any number of
processes, and again after an interruption, with the same bytes (for one version of Pillow). On disk the
dataset has the layout of COCO: JPEG files and "instances" JSON files.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.data.glyphscenes.classes import category_ids, class_names, contexts, tables
from benchmarks.data.glyphscenes.drawing import (
    SIZE,
    VERSION,
    Draw,
    background,
    clutter,
    count_pixels,
    draw_object,
    font,
    glyph_mask,
    occlude,
    place,
    shape_mask,
)
from benchmarks.provenance import cores

__all__ = [
    "GlyphObject",
    "category_ids",
    "class_names",
    "contact_sheet",
    "contexts",
    "glyph_mask",
    "render",
    "write",
]

SPLITS = {"train": 4000, "test": 1500}
"""Number of images of each split on disk."""
MIN_VISIBLE = 0.35
"""Smallest visible fraction of an object's area at which it counts as a label."""
JPEG_QUALITY = 88


@dataclass(frozen=True)
class GlyphObject:
    """One drawn object.

    Attributes:
        name: class name.
        bbox: (x, y, width, height) of the visible part in pixels; (0, 0, 0, 0) if there is none.
        area: visible area in pixels.
        visible: visible fraction of the object's full area, the part outside the image included.
    """

    name: str
    bbox: tuple[int, int, int, int]
    area: int
    visible: float

    @property
    def is_label(self) -> bool:
        """Whether enough of the object is visible for a label."""
        return self.visible >= MIN_VISIBLE


def _scene_classes(draw: Draw, flat: bool) -> list[str]:
    """Draw the 2 to 5 class names of a scene; a name may occur twice."""
    weights = tables(flat)
    value = draw.uniform()
    count = 2 if value < 0.38 else 3 if value < 0.72 else 4 if value < 0.91 else 5
    chosen = [draw.pick(weights["contexts"])]
    if draw.chance(0.45):
        chosen.append(draw.pick(weights["contexts"]))
    names: list[str] = []
    while len(names) < count:
        if draw.chance(0.15):
            name = draw.pick(weights["all"])
        else:
            name = draw.pick(weights["context " + chosen[draw.integer(0, len(chosen) - 1)]])
        if name not in names or draw.chance(0.1):
            names.append(name)
    return names


def render(seed: int, index: int, split: str) -> tuple[Image.Image, list[GlyphObject]]:
    """Render one scene.

    Args:
        seed: seed of the dataset.
        index: index of the image in its split, from 0.
        split: any word. "icons" and "pretrain" are for pre-training and have flatter class frequencies: all
            images of "icons", and 30 per cent of those of "pretrain", show only one or two large objects.

    Returns:
        The RGB image of 128 x 128 pixels, and all drawn objects in drawing order, with hidden ones: those
        with `is_label` are the labels.
    """
    draw = Draw(seed, split, index)
    names = _scene_classes(draw, flat=split in ("pretrain", "icons"))
    icon = split == "icons" or (split == "pretrain" and draw.chance(0.3))
    image = background(draw)
    if icon:
        names = names[: 2 if draw.chance(0.25) else 1]
    else:
        clutter(draw, image)
    shown: list[Image.Image] = []
    full: list[int] = []
    taken: list[tuple[int, int, int, int]] = []
    for name in names:
        smallest, largest = (40, 100) if icon else (24, 60 if len(names) < 4 else 52)
        value = draw.uniform()
        # The product favours small objects.
        extent = smallest + int((largest - smallest) * value * (0.4 + 0.6 * value))
        mask = shape_mask(draw, name, extent, 25.0)
        x, y = place(draw, mask.size, taken)
        taken.append((x, y, x + mask.width, y + mask.height))
        cover = draw_object(draw, image, name, mask, x, y)
        for earlier in shown:
            earlier.paste(0, (x, y), cover)
        visible = Image.new("L", (SIZE, SIZE))
        visible.paste(mask, (x, y))
        shown.append(visible)
        full.append(max(1, count_pixels(mask)))
    if not icon:
        occlude(draw, image, shown, taken)
    if draw.chance(0.15):
        image = image.filter(ImageFilter.GaussianBlur(0.5 + 0.5 * draw.integer(0, 1)))
    noise = draw.integer(0, 12)
    grain = draw.rng.integers(-noise, noise + 1, (SIZE, SIZE), dtype=np.int16)
    pixels = np.clip(np.asarray(image).astype(np.int16) + grain[:, :, None], 0, 255)
    objects = []
    for name, visible, total in zip(names, shown, full, strict=True):
        area = count_pixels(visible)
        box = visible.getbbox() if area else None
        x, y, right, bottom = box or (0, 0, 0, 0)
        objects.append(GlyphObject(name, (x, y, right - x, bottom - y), area, area / total))
    return Image.fromarray(pixels.astype(np.uint8)), objects


# ------------------------------------------------------------------------------------ files on disk

_PART = 100
"""Images of a part: an interrupted rendering continues after the last complete part."""


def _replace(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _render_part(folder: str, seed: int, split: str, start: int, stop: int) -> list[dict[str, Any]]:
    """Write the images [start, stop) of a split, then the part file with their objects."""
    root = Path(folder)
    part = root / "annotations" / "parts" / f"{split}-{start:06d}.json"
    images = root / "images" / split
    files = [images / f"{index + 1:06d}.jpg" for index in range(start, stop)]
    if part.is_file() and all(file.is_file() for file in files):
        stored = json.loads(part.read_text())
        if stored["version"] == VERSION and stored["seed"] == seed and stored["stop"] == stop:
            return stored["images"]
    found: list[dict[str, Any]] = []
    for index, file in zip(range(start, stop), files, strict=True):
        image, objects = render(seed, index, split)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        _replace(file, buffer.getvalue())
        labels = [o for o in objects if o.is_label]
        found.append(
            {
                "index": index,
                "objects": [{"name": o.name, "bbox": o.bbox, "area": o.area} for o in labels],
            }
        )
    record = {"version": VERSION, "seed": seed, "stop": stop, "images": found}
    _replace(part, json.dumps(record).encode())
    return found


def _annotations(seed: int, split: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """COCO "instances" of a split."""
    ids = category_ids()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for entry in found:
        number = entry["index"] + 1
        name = f"{number:06d}.jpg"
        images.append({"id": number, "file_name": name, "width": SIZE, "height": SIZE})
        for item in entry["objects"]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[item["name"]],
                    "bbox": list(item["bbox"]),
                    "area": item["area"],
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": ids[name], "name": name, "supercategory": context}
        for context, members in contexts().items()
        for name in members
    ]
    info = {"description": f"GlyphScenes {split}", "version": str(VERSION), "seed": seed}
    return {
        "info": info,
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _complete(path: Path, seed: int, count: int) -> bool:
    """Whether a split is on disk: its annotations are written last."""
    if not path.is_file():
        return False
    stored = json.loads(path.read_text())
    info = stored["info"]
    if (info["version"], info["seed"], len(stored["images"])) != (str(VERSION), seed, count):
        raise ValueError(
            f"{path} holds GlyphScenes version {info['version']}, seed {info['seed']}, "
            f"{len(stored['images'])} images; wanted version {VERSION}, seed {seed}, {count} "
            f"images: remove {path.parent.parent} or choose another folder"
        )
    return True


def write(
    root: Path,
    *,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Path:
    """Render the dataset to `<root>/glyphscenes`; finished parts are kept.

    The annotation files are written last: a split that has one is complete. An interrupted call loses at most
    the unfinished parts, of a hundred images each.

    Args:
        root: data folder.
        seed: seed of the dataset; published results use 0.
        workers: rendering processes; None is one for each core, at most 8; 1 renders in this process.
        progress: called with (images done, images in total).
        sizes: number of images of each split; None is `SPLITS`.

    Returns:
        The folder `<root>/glyphscenes`.

    Raises:
        ValueError: the folder holds a dataset of another version, seed or size.
    """
    folder = Path(root) / "glyphscenes"
    sizes = SPLITS if sizes is None else sizes
    files = {split: folder / "annotations" / f"instances_{split}.json" for split in sizes}
    total = sum(sizes.values())
    missing = {s: n for s, n in sizes.items() if not _complete(files[s], seed, n)}
    done = total - sum(missing.values())
    if progress is not None:
        progress(done, total)
    for split in missing:
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    parts_folder = folder / "annotations" / "parts"
    if missing:
        parts_folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (str(folder), seed, split, start, min(start + _PART, count))
        for split, count in missing.items()
        for start in range(0, count, _PART)
    ]
    found: dict[str, list[dict[str, Any]]] = {split: [] for split in missing}
    with _mapper(min(len(jobs), workers or min(8, cores()))) as run:
        for job, part in zip(jobs, run(_render_part, jobs), strict=True):
            found[job[2]] += part
            done += len(part)
            if progress is not None:
                progress(done, total)
    for split, images in found.items():
        _replace(files[split], json.dumps(_annotations(seed, split, images)).encode())
        for part_file in parts_folder.glob(f"{split}-*.json"):
            part_file.unlink(missing_ok=True)
    if parts_folder.is_dir() and not any(parts_folder.iterdir()):
        parts_folder.rmdir()
    return folder


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """An ordered map over argument tuples, in this process or in several."""
    if workers <= 1:
        yield lambda function, jobs: (function(*job) for job in jobs)
        return
    # "spawn", because "fork" is not safe in a process with threads, such as torch's.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield lambda function, jobs: pool.map(function, *zip(*jobs, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def contact_sheet(path: Path, *, seed: int = 0, split: str = "train", columns: int = 8) -> Path:
    """Write a PNG with the first scenes of a split in four rows, each above its labels."""
    face = ImageFont.truetype(font().path, 9, layout_engine=ImageFont.Layout.BASIC)
    rows, pad, text = 4, 4, 26
    sheet = Image.new(
        "RGB", (columns * (SIZE + pad) + pad, rows * (SIZE + text + pad) + pad), (255, 255, 255)
    )
    pen = ImageDraw.Draw(sheet)
    for cell in range(rows * columns):
        image, objects = render(seed, cell, split)
        x = pad + cell % columns * (SIZE + pad)
        y = pad + cell // columns * (SIZE + text + pad)
        sheet.paste(image, (x, y))
        names = list(dict.fromkeys(o.name for o in objects if o.is_label))
        lines = [", ".join(names[:2]), ", ".join(names[2:])]
        for row, line in enumerate(lines):
            pen.text((x, y + SIZE + 1 + 12 * row), line[:26], font=face, fill=(0, 0, 0))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    sheet.quantize(200, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    _replace(Path(path), buffer.getvalue())
    return Path(path)

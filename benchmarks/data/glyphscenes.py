"""GlyphScenes: a multi-label data set that is rendered, so that nothing has to be downloaded.

Forty pictographs of the DejaVu Sans font that matplotlib ships are placed in cluttered scenes. A
scene draws one or two contexts (weather, office, chess, ...) and takes most of its objects from
them, so labels co-occur; class frequencies have a long tail. Objects differ in size, rotation,
aspect, colour, style and blur, may be cut by the border and may be covered by others. An object
counts as a label when at least :data:`MIN_VISIBLE` of its area can be seen.

Every image is a pure function of (seed, split, index): a Philox generator is keyed with a hash of
the three and all drawing is integer arithmetic in Pillow, so images may be rendered in any order,
by any number of processes, and again after an interruption, with the same bytes (for one version
of Pillow). On disk the data set looks like COCO: JPEG files and "instances" JSON files.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

VERSION = 1
SIZE = 128
"""Width and height of a scene in pixels."""
SPLITS = {"train": 4000, "test": 1500}
"""Number of images of each split that :func:`write` puts on disk."""
MIN_VISIBLE = 0.35
"""Smallest visible fraction of an object's area at which it counts as a label."""
JPEG_QUALITY = 88
TYPICAL = 0.7
"""Probability that an object has the typical hue of its class."""

# name, code point, frequency rank (0 = most frequent); the ranks mix heads and tails in a context.
_CONTEXTS: dict[str, tuple[tuple[str, int, int], ...]] = {
    "weather": (
        ("sun", 0x2600, 0),
        ("cloud", 0x2601, 6),
        ("umbrella", 0x2602, 14),
        ("snowman", 0x2603, 24),
        ("snowflake", 0x2744, 36),
    ),
    "office": (
        ("telephone", 0x260E, 4),
        ("scissors", 0x2702, 19),
        ("envelope", 0x2709, 11),
        ("pencil", 0x270E, 31),
    ),
    "chess": (
        ("chess king", 0x265A, 12),
        ("chess queen", 0x265B, 22),
        ("chess rook", 0x265C, 29),
        ("chess bishop", 0x265D, 34),
        ("chess knight", 0x265E, 8),
    ),
    "cards": (
        ("spade", 0x2660, 9),
        ("heart", 0x2665, 2),
        ("diamond", 0x2666, 17),
        ("club", 0x2663, 26),
        ("dice", 0x2684, 38),
    ),
    "travel": (
        ("airplane", 0x2708, 1),
        ("anchor", 0x2693, 15),
        ("flag", 0x2691, 27),
        ("ship wheel", 0x2638, 39),
    ),
    "hazard": (
        ("skull", 0x2620, 7),
        ("radiation", 0x2622, 18),
        ("biohazard", 0x2623, 30),
        ("warning sign", 0x26A0, 35),
    ),
    "workshop": (
        ("hammers", 0x2692, 13),
        ("swords", 0x2694, 23),
        ("gear", 0x2699, 5),
        ("recycling", 0x267B, 33),
    ),
    "leisure": (
        ("coffee cup", 0x2615, 16),
        ("music note", 0x266B, 3),
        ("smiley face", 0x263A, 21),
        ("peace sign", 0x262E, 28),
        ("flower", 0x2740, 37),
    ),
    "night": (
        ("moon", 0x263E, 20),
        ("star", 0x2605, 10),
        ("comet", 0x2604, 25),
        ("cat", 0x1F431, 32),
    ),
}
_DISTRACTORS = "ABEFGHKMRSWXZ2345789?&%@#■▲●◆→⇨✓✖"
_GLYPH_SIZE = 96  # glyph masks are rendered once at this height and scaled down


@dataclass(frozen=True)
class GlyphObject:
    """One drawn object.

    Attributes:
        name: class name.
        bbox: (x, y, width, height) in pixels of what can be seen; (0, 0, 0, 0) if nothing.
        area: visible area in pixels.
        visible: visible fraction of the object's full area, the part outside the image included.
    """

    name: str
    bbox: tuple[int, int, int, int]
    area: int
    visible: float

    @property
    def is_label(self) -> bool:
        """Whether enough of the object can be seen for it to count as a label."""
        return self.visible >= MIN_VISIBLE


def class_names() -> tuple[str, ...]:
    """Return the forty class names, grouped by context."""
    return tuple(name for members in _CONTEXTS.values() for name, _, _ in members)


def contexts() -> dict[str, tuple[str, ...]]:
    """Return the class names of each context."""
    return {key: tuple(name for name, _, _ in members) for key, members in _CONTEXTS.items()}


def category_ids() -> dict[str, int]:
    """Return the COCO category id of each class (ids have gaps, as in COCO)."""
    return {
        name: 10 * c + i + 1
        for c, members in enumerate(_CONTEXTS.values())
        for i, (name, _, _) in enumerate(members)
    }


# ---------------------------------------------------------------------------------- what to draw


def _weight(rank: int, flat: bool) -> float:
    """Relative frequency of the class of a rank: about 1 : 30 between first and last."""
    weight = math.exp(-3.3 * (rank / 39) ** 0.7)
    return round(math.sqrt(weight) if flat else weight, 6)


@cache
def _tables(flat: bool) -> dict[str, tuple[tuple[str, ...], tuple[float, ...]]]:
    """Names and cumulative weights: "contexts", "all", and one entry for each context."""
    tables = {}
    everything: list[tuple[str, float]] = []
    groups: list[tuple[str, float]] = []
    for key, members in _CONTEXTS.items():
        pairs = [(name, _weight(rank, flat)) for name, _, rank in members]
        tables["context " + key] = _cumulative(pairs)
        everything += pairs
        groups.append((key, sum(weight for _, weight in pairs)))
    tables["contexts"] = _cumulative(groups)
    tables["all"] = _cumulative(everything)
    return tables


def _cumulative(pairs: list[tuple[str, float]]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    return tuple(name for name, _ in pairs), tuple(accumulate(weight for _, weight in pairs))


class _Draw:
    """Random draws of one image; only uniforms and integers, which are exact on any machine."""

    def __init__(self, seed: int, split: str, index: int) -> None:
        text = f"glyphscenes/{VERSION}|{seed}|{split}|{index}".encode()
        key = np.frombuffer(hashlib.sha256(text).digest()[:16], dtype="<u8")
        self.rng = np.random.Generator(np.random.Philox(key=key))
        self._pool: Iterator[float] = iter(())

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        value = next(self._pool, None)
        if value is None:  # drawn in blocks: a scalar draw costs as much as a block of a hundred
            self._pool = iter(self.rng.random(128).tolist())
            value = next(self._pool)
        return low + (high - low) * value

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """Uniform integer in [low, high]."""
        return min(high, low + int(self.uniform() * (high - low + 1)))

    def colour(self) -> tuple[int, int, int]:
        return (self.integer(0, 255), self.integer(0, 255), self.integer(0, 255))

    def pick(self, table: tuple[tuple[str, ...], tuple[float, ...]]) -> str:
        names, cumulative = table
        value = self.uniform() * cumulative[-1]
        return next((n for n, c in zip(names, cumulative, strict=True) if value < c), names[-1])


def _scene_classes(draw: _Draw, flat: bool) -> list[str]:
    """Draw the 2 to 5 class names of a scene; a name may occur twice."""
    tables = _tables(flat)
    value = draw.uniform()
    count = 2 if value < 0.38 else 3 if value < 0.72 else 4 if value < 0.91 else 5
    chosen = [draw.pick(tables["contexts"])]
    if draw.chance(0.45):
        chosen.append(draw.pick(tables["contexts"]))
    names: list[str] = []
    while len(names) < count:
        if draw.chance(0.15):
            name = draw.pick(tables["all"])
        else:
            name = draw.pick(tables["context " + chosen[draw.integer(0, len(chosen) - 1)]])
        if name not in names or draw.chance(0.1):
            names.append(name)
    return names


# ------------------------------------------------------------------------------------- how to draw


@cache
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    # The basic layout does not depend on whether libraqm is installed.
    return ImageFont.truetype(str(path), _GLYPH_SIZE, layout_engine=ImageFont.Layout.BASIC)


@cache
def glyph_mask(text: str) -> Image.Image:
    """Return the mask ("L", cropped to its ink) of a class name or of a single character.

    Raises:
        ValueError: the font has no glyph for it.
    """
    points = {name: code for members in _CONTEXTS.values() for name, code, _ in members}
    character = chr(points[text]) if text in points else text
    font = _font()
    canvas = Image.new("L", (2 * _GLYPH_SIZE, 2 * _GLYPH_SIZE))
    ImageDraw.Draw(canvas).text((48, 24), character, font=font, fill=255)
    missing = Image.new("L", canvas.size)
    ImageDraw.Draw(missing).text((48, 24), "\U0010fffd", font=font, fill=255)
    box = canvas.getbbox()
    if box is None or canvas.tobytes() == missing.tobytes():
        raise ValueError(f"DejaVu Sans has no glyph for {text!r} (U+{ord(character):04X})")
    return canvas.crop(box)


def _shape_mask(draw: _Draw, text: str, extent: int, tilt: float) -> Image.Image:
    """Glyph mask scaled so that its longer side has ``extent`` pixels, stretched and rotated."""
    mask = glyph_mask(text)
    width, height = mask.size
    stretch = draw.uniform(0.82, 1.22)
    scale = extent / max(width * stretch, height)
    size = (max(4, round(width * stretch * scale)), max(4, round(height * scale)))
    mask = mask.resize(size, Image.Resampling.BOX)
    angle = round(draw.uniform(-tilt, tilt), 3)
    return mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)


def _background(draw: _Draw) -> Image.Image:
    """Calm, muted colour field, often with a faint texture or stripes on top."""
    base = np.array(_muted(draw), dtype=np.int32)
    cells = draw.integer(2, 4)
    field = draw.rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    # Little variation around one colour, so that objects stand out by shape and by colour.
    share = draw.integer(4, 9)
    field = ((field.astype(np.int32) + share * base) // (share + 1)).astype(np.uint8)
    image = Image.fromarray(field).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    kind = draw.uniform()
    if kind < 0.4:
        cells = draw.integer(8, 32)
        texture = draw.rng.integers(0, 256, (cells, cells), dtype=np.uint8)
        texture_image = Image.fromarray(texture).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        strength = draw.integer(10, 36)
        mask = texture_image.point([value * strength // 255 for value in range(256)])
        image.paste(draw.colour(), (0, 0), mask)
    elif kind < 0.6:
        pen = ImageDraw.Draw(image)
        step, slope = draw.integer(9, 26), draw.integer(-SIZE, SIZE)
        colour = _near(draw, image.getpixel((64, 64)), 18)
        for x in range(-SIZE, 2 * SIZE, step):
            pen.line((x, 0, x + slope, SIZE), fill=colour, width=max(1, step // 3))
    return image


def _muted(draw: _Draw) -> tuple[int, int, int]:
    """Random colour of little saturation."""
    level, spread = draw.integer(20, 235), 22
    return _near(draw, (level, level, level), spread)


def _near(draw: _Draw, colour: Any, spread: int) -> tuple[int, int, int]:
    red, green, blue = (
        min(255, max(0, int(c) + draw.integer(-spread, spread))) for c in tuple(colour)[:3]
    )
    return (red, green, blue)


def _luminance(colour: Any) -> int:
    return (299 * int(colour[0]) + 587 * int(colour[1]) + 114 * int(colour[2])) // 1000


def _contrasting(draw: _Draw, other: Any) -> tuple[int, int, int]:
    """Random colour whose luminance differs from another's by at least 60 levels."""
    colour = draw.colour()
    for _ in range(20):
        if abs(_luminance(colour) - _luminance(other)) >= 60:
            return colour
        colour = draw.colour()
    return (250, 250, 250) if _luminance(other) < 128 else (8, 8, 8)


def _own_colour(draw: _Draw, name: str, other: Any) -> tuple[int, int, int]:
    """Colour of an object: near the typical hue of its class, or any, and never lost in `other`.

    Five classes share a hue: colour narrows a class down and shape decides, as with real things.
    """
    if not draw.chance(TYPICAL):
        return _contrasting(draw, other)
    hue = (class_names().index(name) * 3 % 8) / 8 + draw.uniform(-0.04, 0.04)
    saturation = draw.uniform(0.65, 1.0)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, 1.0)
    top = max(1, _luminance((255 * red, 255 * green, 255 * blue)))
    levels = [draw.integer(90, 255) for _ in range(6)]
    level = max(levels, key=lambda value: abs(top * value // 255 - _luminance(other)))
    return (int(red * level), int(green * level), int(blue * level))


def _clutter(draw: _Draw, image: Image.Image) -> None:
    """Strokes, blobs and characters that are no class, behind the objects."""
    pen = ImageDraw.Draw(image)
    for _ in range(draw.integer(0, 4)):
        x, y = draw.integer(-10, SIZE), draw.integer(-10, SIZE)
        kind = draw.uniform()
        if kind < 0.45:
            end = (x + draw.integer(-60, 60), y + draw.integer(-60, 60))
            pen.line((x, y, *end), fill=draw.colour(), width=draw.integer(1, 4))
        elif kind < 0.6:
            box = (x, y, x + draw.integer(6, 44), y + draw.integer(6, 44))
            colour = _near(draw, image.getpixel((min(127, max(0, x)), min(127, max(0, y)))), 60)
            (pen.ellipse if draw.chance(0.5) else pen.rectangle)(box, fill=colour)
        else:
            text = _DISTRACTORS[draw.integer(0, len(_DISTRACTORS) - 1)]
            mask = _shape_mask(draw, text, draw.integer(12, 40), 40.0)
            image.paste(draw.colour(), (x, y), mask)


def _place(
    draw: _Draw, size: tuple[int, int], taken: list[tuple[int, int, int, int]]
) -> tuple[int, int]:
    """Position (may reach over the border) with the least overlap of six tries."""
    width, height = size
    best, best_cost = (0, 0), math.inf
    over_x, over_y = width // 4, height // 4
    for _ in range(6):
        x = draw.integer(-over_x, SIZE - width + over_x)
        y = draw.integer(-over_y, SIZE - height + over_y)
        cost = 0
        for a, b, c, d in taken:
            across = min(x + width, c) - max(x, a)
            down = min(y + height, d) - max(y, b)
            cost += max(0, across) * max(0, down)
        if cost < best_cost:
            best, best_cost = (x, y), cost
        if cost == 0:
            break
    return best


def _count(mask: Image.Image) -> int:
    """Number of pixels above one half."""
    return sum(mask.histogram()[128:])


def render(seed: int, index: int, split: str) -> tuple[Image.Image, list[GlyphObject]]:
    """Render one scene.

    Args:
        seed: seed of the data set.
        index: index of the image in its split, from 0.
        split: any word. Two words are special, for pre-training: class frequencies are flatter
            and "icons" shows one or two large objects and nothing else; in "pretrain" 30 per cent
            of the images do.

    Returns:
        The RGB image of 128 x 128 pixels and all drawn objects in drawing order, hidden ones
        included: those with ``is_label`` are the labels.
    """
    draw = _Draw(seed, split, index)
    names = _scene_classes(draw, flat=split in ("pretrain", "icons"))
    icon = split == "icons" or (split == "pretrain" and draw.chance(0.3))
    image = _background(draw)
    if icon:
        names = names[: 2 if draw.chance(0.25) else 1]
    else:
        _clutter(draw, image)
    shown: list[Image.Image] = []
    full: list[int] = []
    taken: list[tuple[int, int, int, int]] = []
    for name in names:
        smallest, largest = (40, 100) if icon else (24, 60 if len(names) < 4 else 52)
        value = draw.uniform()
        # The product favours small objects.
        extent = smallest + int((largest - smallest) * value * (0.4 + 0.6 * value))
        mask = _shape_mask(draw, name, extent, 25.0)
        x, y = _place(draw, mask.size, taken)
        taken.append((x, y, x + mask.width, y + mask.height))
        cover = _draw_object(draw, image, name, mask, x, y)
        for earlier in shown:
            earlier.paste(0, (x, y), cover)
        visible = Image.new("L", (SIZE, SIZE))
        visible.paste(mask, (x, y))
        shown.append(visible)
        full.append(max(1, _count(mask)))
    if not icon:
        _occlude(draw, image, shown, taken)
    if draw.chance(0.15):
        image = image.filter(ImageFilter.GaussianBlur(0.5 + 0.5 * draw.integer(0, 1)))
    noise = draw.integer(0, 12)
    grain = draw.rng.integers(-noise, noise + 1, (SIZE, SIZE), dtype=np.int16)
    pixels = np.clip(np.asarray(image).astype(np.int16) + grain[:, :, None], 0, 255)
    objects = []
    for name, visible, total in zip(names, shown, full, strict=True):
        area = _count(visible)
        box = visible.getbbox() if area else None
        x, y, right, bottom = box or (0, 0, 0, 0)
        objects.append(GlyphObject(name, (x, y, right - x, bottom - y), area, area / total))
    return Image.fromarray(pixels.astype(np.uint8)), objects


def _draw_object(
    draw: _Draw, image: Image.Image, name: str, mask: Image.Image, x: int, y: int
) -> Image.Image:
    """Paint one object; return the mask of everything that it covers."""
    centre = (min(127, max(0, x + mask.width // 2)), min(127, max(0, y + mask.height // 2)))
    behind: Any = image.getpixel(centre)
    cover = mask
    style = draw.uniform()
    if style < 0.15:  # a sticker: the glyph on a plate of its own colour
        behind = _contrasting(draw, behind)
        cover = Image.new("L", mask.size)
        pen = ImageDraw.Draw(cover)
        box = (0, 0, mask.width - 1, mask.height - 1)
        if draw.chance(0.5):
            pen.ellipse(box, fill=255)
        else:
            pen.rounded_rectangle(box, radius=5, fill=255)
        cover = ImageChops.lighter(cover, mask)
        image.paste(behind, (x, y), cover)
    elif style < 0.35:  # a dark or light rim
        cover = mask.filter(ImageFilter.MaxFilter(3))
        behind = _contrasting(draw, behind)
        image.paste(behind, (x, y), cover)
    ink = mask
    if draw.chance(0.15):  # translucent
        strength = draw.integer(180, 240)
        ink = ink.point([value * strength // 255 for value in range(256)])
    colour = _own_colour(draw, name, behind)
    if draw.chance(0.15):  # two colours, one growing into the other from top to bottom
        ramp = Image.linear_gradient("L").resize(mask.size)
        second = Image.new("RGB", mask.size, _contrasting(draw, behind))
        second.paste(colour, (0, 0), ramp)
        image.paste(second, (x, y), ink)
    else:
        image.paste(colour, (x, y), ink)
    return cover


def _occlude(
    draw: _Draw,
    image: Image.Image,
    shown: list[Image.Image],
    taken: list[tuple[int, int, int, int]],
) -> None:
    """Cover a part of some objects with bars and blobs; the first object is never a target."""
    for target in taken[1:]:
        if not draw.chance(0.25):
            continue
        left, top, right, bottom = target
        across, down = draw.integer(5, max(6, right - left)), draw.integer(5, max(6, bottom - top))
        x = draw.integer(left - across // 3, right - across // 2)
        y = draw.integer(top - down // 3, bottom - down // 2)
        box = (x, y, x + across, y + down)
        cover = Image.new("L", (SIZE, SIZE))
        pen = ImageDraw.Draw(cover)
        kind = draw.uniform()
        if kind < 0.4:
            pen.ellipse(box, fill=255)
        elif kind < 0.7:
            pen.rectangle(box, fill=255)
        else:
            end = (draw.integer(0, SIZE), draw.integer(0, SIZE))
            pen.line((x, y, *end), fill=255, width=draw.integer(3, 8))
        image.paste(draw.colour(), (0, 0), cover)
        for visible in shown:
            visible.paste(0, (0, 0), cover)


# ------------------------------------------------------------------------------------ files on disk

_PART = 100  # images between two points from which an interrupted rendering goes on


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or not at all."""
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
    """Whether a split is on disk; its annotations are written last."""
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
    """Render the data set to ``<root>/glyphscenes``; what is there already is kept.

    The annotation files come last: where they exist, the split is complete. An interrupted call
    loses at most the unfinished parts of a hundred images.

    Args:
        root: data folder.
        seed: seed of the data set; published results use 0.
        workers: rendering processes; None is one for each core, at most 8; 1 stays in this process.
        progress: called with (images done, images in total).
        sizes: number of images of each split, :data:`SPLITS` if None.

    Returns:
        The folder ``<root>/glyphscenes``.

    Raises:
        ValueError: the folder holds a data set of another version, seed or size.
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
    with _mapper(min(len(jobs), workers or min(8, os.cpu_count() or 1))) as run:
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
    """Give an ordered map over argument tuples, in this process or in several."""
    if workers <= 1:
        yield lambda function, jobs: (function(*job) for job in jobs)
        return
    # "spawn": the caller may have threads (torch), which "fork" does not survive reliably.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield lambda function, jobs: pool.map(function, *zip(*jobs, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def contact_sheet(path: Path, *, seed: int = 0, split: str = "train", columns: int = 8) -> Path:
    """Write a PNG with the first scenes of a split, four rows, each named by its labels."""
    font = ImageFont.truetype(_font().path, 9, layout_engine=ImageFont.Layout.BASIC)
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
            pen.text((x, y + SIZE + 1 + 12 * row), line[:26], font=font, fill=(0, 0, 0))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    sheet.quantize(200, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    _replace(Path(path), buffer.getvalue())
    return Path(path)

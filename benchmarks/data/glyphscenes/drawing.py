"""Drawing of GlyphScenes: backgrounds, clutter, objects and occlusions."""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from benchmarks.data.glyphscenes.classes import CONTEXTS, class_names

VERSION = 1
"""Version of the images: raise it when a change alters a pixel."""
SIZE = 128
"""Width and height of a scene in pixels."""
TYPICAL = 0.7
"""Probability that an object has the typical hue of its class."""
_DISTRACTORS = "ABEFGHKMRSWXZ2345789?&%@#■▲●◆→⇨✓✖"
_GLYPH_SIZE = 96  # glyph masks are rendered once at this height and scaled down


class Draw:
    """Random draws of one image: only uniforms and integers, which are exact on any machine."""

    def __init__(self, seed: int, split: str, index: int) -> None:
        text = f"glyphscenes/{VERSION}|{seed}|{split}|{index}".encode()
        key = np.frombuffer(hashlib.sha256(text).digest()[:16], dtype="<u8")
        self.rng = np.random.Generator(np.random.Philox(key=key))
        self._pool: Iterator[float] = iter(())

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Uniform number in [low, high)."""
        value = next(self._pool, None)
        if value is None:  # drawn in blocks: a scalar draw costs as much as a block of a hundred
            self._pool = iter(self.rng.random(128).tolist())
            value = next(self._pool)
        return low + (high - low) * value

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """Uniform integer in [low, high]."""
        return min(high, low + int(self.uniform() * (high - low + 1)))

    def colour(self) -> tuple[int, int, int]:
        """Any RGB colour."""
        return (self.integer(0, 255), self.integer(0, 255), self.integer(0, 255))

    def pick(self, table: tuple[tuple[str, ...], tuple[float, ...]]) -> str:
        """One name of a (names, cumulative weights) table of `classes.tables`."""
        names, cumulative = table
        value = self.uniform() * cumulative[-1]
        return next((n for n, c in zip(names, cumulative, strict=True) if value < c), names[-1])


@cache
def font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans at the size of the glyph masks."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    # The basic layout does not depend on whether libraqm is installed.
    return ImageFont.truetype(str(path), _GLYPH_SIZE, layout_engine=ImageFont.Layout.BASIC)


@cache
def glyph_mask(text: str) -> Image.Image:
    """The mask ("L", cropped to its ink) of a class name or of a single character.

    Raises:
        ValueError: the font has no glyph for it.
    """
    points = {name: code for members in CONTEXTS.values() for name, code, _ in members}
    character = chr(points[text]) if text in points else text
    face = font()
    canvas = Image.new("L", (2 * _GLYPH_SIZE, 2 * _GLYPH_SIZE))
    ImageDraw.Draw(canvas).text((48, 24), character, font=face, fill=255)
    missing = Image.new("L", canvas.size)
    ImageDraw.Draw(missing).text((48, 24), "\U0010fffd", font=face, fill=255)
    box = canvas.getbbox()
    if box is None or canvas.tobytes() == missing.tobytes():
        raise ValueError(f"DejaVu Sans has no glyph for {text!r} (U+{ord(character):04X})")
    return canvas.crop(box)


def shape_mask(draw: Draw, text: str, extent: int, tilt: float) -> Image.Image:
    """Glyph mask scaled so that its longer side has ``extent`` pixels, stretched and rotated."""
    mask = glyph_mask(text)
    width, height = mask.size
    stretch = draw.uniform(0.82, 1.22)
    scale = extent / max(width * stretch, height)
    size = (max(4, round(width * stretch * scale)), max(4, round(height * scale)))
    mask = mask.resize(size, Image.Resampling.BOX)
    angle = round(draw.uniform(-tilt, tilt), 3)
    return mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)


def background(draw: Draw) -> Image.Image:
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


def _muted(draw: Draw) -> tuple[int, int, int]:
    """Random colour of little saturation."""
    level, spread = draw.integer(20, 235), 22
    return _near(draw, (level, level, level), spread)


def _near(draw: Draw, colour: Any, spread: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, int(c) + draw.integer(-spread, spread))) for c in tuple(colour)[:3])
    return (red, green, blue)


def _luminance(colour: Any) -> int:
    return (299 * int(colour[0]) + 587 * int(colour[1]) + 114 * int(colour[2])) // 1000


def _contrasting(draw: Draw, other: Any) -> tuple[int, int, int]:
    """Random colour whose luminance differs from another's by at least 60 levels."""
    colour = draw.colour()
    for _ in range(20):
        if abs(_luminance(colour) - _luminance(other)) >= 60:
            return colour
        colour = draw.colour()
    return (250, 250, 250) if _luminance(other) < 128 else (8, 8, 8)


def _own_colour(draw: Draw, name: str, other: Any) -> tuple[int, int, int]:
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


def clutter(draw: Draw, image: Image.Image) -> None:
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
            mask = shape_mask(draw, text, draw.integer(12, 40), 40.0)
            image.paste(draw.colour(), (x, y), mask)


def place(draw: Draw, size: tuple[int, int], taken: list[tuple[int, int, int, int]]) -> tuple[int, int]:
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


def count_pixels(mask: Image.Image) -> int:
    """Number of pixels above one half."""
    return sum(mask.histogram()[128:])


def draw_object(draw: Draw, image: Image.Image, name: str, mask: Image.Image, x: int, y: int) -> Image.Image:
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


def occlude(
    draw: Draw,
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

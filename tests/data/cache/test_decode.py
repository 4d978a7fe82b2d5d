from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import Resize

from benchmarks.data.cache.decode import chunks_of, decode_chunk, load_image


def test_the_resize_is_torchvision_s_on_a_pillow_image(tmp_path, save_jpeg):
    path = save_jpeg(tmp_path / "a.jpg", 1, width=123, height=77)
    expected = np.asarray(Resize((32, 32))(Image.open(path))).transpose(2, 0, 1)
    assert (load_image(path, 32) == expected).all()


def png16(path: Path, pixels: np.ndarray) -> Path:
    """A PNG of 16 bits a channel written by hand: Pillow writes none of several channels."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def block(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + block(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
        + block(b"IDAT", zlib.compress(rows))
        + block(b"IEND", b"")
    )
    return path


def test_lossless_kinds_of_picture_become_rgb(tmp_path, photo_like):
    rgb = Image.fromarray(photo_like(3, 24, 24))
    grey, alpha = rgb.convert("L"), Image.fromarray(photo_like(4, 24, 24)).convert("L")
    palette = rgb.quantize(256)
    kinds = {
        "grey.png": (grey, grey),
        "palette.png": (palette, palette),
        "palette.gif": (palette, palette),
        "bits.png": (rgb.convert("1"), rgb.convert("1")),
        # transparency is dropped, not blended with a background
        "alpha.png": (Image.merge("RGBA", [*rgb.split(), alpha]), rgb),
        "grey_alpha.png": (Image.merge("LA", [grey, alpha]), grey),
    }
    for name, (image, expected) in kinds.items():
        image.save(tmp_path / name)
        pixels = load_image(tmp_path / name, 24)
        assert pixels.shape == (3, 24, 24), name
        assert pixels.dtype == np.uint8
        assert (pixels == np.asarray(expected.convert("RGB")).transpose(2, 0, 1)).all(), name


@pytest.mark.parametrize("transparency", [5, bytes(range(256))])
def test_a_palette_with_transparency_keeps_its_colours(tmp_path, photo_like, transparency):
    palette = Image.fromarray(photo_like(3, 24, 24)).quantize(256)
    palette.save(tmp_path / "a.png", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = load_image(tmp_path / "a.png", 24)
    assert (pixels == np.asarray(palette.convert("RGB")).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_of_sixteen_bits_the_upper_byte_is_taken(tmp_path, channels):
    values = np.random.default_rng(channels).integers(0, 65536, (24, 24, channels))
    pixels = load_image(png16(tmp_path / "a.png", values), 24)
    upper = (values >> 8).astype(np.uint8)
    colour = upper[..., :3] if channels >= 3 else upper[..., [0, 0, 0]]
    assert (pixels == colour.transpose(2, 0, 1)).all()


def test_sixteen_bit_tiff_and_pgm(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (24, 24))
    for name, kind in (("little.tif", "<u2"), ("big.tif", ">u2")):
        Image.fromarray(values.astype(kind)).save(tmp_path / name)
        assert (load_image(tmp_path / name, 24)[1] == values >> 8).all(), name
    (tmp_path / "a.pgm").write_bytes(b"P5\n24 24\n65535\n" + values.astype(">u2").tobytes())
    assert (load_image(tmp_path / "a.pgm", 24)[1] == values >> 8).all()


def test_cmyk_jpeg_becomes_rgb(tmp_path, photo_like):
    rgb = Image.fromarray(photo_like(3, 24, 24))
    rgb.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    difference = np.abs(load_image(tmp_path / "a.jpg", 24).astype(int) - np.asarray(rgb).transpose(2, 0, 1))
    assert np.percentile(difference, 99) <= 12


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a)),  # the camera was turned: it must be turned back clockwise
        (7, lambda a: a.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda a: np.rot90(a, -1)),
    ],
)
def test_exif_orientation_is_undone(tmp_path, photo_like, orientation, stored):
    upright = photo_like(3, 24, 48)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.ascontiguousarray(stored(upright))
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(upright).save(tmp_path / "upright.png")
    expected = load_image(tmp_path / "upright.png", 24)
    assert (load_image(tmp_path / "turned.png", 24) == expected).all()


def test_an_orientation_out_of_range_is_none(tmp_path, photo_like):
    exif = Image.Exif()
    exif[0x0112] = 99
    Image.fromarray(photo_like(3, 24, 24)).save(tmp_path / "a.png", exif=exif)
    assert (load_image(tmp_path / "a.png", 24) == photo_like(3, 24, 24).transpose(2, 0, 1)).all()


# -- what cannot be read -----------------------------------------------------------------------


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it is 30,000 pixels a side."""
    png16(path, np.zeros((4, 4, 3)))
    content = path.read_bytes()
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path.write_bytes(content[:16] + header + crc + content[33:])


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def progressive(path: Path) -> None:
    Image.open(path).save(path, progressive=True)
    cut(path, 0.6)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.write_bytes(b""), "empty file"),
        (lambda p: p.write_text("<html>404 Not Found</html>"), "not an image"),
        (lambda p: cut(p, 0.5), "truncated"),
        (lambda p: cut(p, 0.98), "truncated"),
        (progressive, "truncated"),
        (lambda p: cut(p, 0.03), ""),  # inside the header: any message of Pillow
        (bomb, "exceeds limit"),
        (lambda p: p.unlink(), "No such file or directory"),
        (lambda p: (p.unlink(), p.mkdir()), "Is a directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, save_jpeg, damage, reason):
    paths = [save_jpeg(tmp_path / f"{k}.jpg", k, width=200, height=150) for k in range(3)]
    damage(paths[1])
    file = tmp_path / "train.u8"
    file.write_bytes(b"\7" * (3 * 3 * 16 * 16))
    (chunk,) = chunks_of("train", paths, 16, file, 256, [None] * 3)
    decoded = decode_chunk(chunk)
    assert decoded.sha256 == ""
    ((path, why),) = decoded.unreadable
    assert path == paths[1]
    assert reason in why
    assert why
    assert "\n" not in why
    assert str(tmp_path) not in why  # the caller adds the path
    assert set(file.read_bytes()) == {7}  # nothing of the chunk was written


def test_known_pixels_are_copied_and_the_rest_is_decoded(tmp_path, save_jpeg):
    paths = [save_jpeg(tmp_path / f"{k}.jpg", k) for k in range(5)]
    donor = np.random.default_rng(0).integers(0, 256, (7, 3, 8, 8), dtype=np.uint8)
    donor.tofile(tmp_path / "donor.u8")
    file = tmp_path / "train.u8"
    file.write_bytes(bytes(5 * 192))
    known = [None, (tmp_path / "donor.u8", 6 * 192), None, (tmp_path / "donor.u8", 192), None]
    first, second = chunks_of("train", paths, 8, file, 3, known)
    paths[1].unlink()  # not looked at
    for chunk in (first, second):
        assert decode_chunk(chunk).sha256
    pixels = np.fromfile(file, np.uint8).reshape(5, 3, 8, 8)
    assert (pixels[1] == donor[6]).all()
    assert (pixels[3] == donor[1]).all()
    for k in (0, 2, 4):
        assert (pixels[k] == load_image(paths[k], 8)).all()

"""Pictures as programs, phones and servers write them: read right, or refused with a reason that helps."""

from __future__ import annotations

import io
import json
import struct
import sys
import types
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.data.cache import prepared
from benchmarks.data.cache.decode import MOST_PIXELS, load_image, pixel_limit, reason_unreadable
from methods import kinds
from methods.errors import UserError


def reason(path, size=8):
    """Why an image cannot be read."""
    with pytest.raises((OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError)) as caught:
        load_image(path, size)
    return reason_unreadable(path, caught.value)


# -- values without a scale --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.linspace(0, 1, 64, dtype="f4"), "mode F (32-bit floats)"),
        (np.linspace(0, 65535, 64, dtype="f4"), "mode F (32-bit floats)"),
        (np.linspace(0, 255, 64, dtype="f4"), "mode F (32-bit floats)"),
        (np.arange(64, dtype="i4"), "mode I (integers of 32 bits or with a sign)"),
        (np.full(64, 70000, dtype="i4"), "mode I (integers of 32 bits or with a sign)"),
        (np.arange(64, dtype="u2") + 192, "no value is above 255 of 65535"),
    ],
)
@pytest.mark.parametrize("compression", [None, "tiff_deflate"])
def test_values_whose_white_is_unknown_are_refused_by_mode(tmp_path, value, message, compression):
    Image.fromarray(value.reshape(8, 8)).save(tmp_path / "a.tif", compression=compression)
    assert message in reason(tmp_path / "a.tif")


def test_black_and_bright_images_of_sixteen_bits_are_read(tmp_path):
    for value in (0, 256, 65535):
        Image.fromarray(np.full((8, 8), value, "u2")).save(tmp_path / "a.png")
        assert (load_image(tmp_path / "a.png", 8) == value >> 8).all()


# -- EXIF --------------------------------------------------------------------------------------


def tiff(*entries):
    """An EXIF block by hand, with (tag, kind, count, value) entries."""
    body, extra, offset = struct.pack("<H", len(entries)), b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        cell = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", offset + len(extra))
        extra += value if len(value) > 4 else b""
        body += struct.pack("<HHI", tag, kind, count) + cell
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(4) + extra


TURN = (0x112, 3, 1, struct.pack("<H", 6))


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (tiff(TURN), True),
        (tiff(TURN, (282, 2, 3, b"72\0")), True),  # the resolution as a text
        (tiff(TURN, (700, 2, 8, b"<x:xmp/>")), True),
        (tiff(TURN, (256, 8, 1, struct.pack("<h", -5)), (257, 9, 1, struct.pack("<i", -5))), True),
        (tiff(TURN, (0x8769, 4, 1, struct.pack("<I", 99999))), True),  # a block beyond the end
        (tiff((0x112, 2, 2, b"6\0")), False),  # the orientation as a text is none
        (tiff((0x112, 3, 1, struct.pack("<H", 99))), False),
        (b"II*\0\xff\xff", False),
        (b"no tiff at all", False),
        (b"", False),
    ],
)
@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_odd_exif_never_makes_pixels_unreadable(tmp_path, photo_like, exif, turned, form):
    image, stream = Image.fromarray(photo_like(3, 24, 40)), io.BytesIO()
    if form == "jpeg":
        image.save(stream, "JPEG", quality=95)
        plain, raw = stream.getvalue(), b"Exif\0\0" + exif
        content = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(raw) + 2) + raw + plain[2:]
    else:
        image.save(stream, "PNG")
        plain = stream.getvalue()
        where = plain.index(b"IDAT") - 4
        block = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
        content = plain[:where] + block + plain[where:]
    (tmp_path / "odd").write_bytes(content)
    stored = Image.open(io.BytesIO(plain))
    stored = stored.transpose(Image.Transpose.ROTATE_270) if turned else stored
    expected = np.asarray(stored.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert (load_image(tmp_path / "odd", 16) == expected).all()


# -- other files under an image's name ----------------------------------------------------------


def zipped(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n", "a Git LFS pointer"),
        (b"<html>404 Not Found</html>", "an HTML page"),
        (b"\xef\xbb\xbf\n  <!DOCTYPE HTML><title>Log in</title>", "an HTML page"),
        (len(HEADER).to_bytes(8, "little") + HEADER + bytes(4), "a safetensors file"),
        (zipped("model/data.pkl", "model/code/x.py"), "a TorchScript or PyTorch file"),
        (zipped("1.jpg"), "a ZIP archive"),
        (b"\x80\x02\x8a\nl\xfc\x9cF", "a pickle"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300), "a HEIC image; install pillow-heif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(300), "a HEIC image; install pillow-heif"),
        (b"\0\0\0\x18ftypisom\0\0\0\0" + bytes(300), "a video"),
        (b"%PDF-1.7\n", "a PDF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "an SVG drawing"),
        (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "an XML text"),
        (b'{"error": "not found"}', "a JSON text"),
        (b"\0\5\x16\7" + bytes(60), "a file of macOS"),
        (bytes(128) + b"DICM" + bytes(60), "a DICOM file"),
        (bytes(5000), "a file of zero bytes"),
        (b"II*\0" + bytes(60), "a TIFF image of a kind that Pillow does not read"),
        (b"hello", "not an image"),
        (b"", "empty file"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, monkeypatch, content, what):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    (tmp_path / "a.jpg").write_bytes(content)
    found = reason(tmp_path / "a.jpg")
    assert what in found
    assert "\n" not in found


def test_images_are_no_other_kind(tmp_path, photo_like):
    for form in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM"):
        Image.fromarray(photo_like(3, 8, 8)).save(tmp_path / "a", form)
        assert kinds.kind(kinds.head(tmp_path / "a")) == "", form


def test_heic_is_read_where_its_decoder_is_installed(tmp_path, monkeypatch):
    called = []
    stub = types.SimpleNamespace(register_heif_opener=lambda: called.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", stub)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(60))
    reason(tmp_path / "a.heic")
    assert called


# -- the limit ---------------------------------------------------------------------------------


def test_the_limit_of_pixels_can_be_raised(tmp_path, monkeypatch):
    Image.new("1", (40, 30)).save(tmp_path / "scan.png")
    assert pixel_limit() == MOST_PIXELS
    for limit in ("1000", "100"):  # Pillow itself warns below twice its limit, and raises above
        monkeypatch.setenv("SSMLL_MAX_PIXELS", limit)
        message = reason(tmp_path / "scan.png")
        assert message.startswith("1,200 pixels exceeds limit of ")
        assert message.endswith("raise it with SSMLL_MAX_PIXELS=1200")
    monkeypatch.setenv("SSMLL_MAX_PIXELS", "1200")
    assert (load_image(tmp_path / "scan.png", 8) == 0).all()
    assert Image.MAX_IMAGE_PIXELS != 1200  # other users of Pillow keep its limit


@pytest.mark.parametrize("value", ["many", "-1", "0", "1e9"])
def test_a_wrong_limit_is_said_once(tmp_path, monkeypatch, dataset, value):
    monkeypatch.setenv("SSMLL_MAX_PIXELS", value)
    with pytest.raises(UserError, match=r"^SSMLL_MAX_PIXELS is '.*'; it must be a number of pixels"):
        prepared.prepare(dataset, 8, tmp_path / "cache", workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_images_left_out_for_the_limit_come_back_when_it_is_raised(tmp_path, monkeypatch, dataset, workers):
    Image.new("RGB", (99, 99)).save(dataset.train.paths[3], "JPEG")
    monkeypatch.setenv("SSMLL_MAX_PIXELS", "5000")

    def ready():
        return prepared.prepare(dataset, 8, tmp_path / "cache", workers=workers, skip_bad=True)

    assert [name for name, _ in ready().skipped] == [dataset.train.ids[3]]
    assert len(ready().skipped) == 1
    monkeypatch.setenv("SSMLL_MAX_PIXELS", "10000")
    assert not ready().skipped

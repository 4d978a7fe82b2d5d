"""What a file is, by its first bytes, where it is not what its name says."""

from __future__ import annotations

from pathlib import Path

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
"""Brands of the container that phones write pictures into."""
SAFETENSORS = "a safetensors file"
PICKLE = "a pickle, such as PyTorch's old files"
_HEAD = 4096
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer instead of the file; run git lfs pull"),
    (b"version https://hawser.github.com/spec/", "a Git LFS pointer instead of the file; run git lfs pull"),
    (b"../.git/annex/objects/", "a git-annex pointer instead of the file; run git annex get"),
    (b"/annex/objects/", "a git-annex pointer instead of the file; run git annex get"),
    (b"\0\5\x16\7", "a file of macOS beside the real one (its name starts with ._)"),
    (b"%PDF-", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file of llama.cpp"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (b"\xff\x0a", "a JPEG XL image, which Pillow does not read"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image, which Pillow does not read"),
    (b"II*\0", "a TIFF image of a kind that Pillow does not read (its bits or samples a pixel)"),
    (b"MM\0*", "a TIFF image of a kind that Pillow does not read (its bits or samples a pixel)"),
)


def head(path: Path) -> bytes:
    """The first bytes of a file, as many as `kind` looks at.

    Raises:
        OSError: it cannot be read, such as a folder.
    """
    with open(path, "rb") as file:
        return file.read(_HEAD)


def stand_in(first: bytes) -> str:
    """As `kind`, for a file that should hold text: what stands there instead; empty for any text."""
    what = kind(first)
    return "" if what.startswith("a JSON text") else what


def is_heif(first: bytes) -> bool:
    """Whether a file starts as a HEIC or HEIF image does."""
    return first[4:8] == b"ftyp" and first[8:12] in HEIF_BRANDS


def kind(first: bytes) -> str:
    """What a file is, in a few words with an article, from its first bytes; empty if they say nothing.

    Args:
        first: see `head`.
    """
    for start, what in _STARTS:
        if first.startswith(start):
            return what
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if is_heif(first):
        return "a HEIC image"
    if first[4:8] == b"ftyp":
        return "an AVIF image" if first[8:12] in (b"avif", b"avis") else "a video (MP4)"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page instead of the file, such as a log-in or an error page; download it anew"
    if b"<svg" in text and text.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        return "an SVG drawing, which has no pixels"
    if text.startswith(b"<?xml"):
        return "an XML text, such as the error of a server"
    if first.startswith(b"PK\3\4"):
        torch = b"/data.pkl" in first or b"constants.pkl" in first or b"/code/" in first
        return "a TorchScript or PyTorch file" if torch else "a ZIP archive"
    if first[:1] == b"\x80" and first[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return PICKLE
    if len(first) > 9 and first[8:9] == b"{" and int.from_bytes(first[:8], "little") < 1 << 32:
        return SAFETENSORS
    if first[128:132] == b"DICM":
        return "a DICOM file; convert it to PNG"
    if first[257:262] == b"ustar":
        return "a tar archive"
    if text.startswith((b"{", b"[")):
        return "a JSON text, such as the error of a server"
    if first and not first.strip(b"\0"):
        return "a file of zero bytes, such as an unfinished download"
    return ""

"""What a weights file is, by its content and not by its name; nothing here imports torch."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Literal

from methods import kinds
from methods.errors import UserError

Format = Literal["safetensors", "torch"]
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def weights_format(path: Path) -> Format:
    """Return how the tensors of a file are stored; only its outline is read.

    Raises:
        UserError: the file is absent or is not of a kind that can be read safely; the message says what it is
            instead and what to do.
    """
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.suffix in _SUFFIXES)
        hint = f", such as {path / inside[0]}" if inside else ""
        raise UserError(f"weights file {path} cannot be read: it is a folder; give a file{hint}")
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    first = kinds.head(path)
    if not first:
        raise _unreadable(path, "is empty, such as an unfinished download; fetch it again")
    if first.startswith(b"PK\3\4"):
        return _archive(path)
    what = kinds.kind(first)
    if what == kinds.SAFETENSORS:
        if 8 + int.from_bytes(first[:8], "little") > os.stat(path).st_size:
            raise _unreadable(path, "is a safetensors file that is cut off; fetch it again")
        return "safetensors"
    if what == kinds.PICKLE:
        return "torch"
    if b'"weight_map"' in first:
        what = "the index of weights in several files; save the tensors of all of them in one file"
    if what:
        raise _unreadable(path, f"is {what}")
    raise _unreadable(path, "is neither a safetensors file nor one that torch.save wrote")


def _archive(path: Path) -> Format:
    """The kind of a ZIP archive, which torch.save writes and others do too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        cut = "is a file of torch.save or a ZIP archive that is cut off; fetch it again"
        raise _unreadable(path, cut) from None
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise _unreadable(
            path,
            "is a TorchScript archive, a program with its weights, as OpenAI publishes CLIP; write "
            "weights = 'openai' for OpenAI's models, and of others that you trust save the tensors alone: "
            "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), NEW_FILE)",
        )
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        raise _unreadable(path, "is a NumPy archive; convert it to safetensors with the names of the model")
    raise _unreadable(path, "is a ZIP archive without weights of torch.save; unpack it and give a file in it")


def _unreadable(path: Path, what: str) -> UserError:
    return UserError(f"weights file {path} cannot be read: it {what}")

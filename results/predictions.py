"""The arrays of a finished run, `predictions.npz`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from results.damage import UnreadableError, refused
from results.errors import StoreError
from results.text import one_line

if TYPE_CHECKING:
    import numpy as np

NAME = "predictions.npz"
ADVICE = "the result cannot be recomputed; to have both, remove result.json and run again"


def read(directory: Path) -> dict[str, np.ndarray]:
    """The arrays of a run; UnreadableError where they are absent or damaged."""
    import numpy as np

    path = directory / NAME
    try:
        with np.load(path, allow_pickle=False) as file:  # reading verifies the archive's checksums
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UnreadableError(f"{path} is missing: {ADVICE}") from None
    except OSError as error:
        raise UnreadableError(refused(path, error)) from None
    except Exception as error:  # zipfile and NumPy raise many kinds on a damaged file
        why = one_line(str(error) or type(error).__name__)
        raise UnreadableError(f"{path} is damaged ({why}): {ADVICE}") from None


def content(path: Path, arrays: dict[str, np.ndarray]) -> bytes:
    """The content of a .npz file: the same arrays give the same bytes."""
    import numpy as np

    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise StoreError(f"{path}: array '{name}' holds Python objects, which are not stored")
    buffer = io.BytesIO()
    # Sorted names and the fixed dates of savez.
    np.savez(buffer, **{name: arrays[name] for name in sorted(arrays)})  # type: ignore[arg-type]
    return buffer.getvalue()

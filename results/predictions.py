"""The arrays of a finished run, `predictions.npz`, and how its result names them; docs/results.md lists them.

`result.json` has the SHA-256 of each array's bytes: of the scores as `predictions_sha256`, and of all arrays
by name in `arrays_sha256`, which came later. The first versions named neither.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def digests(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """SHA-256 (hex) of each array's bytes in C order, by name."""
    import numpy as np

    return {
        name: hashlib.sha256(np.ascontiguousarray(arrays[name]).tobytes()).hexdigest()
        for name in sorted(arrays)
    }


def named(result: Mapping[str, Any]) -> dict[str, str]:
    """The hashes that a result says, by the name of the array; empty for results of the first versions."""
    scores = result.get("predictions_sha256")
    return {**({"scores": scores} if scores else {}), **result.get("arrays_sha256", {})}


def strange(arrays: Mapping[str, np.ndarray], result: Mapping[str, Any]) -> list[str]:
    """What of the arrays is not what the result says of them, a line each; nothing where it says nothing."""
    found, later = digests(arrays), result.get("arrays_sha256", {})
    expected = {"predictions_sha256": ("scores", result.get("predictions_sha256"))}
    expected |= {f"arrays_sha256.{name}": (name, said) for name, said in later.items()}
    lines = {}
    for field, (name, said) in expected.items():
        if said and name not in found:
            lines[name] = f"{NAME} lacks {name}, which the run had: {field} names it"
        elif said and found[name] != said:
            lines.setdefault(name, f"{name} in {NAME} are not those of the run: {field} differs")
    if later:
        lines |= {
            name: f"{NAME} holds {name}, which the run had not: arrays_sha256 does not name it"
            for name in found.keys() - later.keys()
        }
    return [lines[name] for name in sorted(lines)]

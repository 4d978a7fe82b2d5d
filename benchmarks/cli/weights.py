"""What `prepare --grid NAME --weights` does: fetch, hash and list the weights and tokenizers of a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from methods.errors import UserError

if TYPE_CHECKING:
    from benchmarks.plan.grid import Grid
    from methods.backbones.spec import BackboneSpec


def bring(grid: Grid, report: Callable[[str], None]) -> list[str]:
    """Have all weights, tokenizers and text configurations of a grid here, and list their files.

    What is here is not fetched again, and no network is asked for it.

    Args:
        grid: its backbones are looked at.
        report: gets a line for each file: what it is, path, size in bytes, SHA-256.

    Returns:
        What could not be fetched or read, a line each, with the place where it belongs.
    """
    problems: dict[str, None] = {}
    for backbone in dict.fromkeys(cell.backbone for cell in grid.cells):
        for step in (_weights(backbone), _hub(backbone)):
            try:
                for what, file in step:
                    report(_line(what, file))
            except UserError as error:
                problems[str(error)] = None
    return list(problems)


def _weights(spec: BackboneSpec) -> Iterator[tuple[str, Path | None]]:
    from methods.backbones.conventions import conventions
    from methods.backbones.load import weights_digest, weights_file

    conventions(spec)
    weights_digest(spec)  # checks what kind of file it is
    yield f"weights of {spec.name} ({spec.weights or 'its own'})", weights_file(spec)


def _hub(spec: BackboneSpec) -> Iterator[tuple[str, Path | None]]:
    from methods.backbones.hub import parts

    for part in parts(spec):
        part.fetch()
        for file in part.files():
            yield f"{part.what} {part.repository} of {spec.name}", file


def _line(what: str, file: Path | None) -> str:
    from methods.backbones.digests import file_digest

    if file is None:
        return f"{what}: random, drawn from a fixed seed; no file"
    return f"{what}: {file}, {file.stat().st_size} bytes, sha256 {file_digest(file)}"

"""Reader of GlyphScenes, which is rendered where it is absent and then read as a COCO-style dataset."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext

from benchmarks.data.disk import exclusive
from benchmarks.data.readers import coco
from benchmarks.data.readers.base import Contents, Request
from methods.errors import UserError


def reader(seed: int) -> Callable[[Request], Contents]:
    """The reader of the scenes rendered with a seed.

    It raises `UserError` when the folder holds files of another version or seed, or when a rendering process
    dies.
    """

    def read(request: Request) -> Contents:
        from benchmarks.data.glyphscenes import scenes  # loads Pillow's drawing, which only rendering needs

        root = request.root
        folder = root / "glyphscenes"
        train, test = (
            (folder / "annotations" / f"instances_{split}.json", folder / "images" / split)
            for split in ("train", "test")
        )
        # The annotations are written last: where they exist, nothing is left to do, and the folder may be
        # one that this user cannot write to.
        rendered = train[0].is_file() and test[0].is_file()
        if not rendered:
            root.mkdir(parents=True, exist_ok=True)
        with nullcontext() if rendered else exclusive(root / ".glyphscenes.lock"):
            try:
                scenes.write(root, seed=seed, workers=request.workers, progress=request.progress)
            except ValueError as error:  # files of another version or seed
                raise UserError(str(error)) from None
            except BrokenProcessPool:
                raise UserError(
                    f"{folder}: a rendering process died: out of memory, or the script that called "
                    "this does not have its work under `if __name__ == '__main__':`"
                ) from None
        return coco.read_files(request, train, test)

    return read

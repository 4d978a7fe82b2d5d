"""Predictions on a user's images, and the files that hold them: CSV, JSON, COCO results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from methods.errors import UserError, first_line
from results.schema import CUTS
from results.text import csv_of, exact, one_line

FORMATS = ("csv", "json", "coco")
PARTS = ("score", "probability", "decision", "rank")
"""What is said of each class."""


@dataclass(frozen=True)
class Predictions:
    """Scores of some images.

    Attributes:
        images: N paths.
        classes: K names.
        scores: (N, K) float32.
        scale: what a score is: "logits", "probabilities", or good for a "ranking" only.
    """

    images: Sequence[Path]
    classes: Sequence[str]
    scores: NDArray[np.float32]
    scale: str

    @property
    def probabilities(self) -> NDArray[np.float64] | None:
        """(N, K) in [0, 1]; None where scores are no probabilities."""
        scores = self.scores.astype(np.float64)
        if self.scale == "logits":
            # Of -|x|, which does not overflow.
            small = np.exp(-np.abs(scores))
            return np.where(scores >= 0, 1.0, small) / (1.0 + small)
        return scores if self.scale == "probabilities" else None

    @property
    def decisions(self) -> NDArray[np.bool_] | None:
        """(N, K), present where the probability is above one half, as F1 counts it; None as for those."""
        cut = CUTS.get(self.scale)
        return None if cut is None else self.scores > cut

    @property
    def ranks(self) -> NDArray[np.int64]:
        """(N, K), 1 for the most present class of an image; classes of one score share the first place."""
        return 1 + (self.scores[:, None, :] > self.scores[:, :, None]).sum(axis=2, dtype=np.int64)

    def parts(self) -> list[tuple[Any, ...]]:
        """For each image K tuples of what `PARTS` names; None for what does not exist."""
        shape = self.scores.shape
        none = np.full(shape, None, dtype=object)
        columns = [
            self.scores.astype(np.float64),  # every float32 is one
            none if self.probabilities is None else self.probabilities,
            none if self.decisions is None else self.decisions.astype(int),
            self.ranks,
        ]
        return [tuple(zip(*rows, strict=True)) for rows in zip(*(c.tolist() for c in columns), strict=True)]


def text_of(found: Predictions, form: str, about: Mapping[str, Any], annotations: Path | None = None) -> str:
    """The content of a file of predictions.

    Args:
        found: the predictions.
        form: one of `FORMATS`.
        about: what made them, for "json".
        annotations: for "coco" a file of annotations, whose ids of images (by file name) and categories (by
            name) are taken; None: both count from 1.

    Raises:
        UserError: the annotations cannot be read, or lack an image or a class.
    """
    if form == "csv":
        return _csv(found)
    if form == "json":
        images = [
            {
                "image": str(image),
                "classes": [
                    {"class": name, **dict(zip(PARTS, each, strict=True))}
                    for name, each in zip(found.classes, row, strict=True)
                ],
            }
            for image, row in zip(found.images, found.parts(), strict=True)
        ]
        return json.dumps({**about, "images": images}, indent=1, ensure_ascii=False) + "\n"
    return _coco(found, annotations)


def _csv(found: Predictions) -> str:
    header = ["image", *(f"{one_line(name)}:{part}" for name in found.classes for part in PARTS)]
    rows = (
        [one_line(str(image)), *(exact(value) for each in row for value in each)]
        for image, row in zip(found.images, found.parts(), strict=True)
    )
    return csv_of([header, *rows])


def _coco(found: Predictions, annotations: Path | None) -> str:
    """COCO's list of results, image-level: image_id, category_id and score, and the two names."""
    images: Mapping[str, int] = {str(image): k + 1 for k, image in enumerate(found.images)}
    categories: Mapping[str, int] = {name: k + 1 for k, name in enumerate(found.classes)}
    if annotations is not None:
        by_name, categories = _ids(annotations)
        images = {str(image): by_name[image.name] for image in found.images if image.name in by_name}
        for what, names, known in (
            ("image", [str(image) for image in found.images], images),
            ("class", list(found.classes), categories),
        ):
            missing = [name for name in names if name not in known]
            if missing:
                raise UserError(
                    f"{annotations}: it has no {what} {missing[0]!r} ({len(missing)} are missing)"
                )
    values = found.scores if found.probabilities is None else found.probabilities
    entries = [
        {
            "image_id": images[str(image)],
            "category_id": categories[name],
            "score": float(value),
            "file_name": image.name,
            "category_name": name,
        }
        for image, row in zip(found.images, values, strict=True)
        for name, value in zip(found.classes, row, strict=True)
    ]
    return json.dumps(entries, ensure_ascii=False) + "\n"


def _ids(file: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Ids of images by file name and of categories by name.

    Raises:
        UserError: it is no file of COCO annotations, or two images have one name.
    """
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        pairs = [(str(each["file_name"]).rpartition("/")[2], int(each["id"])) for each in table["images"]]
        categories = {str(each["name"]): int(each["id"]) for each in table["categories"]}
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{file} is no file of COCO annotations with images and categories ({first_line(error)})"
        ) from None
    images = dict(pairs)
    if len(images) < len(pairs):
        raise UserError(f"{file}: two images have one file name, so ids cannot be told by it")
    return images, categories

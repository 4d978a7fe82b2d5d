"""The most confident mistakes of a run, from its stored predictions, and a page that shows them."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from results.errors import StoreError, nearest
from results.schema import CUTS, Result
from results.text import one_line

Kind = Literal["false positive", "false negative"]


@dataclass(frozen=True)
class Mistake:
    """One wrong entry of an image and a class.

    Attributes:
        name: the class.
        row: position of the image in the test list.
        image: its id; "row 12" in results of earlier versions, which hold none.
        kind: "false positive" (absent, and scored present) or "false negative".
        score: as stored.
        confidence: in [0, 1]: of the wrong decision, its probability; of scores that only rank, the share of
            the class's positives below a negative, or of its negatives above a positive.
        true: the classes that are present in the image.
    """

    name: str
    row: int
    image: str
    kind: Kind
    score: float
    confidence: float
    true: tuple[str, ...]


def mistakes(
    result: Result, arrays: Mapping[str, npt.NDArray[Any]], count: int, classes: Sequence[str] = ()
) -> dict[str, list[Mistake]]:
    """The most confident mistakes of each class, the most confident first.

    Scores that are logits or probabilities are mistaken where the decision at 0, or at one half, is wrong.
    Scores that only rank are mistaken where a negative stands above a positive.

    Args:
        result: what `RunStore.load` gives.
        arrays: what `RunStore.predictions` gives.
        count: most mistakes of a class.
        classes: these only; all where there are none.

    Raises:
        StoreError: an unknown class; or the run is of a version that stored no labels.
    """
    names = list(result["classes"])
    if "labels" not in arrays:
        raise StoreError("its predictions.npz is of a first version, which stored no labels; run it again")
    for name in classes:
        if name not in names:
            raise StoreError(f"no class {name!r}{nearest(name, names)}")
    scores, labels = arrays["scores"], arrays["labels"].astype(bool)
    ids = arrays.get("ids")
    scale = result.get("score_scale", "ranking")
    found: dict[str, list[Mistake]] = {}
    for name in classes or names:
        k = names.index(name)
        truth = labels[:, k]
        wrong, order, confidence = _ranked(scores[:, k].astype(np.float64), truth, scale)
        rows = np.flatnonzero(wrong)
        rows = rows[np.argsort(-order[rows], kind="stable")][:count]
        found[name] = [
            Mistake(
                name,
                int(row),
                f"row {row}" if ids is None else str(ids[row]),
                "false negative" if truth[row] else "false positive",
                float(scores[row, k]),
                float(confidence[row]),
                tuple(names[j] for j in np.flatnonzero(labels[row])),
            )
            for row in rows
        ]
    return found


Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def _ranked(scores: Floats, truth: Bools, scale: str) -> tuple[Bools, Floats, Floats]:
    """Which images are mistaken for a class, by what the mistakes are ordered, and their confidence."""
    if scale in CUTS:
        margin = np.abs(scores - CUTS[scale])
        wrong = (scores > CUTS[scale]) != truth
        confidence = 1.0 / (1.0 + np.exp(-margin)) if scale == "logits" else 0.5 + margin
        return wrong, margin, confidence  # logits by their margin: probabilities near 1 are all the same
    positives, negatives = np.sort(scores[truth]), np.sort(scores[~truth])
    share = np.zeros(len(scores))
    if len(positives) and len(negatives):
        below = np.searchsorted(positives, scores[~truth], side="left")
        above = len(negatives) - np.searchsorted(negatives, scores[truth], side="right")
        share[~truth], share[truth] = below / len(positives), above / len(negatives)
    return share > 0, share, share


def lines(found: Mapping[str, Sequence[Mistake]], scale: str) -> list[str]:
    """The mistakes as text, a line each under their class."""
    text = []
    for name, some in found.items():
        text.append(one_line(f"{name}: {len(some) or 'no'} mistakes"))
        for one in some:
            text.append(one_line(f"  {one.kind}  {_said(one, scale)}  {one.image}"))
    return text


def _said(one: Mistake, scale: str) -> str:
    if scale in CUTS:
        return f"{100 * one.confidence:5.1f} % sure"
    what = "below it, of the positives" if one.kind == "false positive" else "above it, of the negatives"
    return f"{100 * one.confidence:5.1f} % {what}"


def page(
    title: str, found: Mapping[str, Sequence[Mistake]], scale: str, picture: Callable[[int], bytes]
) -> str:
    """One HTML file with the mistakes and their images, which needs no other file and runs no script.

    Args:
        title: names the run.
        found: from `mistakes`.
        scale: of the scores.
        picture: gives a JPEG of the image of a row.
    """
    known: dict[int, str] = {}

    def source(row: int) -> str:
        if row not in known:
            known[row] = base64.b64encode(picture(row)).decode("ascii")
        return known[row]

    parts = []
    for name, some in found.items():
        cards = "".join(
            f'<figure class="{one.kind.split()[1]}">'
            f'<img alt="" src="data:image/jpeg;base64,{source(one.row)}">'
            f"<figcaption><b>{one.kind}</b>, {html.escape(_said(one, scale).strip())}<br>"
            f"{_shown(one.image)}<br>present: {_shown(', '.join(one.true) or 'none')}</figcaption></figure>"
            for one in some
        )
        parts.append(f"<h2>{_shown(name)}</h2>{cards or '<p>no mistakes</p>'}")
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{_shown(title)}</title><style>'
        "body{font-family:sans-serif;margin:2em}figure{display:inline-block;vertical-align:top;width:12em;"
        "margin:.4em;padding:.4em;border:2px solid}figure.positive{border-color:#c50}"
        "figure.negative{border-color:#06b}img{width:100%}figcaption{font-size:.8em;overflow-wrap:anywhere}"
        f"</style></head><body><h1>{_shown(title)}</h1><p>The most confident mistakes of each class on the "
        f"test images. A false positive is absent and was scored present.</p>{''.join(parts)}</body></html>\n"
    )


def _shown(text: str) -> str:
    return html.escape(one_line(text))

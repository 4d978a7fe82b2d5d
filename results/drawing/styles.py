"""The look of a method: a colour that its name alone decides, so that it is the same in every figure.

Colours start with the Okabe-Ito set, and every method has a marker of its own as well, so figures survive
colour blindness and grey print.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

from results import text

Style = dict[str, dict[str, Any]]
"""Name of a method -> keyword arguments of Matplotlib's `plot`."""

# Okabe & Ito (2008) without the pale yellow, then some that differ from them in lightness.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7A5195",
    "#6B6B6B",
    "#8C564B",
    "#9C9A00",
    "#000000",
    "#B5174B",
    "#1B5E20",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
LINES = ("-", "--", ":", "-.")
# Colours and markers are taken in turn, so neighbours differ in both. Names may be added at the end only:
# those that are here keep their look. Any other name gets one from its letters.
KNOWN = (
    *("csaa", "supervised", "zero_shot", "linear_probe", "dualcoop", "cap", "fixmatch", "pseudo_label"),
    *("iat", "top_k", "em", "uda", "flexmatch", "freematch", "softmatch", "adamatch", "adsh", "defixmatch"),
    *("mean_teacher", "large_loss", "splc", "hill", "zero_shot (softmax)", "abl", "mixmatch"),
    *("soft_consistency", "bbam", "d2l", "dicap"),
)


def method_styles(labels: Iterable[str]) -> Style:
    """Colour, marker and line of each method; no two are equal, up to 44 of one colour.

    The colour follows from the name alone, and of the names in `KNOWN` so do marker and line. Of other names
    of one colour, each has a line of its own while there are some, and then a marker.

    Args:
        labels: methods in the order of the legend.

    Returns:
        By label, in the order given.
    """
    labels = list(dict.fromkeys(labels))
    taken: set[tuple[int, int, int]] = set()
    looks: dict[str, tuple[int, int, int]] = {}
    for label in sorted(labels, key=lambda label: (label not in KNOWN, label)):
        if label in KNOWN:
            place = KNOWN.index(label)
            look = (place % len(COLOURS), place % len(MARKERS), place // len(COLOURS) % len(LINES))
        else:
            number = int.from_bytes(hashlib.sha256(text.utf8(label)).digest()[:8], "big")
            colour, first = number % len(COLOURS), number // len(COLOURS) % len(MARKERS)
            # Markers are small on lines: of one colour, lines differ first.
            used = [line for one, _, line in taken if one == colour]
            lines = sorted(range(len(LINES)), key=used.count)
            others = itertools.product(lines, range(len(MARKERS)))
            free = ((colour, (first + step) % len(MARKERS), line) for line, step in others)
            look = next((found for found in free if found not in taken), (colour, first, 0))
        taken.add(look)
        looks[label] = look
    return {
        label: {
            "color": COLOURS[looks[label][0]],
            "marker": MARKERS[looks[label][1]],
            "linestyle": LINES[looks[label][2]],
        }
        for label in labels
    }

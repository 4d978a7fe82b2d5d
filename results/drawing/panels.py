"""What all figures share: their look, room for a legend beside the panels, captions, axes of epochs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from results import text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENTRY, LETTER, HANDLE = 0.215, 0.085, 0.62
"""Height of a legend's entry, and width of a letter and of the line before it, inches."""
BARS: dict[str, Any] = {"capsize": 2, "elinewidth": 1, "markeredgecolor": "white", "markeredgewidth": 0.6}
"""Look of a mean with its standard deviation, beside that of its method."""
FILES: dict[str, Any] = {
    "pdf.fonttype": 42,
    "savefig.dpi": 160,
    "svg.hashsalt": "ssmll-bench",  # else names inside the file are drawn by lot
    # Names hold dollars and backslashes that mean nothing.
    "text.parse_math": False,
    "text.usetex": False,
}
"""Settings of Matplotlib that every file has."""
SHOWN = 8
"""Names that a sentence of a caption lists."""


def theme() -> None:
    """Set what every figure looks like; no display is needed."""
    import matplotlib

    # An interactive backend of the caller is left as it is where it draws into files too.
    if matplotlib.get_backend().lower() != "agg":
        matplotlib.use("Agg")
    import seaborn as sns

    sns.set_theme(
        context="notebook",
        style="whitegrid",
        font="DejaVu Sans",
        font_scale=0.8,
        rc={
            "axes.edgecolor": "#888888",
            "axes.linewidth": 0.8,
            "axes.titleweight": "bold",
            "figure.constrained_layout.use": True,
            "grid.color": "#DDDDDD",
            "grid.linewidth": 0.6,
            **FILES,
        },
    )


def panels(
    rows: int, columns: int, labels: Sequence[str], *, width: float, height: float, share_y: bool = False
) -> tuple[Figure, list[Axes], int]:
    """A figure with room for a legend of some names at its right.

    Args:
        rows: of panels.
        columns: of panels.
        labels: names of the legend; none needs no room.
        width: of a panel, inches.
        height: of a panel, inches.
        share_y: whether all panels have one vertical scale.

    Returns:
        The figure, its panels row by row, and the columns of names that the legend needs.
    """
    import matplotlib.pyplot as plt

    theme()
    tall = rows * height + 0.5
    beside = math.ceil(len(labels) * ENTRY / (tall - 0.3))
    longest = max((len(text.figure(label)) for label in labels), default=0)
    wide = columns * width + beside * (HANDLE + LETTER * longest)
    figure, axes = plt.subplots(rows, columns, figsize=(wide, tall), squeeze=False, sharey=share_y)
    return figure, list(axes.flat), beside


def legend(figure: Figure, axes: Iterable[Axes], style: Iterable[str], columns: int) -> None:
    """One legend for all panels, outside at the right, in the order of the styles."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    names = [name for name in map(text.figure, style) if name in entries]
    handles = [entries[name] for name in names]
    figure.legend(handles, names, loc="outside right upper", frameon=False, ncols=columns)


def heading(figure: Figure, title: str, width: float) -> None:
    """A title above several panels.

    Args:
        figure: the figure.
        title: what it shows.
        width: of the panels without the legend, inches; longer titles have two lines.
    """
    lines = textwrap.fill(text.figure(title), max(20, int(width / 0.1)))
    figure.suptitle(lines, x=0.01, ha="left", fontsize=11)


def caption(figure: Figure, *sentences: str) -> None:
    """What the figure's numbers are, below it; empty sentences are left out."""
    said = "; ".join(filter(None, (sentence.rstrip(".") for sentence in sentences)))
    width = int(14.5 * figure.get_figwidth())  # letters of this size that fit
    # Names in it are the users' own: one line each, in the signs of figures.
    figure.supxlabel(textwrap.fill(text.figure(said), width), fontsize=7.5, color="#555555")


def plain_numbers(axis: Any) -> None:
    """Ticks of a logarithmic axis as plain numbers: Matplotlib's own are formulas, which names rule out."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, place: short_number(value)))
    axis.set_minor_formatter(NullFormatter())


def short_number(value: float) -> str:
    """A tick's number, with k, M or G for thousands and more."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def whole_epochs(axis: Axes, epochs: pd.Series) -> None:
    """A horizontal axis of epochs: ticks at whole numbers only, also where there are one or two."""
    from matplotlib.ticker import MaxNLocator

    first, last = int(epochs.min()), int(epochs.max())
    room = max(0.4, 0.03 * (last - first))
    axis.set_xlim(first - room, last + room)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")


def no_value(axis: Axes, line: str) -> None:
    """Say in a panel without a curve why there is none."""
    axis.text(0.5, 0.5, line, transform=axis.transAxes, ha="center", va="center", color="#555555", fontsize=9)


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many follow."""
    return text.listed(names, SHOWN)


def missing(runs: pd.DataFrame, value: str) -> str:
    """A sentence on the runs that have no value, by method; "" where all have one.

    Args:
        runs: rows with the columns label and state.
        value: name of the column that is drawn.
    """
    absent = runs[runs[value].isna()]
    each = []
    for label in dict.fromkeys(absent["label"]):
        states = absent[absent["label"] == label]["state"]
        of = int((runs["label"] == label).sum())
        # A run that is done may lack the metric or the selection rule.
        why = ", ".join(dict.fromkeys("no value" if state == "done" else str(state) for state in states))
        each.append(f"{label} ({len(states)} of {of}: {why})")
    return f"runs not drawn: {listed(each)}" if each else ""

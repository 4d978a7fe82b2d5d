"""Curves over the epochs: mAP and losses of the training, quality of its pseudo-labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from results import text
from results.drawing.panels import (
    caption,
    heading,
    legend,
    listed,
    no_value,
    panels,
    plain_numbers,
    short_number,
    whole_epochs,
)
from results.drawing.styles import Style
from results.frames import QUALITY, SCORES
from results.tables import means_over

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Micro measures above, macro below; coverage at the right end.
MEASURES = {
    "OP": "OP: micro precision",
    "OR": "OR: micro recall",
    "OF1": "OF1: micro F1",
    "coverage": "coverage",
    "CP": "CP: macro precision",
    "CR": "CR: macro recall",
    "CF1": "CF1: macro F1",
}
SCORED = {"mAP_ema": "test mAP, EMA weights", "mAP_model": "test mAP, raw weights", "mAP_val": "held-out mAP"}
PER_ROW = 4
FEWER = 3
"""How many times as many epochs make a panel of its own."""


def quality_figure(epochs: pd.DataFrame, style: Style, title: str) -> Figure:
    """Quality of the pseudo-labels over epochs, a panel per measure, all from 0 to 100 %.

    Args:
        epochs: rows of one dataset and ratio from `collect_epochs`. Lines are means over seeds,
            bands the standard deviation (ddof = 1).
        style: from `method_styles`.
        title: what the figure shows.

    Returns:
        A Matplotlib figure. What is undefined, such as the precision of no positive, is listed in it.
    """
    labels = [label for label in style if (epochs["label"] == label).any()]
    # Where a phase without pseudo-labels is counted among the epochs, the others would be squeezed.
    first = epochs.groupby("label", sort=False)["epoch"].min()
    late = [f"{text.figure(label)} from {first[label]}" for label in labels if first[label] > first.min()]
    if late:
        epochs = epochs.assign(epoch=epochs["epoch"] - epochs["label"].map(first) + 1)
    figure, axes, beside = panels(2, PER_ROW, labels, width=2.9, height=2.5, share_y=True)
    slots = dict(zip(MEASURES, axes, strict=False))
    undefined = []
    for measure in QUALITY:
        axis = slots[measure]
        drawn = _curves(axis, epochs, measure, labels, style)
        if not drawn:
            no_value(axis, "undefined for all methods")
        axis.set_title(MEASURES[measure], fontsize=10)
        axis.set_ylim(-3, 103)
        whole_epochs(axis, epochs["epoch"])
        absent = _undefined(epochs, measure, labels)
        if absent:
            undefined.append(f"{measure} of {listed(absent)}")
    for axis in axes[::PER_ROW]:
        axis.set_ylabel("%")
    axes[-1].axis("off")
    # Names of the legend from all panels: a method may have no value in the first.
    legend(figure, axes, labels, beside)
    heading(figure, f"pseudo-labels: {title}", PER_ROW * 2.9)
    caption(
        figure,
        f"mean over {means_over(epochs)[0]}, band: standard deviation; hidden labels of the pool as truth; "
        "one scale for all panels",
        f"epochs are counted from the first with pseudo-labels: {listed(late)}" if late else "",
        f"undefined, and in no mean: {'; '.join(undefined)}" if undefined else "",
    )
    return figure


def training_figure(epochs: pd.DataFrame, style: Style, title: str) -> Figure:
    """MAP and losses over epochs, a panel for each kind of score and for each term of the loss.

    Methods that train for far fewer epochs than others have panels of their own, on the same vertical
    scale.

    Args:
        epochs: rows of one dataset and ratio from `collect_curves`; as in `quality_figure`. One of them has
            a score or a loss.
        style: from `method_styles`.
        title: what the figure shows.

    Returns:
        A Matplotlib figure.
    """
    labels = [label for label in style if (epochs["label"] == label).any()]
    terms = [f"loss: {term}" for term in loss_terms(epochs)]
    scores = [name for name in SCORES if epochs[name].notna().any()]
    values = {term: [row.get(term.removeprefix("loss: ")) for row in epochs["losses"]] for term in terms}
    frame = epochs.assign(**values).astype(dict.fromkeys(terms, "float64"))
    shown = [
        (measure, part) for measure in [*scores, *terms] for part in _lengths(frame[frame[measure].notna()])
    ]
    columns = min(PER_ROW, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure, axes, beside = panels(rows, columns, labels, width=3.2, height=2.7)
    limits: dict[str, tuple[float, float]] = {}
    for axis, (measure, part) in zip(axes, shown, strict=False):
        _curves(axis, part, measure, labels, style)
        axis.set_title(text.figure(SCORED.get(measure, measure)), fontsize=10)
        kind = "mAP" if measure in scores else measure
        every = frame[scores if kind == "mAP" else [measure]].stack().dropna()
        axis.set_ylabel("mAP (%)" if kind == "mAP" else _loss_scale(axis, every))
        limits.setdefault(kind, _limits(every, axis.get_yscale()))
        axis.set_ylim(limits[kind])
        whole_epochs(axis, part["epoch"])
    for axis in axes[len(shown) :]:
        axis.axis("off")
    legend(figure, axes[: len(shown)], labels, beside)
    heading(figure, f"training: {title}", columns * 3.2)
    unscored = [
        label for label in labels if not frame[frame["label"] == label][[*SCORES]].notna().any(axis=None)
    ]
    caption(
        figure,
        f"mean over {means_over(epochs)[0]}, band: standard deviation",
        "an epoch is a pass over the images that the method trains on, the pool or the labelled ones",
        "panels of mAP have one scale, and so have those of one term of the loss",
        "terms are a method's own: compare the shapes of different methods' losses, not their heights"
        if terms
        else "no loss is recorded",
        f"no mAP while they train: {listed(unscored)}" if unscored else "",
    )
    return figure


def loss_terms(epochs: pd.DataFrame) -> list[str]:
    """Terms of the loss that a frame of `collect_curves` has a value of, those of most methods first."""
    methods: dict[str, set[str]] = {}
    for label, losses in zip(epochs["label"], epochs["losses"], strict=True):
        for name, value in losses.items():
            if value is not None:
                methods.setdefault(name, set()).add(label)
    return sorted(methods, key=lambda name: (-len(methods[name]), name))


def _curves(axis: Axes, epochs: pd.DataFrame, measure: str, labels: list[str], style: Style) -> int:
    """Draw the mean of each method over its runs, with a band; returns how many have a curve."""
    drawn = 0
    for label in labels:
        mine = epochs[(epochs["label"] == label) & epochs[measure].notna()]
        if mine.empty:
            continue
        drawn += 1
        grouped = mine.groupby("epoch", sort=True)[measure]
        mean, spread = grouped.mean(), grouped.std(ddof=1).fillna(0)
        look = {**style[label], "markersize": 3.5, "markeredgewidth": 0}
        every = max(1, len(mean) // 8)
        axis.plot(mean.index, mean, label=text.figure(label), linewidth=1.4, markevery=every, **look)
        axis.fill_between(
            mean.index, mean - spread, mean + spread, color=look["color"], alpha=0.12, linewidth=0
        )
    return drawn


def _undefined(epochs: pd.DataFrame, measure: str, labels: list[str]) -> list[str]:
    """Methods that lack some values of a measure, and how many."""
    each = []
    for label in labels:
        absent = epochs[epochs["label"] == label][measure].isna()
        if absent.any():
            of = "all" if absent.all() else f"{int(absent.sum())} of {len(absent)}"
            each.append(f"{label} ({of})")
    return each


def _lengths(epochs: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of methods that train for about as many epochs as each other, the shorter trainings first."""
    last = epochs.groupby("label")["epoch"].max()
    parts: list[list[int]] = []
    for count in sorted(set(last)):
        if parts and count <= FEWER * parts[-1][0]:
            parts[-1].append(count)
        else:
            parts.append([count])
    return [epochs[epochs["label"].map(last).isin(part)] for part in parts]


def _limits(values: pd.Series, scale: str) -> tuple[float, float]:
    """Ends of a vertical axis of a scale that shows all values; bands may leave it."""
    low, high = float(values.min()), float(values.max())
    if scale == "log":
        return low / 1.3, high * 1.3
    if scale == "symlog":  # 0 lies between the ends, or is one of them
        edge = float(values[values != 0].abs().min()) / 2
        return min(1.5 * low, -edge), max(1.5 * high, edge)
    room = 0.06 * (high - low) or max(1e-6, 0.05 * abs(high))
    return low - room, high + room


def _loss_scale(axis: Axes, values: pd.Series) -> str:
    """Choose the scale of a loss by its values, all of which it shows; returns its name."""
    sizes = values[values != 0].abs()
    if sizes.empty or sizes.max() < 20 * sizes.min():
        return "loss"
    if (values > 0).all():
        axis.set_yscale("log")
        plain_numbers(axis.yaxis)
        return "loss (log scale)"
    edge = 10.0 ** math.floor(math.log10(max(sizes.min(), sizes.max() / 1e3)))
    axis.set_yscale("symlog", linthresh=edge)
    plain_numbers(axis.yaxis)
    return f"loss (log scale, linear within ±{short_number(edge)})"

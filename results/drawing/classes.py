"""Average precision of every class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from results import text
from results.drawing.panels import caption, legend, listed, panels
from results.drawing.styles import Style
from results.tables import means_over

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUP_SHADES = {"head": "#EFEFEF", "medium": "#FFFFFF", "tail": "#EFEFEF"}
POINTS = 8
"""Methods that can be told apart as points above one class; more are rows of a map."""
NUMBERED = 60
"""Classes whose AP a map writes as a number."""


def classes_figure(classes: pd.DataFrame, style: Style, title: str) -> Figure:
    """AP of every class from 0 to 100 %, classes from frequent to rare.

    Few methods are points above each other, many are rows of a map. A class that has no positive among the
    test images has no AP: the figure says so at its place.

    Args:
        classes: rows of one dataset and ratio from `collect_classes`; the mean over seeds is drawn.
        style: from `method_styles`.
        title: what the figure shows.

    Returns:
        A Matplotlib figure.
    """
    # A class may have another labelled count in every seed: the mean over the runs decides here.
    counts = classes.groupby("class", sort=False)["train_count"].mean()
    names = list(counts.sort_values(ascending=False, kind="stable").index)
    means = classes.groupby(["label", "class"])["AP"].mean().unstack("class")
    means = means.loc[[label for label in style if label in means.index], names]
    figure = _points(means, style) if len(means) <= POINTS else _map(means)
    axis = figure.axes[0]
    _groups(axis, len(names))
    size = 8 if len(names) <= 50 else 7
    axis.set_xticks(range(len(names)), list(map(text.figure, names)), rotation=90, fontsize=size)
    axis.set_title(text.figure(title), pad=23)
    absent = [name for name in names if means[name].isna().all()]
    partly = [name for name in names if means[name].isna().any() and name not in absent]
    caption(
        figure,
        f"classes by falling training frequency; means over {means_over(classes)[0]}; "
        f"AP of {len(names) - len(absent)} of {len(names)} classes",
        f"undefined, because no test image has the class: {listed(absent)}" if absent else "",
        f"undefined in the runs of some methods: {listed(partly)}" if partly else "",
    )
    return figure


def _points(means: pd.DataFrame, style: Style) -> Figure:
    labels = list(map(str, means.index))
    wide = max(6.0, 0.24 * means.shape[1] + 1.0)
    figure, (axis,), beside = panels(1, 1, labels, width=wide, height=4.1)
    import numpy as np

    places = np.arange(means.shape[1])
    for (_, shade), third in zip(GROUP_SHADES.items(), _thirds(means.shape[1]), strict=True):
        if third.size:
            axis.axvspan(third[0] - 0.5, third[-1] + 0.5, color=shade, zorder=0, linewidth=0)
    axis.vlines(places, means.min(), means.max(), color="#BBBBBB", linewidth=1, zorder=1)
    for label, row in means.iterrows():
        axis.plot(
            places,
            row,
            label=text.figure(str(label)),
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            zorder=2,
            **{**style[str(label)], "linestyle": "none"},
        )
    for place in places[means.isna().all()]:
        axis.text(place, 2, "undefined", rotation=90, ha="center", va="bottom", color="#555555", fontsize=8)
    axis.set_xlim(-0.7, means.shape[1] - 0.3)
    axis.set_ylim(0, 100)
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("average precision (%)")
    legend(figure, [axis], labels, beside)
    return figure


def _map(means: pd.DataFrame) -> Figure:
    import numpy as np

    rows, columns = means.shape
    labels = list(map(text.figure, map(str, means.index)))
    wide = 0.085 * max(map(len, labels)) + max(5.0, 0.25 * columns) + 1.0
    figure, (axis,), _ = panels(1, 1, [], width=wide, height=0.21 * rows + 1.9)
    axis.set_facecolor("#D0D0D0")
    values = means.to_numpy(dtype=float)
    image = axis.imshow(np.ma.masked_invalid(values), cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axis.grid(visible=False)
    axis.set_yticks(range(rows), labels)
    for edge in [third[0] - 0.5 for third in _thirds(columns)[1:] if third.size]:
        axis.axvline(edge, color="white", linewidth=2.5)
    if columns <= NUMBERED:
        for row, column in np.argwhere(np.isfinite(values)).tolist():
            value = values[row, column]
            shade = "black" if value > 60 else "white"
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=5.5, color=shade)
    for column in map(int, np.flatnonzero(np.isnan(values).all(axis=0))):
        axis.text(
            column,
            (rows - 1) / 2,
            "undefined",
            rotation=90,
            ha="center",
            va="center",
            fontsize=8,
            color="#333333",
        )
    figure.colorbar(image, ax=axis, label="average precision (%)", pad=0.01, fraction=0.03)
    return figure


def _thirds(columns: int) -> list:
    """Places of the head, medium and tail classes."""
    import numpy as np

    return np.array_split(np.arange(columns), len(GROUP_SHADES))


def _groups(axis: Axes, columns: int) -> None:
    from matplotlib.transforms import blended_transform_factory

    top = blended_transform_factory(axis.transData, axis.transAxes)
    for group, third in zip(GROUP_SHADES, _thirds(columns), strict=True):
        if third.size:
            place = (third[0] + third[-1]) / 2
            axis.text(
                place, 1.015, group, transform=top, ha="center", va="bottom", color="#555555", fontsize=9
            )

"""A metric against the labelled share."""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING

from results import text
from results.columns import Column
from results.drawing.panels import BARS, caption, legend, missing, panels
from results.drawing.styles import Style
from results.evaluated import class_notes
from results.tables import RULE_TEXT, means_over

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DIGITS = re.compile(r"[\d\s.,]+")


def ratio_figure(runs: pd.DataFrame, rule: str, metric: str, style: Style) -> Figure:
    """A metric against the labelled share, a panel per dataset and kind of budget, one scale for all.

    Points stand at their share, on a logarithmic axis. Lines join the means over seeds, bars are the standard
    deviation (ddof = 1) and faint points the single seeds. Where each panel has one share only, methods are
    rows instead.

    Args:
        runs: from `collect`; rows without a value are counted in the caption.
        rule: selection rule.
        metric: one of `METRICS`.
        style: from `method_styles`; its order is that of the legend.

    Returns:
        A Matplotlib figure.
    """
    column = f"{rule}/{metric}"
    used = runs[runs[column].notna()]
    parts: dict[tuple[str, str], pd.DataFrame] = {}
    for found in sorted(Column.present(used)):
        key = _kind(found.dataset, found.budget)
        same = [_kind(*row) == key for row in zip(used["dataset"], used["budget"], strict=True)]
        parts.setdefault(key, used[same])
    order = list(dict.fromkeys(used["dataset"]))
    keys = sorted(parts, key=lambda key: (order.index(key[0]), key[1]))
    labels = [label for label in style if (used["label"] == label).any()]
    alone = all(len(Column.present(parts[key])) == 1 for key in keys)
    if alone:
        tall = 0.23 * len(labels) + 0.8
        figure, axes, _ = panels(1, len(keys), [], width=4.6, height=max(2.0, tall), share_y=True)
    else:
        figure, axes, beside = panels(1, len(keys), labels, width=4.6, height=4.4, share_y=True)
    for axis, key in zip(axes, keys, strict=True):
        (_rows if alone else _lines)(axis, parts[key], column, labels, style)
        shares = sorted(Column.present(parts[key]))
        title = f"{key[0]}, {shares[0].share} labelled" if alone else key[0]
        axis.set_title(text.figure(title))
        if alone:
            axis.set_xlabel(f"{metric} (%)")
    if alone:
        axes[0].set_yticks(range(len(labels)), list(map(text.figure, labels)))
        axes[0].set_ylim(len(labels) - 0.5, -0.5)
        left = min(axis.get_xlim()[0] for axis in axes)
        right = max(axis.get_xlim()[1] for axis in axes)
        for axis in axes:
            axis.set_xlim(left, right)
    else:
        axes[0].set_ylabel(f"{metric} (%)")
        legend(figure, axes, style, beside)
    each = used.groupby(["label", "dataset", "ratio", "budget"]).size()
    few, many = int(each.min()), int(each.max())
    over, single = means_over(used)
    spread = f"one {single}"
    if many > 1:
        count = f"{many}" if few == many else f"{few} to {many}"
        spread = f"mean and standard deviation over {count} {over}, points: single {single}s"
    low = (axes[0].get_xlim() if alone else axes[0].get_ylim())[0]
    scale = "one scale of scores for all panels" if len(keys) > 1 else ""
    start = "the scale of scores does not begin at 0" if low > 0 else ""
    caption(
        figure,
        f"selection rule: {rule} ({RULE_TEXT[rule]}); {spread}",
        ", ".join(filter(None, [scale, start])),
        *(note[0].lower() + note[1:] for note in class_notes(used, column, metric)),
        missing(runs, column),
    )
    return figure


def _kind(dataset: str, budget: str) -> tuple[str, str]:
    """What stands in one panel: shares, numbers of images and numbers per class are scales of their own."""
    return dataset, _DIGITS.sub("", budget)


def _lines(axis: Axes, part: pd.DataFrame, column: str, labels: list[str], style: Style) -> None:
    for label in labels:
        mine = part[part["label"] == label]
        if mine.empty:
            continue
        points = {**style[label], "linestyle": "none", "markeredgewidth": 0}
        axis.plot(mine["ratio"], mine[column], alpha=0.35, markersize=3, **points)
        grouped = mine.groupby("ratio", sort=True)[column]
        axis.errorbar(
            list(grouped.groups),
            grouped.mean(),
            yerr=grouped.std(ddof=1).fillna(0),
            label=text.figure(label),
            linewidth=1.4,
            markersize=5.5,
            **BARS,
            **style[label],
        )
    shares = sorted(Column.present(part))
    ratios = [share.ratio for share in shares]
    axis.set_xscale("log")
    axis.minorticks_off()
    names = [
        f"{share.share}\n({100 * share.ratio:.3g} %)" if share.budget else share.share for share in shares
    ]
    axis.set_xticks(ratios, names)
    room = max(1.15, (ratios[-1] / ratios[0]) ** 0.06)
    axis.set_xlim(ratios[0] / room, ratios[-1] * room)
    inches = 4.0 / math.log(room * room * ratios[-1] / ratios[0])
    gaps = [math.log(b / a) * inches for a, b in itertools.pairwise(ratios)]
    if gaps and min(gaps) < 0.09 * max(len(line) for name in names for line in name.split("\n")):
        axis.tick_params(axis="x", rotation=90)
    axis.grid(axis="x", visible=False)
    axis.set_xlabel("labelled share of the training images (log scale)")


def _rows(axis: Axes, part: pd.DataFrame, column: str, labels: list[str], style: Style) -> None:
    for place, label in enumerate(labels):
        values = part[part["label"] == label][column]
        look = {**style[label], "linestyle": "none"}
        if values.empty:
            continue
        axis.plot(values, [place] * len(values), alpha=0.35, markersize=3.5, **{**look, "markeredgewidth": 0})
        spread = 0.0 if len(values) < 2 else values.std(ddof=1)
        axis.errorbar(
            [values.mean()],
            [place],
            xerr=[spread],
            label=text.figure(label),
            markersize=6,
            **BARS,
            **look,
        )

"""Score against cost: seconds of a run, trainable parameters."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from results import text
from results.drawing.panels import BARS, caption, heading, legend, listed, missing, panels, plain_numbers
from results.drawing.styles import Style
from results.tables import means_over

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {"seconds": "seconds of a run", "trainable_parameters": "trainable parameters"}


def cost_figure(runs: pd.DataFrame, rule: str, metric: str, style: Style, title: str) -> Figure:
    """A metric against what a run costs, a panel for each kind of cost that is known, one scale of scores.

    Args:
        runs: rows of one dataset and ratio from `collect`.
        rule: selection rule.
        metric: one of `METRICS`.
        style: from `method_styles`.
        title: what the figure shows.

    Returns:
        A Matplotlib figure; points are means over seeds, bars the standard deviation (ddof = 1) of the score.
    """
    column = f"{rule}/{metric}"
    used = runs[runs[column].notna()]
    costs = [name for name in COSTS if used[name].notna().any()]
    labels = [label for label in style if (used["label"] == label).any()]
    figure, axes, beside = panels(1, len(costs), labels, width=4.4, height=4.4, share_y=True)
    for axis, cost in zip(axes, costs, strict=True):
        for label in labels:
            mine = used[(used["label"] == label) & used[cost].notna()]
            if mine.empty:
                continue
            axis.errorbar(
                [mine[cost].mean()],
                [mine[column].mean()],
                yerr=[mine[column].std(ddof=1) if len(mine) > 1 else 0.0],
                label=text.figure(label),
                markersize=6.5,
                **BARS,
                **{**style[label], "linestyle": "none"},
            )
        axis.set_xlabel(f"{COSTS[cost]} ({_scale(axis, used[cost].dropna())})")
    axes[0].set_ylabel(f"{metric} (%)")
    legend(figure, axes, labels, beside)
    heading(figure, title, len(costs) * 4.4)
    devices = list(dict.fromkeys(re.sub(r"\b1 threads\b", "1 thread", str(name)) for name in used["device"]))
    where = (
        f"measured on {devices[0]}"
        if len(devices) == 1
        else f"MEASURED ON DIFFERENT DEVICES: {listed(devices)}"
    )
    unknown = used[used["trainable_parameters"].isna()]["label"]
    caption(
        figure,
        f"means over {means_over(used)[0]}, bars: standard deviation of the score; seconds are of a run "
        "alone, without the stages that it shares with others (features, warm-up)",
        where,
        "trainable: by gradient steps, so 0 for a frozen model and for one that is fitted otherwise",
        f"trainable parameters not recorded: {listed(list(dict.fromkeys(unknown)))}" if len(unknown) else "",
        missing(runs, column),
    )
    return figure


def _scale(axis: Axes, values: pd.Series) -> str:
    """A logarithmic axis, on which 0 has a place of its own where it occurs; returns its name."""
    from matplotlib.ticker import NullLocator

    positive = values[values > 0]
    if positive.empty or (len(positive) == len(values) and positive.max() < 10 * positive.min()):
        # Less than a power of ten has no tick of its own.
        axis.set_xlim(0, 1.15 * values.max() or 1.0)
        return "linear scale"
    if len(positive) == len(values):
        axis.set_xscale("log")
        plain_numbers(axis.xaxis)
        room = max(1.3, (positive.max() / positive.min()) ** 0.06)
        low, high = positive.min() / room, positive.max() * room
        if math.floor(math.log10(high)) == math.ceil(math.log10(low)):  # one power of ten says no scale
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
            ticks = [part * 10.0**power for power in powers for part in (1, 2, 5)]
            axis.set_xticks([tick for tick in ticks if low <= tick <= high])
            axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(low, high)
        return "log scale"
    low = math.floor(math.log10(positive.min()))
    high = math.ceil(math.log10(positive.max() * 1.05))
    edge = 10.0 ** (low - 1)
    axis.set_xscale("symlog", linthresh=edge, linscale=0.4)
    axis.set_xticks([0.0, *(10.0**power for power in range(low, high + 1))])
    plain_numbers(axis.xaxis)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(-edge, 10.0**high * 1.3)
    return "log scale with a place for 0"

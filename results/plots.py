"""Figures: a metric against the labelled share, AP per class, pseudo-label quality over epochs.

Colours start with the Okabe-Ito set and every method has its own marker as well, so the figures
survive colour blindness and grey print. A method has the same colour and marker in all figures of a
call. Files carry no dates: the same numbers give the same bytes with the same Matplotlib.

A figure is drawn again only if something that it is made of has changed; `figures.json` beside the
figures holds, by file name, the SHA-256 of what each was made of and of the file itself.
"""

from __future__ import annotations

import hashlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import text, versions
from results.columns import Column
from results.drawn import Drawn, rendered
from results.errors import StoreError, nearest
from results.frames import METRICS, QUALITY, collect, collect_classes, collect_epochs
from results.schema import RULES
from results.store import RunStore
from results.tables import RULE_TEXT, means_over

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008) without black and the pale yellow, then four that differ in lightness.
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
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
GROUP_SHADES = {"head": "#EFEFEF", "medium": "#FFFFFF", "tail": "#EFEFEF"}
Style = dict[str, dict[str, Any]]


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def write_plots(
    store: RunStore,
    wanted: Sequence[dict[str, Any]],
    directory: Path | str,
    rule: str,
    *,
    metric: str = "mAP",
    formats: Sequence[str] = ("png",),
    failed: Callable[[str], None] = _to_stderr,
    remark: Callable[[str], None] = _to_stderr,
) -> list[Path]:
    """Draw every figure that the finished runs allow.

    Args:
        store: where the runs are.
        wanted: see `results.frames.collect`; legends keep its order of labels.
        directory: created when it is missing.
        rule: selection rule of the metric and of the per-class AP.
        metric: what is drawn against the labelled share.
        formats: "png", "pdf" or both.
        failed: gets a line for each figure that cannot be drawn; the others are drawn all the same.
        remark: gets a line for each figure with letters that the font lacks, and on means of different code.

    Returns:
        The files: <metric>-vs-ratio, and for each dataset and ratio with data
        classes-<dataset>-<ratio> and pseudo-labels-<dataset>-<ratio>. Figures without data are
        not made.

    Raises:
        StoreError: unknown rule, metric or format.
    """
    if rule not in RULES:
        raise StoreError(f"unknown selection rule '{rule}'{nearest(rule, RULES)}")
    if metric not in METRICS:
        raise StoreError(f"unknown metric '{metric}'{nearest(metric, METRICS)}")
    for name in formats:
        if name not in ("png", "pdf"):
            raise StoreError(f"unknown figure format '{name}'{nearest(name, ('png', 'pdf'))}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    style = method_styles(list(dict.fromkeys(str(item["label"]) for item in wanted)))
    written: list[Path] = []
    drawn = Drawn(directory)

    def unread(line: str) -> None:
        failed(f"pseudo-labels are without a run: {line}")

    def remark_on(name: str, line: str) -> None:
        remark(f"{name}: {line}")

    def save(stem: str, draw: Callable[[], Figure], frame: pd.DataFrame, *texts: str) -> None:
        inputs = drawn.inputs(stem, style, frame, *texts)
        for name in formats:
            path = directory / f"{stem}.{name}"
            if not drawn.holds(path, inputs):
                try:
                    content = rendered(draw, name, partial(remark_on, path.name))
                except Exception as error:  # whatever a drawing library raises
                    reason = text.one_line(f"{type(error).__name__}: {error}".splitlines()[0])
                    path.unlink(missing_ok=True)  # an older one would show older numbers
                    failed(f"{path.name} is left out: {reason}")
                    continue
                drawn.write(path, inputs, content)
            written.append(path)

    runs = collect(store, wanted)
    versions.tell(runs, f"{rule}/{metric}", remark)
    if runs[f"{rule}/{metric}"].notna().any():
        draw = partial(ratio_figure, runs, rule, metric, style)
        columns = ["dataset", "ratio", "budget", "seed", "split_seed", "label", f"{rule}/{metric}"]
        save(f"{metric}-vs-ratio", draw, runs[columns], rule)
    for kind, frame, figure in (
        ("classes", collect_classes(store, wanted, rule), classes_figure),
        ("pseudo-labels", collect_epochs(store, wanted, unread), quality_figure),
    ):
        names = _file_names(frame["dataset"])
        for column in sorted(Column.present(frame)):
            part = column.rows(frame)
            title = f"{column.dataset}, {column.share} labelled"
            if kind == "classes":
                title += f"; selection rule: {rule}"
            share = column.budget.replace(" ", "-") or f"{column.ratio:g}"
            stem = f"{kind}-{names[column.dataset]}-{share}"
            save(stem, partial(figure, part, style, title), part, title)
    drawn.save()
    return written


def _file_names(datasets: Iterable[str]) -> dict[str, str]:
    """Each dataset's part of a file name; where two would be equal, a hash of the name tells them apart."""
    names = {str(dataset): re.sub(r"[^A-Za-z0-9._+-]", "_", str(dataset)) for dataset in datasets}
    folded = [name.lower() for name in names.values()]  # some file systems do not tell A from a
    return {
        dataset: name
        if folded.count(name.lower()) == 1
        else f"{name}-{hashlib.sha256(text.utf8(dataset)).hexdigest()[:8]}"
        for dataset, name in names.items()
    }


def method_styles(labels: Sequence[str]) -> Style:
    """Colour, marker and line of each method: equal for equal lists, distinct for up to 110.

    Args:
        labels: methods in the order of the legend.

    Returns:
        label -> keyword arguments of Matplotlib's plot.
    """
    lines = ("-", "--", ":", "-.")
    return {
        label: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": lines[i // len(COLOURS) % len(lines)],
        }
        for i, label in enumerate(labels)
    }


def ratio_figure(runs: pd.DataFrame, rule: str, metric: str, style: Style) -> Figure:
    """A metric against the labelled share, a panel per dataset.

    Lines join the means over seeds, bars are the standard deviation (ddof = 1) and faint points the
    single seeds. Methods stand slightly beside each other at the same ratio.

    Args:
        runs: from `collect`.
        rule: selection rule.
        metric: one of `METRICS`.
        style: from `method_styles`.

    Returns:
        A Matplotlib figure.
    """
    column = f"{rule}/{metric}"
    runs = runs[runs[column].notna()]
    datasets = list(dict.fromkeys(runs["dataset"]))
    figure, axes = _panels(len(datasets), 1, width=4.6, height=4.2)
    for axis, dataset in zip(axes, datasets, strict=True):
        part = runs[runs["dataset"] == dataset]
        columns = sorted(Column.present(part))
        places = {(column.ratio, column.budget): place for place, column in enumerate(columns)}
        labels = [label for label in style if (part["label"] == label).any()]
        for number, label in enumerate(labels):
            mine = part[part["label"] == label]
            # Ratios are drawn at equal distances: budgets grow by factors, not by steps.
            shift = (number - (len(labels) - 1) / 2) * min(0.07, 0.5 / len(labels))
            grouped = mine.groupby(["ratio", "budget"], sort=True)[column]
            x = [places[key] + shift for key in grouped.groups]
            axis.plot(
                [places[key] + shift for key in zip(mine["ratio"], mine["budget"], strict=True)],
                mine[column],
                alpha=0.35,
                markersize=3,
                **{**style[label], "linestyle": "none", "markeredgewidth": 0},
            )
            axis.errorbar(
                x,
                grouped.mean(),
                yerr=grouped.std(ddof=1).fillna(0),
                label=text.figure(label),
                capsize=2,
                elinewidth=1,
                linewidth=1.6,
                markersize=5.5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                **style[label],
            )
        axis.set_xticks(range(len(columns)), [found.share for found in columns])
        axis.set_xlim(-0.5, len(columns) - 0.5)
        axis.grid(axis="x", visible=False)
        axis.set(title=text.figure(str(dataset)), xlabel="labelled share of the training images")
    axes[0].set_ylabel(f"{metric} (%)")
    _legend(figure, axes)
    each = runs.groupby(["label", "dataset", "ratio", "budget"]).size()
    few, many = int(each.min()), int(each.max())
    over, single = means_over(runs)
    spread = f"one {single}"
    if many > 1:
        count = f"{many}" if few == many else f"{few} to {many}"
        spread = f"mean and standard deviation over {count} {over}, points: single {single}s"
    _caption(figure, f"selection rule: {rule} ({RULE_TEXT[rule]}); {spread}")
    return figure


def classes_figure(classes: pd.DataFrame, style: Style, title: str) -> Figure:
    """AP of every class, methods beside each other, classes from frequent to rare.

    Args:
        classes: rows of one dataset and ratio from `collect_classes`; the mean over seeds is drawn.
        style: from `method_styles`.
        title: what the figure shows.

    Returns:
        A Matplotlib figure.
    """
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.transforms import blended_transform_factory

    _theme()
    # A class may have another labelled count in every seed: the mean over the runs decides here.
    counts = classes.groupby("class", sort=False)["train_count"].mean()
    names = list(counts.sort_values(ascending=False, kind="stable").index)
    means = classes.groupby(["label", "class"])["AP"].mean().unstack("class")
    means = means.loc[[label for label in style if label in means.index], names]
    figure, axis = plt.subplots(figsize=(max(7.0, 0.24 * len(names) + 1.5), 4.6))
    top = blended_transform_factory(axis.transData, axis.transAxes)
    thirds = np.array_split(np.arange(len(names)), len(GROUP_SHADES))
    for (group, shade), places in zip(GROUP_SHADES.items(), thirds, strict=True):
        if places.size:
            axis.axvspan(places[0] - 0.5, places[-1] + 0.5, color=shade, zorder=0, linewidth=0)
            axis.text(
                (places[0] + places[-1]) / 2,
                1.015,
                group,
                transform=top,
                ha="center",
                va="bottom",
                color="#555555",
                fontsize=9,
            )
    low, high = means.min(), means.max()
    axis.vlines(range(len(names)), low, high, color="#BBBBBB", linewidth=1, zorder=1)
    for label, row in means.iterrows():
        look = {**style[str(label)], "linestyle": "none"}
        axis.plot(
            range(len(names)),
            row,
            label=text.figure(str(label)),
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            zorder=2,
            **look,
        )
    axis.set_xticks(
        range(len(names)), list(map(text.figure, names)), rotation=90, fontsize=8 if len(names) <= 50 else 7
    )
    axis.set_xlim(-0.7, len(names) - 0.3)
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("average precision (%)")
    axis.set_title(text.figure(title), pad=18)
    _legend(figure, [axis])
    _caption(figure, f"classes by falling training frequency; points: means over {means_over(classes)[0]}")
    return figure


def quality_figure(epochs: pd.DataFrame, style: Style, title: str) -> Figure:
    """Quality of the pseudo-labels over epochs, a panel per measure.

    Args:
        epochs: rows of one dataset and ratio from `collect_epochs`. Lines are means over seeds,
            bands the standard deviation (ddof = 1).
        style: from `method_styles`.
        title: what the figure shows.

    Returns:
        A Matplotlib figure.
    """
    from matplotlib.ticker import MaxNLocator

    named = {
        "OP": "OP: micro precision",
        "OR": "OR: micro recall",
        "OF1": "OF1: micro F1",
        "CP": "CP: macro precision",
        "CR": "CR: macro recall",
        "CF1": "CF1: macro F1",
        "coverage": "coverage",
    }
    figure, axes = _panels(4, 2, width=3.1, height=2.5)
    # Micro measures above, macro below; coverage at the right end, the legend below it.
    slots = dict(zip(("OP", "OR", "OF1", "coverage", "CP", "CR", "CF1"), axes, strict=False))
    for measure in QUALITY:
        axis = slots[measure]
        for label in style:
            mine = epochs[epochs["label"] == label]
            if mine.empty:
                continue
            grouped = mine.groupby("epoch", sort=True)[measure]
            mean, spread = grouped.mean(), grouped.std(ddof=1).fillna(0)
            look = {**style[label], "markersize": 3.5, "markeredgewidth": 0}
            every = max(1, len(mean) // 8)
            axis.plot(mean.index, mean, label=text.figure(label), linewidth=1.6, markevery=every, **look)
            axis.fill_between(
                mean.index,
                mean - spread,
                mean + spread,
                color=look["color"],
                alpha=0.15,
                linewidth=0,
            )
        axis.set_title(named[measure], fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    for axis in axes[4:]:
        axis.set_xlabel("epoch")
    slots["coverage"].set_xlabel("epoch")
    for axis in (axes[0], axes[4]):
        axis.set_ylabel("%")
    axes[7].axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[7].legend(handles, labels, loc="upper left", frameon=False, borderaxespad=0)
    figure.suptitle(text.figure(f"pseudo-labels: {title}"))
    over = means_over(epochs)[0]
    _caption(figure, f"mean over {over}, band: standard deviation; hidden labels of the pool as truth")
    return figure


def _theme() -> None:
    import matplotlib

    # No display is needed, and an interactive backend of the caller is left as it is.
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
            "pdf.fonttype": 42,
            "savefig.dpi": 160,
            # Names hold dollars and backslashes that mean nothing.
            "text.parse_math": False,
            "text.usetex": False,
        },
    )


def _panels(columns: int, rows: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    import matplotlib.pyplot as plt

    _theme()
    extra = 2.2 if rows == 1 else 0.0  # room for a legend at the right
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * width + extra, rows * height + 0.5), squeeze=False
    )
    return figure, list(axes.flat)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, outside at the right."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(list(entries.values()), list(entries), loc="outside right upper", frameon=False)


def _caption(figure: Figure, caption: str) -> None:
    width = int(15 * figure.get_figwidth())  # letters of this size that fit
    figure.supxlabel(textwrap.fill(caption, width), fontsize=7.5, color="#555555")

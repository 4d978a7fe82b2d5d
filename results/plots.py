"""The figures of a grid: which there are, what each is made of, and the files.

A figure is drawn again only if something that it is made of has changed; `figures.json` beside the
figures holds, by file name, the SHA-256 of what each was made of and of the file itself. Files carry no
dates: the same numbers give the same bytes with the same Matplotlib.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import text, versions
from results.columns import Column
from results.drawing.classes import classes_figure
from results.drawing.cost import cost_figure
from results.drawing.epochs import quality_figure, training_figure
from results.drawing.shares import ratio_figure
from results.drawing.styles import Style, method_styles
from results.drawn import FORMATS, Drawn, rendered
from results.errors import StoreError, nearest
from results.frames import METRICS, SCORES, collect, collect_classes, collect_curves
from results.schema import RULES
from results.store import RunStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


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
        formats: one or more of `FORMATS`.
        failed: gets a line for each figure that cannot be drawn; the others are drawn all the same.
        remark: gets a line for each figure with letters that the font lacks, and on means of different code.

    Returns:
        The files: <metric>-vs-ratio, and for each dataset and ratio with data classes-<dataset>-<ratio>,
        pseudo-labels-, training- (mAP and losses over epochs) and cost-<dataset>-<ratio>. Figures without
        data are not made.

    Raises:
        StoreError: unknown rule, metric or format.
    """
    if rule not in RULES:
        raise StoreError(f"unknown selection rule '{rule}'{nearest(rule, RULES)}")
    if metric not in METRICS:
        raise StoreError(f"unknown metric '{metric}'{nearest(metric, METRICS)}")
    for name in formats:
        if name not in FORMATS:
            raise StoreError(f"unknown figure format '{name}'{nearest(name, FORMATS)}")
    import pandas as pd

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    style = method_styles(list(dict.fromkeys(str(item["label"]) for item in wanted)))
    written: list[Path] = []
    drawn = Drawn(directory)

    def unread(line: str) -> None:
        failed(f"curves are without a run: {line}")

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

    runs, value = collect(store, wanted), f"{rule}/{metric}"
    versions.tell(runs, value, remark)
    if runs[value].notna().any():
        draw = partial(ratio_figure, runs, rule, metric, style)
        columns = ["dataset", "ratio", "budget", "seed", "split_seed", "label", "state", "evaluated", value]
        save(f"{metric}-vs-ratio", draw, runs[columns], rule)
    curves = collect_curves(store, wanted, unread)
    classes = collect_classes(store, wanted, rule)
    lossy = [any(value is not None for value in losses.values()) for losses in curves["losses"]]
    has_curve = curves[[*SCORES]].notna().any(axis=1) | pd.Series(lossy, curves.index, dtype=bool)
    quality = curves[curves["pseudo"]]
    costly = ["dataset", "ratio", "budget", "seed", "split_seed", "label", "state", value]
    costly += ["seconds", "trainable_parameters", "device"]
    with_value = runs[value].notna()
    kinds: list[tuple[str, pd.DataFrame, pd.Series, Callable[..., Figure]]] = [
        ("classes", classes, classes["AP"].notna(), classes_figure),
        ("pseudo-labels", quality, quality["pseudo"], quality_figure),
        ("training", curves, has_curve, training_figure),
        ("cost", runs[costly], with_value, partial(_cost, rule, metric)),
    ]
    for kind, frame, drawable, figure in kinds:
        present = frame[drawable]
        names = _file_names(frame["dataset"])
        for column in sorted(Column.present(present)):
            part = column.rows(frame)
            title = f"{column.dataset}, {column.share} labelled"
            if kind in ("classes", "cost"):
                title += f"; selection rule: {rule}"
            share = column.budget.replace(" ", "-") or f"{column.ratio:g}"
            stem = f"{kind}-{names[column.dataset]}-{share}"
            save(stem, partial(figure, part, style, title), part, title, metric)
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


def _cost(rule: str, metric: str, runs: pd.DataFrame, style: Style, title: str) -> Figure:
    return cost_figure(runs, rule, metric, style, title)

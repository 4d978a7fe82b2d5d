"""Figures one by one: where points stand, which scales, what is said where nothing can be drawn."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from typing import Any

import pandas as pd
import pytest

from results.drawing.classes import POINTS, classes_figure
from results.drawing.cost import cost_figure
from results.drawing.epochs import loss_terms, quality_figure, training_figure
from results.drawing.panels import panels, short_number, whole_epochs
from results.drawing.shares import ratio_figure
from results.drawing.styles import COLOURS, KNOWN, method_styles
from results.frames import QUALITY, SCORES, collect, collect_classes, collect_curves, collect_epochs

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed() -> Any:
    yield
    plt.close("all")


def said(figure: Any) -> str:
    return figure.get_supxlabel().replace("\n", " ")


def labels_of(axis: Any, which: str = "x") -> list[str]:
    axis.figure.canvas.draw()
    limits = axis.get_xlim() if which == "x" else axis.get_ylim()
    ticks = getattr(axis, f"{which}axis").get_major_ticks()
    return [t.label1.get_text() for t in ticks if min(limits) <= t.get_loc() <= max(limits)]


@pytest.mark.parametrize(
    "others", [KNOWN, ("csaa",), ("mine", "csaa λ=0.1"), tuple(f"m{i}" for i in range(60))]
)
def test_a_method_keeps_its_colour_everywhere(others: tuple[str, ...]) -> None:
    names = ["csaa", "fixmatch", "my_method", "csaa without contexts"]
    alone = {name: method_styles([name])[name]["color"] for name in names}
    among = list(dict.fromkeys([*others, *names]))
    random.Random(0).shuffle(among)
    found = method_styles(among)
    assert list(found) == among
    assert {name: found[name]["color"] for name in names} == alone
    assert found["csaa"] == method_styles(["csaa"])["csaa"]
    assert len({tuple(look.values()) for look in found.values()}) == len(among)


def test_known_methods_are_all_unlike_and_neighbours_have_other_colours() -> None:
    looks = [tuple(look.values()) for look in method_styles(KNOWN).values()]
    assert len({look[:2] for look in looks}) == len(KNOWN)
    assert all(a[0] != b[0] for a, b in itertools.pairwise(looks))
    assert len(set(COLOURS)) == len(COLOURS)


def test_lines_of_one_colour_differ_in_more_than_their_markers():
    names = [f"variant {number}" for number in range(2 * len(COLOURS))]
    looks = method_styles(names).values()
    shared = Counter((look["color"], look["linestyle"]) for look in looks)
    assert max(Counter(look["color"] for look in looks).values()) in (2, 3, 4)
    assert max(shared.values()) == 1


def test_looks_do_not_depend_on_the_order_of_the_legend() -> None:
    names = [f"variant {i}" for i in range(40)]
    assert method_styles(names) == method_styles(names[::-1])


@pytest.mark.parametrize("ratios", [(0.01, 0.05, 0.2), (0.05, 0.06, 0.5)])
def test_points_stand_at_their_share(fake: Any, ratios: tuple[float, ...]) -> None:
    for label, ratio, seed in itertools.product(("csaa", "em"), ratios, (1, 2)):
        fake.add(label, 50 + 30 * ratio + seed, ratio=ratio, seed=seed)
    figure = ratio_figure(collect(fake.store, fake.wanted), "last", "mAP", method_styles(["csaa", "em"]))
    (axis,) = figure.axes
    for container in axis.containers:
        assert list(container[0].get_xdata()) == list(ratios)
    assert axis.get_xscale() == "log"
    assert "log scale" in axis.get_xlabel()
    assert labels_of(axis) == [f"{100 * ratio:g} %" for ratio in ratios]
    assert "does not begin at 0" in said(figure)


def test_budgets_and_shares_are_scales_of_their_own(fake: Any) -> None:
    for ratio in (0.05, 0.2):
        fake.add("csaa", 60.0, ratio=ratio)
    for count in (40, 240, 4):
        fake.add("csaa", 61.0, ratio=count / 4000)
        fake.wanted[-1] |= {"budget": f"{count} images" if count > 4 else "4 per class"}
    figure = ratio_figure(collect(fake.store, fake.wanted), "last", "mAP", method_styles(["csaa"]))
    places = [
        [line.get_xdata().tolist() for line in axis.lines if len(line.get_xdata()) > 1]
        for axis in figure.axes
    ]
    assert [axis[0] for axis in places if axis] == [[0.05, 0.2], [0.01, 0.06]]
    assert labels_of(figure.axes[1]) == ["40 images\n(1 %)", "240 images\n(6 %)"]
    assert len({axis.get_ylim() for axis in figure.axes}) == 1
    assert "one scale of scores for all panels" in said(figure)


def test_one_share_has_a_row_for_each_method(fake: Any) -> None:
    names = [f"a method with a long name {i}" for i in range(23)]
    for dataset, (number, name) in itertools.product(("one", "two"), enumerate(names)):
        for seed in (1, 2):
            fake.add(name, 50 + number + 2 * seed, dataset=dataset, seed=seed)
    fake.add("never", None, state="not started")
    style = method_styles([*names, "never"])
    figure = ratio_figure(collect(fake.store, fake.wanted), "last", "mAP", style)
    first, second = figure.axes
    assert labels_of(first, "y") == names
    assert first.get_title() == "one, 5 % labelled"
    assert first.get_xlim() == second.get_xlim()
    assert [container[0].get_xdata()[0] for container in second.containers] == [53.0 + i for i in range(23)]
    assert "runs not drawn: never (1 of 1: not started)" in said(figure)
    assert "5 of 6 (no positive among the test images: cloud)" in said(figure)


@pytest.mark.parametrize("methods", [2, POINTS, POINTS + 1])
def test_a_class_without_a_positive_is_named_at_its_place(fake: Any, methods: int) -> None:
    names = [f"m{i}" for i in range(methods)]
    for number, name in enumerate(names):
        fake.add(name, 50.0 + number)
    figure = classes_figure(collect_classes(fake.store, fake.wanted), method_styles(names), "title")
    axis = figure.axes[0]
    ticks = [tick.get_text() for tick in axis.get_xticklabels()]
    (mark,) = (text for text in axis.texts if text.get_text() == "undefined")
    assert ticks[int(mark.get_position()[0])] == "cloud"
    assert "AP of 5 of 6 classes; undefined, because no test image has the class: cloud" in said(figure)
    if methods <= POINTS:
        assert axis.get_ylim() == (0, 100)
    else:
        assert axis.images[0].get_clim() == (0, 100)
        assert axis.images[0].get_array().filled(-1)[3].tolist() == [53, 58, 54, 52, -1, 48]
        assert [t.get_text() for t in axis.get_yticklabels()] == names


def epochs_of(values: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """A frame like that of `collect_curves`: by method, the epochs' values."""
    rows = []
    for label, epochs in values.items():
        keys = {"run_id": label, "dataset": "d", "ratio": 0.05, "method": label, "label": label}
        for number, epoch in enumerate(epochs, start=1):
            blank = {**dict.fromkeys((*SCORES, *QUALITY), math.nan), "losses": {}, "pseudo": True}
            seeds = {"seed": 1, "split_seed": 1, "budget": ""}
            rows.append({**keys, **seeds, "epoch": number, **blank, **epoch})
    return pd.DataFrame(rows)


def test_undefined_quality_is_said_and_no_panel_is_empty() -> None:
    whole = dict.fromkeys(QUALITY, 50.0) | {"CP": math.nan}
    frame = epochs_of({"hill": [{"OR": 0.0}] * 2, "csaa": [whole, whole | {"OP": math.nan}]})
    figure = quality_figure(frame, method_styles(["hill", "csaa"]), "title")
    by_title = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert len(by_title) == len(QUALITY)
    for title, axis in by_title.items():
        assert axis.lines or [text.get_text() for text in axis.texts] == ["undefined for all methods"], title
        assert axis.get_ylim() == (-3, 103)
        assert labels_of(axis) == ["1", "2"]
    assert not by_title["CP: macro precision"].lines
    assert "OP of hill (all), csaa (1 of 2)" in said(figure)
    assert "OR" not in said(figure).partition("undefined")[2]
    # The first panel has no curve of one method; the legend has both.
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["hill", "csaa"]


def test_pseudo_labels_that_begin_late_stand_beside_the_others() -> None:
    values = [dict.fromkeys(QUALITY, value) for value in (40.0, 50.0, 60.0)]
    frame = epochs_of({"csaa": values, "dicap": values})
    frame.loc[frame["label"] == "dicap", "epoch"] += 15
    figure = quality_figure(frame, method_styles(["csaa", "dicap"]), "title")
    axis = figure.axes[0]
    assert [list(line.get_xdata()) for line in axis.lines] == [[1, 2, 3]] * 2
    assert labels_of(axis) == ["1", "2", "3"]
    assert "epochs are counted from the first with pseudo-labels: dicap from 16" in said(figure)
    assert list(frame["epoch"]) == [1, 2, 3, 16, 17, 18]  # the caller's rows stay


def test_training_has_a_panel_for_each_score_and_term() -> None:
    def row(score: float | None, **losses: float | None) -> dict[str, Any]:
        return {"mAP_ema": score, "losses": losses}

    values = {
        "supervised": [row(10.0 + i if i % 2 else None, labelled=100 / (i + 1)) for i in range(20)],
        "em": [row(50.0 + i, labelled=2.0 + i, unlabelled=-3.0) for i in range(3)],
        "csaa": [row(60.0 + i, labelled=3.0, unlabelled=200.0, context=0.5) for i in range(3)],
        "plain": [row(None, labelled=None) for _ in range(3)],
    }
    frame = epochs_of(values)
    assert loss_terms(frame) == ["labelled", "unlabelled", "context"]
    figure = training_figure(frame, method_styles(values), "title")
    shown = [
        (axis.get_title(), [line.get_label() for line in axis.lines]) for axis in figure.axes if axis.lines
    ]
    assert shown == [
        ("test mAP, EMA weights", ["em", "csaa"]),
        ("test mAP, EMA weights", ["supervised"]),
        ("loss: labelled", ["em", "csaa"]),
        ("loss: labelled", ["supervised"]),
        ("loss: unlabelled", ["em", "csaa"]),
        ("loss: context", ["csaa"]),
    ]
    axes = figure.axes
    assert list(axes[1].lines[0].get_xdata()) == list(range(2, 21, 2))
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert axes[2].get_ylim() == axes[3].get_ylim()
    assert [axis.get_ylabel() for axis in axes[2:6]] == [
        "loss (log scale)",
        "loss (log scale)",
        "loss (log scale, linear within ±1)",
        "loss",
    ]
    assert labels_of(axes[4], "y") == ["−1", "0", "1", "10", "100"]
    assert labels_of(axes[0]) == ["1", "2", "3"]
    assert "no mAP while they train: plain" in said(figure)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 300])
def test_epochs_have_whole_ticks(count: int) -> None:
    _, (axis,), _ = panels(1, 1, [], width=3, height=2)
    whole_epochs(axis, pd.Series(range(1, count + 1)))
    ticks = [float(label) for label in labels_of(axis)]
    assert ticks
    assert all(tick == int(tick) and 0 <= tick <= count for tick in ticks)


def costs(**values: tuple[float, float, float | None, str]) -> pd.DataFrame:
    rows = [
        {
            "dataset": "d",
            "ratio": 0.05,
            "budget": "",
            "seed": 1,
            "split_seed": 1,
            "label": label,
            "state": "done",
            "last/mAP": score,
            "seconds": seconds,
            "device": device,
            "trainable_parameters": math.nan if parameters is None else parameters,
        }
        for label, (score, seconds, parameters, device) in values.items()
    ]
    return pd.DataFrame(rows)


def test_cost_has_a_place_for_nothing_trained_and_names_devices() -> None:
    frame = costs(
        zero_shot=(50, 0.5, 0, "CPU x, 1 threads"),
        dualcoop=(40, 20, 512, "CPU x, 1 thread"),
        csaa=(60, 95, 450_000, "CPU x, 1 thread"),
    )
    figure = cost_figure(frame, "last", "mAP", method_styles(frame["label"]), "title")
    seconds, parameters = figure.axes
    assert seconds.get_xlabel() == "seconds of a run (log scale)"
    assert parameters.get_xlabel() == "trainable parameters (log scale with a place for 0)"
    assert [c[0].get_xdata()[0] for c in parameters.containers] == [0, 512, 450_000]
    assert labels_of(parameters) == ["0", "100", "1k", "10k", "100k", "1M"]
    assert parameters.get_xlim()[0] < 0
    assert "measured on CPU x, 1 thread;" in said(figure)
    frame.loc[2, "device"] = "GPU"
    assert "MEASURED ON DIFFERENT DEVICES: CPU x, 1 thread, GPU" in said(
        cost_figure(frame, "last", "mAP", method_styles(frame["label"]), "title")
    )


def test_a_logarithmic_axis_around_one_power_of_ten_has_ticks_between() -> None:
    frame = costs(csaa=(60, 14, 500, "GPU"), em=(50, 150, 500, "GPU"))
    axis = cost_figure(frame, "last", "mAP", method_styles(["csaa", "em"]), "title").axes[0]
    assert axis.get_xlabel() == "seconds of a run (log scale)"
    assert labels_of(axis) == ["20", "50", "100"]


def test_cost_without_recorded_parameters_or_with_one_value() -> None:
    frame = costs(csaa=(60, 95, None, "GPU"), em=(50, 95, None, "GPU"))
    figure = cost_figure(frame, "last", "mAP", method_styles(["csaa", "em"]), "title")
    (axis,) = figure.axes
    assert axis.get_xlabel() == "seconds of a run (linear scale)"
    assert len(labels_of(axis)) > 2
    assert "trainable parameters not recorded: csaa, em" in said(figure)
    none = costs(zero_shot=(50, 1.0, 0, "GPU"))
    assert len(labels_of(cost_figure(none, "last", "mAP", method_styles(["zero_shot"]), "t").axes[1])) > 1


@pytest.mark.parametrize("count", [3, 30])
def test_legend_and_title_stand_beside_the_panels(fake: Any, count: int) -> None:
    names = [f"a method with a long name {i}" for i in range(count)]
    for number, name in enumerate(names):
        fake.add(name, 50.0 + number / 7, ratio=0.05)
        fake.add(name, 55.0 + number / 7, ratio=0.2)
    style = method_styles(names)
    runs = collect(fake.store, fake.wanted)
    curves = collect_curves(fake.store, fake.wanted)
    title = "a long name of a dataset, 5 % labelled; selection rule: last"
    for figure in (
        ratio_figure(runs, "last", "mAP", style),
        quality_figure(collect_epochs(fake.store, fake.wanted), style, title),
        training_figure(curves, style, title),
        cost_figure(runs, "last", "mAP", style, title),
    ):
        figure.canvas.draw()
        box = figure.legends[0].get_window_extent()
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y0 >= 0
        heading = [figure._suptitle] if figure._suptitle else []
        for other in [*figure.axes, *heading]:
            if other in heading or other.axison:
                assert not box.overlaps(other.get_window_extent()), figure
        axes = [axis for axis in figure.axes if axis.axison]
        assert min(axis.get_window_extent().width for axis in axes) > 150


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.1, "0.1"), (-10, "−10"), (999, "999"), (1000, "1k"), (2.5e6, "2.5M"), (4e9, "4G")],
)
def test_short_numbers(value: float, shown: str) -> None:
    assert short_number(value) == shown

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from results.drawing.classes import classes_figure
from results.drawing.epochs import quality_figure
from results.drawing.shares import ratio_figure
from results.drawing.styles import method_styles
from results.errors import StoreError
from results.frames import collect, collect_classes, collect_epochs
from results.plots import write_plots

plt = pytest.importorskip("matplotlib.pyplot")


KINDS = ("classes", "pseudo-labels", "training", "cost")
SPEC = {"method": "csaa", "dataset": {"alias": "GlyphScenes"}}


@pytest.fixture
def cheap(monkeypatch: Any) -> None:
    """Figures of a dataset and ratio that take no time: files and their names are tested."""

    def plain(*arguments: Any) -> Any:
        return plt.figure()

    for kind in ("classes", "quality", "training", "cost"):
        monkeypatch.setattr(f"results.plots.{kind}_figure", plain)


def fill(fake: Any) -> None:
    for seed, shift in ((1, 0.0), (2, 2.0)):
        for ratio in (0.05, 0.2):
            fake.add("FixMatch", 60.0 + shift + 20 * ratio, seed=seed, ratio=ratio)
            fake.add("CSAA", 64.0 + shift + 20 * ratio, seed=seed, ratio=ratio)
    fake.add("Zero-shot", None, state="not started")


def test_ratio_figure_draws_means_and_spread(fake: Any) -> None:
    fill(fake)
    style = method_styles(["FixMatch", "CSAA", "Zero-shot"])
    figure = ratio_figure(collect(fake.store, fake.wanted), "last", "mAP", style)
    axis = figure.axes[0]
    containers = {c.get_label(): c for c in axis.containers}
    assert list(containers) == ["FixMatch", "CSAA"]
    line, _, (bars,) = containers["CSAA"]
    assert list(line.get_ydata()) == [66.0, 69.0]
    low, high = bars.get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(2**0.5)  # ddof = 1 of two values 2 apart
    assert [t.get_text() for t in axis.get_xticklabels()] == ["5 %", "20 %"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["FixMatch", "CSAA"]
    assert list(line.get_xdata()) == [0.05, 0.2]
    plt.close(figure)


@pytest.mark.parametrize(
    ("splits", "curve", "means"),
    [
        ((None,), "over 2 seeds, points: single seeds", "means over seeds"),
        (
            (1, 4),
            "over 4 runs (training seeds 1, 2 on splits 1, 4), points: single runs",
            "means over runs (training seeds 1, 2 on splits 1, 4)",
        ),
        ((1,), "over 2 runs (training seeds 1, 2 on split 1), points: single runs", "on split 1)"),
    ],
)
def test_captions_say_what_the_means_are_over(fake: Any, splits: Any, curve: str, means: str) -> None:
    for split in splits:
        for seed in (1, 2):
            fake.add("CSAA", 60.0 + seed, seed=seed, hidden=split)
            fake.wanted[-1] |= {"split_seed": split}
    style = method_styles(["CSAA"])
    runs, classes, epochs = (
        each(fake.store, fake.wanted) for each in (collect, collect_classes, collect_epochs)
    )
    for figure, said in (
        (ratio_figure(runs, "last", "mAP", style), curve),
        (classes_figure(classes, style, "title"), means),
        (quality_figure(epochs, style, "title"), means.removeprefix("means ")),
    ):
        caption = figure.get_supxlabel().replace("\n", " ")
        assert said in caption
        plt.close(figure)


def test_classes_figure_sorts_by_frequency(fake: Any) -> None:
    fill(fake)
    classes = collect_classes(fake.store, [w for w in fake.wanted if w["ratio"] == 0.05])
    figure = classes_figure(classes, method_styles(["FixMatch", "CSAA"]), "title")
    axis = figure.axes[0]
    names = [t.get_text() for t in axis.get_xticklabels()]
    assert names == ["kite", "moon", "comet", "star", "cloud", "sun"]
    points = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert points["CSAA"][:2] == [66.0, 71.0]
    assert [t.get_text() for t in axis.texts] == ["undefined", "head", "medium", "tail"]
    plt.close(figure)


def test_quality_figure_has_a_panel_per_measure(fake: Any) -> None:
    fill(fake)
    epochs = collect_epochs(fake.store, fake.wanted)
    figure = quality_figure(epochs, method_styles(["FixMatch", "CSAA"]), "title")
    panels = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert len(panels) == 7
    line = panels["CF1: macro F1"].lines[0]
    assert list(line.get_xdata()) == [2, 3, 4]
    assert list(line.get_ydata()) == [48.0, 51.0, 54.0]
    plt.close(figure)


def test_files_are_only_made_with_data(fake: Any, tmp_path: Path) -> None:
    fill(fake)
    wanted = [item for item in fake.wanted if item["ratio"] == 0.05]
    first = write_plots(fake.store, wanted, tmp_path / "a", "last")
    assert [path.name for path in first] == [
        "mAP-vs-ratio.png",
        *(f"{kind}-GlyphScenes-0.05.png" for kind in KINDS),
    ]
    # No held-out part, so nothing but curves over epochs can be drawn under this rule.
    val = write_plots(fake.store, wanted, tmp_path / "c", "val")
    assert [path.name for path in val] == [f"{kind}-GlyphScenes-0.05.png" for kind in KINDS[1:3]]
    empty = [item for item in fake.wanted if item["label"] == "Zero-shot"]
    assert write_plots(fake.store, empty, tmp_path / "d", "last") == []


def test_each_format_is_deterministic(fake: Any, tmp_path: Path, cheap: None) -> None:
    fill(fake)
    formats = ("png", "pdf", "svg")
    first, second = (
        write_plots(fake.store, fake.wanted, tmp_path / name, "last", formats=formats) for name in "ab"
    )
    assert {path.suffix for path in first} == {".png", ".pdf", ".svg"}
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert not re.search(rb"CreationDate|<dc:date>", a.read_bytes())
    starts = {path.suffix: path.read_bytes()[:5] for path in first}
    assert starts == {".png": b"\x89PNG\r", ".pdf": b"%PDF-", ".svg": b"<?xml"}


def test_losses_that_are_all_null_make_no_figure(fake: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tests.results.conftest.quality", lambda epoch: None)
    fake.add("CSAA", 60.0)
    run = fake.store.directory(fake.wanted[0]["run_id"], {"seed": 1, "ratio": 0.05, **SPEC})
    rows = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "mAP_ema": None, "losses": {"labelled": None}}) for row in rows]
    (run / "epochs.jsonl").write_text("\n".join(lines) + "\n")
    names = [path.name for path in write_plots(fake.store, fake.wanted, tmp_path, "last")]
    assert "classes-GlyphScenes-0.05.png" in names
    assert not [name for name in names if name.startswith(("training", "pseudo"))]


NAMES = ["Ba$$in", "$x^{", "_a", "two\nlines", r"\frac{", "tau ≥ .5 שלום"]


def test_names_are_drawn_as_they_are(fake: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("tests.results.conftest.CLASSES", NAMES)
    for number, name in enumerate(NAMES):
        fake.add(name, 50.0 + number, dataset="$a$ and $b$", method=f"m{number}")
    figure = ratio_figure(collect(fake.store, fake.wanted), "last", "mAP", method_styles(NAMES))
    texts = [entry.get_text() for entry in figure.axes[0].get_yticklabels()]  # a row for each
    assert texts == ["Ba$$in", "$x^{", "\u200b_a", "two lines", r"\frac{", "tau ≥ .5 שלום"]
    assert not any(entry.get_parse_math() for entry in figure.findobj(plt.Text))
    plt.close(figure)
    assert len(write_plots(fake.store, fake.wanted, tmp_path, "last")) == 5
    assert capsys.readouterr().err == ""


def test_datasets_whose_file_names_would_be_equal_get_files_of_their_own(
    fake: Any, tmp_path: Path, cheap: None
) -> None:
    for dataset in ("a b", "a&b", "A_b", "c d"):
        fake.add("CSAA", 60.0, dataset=dataset)
    names = [path.name for path in write_plots(fake.store, fake.wanted, tmp_path, "last")]
    assert len(set(names)) == len(names) == 17
    assert "classes-c_d-0.05.png" in names


def test_a_figure_that_fails_is_named_and_the_others_are_drawn(
    fake: Any, tmp_path: Path, cheap: None, monkeypatch: Any
) -> None:
    def broken(*arguments: Any) -> None:
        plt.figure()
        raise ValueError("no room\nat all")

    fake.add("CSAA", 60.0)
    write_plots(fake.store, fake.wanted, tmp_path, "last")
    fake.add("FixMatch", 61.0)
    monkeypatch.setattr("results.plots.classes_figure", broken)
    lines: list[str] = []
    open_before = plt.get_fignums()
    paths = write_plots(fake.store, fake.wanted, tmp_path, "last", failed=lines.append)
    assert lines == ["classes-GlyphScenes-0.05.png is left out: ValueError: no room"]
    assert [path.name for path in paths] == [
        "mAP-vs-ratio.png",
        *(f"{kind}-GlyphScenes-0.05.png" for kind in KINDS[1:]),
    ]
    assert not (tmp_path / "classes-GlyphScenes-0.05.png").exists()  # it showed older numbers
    assert plt.get_fignums() == open_before


def test_letters_that_the_font_lacks_are_named(fake: Any, tmp_path: Path, recwarn: Any) -> None:
    fake.add("猫 and 犬", 60.0, method="m")
    lines: list[str] = []
    assert len(write_plots(fake.store, fake.wanted, tmp_path, "last", remark=lines.append)) == 5
    assert "mAP-vs-ratio.png: the font has no shape for 猫 犬; boxes stand for them" in lines
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_wrong_names(fake: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unknown figure format 'jpg'"):
        write_plots(fake.store, [], tmp_path, "last", formats=["jpg"])
    with pytest.raises(StoreError, match="unknown selection rule 'lst'; did you mean 'last'"):
        write_plots(fake.store, [], tmp_path, "lst")
    with pytest.raises(StoreError, match="unknown metric 'AP'; did you mean 'mAP'"):
        write_plots(fake.store, [], tmp_path, "last", metric="AP")

from __future__ import annotations

import csv
import io
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results.columns import Column
from results.errors import StoreError
from results.frames import collect, collect_classes, collect_epochs
from results.tables import Table, table
from results.writers import (
    percent,
    to_csv,
    to_latex,
    to_markdown,
    to_runs_csv,
    to_text,
    write_tables,
)


def fill(fake: Any) -> None:
    """Three methods, two ratios, three seeds, with every kind of gap."""
    for seed, value in enumerate([60.0, 61.0, 62.5], start=1):
        fake.add("Zero_shot", value, seed=seed)
    fake.add("FixMatch", 70.0, seed=1)
    fake.add("FixMatch", 72.0, seed=2)
    fake.add("FixMatch", None, seed=3, state="failed")
    for seed in (1, 2, 3):
        fake.add("CSAA & co", None, seed=seed, state="not started")
    fake.add("Zero_shot", 63.0, ratio=0.2)
    fake.add("FixMatch", None, ratio=0.2, state="running")


def row(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {label}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_collect_keeps_runs_without_a_result(fake: Any) -> None:
    fill(fake)
    frame = collect(fake.store, fake.wanted)
    assert list(frame["state"]) == [
        "done",
        "done",
        "done",
        "done",
        "done",
        "failed",
        "not started",
        "not started",
        "not started",
        "done",
        "running",
    ]
    assert list(frame["label"])[:4] == ["Zero_shot"] * 3 + ["FixMatch"]
    first = frame.iloc[0]
    assert (first["last/mAP"], first["oracle/mAP"], first["last/tail"]) == (60.0, 61.0, 55.0)
    assert first["seconds"] == 61.5
    assert np.isnan(first["val/mAP"])
    assert np.isnan(first["last/CF1"])
    assert first["digest"] == fake.store.digest(fake.store.find(first["run_id"])[0])
    assert frame.iloc[5]["detail"] == "ValueError: NaN"
    assert frame["last/mAP"].dtype == np.float64


def test_collect_checks_what_is_wanted(fake: Any) -> None:
    fake.add("CSAA", 60.0, lr=1)
    fake.add("CSAA", 61.0, lr=2)
    with pytest.raises(StoreError, match=r"both CSAA on GlyphScenes, ratio 0\.05, seed 1; give"):
        collect(fake.store, fake.wanted)
    with pytest.raises(StoreError, match="wanted run 0 lacks seed, label"):
        collect(fake.store, [{"run_id": "a", "dataset": "d", "ratio": 1, "method": "m"}])
    assert len(collect(fake.store, [fake.wanted[0], fake.wanted[0]])) == 2


def test_cells_show_numbers_and_gaps(fake: Any) -> None:
    fill(fake)
    text = to_markdown(table(collect(fake.store, fake.wanted), "last"))
    std = statistics.stdev([60.0, 61.0, 62.5])
    assert row(text, "method") == ["method", "GlyphScenes 5 %", "GlyphScenes 20 %"]
    # FixMatch is higher at 5 % but incomplete, so it cannot be the best.
    assert row(text, "Zero_shot")[1:] == [f"**{61.1666:.1f} ± {std:.1f}**", "**63.0**"]
    assert row(text, "FixMatch")[1:] == ["71.0 ± 1.4 (2/3; 1 failed)", "– (0/1; 1 running)"]
    assert row(text, "CSAA & co")[1:] == ["– (0/3; 3 not started)", "n/a"]
    assert "n/a: not in this grid." in text
    assert "over seeds 1–3: n = 3 unless" in text
    assert "Fewer seeds by plan: FixMatch (1), Zero_shot (1)." in text


def test_rules_are_never_mixed(fake: Any) -> None:
    fake.add("CSAA", 60.0, seed=1, val=58.0)
    fake.add("CSAA", 62.0, seed=2)
    fake.add("CSAA", None, seed=3, state="failed")
    frame = collect(fake.store, fake.wanted)
    val = to_markdown(table(frame, "val"))
    assert row(val, "CSAA")[1] == "58.0 (1/3; 1 without val value, 1 failed)"
    assert "Selection rule: val (best epoch on a held-out part" in val
    oracle = to_markdown(table(frame, "oracle"))
    assert row(oracle, "CSAA")[1].startswith("62.0 ± 1.4 ")
    assert "TEST images: optimistic" in oracle
    with pytest.raises(StoreError, match="unknown selection rule 'orcale'; did you mean 'oracle'"):
        table(frame, "orcale")
    with pytest.raises(StoreError, match=r"unknown metric 'map'.*valid: mAP, OF1"):
        table(frame, "last", "map")
    with pytest.raises(StoreError, match="no run is wanted"):
        table(collect(fake.store, []), "last")


@pytest.mark.parametrize("rule", ["model", "max"])
def test_results_from_before_a_rule_was_recorded_are_gaps(fake: Any, rule: str) -> None:
    fake.add("CSAA", 60.0, seed=1)
    text = to_markdown(table(collect(fake.store, fake.wanted), rule))
    assert row(text, "CSAA")[1] == f"– (0/1; 1 without {rule} value)"
    assert f"Selection rule: {rule} (last epoch, " in text
    assert ("on the TEST images: optimistic" in text) == (rule == "max")


def test_other_metrics(fake: Any) -> None:
    fake.add("CSAA", 60.0)
    frame = collect(fake.store, fake.wanted)
    assert row(to_markdown(table(frame, "last", "tail")), "CSAA")[1] == "**55.0**"
    assert row(to_markdown(table(frame, "last", "CF1")), "CSAA")[1] == "– (0/1; 1 without last value)"


def test_columns_keep_the_order_of_datasets_and_raise_the_ratio(fake: Any) -> None:
    for dataset, ratio in [("VOC", 0.2), ("COCO", 0.1), ("VOC", 0.05)]:
        fake.add("CSAA", 60.0, dataset=dataset, ratio=ratio)
    made = table(collect(fake.store, fake.wanted), "last")
    assert made.columns == (Column("VOC", 0.05), Column("VOC", 0.2), Column("COCO", 0.1))


def test_numbers_of_images_are_columns_and_splits_are_blocks_of_their_own(fake: Any) -> None:
    # Two subsets of "4 per class" differ in size; 200 images are as many as 5 %, and another column.
    for number, (ratio, more) in enumerate(
        [
            (0.05, {}),
            (0.05, {"budget": "200 images", "split_seed": 1}),
            (0.05, {"budget": "200 images", "split_seed": 1}),
            (0.02, {"budget": "4 per class", "split_seed": 1}),
            (0.03, {"budget": "4 per class", "split_seed": 2}),
        ]
    ):
        for label in ("CSAA", "FixMatch"):
            fake.add(label, 60.0 + number, ratio=ratio, seed=1 + number % 3)
            fake.wanted[-1] |= more
    made = table(collect(fake.store, fake.wanted), "last")
    assert [column.share for column in made.columns] == ["4 per class", "5 %", "200 images"]
    assert made.comparison.total_blocks == 5
    assert (made.splits, made.seeds) == ((1, 2), (1, 2, 3))
    text = to_markdown(made)
    assert row(text, "method")[1:] == [f"GlyphScenes {name}" for name in ("4 per class", "5 %", "200 images")]
    assert "over training seeds 1–3 on splits 1, 2" in text
    assert r"200\,images" in to_latex(made)


def significance(fake: Any, seeds: int) -> Table:
    rng = np.random.default_rng(0)
    for ratio in (0.05, 0.2):
        for seed in range(1, seeds + 1):
            base = 60 + rng.normal(0, 3)
            fake.add("CSAA", base + 2, ratio=ratio, seed=seed)
            fake.add("DualCoOp", base + 2 + rng.normal(-0.01, 0.2), ratio=ratio, seed=seed)
            fake.add("FixMatch", base - 1, ratio=ratio, seed=seed)
    return table(collect(fake.store, fake.wanted), "last")


def test_dagger_marks_what_is_not_significantly_worse(fake: Any) -> None:
    made = significance(fake, seeds=6)
    text = to_markdown(made)
    other = {"CSAA": "DualCoOp", "DualCoOp": "CSAA"}[made.comparison.best]
    assert row(text, other)[0] == f"{other} †"
    assert row(text, made.comparison.best)[0] == made.comparison.best
    assert row(text, "FixMatch")[0] == "FixMatch"
    best = made.comparison.best
    assert (
        f"†: not significantly worse than {best}, the best over the 6 dataset × seed units (12 cells" in text
    )
    assert "FixMatch 0.03" in text
    assert f"About how many more seeds would tell them apart (power 80 %): {other} " in text


def test_too_few_blocks_are_said_instead_of_marked(fake: Any) -> None:
    text = to_markdown(significance(fake, seeds=2))
    assert "†" not in text
    assert re.search(
        r"No significance marks: .* share 2 dataset × seed units \(4 cells.*\), .* needs 6", text
    )


def test_why_there_is_no_test_is_true_of_methods_that_share_results(fake: Any) -> None:
    # FixMatch shares one result with CSAA: too few of CSAA's six to be tested.
    for seed in range(1, 7):
        fake.add("CSAA", 60.0 + seed, seed=seed)
    fake.add("FixMatch", 60.0, seed=1)
    text = to_markdown(table(collect(fake.store, fake.wanted), "last"))
    assert "No significance test: fewer than two methods have results enough for it" in text
    assert "in fewer than half of 6 cells × seeds: FixMatch (1)" in text
    # CAP and DualCoOp share three results with CSAA each, and none with each other.
    for seed in range(1, 4):
        fake.add("CAP", 60.0, seed=seed)
        fake.add("DualCoOp", 60.0, seed=seed + 3)
    text = to_markdown(table(collect(fake.store, fake.wanted), "last"))
    assert "there is no cell and seed in which all tested methods have a result." in text
    assert "†" not in text


def test_equal_stores_give_equal_bytes_and_the_hash_sees_a_change(
    fake: Any, new_fake: Any, tmp_path: Path
) -> None:
    fill(fake)
    first = write_tables(table(collect(fake.store, fake.wanted), "last"), tmp_path / "a")
    shutil.copytree(fake.store.root, tmp_path / "copy")
    fake.store.__init__(tmp_path / "copy")
    second = write_tables(table(collect(fake.store, fake.wanted), "last"), tmp_path / "b")
    assert [path.name for path in first] == [
        "mAP-last.md",
        "mAP-last.txt",
        "mAP-last.tex",
        "mAP-last.csv",
        "mAP-last-runs.csv",
    ]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
    before = table(collect(fake.store, fake.wanted), "last").results_hash
    assert before[:16] in first[0].read_text()
    changed = new_fake(tmp_path / "changed")
    fill(changed)
    same = table(collect(changed.store, changed.wanted), "last").results_hash
    assert same == before
    changed.add("CSAA", 50.0, ratio=0.1)
    assert table(collect(changed.store, changed.wanted), "last").results_hash != before


def test_csv_holds_full_precision_and_every_run(fake: Any) -> None:
    fill(fake)
    made = table(collect(fake.store, fake.wanted), "last")
    cells = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert len(cells) == 5
    zero = cells[0]
    assert float(zero["mean"]) == statistics.fmean([60.0, 61.0, 62.5])
    assert float(zero["std"]) == statistics.stdev([60.0, 61.0, 62.5])
    assert (zero["n"], zero["best"], zero["missing"]) == ("3", "1", "")
    gap = next(c for c in cells if c["label"] == "CSAA & co")
    assert (gap["mean"], gap["n"], gap["wanted"], gap["missing"]) == ("", "0", "3", "3 not started")
    runs = list(csv.DictReader(io.StringIO(to_runs_csv(made))))
    assert len(runs) == len(fake.wanted)
    assert [r["state"] for r in runs].count("done") == 6
    assert runs[0]["value"] == "60.0"


def test_latex_is_escaped_and_balanced(fake: Any) -> None:
    fill(fake)
    fake.add("λ_u = 50 %", 61.0, ratio=0.2)
    text = to_latex(table(collect(fake.store, fake.wanted), "last"))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert r"Zero\_shot & \textbf{61.2} $\pm$ \textbf{1.3} & 63.0 \\" not in body
    assert r"Zero\_shot & \textbf{61.2} $\pm$ \textbf{1.3} & \textbf{63.0} \\" in body
    assert r"CSAA \& co & -- {\scriptsize (0/3; 3 not started)} & n/a \\" in body
    assert r"$\lambda$\_u = 50 \% & n/a & 61.0 \\" in body
    assert r"& \multicolumn{2}{c}{GlyphScenes} \\" in body
    assert r"\cmidrule(lr){2-3}" in body
    assert body.isascii()
    assert re.search(r"(?<!\\)[%#_]", body) is None
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows if "multicolumn" not in line} == {2}
    for opened, closed in ((r"\begin{", r"\end{"), ("{", "}")):
        assert body.count(opened) == body.count(closed)


def test_text_marks_the_best_and_has_no_trailing_blanks(fake: Any) -> None:
    fill(fake)
    text = to_text(table(collect(fake.store, fake.wanted), "last"))
    assert "61.2 ± 1.3*" in text
    assert "71.0 ± 1.4 (2/3; 1 failed)" in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_markdown_pipes_in_labels_do_not_make_columns(fake: Any) -> None:
    fake.add("a|b *c*", 60.0)
    text = to_markdown(table(collect(fake.store, fake.wanted), "last"))
    assert r"| a\|b \*c\* | **60.0** |" in text


@pytest.mark.parametrize(("ratio", "text"), [(0.05, "5 %"), (0.07, "7 %"), (0.125, "12.5 %"), (1.0, "100 %")])
def test_percent(ratio: float, text: str) -> None:
    assert percent(ratio) == text


def test_class_and_epoch_frames(fake: Any) -> None:
    fake.add("CSAA", 60.0)
    fake.add("FixMatch", None, state="failed")
    classes = collect_classes(fake.store, fake.wanted)
    assert len(classes) == 6
    moon = classes[classes["class"] == "moon"].iloc[0]
    assert (moon["AP"], moon["train_count"], moon["group"]) == (65.0, 600, "head")
    assert np.isnan(classes[classes["class"] == "cloud"].iloc[0]["AP"])
    assert collect_classes(fake.store, fake.wanted, "val").empty
    epochs = collect_epochs(fake.store, fake.wanted)
    assert list(epochs["epoch"]) == [2, 3, 4, 2, 3, 4]  # the first has no pseudo-labels
    assert epochs.iloc[0]["OP"] == 43.0


def test_importing_results_is_cheap() -> None:
    code = (
        "import sys, results, results.store, results.statistics, results.tables, results.writers, "
        "results.plots, results.why\n"
        "heavy = {'pandas', 'matplotlib', 'seaborn', 'torch', 'scipy', 'tabulate'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_results_imports_nothing_of_the_other_packages() -> None:
    root = Path(__file__).resolve().parents[2]
    for path in (root / "results").rglob("*.py"):
        assert not re.search(r"(from|import) (benchmarks|methods|csaa)\b", path.read_text()), path

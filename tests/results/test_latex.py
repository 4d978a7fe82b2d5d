"""Tables in LaTeX: what pdfLaTeX makes of them, in one and in two columns."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from results.frames import collect
from results.tables import Table, table
from results.writers import to_latex, write_tables

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = "texlive-latex-base texlive-latex-recommended"
needs_latex = pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason=f"pdflatex is missing: apt-get install {PACKAGES}"
)
PREAMBLES = {
    "one column": r"\documentclass{article}",
    "two columns": r"\documentclass[twocolumn]{article}",
}


def log_of(folder: Path, preamble: str, sources: list[str]) -> str:
    """The log of pdfLaTeX on some tables, each referred to by its label."""
    labels = [label for source in sources for label in re.findall(r"\\label\{(.*?)\}", source)]
    assert labels
    body = ["See Tables " + ", ".join(rf"\ref{{{label}}}" for label in labels) + "."]
    body += [rf"{source}\clearpage" for source in sources]
    lines = [preamble, r"\usepackage{booktabs,graphicx}", r"\begin{document}", *body, r"\end{document}"]
    (folder / "paper.tex").write_text("\n".join(lines))
    words = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    for _ in range(2):  # the second time references are known
        done = subprocess.run(words, cwd=folder, capture_output=True)
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    return (folder / "paper.log").read_text(errors="replace")


def faults(log: str) -> list[str]:
    """What does not fit, and what is not known or known twice."""
    kinds = r"Overfull|Float too large|undefined|multiply defined|Missing character"
    return [line for line in log.splitlines() if re.search(kinds, line)]


@pytest.fixture
def runs(fake: Any) -> pd.DataFrame:
    """A run that is done, one that failed and one that never started."""
    for label, state in (("done", "done"), ("failed", "failed"), ("never & nowhere", "not started")):
        fake.add(label, 60.0, state=state)
    return collect(fake.store, fake.wanted)


def many(runs: pd.DataFrame, methods: int, columns: dict[str, tuple[float, ...]], seeds: int = 2) -> Table:
    """A table with many cells, some of which are not whole, and a row without a result."""
    done, failed, never = (row for _, row in runs.iterrows())
    never = {**never, "dataset": next(iter(columns))}
    rows = []
    for number in range(methods):
        for (dataset, ratios), seed in itertools.product(columns.items(), range(1, seeds + 1)):
            for ratio in ratios:
                key = {"label": f"method_{number}", "dataset": dataset, "ratio": ratio, "seed": seed}
                row = failed if (number, seed) == (1, 2) else done
                value = {} if row is failed else {"last/mAP": 50 + number / 7 + 10 * ratio + seed}
                rows.append({**row, **key, "split_seed": seed, "run_id": f"{len(rows):064}", **value})
    return table(pd.DataFrame([*rows, never], columns=runs.columns), "last")


RATIOS = (0.01, 0.05, 0.1, 0.2, 0.4)
TABLES: dict[str, tuple[int, dict[str, tuple[float, ...]], int]] = {
    "a column": (3, {"glyphscenes": (0.05,)}, 1),
    "many methods": (23, {"glyphscenes": (0.05, 0.2)}, 2),
    "many columns": (3, {"voc2007": RATIOS, "coco2014": RATIOS, "nuswide": RATIOS}, 1),
    "one wide dataset": (2, {"a_long_name_of_a_dataset": tuple(i / 20 for i in range(1, 16))}, 1),
    "long": (60, {"glyphscenes": (0.05,)}, 1),
    "long names": (2, {"a_very_long_name_of_a_dataset_that_somebody_made_for_this_test_alone": (0.05,)}, 1),
}


@needs_latex
def test_tables_fit_in_one_column_and_in_two(runs: pd.DataFrame, tmp_path: Path) -> None:
    sources = []
    for name, shape in TABLES.items():
        sources.append(to_latex(many(runs, *shape), f"grid {name}"))
    for name, preamble in PREAMBLES.items():
        folder = tmp_path / f"paper {name}"
        folder.mkdir()
        assert faults(log_of(folder, preamble, sources)) == [], name


@needs_latex
def test_a_table_without_the_measures_would_not_fit(runs: pd.DataFrame, tmp_path: Path) -> None:
    source = to_latex(many(runs, *TABLES["many columns"]))
    bare = re.sub(r"\\sbox0\{(.*?\\end\{tabular\})\}\n.*?\\fi", r"\1", source, flags=re.DOTALL)
    assert bare != source
    log = log_of(tmp_path, PREAMBLES["two columns"], [bare.replace("table*", "table")])
    assert any("Overfull" in line for line in faults(log))


@needs_latex
def test_committed_tables_fit(tmp_path: Path) -> None:
    sources = [path.read_text() for path in sorted(ROOT.glob("results/*/*.tex"))]
    assert len(sources) >= 5
    for name, preamble in PREAMBLES.items():
        folder = tmp_path / name
        folder.mkdir()
        assert faults(log_of(folder, preamble, sources)) == [], name


def test_the_label_names_the_grid_and_is_one_that_latex_takes(runs: pd.DataFrame, tmp_path: Path) -> None:
    made = many(runs, 2, {"GlyphScenes": (0.05,)})
    write_tables(made, tmp_path, name="my grid_#1")
    assert r"\label{tab:my-grid-1-mAP-last}" in (tmp_path / "mAP-last.tex").read_text()
    assert r"\label{tab:mAP-last}" in to_latex(made)


def test_every_cell_is_in_one_float(runs: pd.DataFrame) -> None:
    for name, shape in TABLES.items():
        made = many(runs, *shape)
        floats = to_latex(made).split(r"\begin{table")[1:]
        assert len(set(re.findall(r"\\label\{.*?\}", to_latex(made)))) == len(floats)
        assert (len(floats) > 1) == (name in ("many columns", "one wide dataset", "many methods", "long")), (
            name
        )
        assert sum("minipage" in part for part in floats) == 1
        cells = 0
        for part in floats:
            body = part.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
            cells += sum(len(re.findall(r"(?<!\\)&", line)) for line in body)
        assert cells == len(made.labels) * len(made.columns)


def test_a_table_of_nothing_has_no_hash(fake: Any) -> None:
    fake.add("CSAA", None, state="not started")
    made = table(collect(fake.store, fake.wanted), "last")
    assert made.notes("*")[-1] == "Made of 0 runs."
    assert "hash" not in to_latex(made)
    fake.add("FixMatch", 61.0)
    made = table(collect(fake.store, fake.wanted), "last")
    assert made.notes("*")[-1] == f"Made of 1 run, results hash sha256:{made.results_hash[:16]}."
    assert f"sha256:{made.results_hash}\n" in to_latex(made)

"""A table as Markdown, LaTeX, CSV and terminal text; equal tables give equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results import text
from results.columns import Column
from results.columns import percent as percent
from results.files import atomic_write_bytes
from results.latex import to_latex as to_latex
from results.rows import dagger, row, shown_columns
from results.tables import Table, TableCell
from results.verdict import ACROSS, HERE


def to_markdown(table: Table) -> str:
    """GitHub Markdown: the verdict, the table, then its footer as a list."""

    def shown(cell: TableCell | None) -> str:
        if cell is None:
            return "n/a"
        number = f"**{cell.number()}**" if cell.best else cell.number()
        return " ".join(filter(None, [number, cell.remark()]))

    columns = shown_columns(table)
    head = ["method", *(f"{text.markdown(c.dataset)} {c.share}{' published' * p}" for c, p in columns)]
    rows = [head, [":--", *["--:"] * len(columns)]]
    for label in table.labels:
        name = text.markdown(label) + dagger(table, label)
        rows.append([name, *row(table, label, shown, text.markdown)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    notes = [f"- {text.markdown(note)}" for note in table.notes("Bold")]
    verdict, *more = map(text.markdown, table.verdict.lines())
    above = [f"**{verdict.replace(':', '.**', 1)}", "", *(f"- {line}" for line in more), ""]
    return "\n".join([*above, *lines, "", *notes]) + "\n"


def to_text(table: Table) -> str:
    """Plain text for a terminal: the verdict and the table; the best cell of a column has an asterisk."""
    from tabulate import tabulate

    def shown(cell: TableCell | None) -> str:
        if cell is None:
            return "n/a"
        return " ".join(filter(None, [cell.number() + "*" * cell.best, cell.remark()]))

    rows = [
        [
            text.terminal(label) + dagger(table, label),
            *row(table, label, shown, text.terminal),
        ]
        for label in table.labels
    ]
    body = tabulate(
        rows,
        headers=[
            "method",
            *(f"{text.terminal(c.dataset)}\n{c.share}{' published' * p}" for c, p in shown_columns(table)),
        ],
        tablefmt="simple",
        colalign=["left", *["right"] * len(shown_columns(table))],
        disable_numparse=True,
    )
    lines = [line.rstrip() for line in body.splitlines()]
    above = map(text.one_line, table.verdict.lines())
    return "\n".join([*above, "", *lines, "", *map(text.one_line, table.notes("*"))]) + "\n"


def to_csv(table: Table) -> str:
    """Tidy CSV, one row per cell, full precision; empty where there is no value.

    Where a mean is over results that different code made, there is a column ``differing_code``, see
    `results.versions`. P-values are over all units, or of the column where a column ``question`` says so.
    """
    rows: list[list[Any]] = [
        [
            "dataset",
            "ratio",
            "label",
            "metric",
            "rule",
            "mean",
            "std",
            "n",
            "wanted",
            "missing",
            "best",
            "p_adjusted",
            "budget",
            *(["differing_code"] if table.mixed() else []),
            *(["question"] if table.verdict.question == HERE else []),
        ]
    ]
    for column in table.columns:
        for label in table.labels:
            cell = table.cells.get((label, column))
            if cell is not None:
                rows.append(_csv_row(table, label, column, cell))
    return text.csv_of(rows)


def to_runs_csv(table: Table) -> str:
    """CSV with one row per run: identity, state, value and the digest of its result.

    Where a mean is over results that different code made, a column ``code`` has a hash of each one's.
    """
    head = [
        "dataset",
        "ratio",
        "label",
        "method",
        "seed",
        "run_id",
        "state",
        "metric",
        "rule",
        "value",
        "seconds",
        "digest",
        "budget",
        "split_seed",
    ]
    head += ["code"] if table.mixed() else []
    rows: list[list[Any]] = [head]
    for run in table.runs.to_dict("records"):
        made = run["made_by"] if run["state"] == "done" else None
        code = made.digest if made else ""
        values = {**run, "metric": table.metric, "rule": table.rule, "code": code}
        rows.append([text.exact(values[name]) for name in head])
    return text.csv_of(rows)


def to_pairs_csv(table: Table) -> str:
    """CSV with one row per two methods, the higher first: difference of their means over all units, and p."""
    (ranking,) = table.verdict.rankings
    rows = [
        [higher, lower, text.exact(ranking.values[higher] - ranking.values[lower]), text.exact(p)]
        for (higher, lower), p in ranking.p.items()
    ]
    return text.csv_of([["higher", "lower", "difference", "p_adjusted"], *rows])


def write_tables(table: Table, directory: Path | str, stem: str = "", name: str = "") -> list[Path]:
    """Write a table in every format.

    Args:
        table: the table.
        directory: created when it is missing.
        stem: first part of the file names; default "<metric>-<rule>".
        name: what the table is of, such as a grid; with the stem, the label in LaTeX.

    Returns:
        The files: <stem>.md, .txt, .tex, .csv (a row per cell) and <stem>-runs.csv (a row per run); with
        published numbers <stem>-published.csv (a row for each of them), and where units were enough for a
        verdict across datasets and seeds <stem>-pairs.csv (a row for each two methods).
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stem = stem or f"{table.metric}-{table.rule}"
    contents = {
        f"{stem}.md": to_markdown(table),
        f"{stem}.txt": to_text(table),
        f"{stem}.tex": to_latex(table, f"{name}-{stem}" if name else stem),
        f"{stem}.csv": to_csv(table),
        f"{stem}-runs.csv": to_runs_csv(table),
    }
    if table.published is not None:
        contents[f"{stem}-published.csv"] = table.published.to_csv(table.rule)
    if table.verdict.question == ACROSS:
        contents[f"{stem}-pairs.csv"] = to_pairs_csv(table)
    else:
        (directory / f"{stem}-pairs.csv").unlink(missing_ok=True)  # of an earlier table
    for name, content in contents.items():
        atomic_write_bytes(directory / name, text.utf8(content))
    return [directory / name for name in contents]


def _csv_row(table: Table, label: str, column: Column, cell: TableCell) -> list[Any]:
    missing = "; ".join(f"{count} {kind}" for kind, count in cell.missing.items())
    here = table.verdict.question == HERE
    return [
        column.dataset,
        text.exact(column.ratio),
        label,
        table.metric,
        table.rule,
        text.exact(cell.mean),
        text.exact(cell.std),
        cell.n,
        cell.wanted,
        missing,
        int(cell.best),
        text.exact(table.verdict.p(label, column) if here else table.comparison.p_values.get(label)),
        column.budget,
        *(["; ".join(cell.differing)] if table.mixed() else []),
        *([HERE] if here else []),
    ]

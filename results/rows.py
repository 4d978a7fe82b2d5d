"""What the rows of a table hold in every format: its columns with those beside them, cells and marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from results.columns import Column
from results.tables import Table, TableCell


def shown_columns(table: Table) -> list[tuple[Column, bool]]:
    """The columns to write: ours, each followed by that of published numbers (True) where there are some."""
    beside = table.published.columns if table.published else set()
    return [
        (column, kind) for column in table.columns for kind in (False, True) if not kind or column in beside
    ]


def row(
    table: Table,
    label: str,
    shown: Callable[[TableCell | None], str],
    quoted: Callable[[str], str],
    columns: Sequence[tuple[Column, bool]] | None = None,
) -> list[str]:
    """The cells of a row.

    Args:
        table: the table.
        label: the row.
        shown: gives the text of one of our cells in the format.
        quoted: gives the text of published numbers, and of marks, in the format.
        columns: some of `shown_columns`; default all.
    """

    def ours(column: Column) -> str:
        parts = shown(table.cells.get((label, column))), quoted(table.verdict.mark(label, column))
        return " ".join(filter(None, parts))

    return [
        quoted(table.published.cell(label, column)) if published and table.published else ours(column)
        for column, published in (shown_columns(table) if columns is None else columns)
    ]


def dagger(table: Table, label: str) -> str:
    """The mark of a method that cannot be told from the best of the table, or ""."""
    mark = table.verdict.mark(label)
    return f" {mark}" if mark else ""

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
        quoted: gives the text of published numbers in the format.
        columns: some of `shown_columns`; default all.
    """
    return [
        quoted(table.published.cell(label, column))
        if published and table.published
        else shown(table.cells.get((label, column)))
        for column, published in (shown_columns(table) if columns is None else columns)
    ]


def dagger(table: Table, label: str) -> str:
    """The mark of a method that is not significantly worse than the best, or ""."""
    return " †" if label in table.comparison.equivalent else ""

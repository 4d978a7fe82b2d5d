r"""A table in LaTeX that fits: one column, two columns, any number of datasets.

What is too wide for the line where it stands is made smaller, which only LaTeX can know (`\ifdim`). So that
letters stay readable, a table that is wider than a column of a two-column page spans both (`table*`, which is
`table` elsewhere), and one that is wider than a page, or longer, goes on in a second float. Widths are
estimated from the number of letters; the sums need not be exact, because the last word is LaTeX's.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

from results import text
from results.columns import Column
from results.rows import dagger, row, shown_columns
from results.tables import Table, TableCell

LETTER = 5.2
"""Mean width of a letter in the body of a table, points: Computer Modern at 10 pt."""
SEPARATION = 12.0
"""Space between two columns, points: twice `\\tabcolsep`."""
NARROW, COLUMN = 200.0, 250.0
"""Widths of a column of a two-column page, points: of `article`, and of most journals. The wider decides what
stays in a column, the narrower how long notes become there."""
PAGE = 480.0
"""Width of one float, points: at 345, the narrowest page of `article`, letters have 7 points."""
LINE, NOTE_LINE, NOTE_LETTER = 12.0, 9.5, 4.3
"""Height of a row and of a line of notes, and width of a letter in the notes, points."""
HEIGHT, TEXT = 470.0, 345.0
"""Height that rows and notes may have in one float, points: pages of `article` have 550, less caption and
head; and the width of its lines."""

CAPTION = 240
"""Characters of a verdict that stand in the caption, too."""

_Shown = tuple[Column, bool]


def to_latex(table: Table, label: str = "") -> str:
    r"""One or more `table` environments; they need `booktabs` and `graphicx`.

    Args:
        table: the table.
        label: what follows ``tab:`` in `\label`; default "<metric>-<rule>". Letters that a label cannot have
            become hyphens. Further floats of a table add -2, -3 and so on.
    """
    label = re.sub(r"[^A-Za-z0-9.:+-]+", "-", label or f"{table.metric}-{table.rule}").strip("-")
    lead, verdict = _lead(table), table.verdict.lines(short=True)
    notes = [text.latex(note) for note in [*verdict[bool(lead) :], *table.notes("Bold")]]
    parts = [
        (columns, labels)
        for columns in _beside(table, shown_columns(table))
        for labels in _below(table.labels, notes)
    ]
    lines: list[str] = []
    for number, (columns, labels) in enumerate(parts, start=1):
        last = number == len(parts)
        star = "*" if _spans(table, columns, labels, notes if last else []) else ""
        of = f" (part {number} of {len(parts)})" if len(parts) > 1 else ""
        lines += [
            f"\\begin{{table{star}}}[t]",
            "\\centering",
            # Under the caption the standard classes leave no space, for they set it below what it names.
            "\\setlength{\\abovecaptionskip}{0pt}\\setlength{\\belowcaptionskip}{6pt}",
            f"\\caption{{{text.latex(table.title())}; selection rule: {table.rule}{of}.{lead}}}",
            f"\\label{{tab:{label}{f'-{number}' if number > 1 else ''}}}",
            *_tabular(table, columns, labels),
            "\\ifdim\\wd0>\\linewidth\\resizebox{\\linewidth}{!}{\\usebox0}\\else\\usebox0\\fi",
            *(_footer(notes) if last else []),
            f"\\end{{table{star}}}",
        ]
    found = text.beyond_pdflatex("\n".join(lines))
    used = f"; results hash sha256:{table.results_hash}" if table.used else "; no result"
    head = [
        f"% selection rule: {table.rule}; metric: {table.metric}{used}",
        "% needs \\usepackage{booktabs} and \\usepackage{graphicx}",
    ]
    if found:
        head.append(f"% needs XeLaTeX or LuaLaTeX, and fonts that have {' '.join(found)}")
    return "\n".join([*head, *lines]) + "\n"


def _lead(table: Table) -> str:
    """Who leads, for a caption; "" where nothing was tested, or it would take several lines."""
    lead = text.latex(" ".join(table.verdict.lead)) if table.verdict.question else ""
    return f" {lead}" if lead and len(lead) <= CAPTION else ""


def _tabular(table: Table, columns: Sequence[_Shown], labels: Sequence[str]) -> list[str]:
    spans, rules, first = [], [], 2
    for dataset, group in itertools.groupby(columns, key=lambda column: column[0].dataset):
        width = len(list(group))
        spans.append(f"\\multicolumn{{{width}}}{{c}}{{{text.latex(dataset)}}}")
        rules.append(f"\\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    ratios_row = [
        "published" if published else text.latex(column.share).replace(" ", r"\,")
        for column, published in columns
    ]
    return [
        f"\\sbox0{{\\begin{{tabular}}{{l{'r' * len(columns)}}}",
        "\\toprule",
        " & ".join(["", *spans]).strip() + " \\\\",
        " ".join(rules),
        " & ".join(["method", *ratios_row]) + " \\\\",
        "\\midrule",
        *(
            " & ".join(
                [text.latex(name + dagger(table, name)), *row(table, name, _cell, text.latex, columns)]
            )
            + " \\\\"
            for name in labels
        ),
        "\\bottomrule",
        "\\end{tabular}}",
    ]


def _cell(cell: TableCell | None) -> str:
    if cell is None:
        return "n/a"
    number = text.latex(cell.number())
    if cell.best:
        # \textbf does not reach into mathematics, so the ± stays between two bold numbers.
        number = number.replace(" $\\pm$ ", "} $\\pm$ \\textbf{")
        number = f"\\textbf{{{number}}}"
    remark = f"{{\\scriptsize {text.latex(cell.remark())}}}" if cell.remark() else ""
    return " ".join(filter(None, [number, remark]))


def _footer(notes: Sequence[str]) -> list[str]:
    return [
        "\\par\\smallskip",
        # Ragged: in a narrow column a long name would else stand over the edge.
        "\\begin{minipage}{\\linewidth}\\footnotesize\\raggedright",
        "\n".join(notes),
        "\\end{minipage}",
    ]


def _width(table: Table, column: _Shown, labels: Sequence[str]) -> float:
    """Estimated width of a column, points."""
    cells = (row(table, name, _plain, str, [column])[0] for name in labels)
    head = "published" if column[1] else column[0].share
    return LETTER * max(map(len, [head, *cells])) + SEPARATION


def _plain(cell: TableCell | None) -> str:
    return "n/a" if cell is None else f"{cell.number()} {cell.remark()}".rstrip()


def _names_width(table: Table, labels: Sequence[str]) -> float:
    return LETTER * max(len(name + dagger(table, name)) for name in labels)


def _beside(table: Table, columns: Sequence[_Shown]) -> list[list[_Shown]]:
    """Columns by float: as many as fit beside the names, a dataset together if one float holds it."""
    names = _names_width(table, table.labels)
    # A published number stays beside ours.
    units = [list(group) for _, group in itertools.groupby(columns, key=lambda shown: shown[0])]
    width = {unit[0][0]: sum(_width(table, shown, table.labels) for shown in unit) for unit in units}
    total: dict[str, float] = {}
    for column, points in width.items():
        total[column.dataset] = total.get(column.dataset, 0) + points
    parts: list[list[_Shown]] = []
    left, dataset = 0.0, ""
    for unit in units:
        column = unit[0][0]
        new = column.dataset != dataset and left < total[column.dataset] <= PAGE - names
        if not parts or new or left < width[column]:
            parts.append([])
            left = PAGE - names
        parts[-1] += unit
        left -= width[column]
        dataset = column.dataset
    return parts


def _below(labels: Sequence[str], notes: Sequence[str]) -> list[Sequence[str]]:
    """Rows by float: all, if they fit on a page above the notes, else the last part has room for these."""
    most = int(HEIGHT / LINE)
    last = max(1, int((HEIGHT - _height(notes, TEXT)) / LINE))
    if len(labels) <= last:
        return [labels]
    above = len(labels) - last
    length = math.ceil(above / math.ceil(above / most))
    parts = [labels[first : min(first + length, above)] for first in range(0, above, length)]
    return [*parts, labels[above:]]


def _height(notes: Sequence[str], width: float) -> float:
    """Estimated height of notes, points."""
    return len(" ".join(notes)) * NOTE_LETTER / width * NOTE_LINE


def _spans(table: Table, columns: Sequence[_Shown], labels: Sequence[str], notes: Sequence[str]) -> bool:
    """Whether a float is too wide, or too long, for a column of a two-column page."""
    wide = _names_width(table, labels) + sum(_width(table, column, labels) for column in columns)
    word = max((len(word) for note in notes for word in note.split()), default=0) * NOTE_LETTER
    return wide > COLUMN or word > NARROW or len(labels) * LINE + _height(notes, NARROW) > HEIGHT

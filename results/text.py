"""Names that users chose (labels, aliases, classes) as text of a format: one function per format.

Each function gives text that the format shows as the name was written: nothing in it is taken for markup. A
name is one line in all of them. Names of letters, digits and single signs come back as they are.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
PLAIN_ERRORS = "ssmll-plain"
"""Name of the error handler for `str.encode` that writes signs such as "±" in ASCII."""

# Embedding, override and isolate controls would turn round the numbers that follow the name.
_DIRECTIONS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], REPLACEMENT)
_BREAKS = dict.fromkeys(map(ord, "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"), " ")
_ISOLATE, _END_ISOLATE = "\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"
_ASCII = {
    "±": "+-",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "†": "+",
    "‡": "++",
    "·": ".",
    "…": "...",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
    "≈": "~",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "\N{NO-BREAK SPACE}": " ",
}
_GREEK = {
    chr(code): f"$\\{name}$"
    for first, names in (
        ("α", "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi"),
        ("π", "pi rho varsigma sigma tau upsilon varphi chi psi omega"),
    )
    for code, name in enumerate(names.split(), start=ord(first))
}
_LATEX = {
    **_GREEK,
    **{letter: f"$\\{unicodedata.name(letter).split()[-1].capitalize()}$" for letter in "ΓΔΘΞΠΣΦΨΩ"},
    "Λ": r"$\Lambda$",  # "LAMDA" to Unicode
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    # After the \\ that ends a row, these two would be its arguments.
    "[": "{[}",
    "*": "{*}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "°": r"$^\circ$",
    "µ": r"$\mu$",
    "\N{NO-BREAK SPACE}": "~",
}
_MARKDOWN = re.compile(
    r"""[\\|*`\[\]$~]          # markup wherever they stand; $ opens a formula on GitHub
    | (?<![^\W_])_ | _(?![^\W_])  # emphasis begins or ends at the edge of a word only
    | <(?=[A-Za-z/!?])         # a tag; "p < 0.05" is none
    | &(?=\#?\w+;)             # an entity; "R&B" is none
    """,
    re.VERBOSE,
)


def one_line(text: str) -> str:
    """Text without line breaks, control characters and lone surrogates.

    Breaks and tabs become blanks, everything else that has no shape the replacement character.
    """
    text = text.replace("\r\n", "\n").translate(_BREAKS).translate(_DIRECTIONS)
    return "".join(REPLACEMENT if unicodedata.category(sign) in ("Cc", "Cs") else sign for sign in text)


def terminal(text: str) -> str:
    """A name in plain text; one written from right to left leaves the order of its line alone."""
    text = one_line(text)
    if any(unicodedata.bidirectional(sign) in ("R", "AL", "AN") for sign in text):
        return f"{_ISOLATE}{text}{_END_ISOLATE}"
    return text


def markdown(text: str) -> str:
    """A name, or a sentence with names, in GitHub Markdown: in a cell of a table or in a list."""
    return _MARKDOWN.sub(lambda found: "\\" + found[0], terminal(text))


def latex(text: str) -> str:
    """Text that LaTeX prints as it is, Greek letters and signs such as ± included.

    Letters that pdfLaTeX cannot set stay as they are; see `beyond_pdflatex`.
    """
    letters = "".join(_LATEX.get(letter, letter) for letter in re.sub("-(?=-)", "-\0", one_line(text)))
    return letters.replace("\0", "{}")  # two hyphens are not a dash


def beyond_pdflatex(text: str) -> list[str]:
    """The characters of a LaTeX source that need XeLaTeX or LuaLaTeX: all but European Latin letters."""
    return sorted({letter for letter in text if ord(letter) > 0x17F})


def figure(text: str) -> str:
    """A name in a figure of Matplotlib whose setting `text.parse_math` is off.

    Matplotlib leaves labels out of legends that begin with an underscore; an invisible space precedes it.
    """
    text = one_line(text)
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


def listed(names: Sequence[str], most: int) -> str:
    """The first of some names, and how many follow.

    >>> listed(["cat", "dog", "tram"], 2)
    'cat, dog and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def exact(value: Any) -> Any:
    """A field of a CSV file: the shortest exact text of a float; "" for a value that does not exist."""
    if value is None or value != value:
        return ""
    return repr(float(value)) if isinstance(value, float) else value


def csv_of(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def utf8(text: str) -> bytes:
    """A file's bytes; lone surrogates, which UTF-8 does not have, become the replacement character."""
    return re.sub("[\ud800-\udfff]", REPLACEMENT, text).encode()


def replace_signs(*streams: object) -> None:
    """Let streams write other signs for those that their encoding lacks, instead of raising.

    Handlers that a person asked for, such as PYTHONIOENCODING=ascii:replace, are left alone.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors=PLAIN_ERRORS)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(_ASCII.get(letter, "?") for letter in found), error.end


codecs.register_error(PLAIN_ERRORS, _plain)

"""Names with signs that formats read as their own: in every format, and in whole tables."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest

from results import text
from results.frames import collect
from results.tables import table
from results.writers import to_csv, to_latex, to_markdown, to_text, write_tables

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "R&B",
    "50%",
    "a_b",
    "_lead_",
    "#1",
    "Ba$$in",
    "$x$",
    r"back\slash",
    r"\frac{",
    "x|y",
    "<b>",
    "&lt;",
    "two\nlines",
    "tab\tand\r\nbreak",
    "tau ≥ .5",
    "😀 smile",
    "שלום",
    "\u202egnorw",
    "bytes \udce9",
    "[1] *star* `code`",
    "\x1b[31mred",
]


def test_a_name_is_one_line_without_controls_in_every_format() -> None:
    for name in NAMES:
        for function in (text.one_line, text.terminal, text.markdown, text.latex, text.figure):
            shown = function(name)
            assert len(shown.splitlines()) == 1, (function, name)
            assert not re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e]", shown), (function, name)
            shown.encode()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("linear_probe", "linear_probe"),
        ("CSAA (ours), λ_u = 0.5, p < 0.05 & co ± 1", "CSAA (ours), λ_u = 0.5, p < 0.05 & co ± 1"),
        ("_a_", r"\_a\_"),
        ("a_ b", r"a\_ b"),
        ("x|y", r"x\|y"),
        ("Ba$$in", r"Ba\$\$in"),
        (r"\|", r"\\\|"),
        ("<b>", r"\<b>"),
        ("&lt; &#60; R&B", r"\&lt; \&#60; R&B"),
        ("two\nlines\r\n<br>", r"two lines \<br>"),
        ("[a](b) `c` ~~d~~", r"\[a\](b) \`c\` \~\~d\~\~"),
        ("שלום", "\u2068שלום\u2069"),
    ],
)
def test_markdown(name: str, shown: str) -> None:
    assert text.markdown(name) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (r"a\b_{c}~^", r"a\textbackslash{}b\_\{c\}\textasciitilde{}\textasciicircum{}"),
        ("R&B 50% #1", r"R\&B 50\% \#1"),
        ("Ba$$in", r"Ba\$\$in"),
        ("x|y <b>", r"x\textbar{}y \textless{}b\textgreater{}"),
        ("tau ≥ .5", r"tau $\geq$ .5"),
        ("Λπσς", r"$\Lambda$$\pi$$\sigma$$\varsigma$"),
        ("[1] *", "{[}1] {*}"),
        ("a--b---c", "a-{}-b-{}-{}-c"),
        ("a\nb\tc", "a b c"),
        ("café", "café"),
    ],
)
def test_latex(name: str, shown: str) -> None:
    assert text.latex(name) == shown
    assert text.beyond_pdflatex(shown) == []


def test_whole_tables_keep_their_shape(fake: Any, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        fake.add(name, 50.0 + number, dataset="R&B|$a$\n<i>", method=f"m{number}")
    made = table(collect(fake.store, fake.wanted), "last")
    rows = [line for line in to_markdown(made).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(NAMES)
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows} == {3}
    assert rows[0] == r"| method | R&B\|\$a\$ \<i> 5 % |"
    body = to_latex(made).split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    assert len(body) == len(NAMES)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in body} == {1}
    assert "needs XeLaTeX or LuaLaTeX, and fonts that have" in to_latex(made)
    plain = to_text(made).splitlines()
    start = plain.index("") + 1  # below the verdict
    assert plain.index("", start) - start == 3 + len(NAMES)  # two lines of head and a rule
    cells = list(csv.DictReader(io.StringIO(to_csv(made), newline="")))
    assert [cell["label"] for cell in cells] == NAMES
    for path in write_tables(made, tmp_path):
        path.read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in ROOT.glob("results/*/mAP-last.md")))
def test_committed_tables_have_the_bytes_they_would_get(folder: str) -> None:
    place = ROOT / "results" / folder
    source, latex = (place / "mAP-last.md").read_text(), (place / "mAP-last.tex").read_text()
    for cell in csv.DictReader((place / "mAP-last.csv").open(encoding="utf-8")):
        assert f"\n| {text.markdown(cell['label'])}" in source
        assert f"| {text.markdown(cell['dataset'])} " in source
        assert f"\n{text.latex(cell['label'])}" in latex
        assert f"{{c}}{{{text.latex(cell['dataset'])}}}" in latex
    notes = [line.removeprefix("- ") for line in source.splitlines() if line.startswith("- ")]
    assert notes
    # What stands below the table; the verdict above it is shortened for paper.
    below = source[source.rindex("\n| ") :].splitlines()
    for note in notes:
        assert text.markdown(note) == note
    for note in (line.removeprefix("- ") for line in below if line.startswith("- ")):
        assert text.latex(note) in latex
    assert text.beyond_pdflatex(latex) == []


def test_a_stream_without_a_sign_prints_another() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    text.replace_signs(stream, None)
    print("tau ≥ .5 猫", end="", file=stream, flush=True)
    assert raw.getvalue() == b"tau >= .5 ?"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "61.9 +- 0.1 +, R ? >= ? caf?"),
        ("latin-1", "61.9 ± 0.1 +, R ? >= ? café"),
        ("utf-8", "61.9 ± 0.1 †, R 😀 ≥ ? café"),
    ],
)
def test_encodings_without_a_sign_get_another(encoding: str, shown: str) -> None:
    line = "61.9 ± 0.1 †, R 😀 ≥ \udce9 café"
    assert line.encode(encoding, text.PLAIN_ERRORS).decode(encoding) == shown

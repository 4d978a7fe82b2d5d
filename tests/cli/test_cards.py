"""`list NAME`: the card of a method says what its file, its fields and the committed tables say."""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import pytest

import methods
from benchmarks.cli import cards
from benchmarks.run import main
from benchmarks.workspace import REPOSITORY
from methods.references import cited, references
from tests.results.conftest import FakeRuns


@dataclass(frozen=True)
class Base:
    """Shared.

    Attributes:
        rate: of the base,
            on two lines.
        kind: overridden below.
    """

    rate: float = field(default=1e-3, metadata={"low": 1e-5, "high": 0.1, "scale": "log"})
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Hyper(Base):
    """Own.

    Attributes:
        kind: of the subclass.
        share: up to one.

    Class attributes:
        later: no field.
    """

    share: float = field(default=0.5, metadata={"low": 0, "high": 1})
    needed: int = field(default_factory=lambda: 3)
    on: bool = False


def test_fields_are_told_with_their_meaning_default_and_range():
    assert cards.attributes(Hyper) == {
        "rate": "of the base, on two lines.",
        "kind": "of the subclass.",
        "share": "up to one.",
    }
    rows = {line.split()[0]: line for line in cards.hyper_parameters(Hyper).splitlines()[2:]}
    assert "0.001" in rows["rate"]
    assert "1e-05 to 0.1, log" in rows["rate"]
    assert "a, b" in rows["kind"]
    assert "0 to 1" in rows["share"]
    assert "True, False" in rows["on"]
    assert rows["needed"].split()[1] == "3"


@pytest.mark.parametrize("name", methods.available())
def test_every_method_has_a_whole_card(name, capsys):
    assert main(["list", name]) == 0
    text = capsys.readouterr().out
    method = methods.get(name)
    for parameter in dataclasses.fields(method.Hyper):
        assert f"\n{parameter.name} " in text
        assert cards.attributes(method.Hyper).get(parameter.name), f"{parameter.name} is not described"
    assert "@" in text.partition("Ours on GlyphScenes")[2], "no reference"
    assert f"{name} (version {method.version}): " in text
    assert "\nGolden test: " in text


def test_the_numbers_are_those_of_the_committed_table(capsys):
    with (REPOSITORY / "results" / "field" / "mAP-last.csv").open() as file:
        (row,) = [r for r in csv.DictReader(file) if r["label"] == "csaa" and r["ratio"] == "0.05"]
    main(["list", "csaa"])
    text = capsys.readouterr().out
    assert f"5 %: {float(row['mean']):.1f} ± {float(row['std']):.1f}" in text
    assert "python benchmarks/run.py --grid" in text


def test_a_wrong_name_is_told_the_nearest(capsys):
    assert main(["list", "fixmach"]) == 2
    assert "did you mean 'fixmatch'" in capsys.readouterr().err
    assert main(["list", "*match"]) == 0
    assert "fixmatch" in capsys.readouterr().out


def test_references_are_found_by_what_they_are_of(tmp_path):
    assert len({entry.key for entry in references()}) == len(references()) > 20
    for entry in references():
        assert entry.text.startswith("@")
        assert entry.text.endswith("\n}")
        assert "keywords" not in entry.text
        assert entry.text.count("{") == entry.text.count("}")
    entries, without = cited(["method:fixmatch", "dataset:coco2014", "method:mine", "backbone:glyphclip"])
    assert {"sohn2020fixmatch", "lin2014coco"} <= {entry.key for entry in entries}
    assert without == ["method:mine", "backbone:glyphclip"]
    broken = tmp_path / "broken.bib"
    broken.write_text("% head\n@article{a,\n  title = {A},\n  keywords = {method:a},\n}\n\n@article{b,\n")
    with pytest.raises(methods.errors.UserError, match="2 entries begin and 1 are closed"):
        references(broken)
    broken.write_text("% head\n@article{a,\n  title = {A},\n}\n")
    with pytest.raises(methods.errors.UserError, match="a: keywords must list"):
        references(broken)


def test_a_table_brings_the_references_of_what_it_shows(tmp_path, capsys):
    runs = FakeRuns(tmp_path / "runs" / "store")
    runs.add("CSAA", 60.0, method="csaa", dataset="voc2007")
    runs.add("mine", 50.0, method="mine", dataset="voc2007")
    runs.add("DualCoOp", None, method="dualcoop", dataset="voc2007", state="not started")
    places = ["--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "data"), "--out", str(tmp_path)]
    assert main(["tables", "--bib", *places]) == 0
    assert "no reference is known for method:mine: cite them yourself" in capsys.readouterr().out
    text = (tmp_path / "references.bib").read_text()
    assert "% method:csaa: fan2025csaa" in text
    assert "{everingham2010voc," in text
    assert "sun2022dualcoop" not in text  # it has no result, so no table shows it

"""What changed between two written tables, against changes that were made by hand."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.run import main
from results.differences import between, to_text
from results.errors import StoreError
from results.frames import collect
from results.tables import table
from results.writers import write_tables
from tests.conftest import ROOT


@pytest.fixture
def written(fake: Any, tmp_path: Path) -> Path:
    """A folder with a table of six cells: two methods, three columns, a missing run."""
    for method in ("fixmatch", "CSAA, new"):
        fake.add(method, 60.0)
        fake.add(method, 62.0, seed=2)
        fake.add(method, 70.0, ratio=0.2)
    fake.add("fixmatch", 55.0, dataset="voc2012")
    fake.add("CSAA, new", None, dataset="voc2012", state="failed")
    write_tables(table(collect(fake.store, fake.wanted), "last"), tmp_path / "old")
    return tmp_path / "old"


def edited(folder: Path, name: str = "new", **cells: Any) -> Path:
    """A copy whose first data line with `label` and `ratio` has other fields."""
    copy = folder.with_name(name)
    shutil.copytree(folder, copy)
    path = copy / "mAP-last.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    label, ratio = cells.pop("label", None), cells.pop("ratio", None)
    for row in rows:
        if (row["label"], row["ratio"]) == (label, ratio):
            row |= cells
            break
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return copy


def test_nothing_changed(written):
    new = edited(written)
    assert between(written, new) == ([], 6, [])
    assert to_text([], 6, []) == "0 cells changed, 0 added, 0 gone, 6 unchanged."


def test_a_mean_that_moved(written):
    new = edited(written, label="CSAA, new", ratio="0.05", mean="63.5")
    (change,), same, remarks = between(written, new)
    assert (same, remarks) == (5, [])
    assert change.place[2:] == ("GlyphScenes", 0.05, "", "CSAA, new")
    assert change.points == pytest.approx(2.5)
    text = to_text([change], same, remarks)
    assert "61.00 ± 1.41 (2/2)" in text
    assert "63.50 ± 1.41 (2/2)" in text
    assert "+2.50" in text
    assert "Largest change of a mean: +2.50 points, CSAA, new on GlyphScenes 5 % (mAP, last)." in text


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"mean": "61.00000000001"}, None),  # another order of a sum
        ({"mean": "61.0001"}, "+1e-04"),
        ({"mean": ""}, "– (2/2)"),
        ({"std": "1.5"}, "61.00 ± 1.50 (2/2)"),
        ({"n": "1", "missing": "1 failed"}, "61.00 ± 1.41 (1/2; 1 failed)"),
        ({"wanted": "3"}, "(2/3)"),
        ({"best": "1", "p_adjusted": "0.5"}, None),  # follow from the others
    ],
)
def test_each_field(written, cells, expected):
    found, same, remarks = between(written, edited(written, label="fixmatch", ratio="0.05", **cells))
    assert len(found) == (expected is not None)
    assert same == 6 - len(found)
    assert expected is None or expected in to_text(found, same, remarks)


def test_cells_that_come_and_go(written):
    new = edited(written, label="fixmatch", ratio="0.2", dataset="coco2014")
    found, same, remarks = between(written, new)
    assert [(each.place.dataset, each.old is None, each.new is None) for each in found] == [
        ("GlyphScenes", False, True),
        ("coco2014", True, False),
    ]
    assert "0 cells changed, 1 added, 1 gone, 5 unchanged." in to_text(found, same, remarks)


def test_files_that_only_one_folder_has(written):
    new = edited(written)
    (new / "mAP-oracle.csv").write_text((new / "mAP-last.csv").read_text())
    assert between(written, new)[2] == [f"only in {new}: mAP-oracle.csv"]
    assert between(written / "mAP-last.csv", new / "mAP-oracle.csv") == ([], 6, [])


def test_a_table_without_the_column_budget_of_an_earlier_version(written):
    new = edited(written)
    path = new / "mAP-last.csv"
    with path.open(newline="") as file:
        rows = [row[:-1] for row in csv.reader(file)]
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    assert "budget" not in path.read_text()
    assert between(written, new) == ([], 6, [])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("61.0", "61.O"), "mean is '61.O', which is no number"),
        (lambda text: text.replace("61.0", "nan"), "mean is 'nan', which is no number"),
        (lambda text: text[: text.rindex(",", 0, -3)], "fields instead of"),
        (lambda text: text + text.splitlines()[1] + "\n", "a second line for fixmatch on GlyphScenes 5 %"),
        (lambda text: text.replace("wanted,", "", 1), "no table of cells, it has no column wanted"),
        (lambda text: text.replace("mean,", "", 1), "no table of cells, it has no column mean"),
        (lambda text: "", "no table of cells"),
    ],
)
def test_a_damaged_table_is_one_line(written, damage, message):
    new = edited(written)
    path = new / "mAP-last.csv"
    path.write_text(damage(path.read_text()))
    for pair in ((written, new), (path, written / "mAP-last.csv")):
        with pytest.raises(StoreError) as caught:
            between(*pair)
        assert message in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_is_no_table(written, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="empty: no table"):
        between(written, tmp_path / "empty")
    with pytest.raises(StoreError, match="gone: there is no such folder or file"):
        between(written, tmp_path / "gone")
    with pytest.raises(StoreError, match="one is a folder, the other a file"):
        between(written, written / "mAP-last.csv")
    with pytest.raises(StoreError, match="no table of cells, it has no column mean"):
        between(written / "mAP-last-runs.csv", written / "mAP-last-runs.csv")
    other = edited(written, "other")
    (other / "mAP-last.csv").rename(other / "mAP-val.csv")
    with pytest.raises(
        StoreError, match=r"no table of the same name: mAP-last.csv; did you mean 'mAP-val.csv'"
    ):
        between(written, other)


def test_the_command(written, capsys):
    new = edited(written, label="fixmatch", ratio="0.05", mean="58")
    assert main(["tables", "--diff", str(written), str(new)]) == 0
    out = capsys.readouterr().out
    assert "-3.00" in out
    assert "1 cell changed, 0 added, 0 gone, 5 unchanged." in out
    assert main(["tables", "--diff", str(written), str(written / "absent")]) == 2
    assert "no such folder or file" in capsys.readouterr().err
    for extra in (["--bib"], ["--rule", "val"], ["--grid", "demo"], ["--out", "x"]):
        assert main(["tables", "--diff", str(written), str(new), *extra]) == 2
        assert f"leave {extra[0]} out" in capsys.readouterr().err


def test_the_committed_tables_are_tables():
    for folder in ("embedded", "ablation", "ceiling", "photos"):
        found, same, remarks = between(ROOT / "results" / folder, ROOT / "results" / folder)
        assert (found, remarks) == ([], [])
        assert same >= 1

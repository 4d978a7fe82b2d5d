"""The verb `published`, `tables --published` and the published numbers of a card."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cli import cards
from benchmarks.run import main
from results.published import FIELDS, FOLDER
from tests.conftest import ROOT
from tests.results.conftest import FakeRuns


def listed(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, str]]:
    assert main(["published", "--csv", *argv]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def lines() -> list[dict[str, str]]:
    found = []
    for path in sorted(FOLDER.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            found += list(csv.DictReader(file))
    return found


def test_csv_gives_the_files_back(capsys):
    found = listed(capsys)
    assert list(found[0]) == list(FIELDS)
    for mine, theirs in zip(found, lines(), strict=True):
        assert {k: v for k, v in mine.items() if k not in ("ratio", "value", "std")} == {
            k: v for k, v in theirs.items() if k not in ("ratio", "value", "std")
        }
        assert float(mine["value"]) == float(theirs["value"])


@pytest.mark.parametrize(
    ("argv", "keep"),
    [
        (["--method", "cap"], lambda row: row["method"] == "CAP"),
        (["--method", "CAP*"], lambda row: row["method"].startswith("CAP")),
        (["--method", "cap", "abl"], lambda row: row["method"] in ("CAP", "ABL")),
        (["--method", "mean_teacher"], lambda row: row["method"].startswith("MeanTeacher")),
        (
            ["--method", "supervised"],
            lambda row: (
                row["method"]
                in ("Supervised", "Supervised (UPS paper)", "ASL", "BCE", "CAP-warmup(ASL labelled only)")
            ),
        ),
        (["--dataset", "COCO2014"], lambda row: row["dataset"] == "coco2014"),
        (["--ratio", "0.05"], lambda row: row["ratio"] == "0.05"),
        (["--ratio", "1000 images"], lambda row: row["n_labelled"] == "1000"),
        (["--setting", "ssmll"], lambda row: row["setting"] == "SSMLL"),
        (["--setting", "SSMLL+OOD*"], lambda row: row["setting"].startswith("SSMLL+OOD")),
        (["--backbone", "clip rn101"], lambda row: row["backbone"] == "CLIP RN101"),
        (["--metric", "OOD AUROC"], lambda row: row["metric"] == "OOD AUROC"),
        (
            ["--dataset", "voc2012", "--ratio", "0.05", "0.1", "--setting", "SSMLL"],
            lambda row: (
                (row["dataset"], row["setting"]) == ("voc2012", "SSMLL") and row["ratio"] in ("0.05", "0.1")
            ),
        ),
    ],
)
def test_filters(capsys, argv, keep):
    expected = [(row["method"], row["value"], row["source"]) for row in lines() if keep(row)]
    assert expected
    found = listed(capsys, *argv)
    assert [(row["method"], float(row["value"]), row["source"]) for row in found] == [
        (method, float(value), source) for method, value, source in expected
    ]


def test_the_list_says_source_selection_and_doubt(capsys):
    assert main(["published", "--method", "CAP", "--dataset", "coco2014", "--setting", "SSMLL"]) == 0
    out = capsys.readouterr().out
    assert (
        "xiemk/SSMLL-CAP README.md @b7dd807 training-log table (primary; selection: best epoch on test, max"
        in out
    )
    assert "65.22?" in out
    assert "doubted: the same group prints 67.48 elsewhere" in out
    assert "(secondary; selection: official code selects on test; seeds: not stated)" in out
    assert out.rstrip().endswith("13 numbers.")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--method", "fremmatch"],
            "--method: no published number of 'fremmatch'; did you mean 'freematch'?",
        ),
        (["--dataset", "coco14"], "--dataset: no published number of 'coco14'; did you mean 'coco2014'?"),
        (["--setting", "SSMLLL"], "did you mean 'SSMLL'?"),
        (["--metric", "map50"], "did you mean 'mAP'?"),
        (["--ratio", "0.06"], "no published number has all of --ratio 0.06"),
        (["--method", "CAP", "--dataset", "cub"], "has all of --method CAP, --dataset cub"),
        (["--ratio", "4 per class"], "--ratio 4 per class: the sources have shares and numbers of images"),
        (["--metod", "CAP"], "--metod"),
    ],
)
def test_wrong_options(capsys, argv, message):
    assert main(["published", *argv]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert message in found.err
    assert found.err.count("\n") == 1


def test_a_damaged_file(capsys, monkeypatch, tmp_path):
    (tmp_path / "x.csv").write_text(",".join(FIELDS) + "\nCAP,1\n")
    monkeypatch.setattr("results.published.read.__defaults__", (tmp_path,))
    assert main(["published"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/x.csv, line 2: 2 fields instead of 16")


def test_a_reader_that_leaves():
    words = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "published"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_tables_published(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fake = FakeRuns(Path("runs/store"))
    fake.add("cap", 61.5, dataset="coco2014")  # a result that does not say its backbone
    fake.add("csaa", 70.0, dataset="coco2014")
    assert main(["tables", "--published", "--rule", "oracle", "--out", "out"]) == 0
    out = capsys.readouterr().out
    assert "5 % published" in out
    assert "backbone RN50-ImageNet, ours not recorded" in out
    assert "mAP-oracle-published.csv" in out
    rows = list(csv.DictReader(io.StringIO(Path("out/mAP-oracle-published.csv").read_text())))
    assert {row["verdict"] for row in rows} == {"not comparable"}
    assert main(["tables", "--rule", "oracle", "--out", "plain"]) == 0
    assert "published" not in capsys.readouterr().out
    assert main(["tables", "--published", "--superseded"]) == 2
    assert "leave out one of the two" in capsys.readouterr().err


def test_cards():
    cap = cards.published("cap")
    assert "5 %: 62.43; 10 %: 65.22?; 15 %: 69.11; 20 %: 70.41  (coco2014, mAP, CAP, RN50-ImageNet" in cap
    polluted = sum(row["method"] == "CAP" and row["setting"].startswith("SSMLL+OOD") for row in lines())
    assert f"{polluted} more are of other settings" in cap
    assert "56.3  (coco2014, mAP, DualCoOp, CLIP RN101, 224 px, 1% labelled only" in cards.published(
        "dualcoop"
    )
    assert (
        cards.published("csaa") == "Published: no number is known (`published` lists those of other methods)."
    )

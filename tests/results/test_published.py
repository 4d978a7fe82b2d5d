"""The committed published numbers, read by `csv` alone and by eye, and files that are damaged."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from results.errors import StoreError
from results.published import FIELDS, FOLDER, read, read_file

LINE = {
    "method": "CAP",
    "backbone": "RN50-ImageNet",
    "resolution": "224",
    "dataset": "coco2014",
    "setting": "SSMLL",
    "ratio": "0.05",
    "n_labelled": "4104",
    "metric": "mAP",
    "value": "62.43",
    "std": "",
    "selection_rule": "last epoch",
    "seeds": "1",
    "evidence": "primary",
    "source": "somewhere",
    "note": "",
    "doubt": "",
}


def lines() -> list[dict[str, str]]:
    found = []
    for path in sorted(FOLDER.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            found += list(csv.DictReader(file))
    return found


def write(path: Path, *changes: dict[str, Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**LINE, **change} for change in changes)
    return path


def test_every_line_is_read_as_it_stands() -> None:
    plain, numbers = lines(), read()
    assert len(plain) == len(numbers) == 489
    for row, number in zip(plain, numbers, strict=True):
        assert [row["method"], row["setting"], row["source"], row["doubt"]] == [
            number.method,
            number.setting,
            number.source,
            number.doubt,
        ]
        assert float(row["value"]) == number.value
        assert (row["ratio"] and float(row["ratio"])) == ("" if number.ratio is None else number.ratio)
    # Counted in the collection that the files come from.
    assert Counter(row["dataset"] for row in plain) == {
        "coco2014": 221,
        "nuswide": 158,
        "voc2012": 56,
        "voc2007": 14,
        "cxr-lt-2024-task-1": 14,
        "awa": 7,
        "cub": 7,
        "coco2014+nuswide": 6,
        "cxr-lt-2024-task-2-gold": 4,
        "chexpert": 2,
    }
    assert Counter(row["evidence"] for row in plain) == {"primary": 405, "secondary": 84}
    assert sum(row["setting"].startswith("SSMLL+OOD") for row in plain) == 311


def values(method: str, dataset: str, source: str, metric: str = "mAP") -> list[str]:
    return [
        row["value"]
        for row in lines()
        if (row["method"], row["dataset"], row["metric"]) == (method, dataset, metric)
        and source in row["source"]
    ]


def test_rows_of_the_papers_by_eye() -> None:
    # CAP's README at b7dd807; Tables 1, 2, 5 and 6 of the ABL paper, read in its PDF; DiCaP's in a note.
    assert values("CAP-warmup(ASL labelled only)", "coco2014", "CAP") == ["58.3", "63.54", "66.18", "67.61"]
    assert values("CAP", "coco2014", "SSMLL-CAP") == ["62.43", "65.22", "69.11", "70.41"]
    assert values("ABL", "coco2014", "Table 6") == [
        "55.64",
        "60.83",
        "63.1",
        "65.68",
        "68.59",
        "70.08",
        "71.05",
    ]
    assert values("CAP", "nuswide", "Table 6")[:3] == ["11.93", "29.52", "37.96"]
    assert values("FreeMatch", "coco2014", "Table 1")[3:] == ["60.56", "63.97", "65.71", "67.0"]
    assert values("ADSH", "voc2012", "Table 2") == ["75.01", "81.03", "82.42", "83.15"]
    assert values("CAP+JE", "voc2012", "Table 5", "OOD AUROC")[0] == "51.61"
    assert values("D2L", "coco2014", "main table") == ["69.3", "73.06"]
    assert values("DualCoOp", "coco2014", "Xie") == ["56.3", "55.1"]
    assert values("SCPNet", "cub", "SCPNet") == ["25.7"]


def test_what_is_doubted() -> None:
    doubted = {(each.method, each.dataset, each.value) for each in read() if each.doubt}
    assert ("CAP", "coco2014", 65.22) in doubted
    assert {("CAP", "nuswide", value) for value in (11.93, 29.52, 37.96)} <= doubted
    assert ("BBAM", "nuswide", 33.15) in doubted
    assert ("CAP", "coco2014", 62.43) not in doubted


def test_a_better_share_never_scores_lower() -> None:
    """Within a table of a source, mAP rises with the labelled share: a slip of a line would break it."""
    key = lambda each: (each.source, each.method, each.dataset, each.setting, each.backbone)  # noqa: E731
    rows = sorted(
        (each for each in read() if each.metric == "mAP" and each.ratio and each.setting.startswith("SSMLL")),
        key=lambda each: (*key(each), each.ratio),
    )
    groups = [list(group) for _, group in itertools.groupby(rows, key=key)]
    assert sum(len(group) > 2 for group in groups) >= 25
    for group in groups:
        shares = [each.value for each in group if not each.dataset.startswith("cxr")]
        assert shares == sorted(shares), group


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "624.3"}, "line 2: value is 624.3; it must lie between 0 and 100"),
        ({"value": "nan"}, "line 2: value is nan; it must lie between 0 and 100"),
        ({"value": "0"}, "line 2: value is 0, which no source prints"),
        ({"value": "62,43"}, "line 2: value is '62,43', which is no number"),
        ({"value": ""}, "line 2: value is empty"),
        ({"source": ""}, "line 2: source is empty"),
        ({"dataset": "coco2015"}, "dataset 'coco2015' is unknown; did you mean 'coco2014'"),
        ({"setting": "SSML"}, "setting 'SSML' is unknown; did you mean 'SSMLL'"),
        ({"evidence": "tertiary"}, "evidence 'tertiary' is unknown"),
        ({"selection_rule": "last epochs"}, "did you mean 'last epoch'"),
        ({"ratio": "5"}, "ratio is 5; it must lie between 0 and 1"),
        ({"n_labelled": "4105"}, "n_labelled is 4105, but 0.05 of the 82081 training images"),
        ({"n_labelled": "4104.0"}, "n_labelled is '4104.0', which is no whole number"),
        ({"resolution": "big"}, "resolution is 'big', which is no whole number"),
    ],
)
def test_a_wrong_field_is_one_line(tmp_path, change, message) -> None:
    path = write(tmp_path / "x.csv", change)
    with pytest.raises(StoreError) as caught:
        read(tmp_path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1: the file is empty"),
        (b"\xff\xfe\x00", "no UTF-8 text at byte 0"),
        (b"method,value\n", "line 1: no column backbone"),
        ((",".join(FIELDS) + ",more\n").encode(), "line 1: unknown column more"),
        ((",".join(FIELDS[::-1]) + "\n").encode(), "in another order"),
        ((",".join(FIELDS) + "\nCAP,1\n").encode(), "line 2: 2 fields instead of 16"),
        ((",".join(FIELDS) + '\n"CAP').encode(), "no CSV"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, data, message) -> None:
    (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises(StoreError) as caught:
        read_file(tmp_path / "x.csv")
    assert message in str(caught.value)
    assert str(tmp_path / "x.csv") in str(caught.value)


def test_numbers_that_contradict_each_other_in_one_source(tmp_path) -> None:
    write(tmp_path / "a.csv", {}, {"source": "elsewhere", "value": "65"})
    assert [each.value for each in read(tmp_path)] == [62.43, 65.0]
    write(tmp_path / "b.csv", {"value": "62.5"})
    with pytest.raises(
        StoreError, match=r"b.csv, line 2: somewhere has 62.5 for what has 62.43 in .*a.csv, line 2"
    ):
        read(tmp_path)


def test_no_file(tmp_path) -> None:
    with pytest.raises(StoreError, match="no CSV file of published numbers"):
        read(tmp_path)
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(StoreError, match=r"x\.csv"):
        read(tmp_path)

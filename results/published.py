"""Numbers that papers and their authors' repositories print: reading and checking them.

They lie in `results/published/*.csv`, whose README says what the columns mean. `results.reproduced` holds
them beside ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from results.damage import read_csv
from results.errors import StoreError, nearest

FOLDER = Path(__file__).with_name("published")
FIELDS = (
    "method",
    "backbone",
    "resolution",
    "dataset",
    "setting",
    "ratio",
    "n_labelled",
    "metric",
    "value",
    "std",
    "selection_rule",
    "seeds",
    "evidence",
    "source",
    "note",
    "doubt",
)
"""The columns of a file, in order."""
REQUIRED = ("method", "dataset", "setting", "metric", "value", "evidence", "source")

PLAIN = "SSMLL"
"""The setting of this harness: a labelled share, and everything else is the pool."""
POLLUTED = "SSMLL+OOD pool"
"""How the settings begin whose pool has images of none of the classes."""
SETTINGS = (
    PLAIN,
    "SSMLL+OOD pool (ImageNet-21K, 20 classes)",
    "SSMLL+OOD pool, ID:OOD unlabelled = 0.5",
    "SSMLL+OOD pool, ID:OOD unlabelled = 1",
    "SSMLL+OOD pool, ID:OOD unlabelled = 2",
    "SSMLL+OOD pool, ID:OOD unlabelled = 4",
    "SSMLL medical long-tail",
    "SSL",
    "1% labelled only",
    "1% labels for co-occurrence only",
    "missing labels",
    "partial label",
    "single positive",
    "text only",
    "zero-shot",
    "zero-shot classes",
)
DATASETS: dict[str, int | None] = {
    "coco2014": 82081,
    "nuswide": 150000,
    "voc2007": 5011,
    "voc2012": 5717,
    "awa": None,
    "chexpert": None,
    "coco2014+nuswide": None,
    "cub": None,
    "cxr-lt-2024-task-1": None,
    "cxr-lt-2024-task-2-gold": None,
}
"""Training images under the published protocol; None for datasets that this harness does not have."""
METRICS: dict[str, float] = {
    "mAP": 100.0,
    "mAP-head": 100.0,
    "mAP-medium": 100.0,
    "mAP-tail": 100.0,
    "F1": 100.0,
    "F1@3": 100.0,
    "OOD AUROC": 100.0,
    "GPU memory GB": 1000.0,
    "delta AUC (points) over its baseline": 100.0,
}
"""The highest value that a metric can have (of memory: that is plausible); the lowest is above 0."""
SELECTION: dict[str, tuple[str, ...]] = {
    "": (),
    "last epoch": ("last", "model"),
    "last warm-up epoch (12)": ("last", "model"),
    "validation-selected": ("val",),
    "best epoch during training (on test)": ("oracle",),
    "best epoch on test, max(regular,EMA)": ("oracle",),
    "official code selects on test": ("oracle",),
}
"""What a source says about its choice of an epoch, and the rules of `results.schema` that are the same.

The sources do not say whether their last epoch has averaged weights, so both kinds are held beside it."""
EVIDENCE = ("primary", "secondary")


@dataclass(frozen=True)
class Number:
    """One published number.

    Attributes:
        method: its name in the source.
        backbone: such as "RN50-ImageNet", "RN50-ImageNet+ML-Decoder", "CLIP RN101"; "" where it is not known.
        resolution: side of the square images in pixels, or "original".
        dataset: a key of `DATASETS`.
        setting: one of `SETTINGS`.
        ratio: labelled share in [0, 1]; None where the source gives a number of images, or an average.
        n_labelled: labelled images; None where it is not known.
        metric: a key of `METRICS`.
        value: in percent, unless the metric says otherwise.
        std: standard deviation over seeds; None where there is none.
        selection_rule: a key of `SELECTION`, "" where it is not stated.
        seeds: how many trainings, in the source's words.
        evidence: primary or secondary.
        source: paper or repository with commit, and the table.
        note: what else is to be known.
        doubt: why it may be wrong; "" where there is no reason.
        place: file and line.
    """

    method: str
    backbone: str
    resolution: str
    dataset: str
    setting: str
    ratio: float | None
    n_labelled: int | None
    metric: str
    value: float
    std: float | None
    selection_rule: str
    seeds: str
    evidence: str
    source: str
    note: str
    doubt: str
    place: str

    def __str__(self) -> str:
        """Value and deviation; "?" where there is a doubt."""
        spread = "" if self.std is None else f" ± {self.std:g}"
        return f"{self.value:g}{spread}{'?' * bool(self.doubt)}"

    @property
    def is_polluted(self) -> bool:
        """Whether the pool had images of none of the classes."""
        return self.setting.startswith(POLLUTED)

    def record(self) -> list[str]:
        """Its fields as a line of CSV holds them."""
        values = (getattr(self, name) for name in FIELDS)
        return ["" if value is None else str(value) for value in values]


def read(folder: Path = FOLDER) -> tuple[Number, ...]:
    """All published numbers, checked.

    Args:
        folder: where the CSV files are.

    Returns:
        The numbers, by file name and line.

    Raises:
        StoreError: there is no file, or one is damaged: file, line and field are named.
    """
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise StoreError(f"{folder}: no CSV file of published numbers; install the package again")
    found: list[Number] = []
    taken: dict[tuple[object, ...], Number] = {}
    for path in paths:
        for number in read_file(path):
            same = (
                *(
                    getattr(number, name)
                    for name in FIELDS
                    if name not in ("value", "std", "note", "doubt", "evidence")
                ),
            )
            other = taken.setdefault(same, number)
            if other is not number:
                raise StoreError(
                    f"{number.place}: {number.source} has {number.value:g} for what has {other.value:g} in "
                    f"{other.place}; remove one, or say in what they differ"
                )
            found.append(number)
    return tuple(found)


def read_file(path: Path) -> list[Number]:
    """The numbers of one file.

    Raises:
        StoreError: it is damaged; line and field are named.
    """
    lines = read_csv(path, "restore the file")
    head = lines[0] if lines else []
    if tuple(head) != FIELDS:
        problem = _header_problem(head)
        raise StoreError(f"{path}, line 1: {problem}; the columns are {', '.join(FIELDS)}")
    return [_number(values, f"{path}, line {line}") for line, values in enumerate(lines[1:], start=2)]


def _header_problem(head: Sequence[str]) -> str:
    absent = [name for name in FIELDS if name not in head]
    unknown = [name for name in head if name not in FIELDS]
    if not head:
        return "the file is empty"
    if absent:
        return f"no column {', '.join(absent)}"
    return f"unknown column {', '.join(unknown)}" if unknown else "columns twice or in another order"


def _number(values: Sequence[str], place: str) -> Number:
    if len(values) != len(FIELDS):
        raise StoreError(f"{place}: {len(values)} fields instead of {len(FIELDS)}; a comma wants quotes")
    row = dict(zip(FIELDS, (value.strip() for value in values), strict=True))
    for name in REQUIRED:
        if not row[name]:
            raise StoreError(f"{place}: {name} is empty")
    vocabularies = (
        ("dataset", DATASETS),
        ("setting", SETTINGS),
        ("metric", METRICS),
        ("selection_rule", SELECTION),
        ("evidence", EVIDENCE),
    )
    for name, known in vocabularies:
        if row[name] not in known:
            raise StoreError(
                f"{place}: {name} {row[name]!r} is unknown{nearest(row[name], filter(None, known))}"
            )
    if row["resolution"] != "original":
        _parsed(row, "resolution", place, int, 1, 4096)
    value = _parsed(row, "value", place, float, 0, METRICS[row["metric"]])
    ratio = _parsed(row, "ratio", place, float, 0, 1)
    labelled = _parsed(row, "n_labelled", place, int, 1, math.inf)
    images = DATASETS[row["dataset"]]
    if None not in (images, ratio, labelled) and labelled != int(ratio * images + 1e-9):  # type: ignore[operator]
        raise StoreError(
            f"{place}: n_labelled is {labelled}, but {ratio:g} of the {images} training images of "
            f"{row['dataset']} are {int(ratio * images + 1e-9)}"  # type: ignore[operator]
        )
    if value == 0:
        raise StoreError(f"{place}: value is 0, which no source prints; leave the line out")
    return Number(
        **{name: row[name] for name in FIELDS if name not in ("ratio", "n_labelled", "value", "std")},
        ratio=ratio,
        n_labelled=None if labelled is None else int(labelled),
        value=float(value or 0),
        std=_parsed(row, "std", place, float, 0, 100),
        place=place,
    )


def _parsed(
    row: dict[str, str], name: str, place: str, kind: Callable[[str], float], low: float, high: float
) -> float | None:
    """A number of a line between two bounds; None where the field is empty."""
    text = row[name]
    if not text:
        return None
    try:
        value = kind(text)
    except ValueError:
        raise StoreError(
            f"{place}: {name} is {text!r}, which is no {'whole ' * (kind is int)}number"
        ) from None
    if not low <= value <= high:  # NaN too
        raise StoreError(f"{place}: {name} is {text}; it must lie between {low:g} and {high:g}")
    return value

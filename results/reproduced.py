"""Published numbers beside ours: which are about the same thing, and whether ours reproduce them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from results.columns import Column
from results.frames import finished
from results.published import FIELDS, PLAIN, SELECTION, Number
from results.schema import Result
from results.store import RunStore
from results.text import csv_of, exact

POINTS = 1.0
"""A mean at most this far from a published number, in points of percent, reproduces it."""
NAMES: dict[str, dict[str, dict[str, str]]] = {
    "abl": {"ABL": {}},
    "adsh": {"ADSH": {}},
    "cap": {"CAP": {}},
    "dicap": {"DiCaP": {}},
    "dualcoop": {"DualCoOp": {}},
    "freematch": {"FreeMatch": {}},
    "mean_teacher": {"MeanTeacher": {}, "MeanTeacher (UPS paper)": {}},
    "pseudo_label": {"PseudoLabel": {}, "PseudoLabel (UPS paper)": {}},
    "supervised": {
        "CAP-warmup(ASL labelled only)": {"loss": "asl"},
        "ASL": {"loss": "asl"},
        "BCE": {"loss": "bce"},
        "Supervised": {},
        "Supervised (UPS paper)": {},
    },
    "zero_shot": {"CLIP zero-shot (80 templates)": {"templates": "imagenet80"}},
}
"""Our methods: their names in the sources, and the hyper-parameters that such a name asks for."""
_ABSENT = {"loss": "asl", "head": "match", "classifier": "linear", "templates": "single"}
"""What a hyper-parameter was in results from before it was recorded."""
_ONLY_LABELLED = ("supervised", "dualcoop", "linear_probe")
_OWN_HEADS = {"abl": "linear", "dicap": "ml_decoder"}
"""Methods whose heads are a part of them, and the one that their published numbers name."""
_HEADS = {"linear": "", "ml_decoder": "+ML-Decoder"}
_IMAGE_ONLY = {"torchvision/resnet50": "RN50", "timm/resnet50": "RN50"}
_CLIP = {
    "open_clip/RN50": "CLIP RN50",
    "open_clip/RN50-quickgelu": "CLIP RN50",
    "open_clip/RN101": "CLIP RN101",
    "open_clip/RN101-quickgelu": "CLIP RN101",
    "open_clip/ViT-B-16": "CLIP ViT-B/16",
    "open_clip/ViT-B-16-quickgelu": "CLIP ViT-B/16",
}
_RANDOM = "random"
"""What a backbone's `weights_sha256` is where nothing was pretrained."""

REPRODUCED, DIFFERENT, OTHER, OPEN = "reproduced", "not reproduced", "not comparable", "no number of ours"
VERDICTS = (REPRODUCED, DIFFERENT, OTHER, OPEN)


@dataclass(frozen=True)
class Facts:
    """What has to agree before a run is held beside a published number.

    Attributes:
        method: registered name; "" for a user's own method, which no source knows.
        hyper: its hyper-parameters.
        backbone: in the words of the sources where they have some, else our name.
        resolution: side of the square images in pixels; None where the result does not say it.
        labelled: labelled images; None where the result does not say it.
    """

    method: str
    hyper: Mapping[str, Any]
    backbone: str
    resolution: int | None
    labelled: int | None

    @classmethod
    def of(cls, result: Result) -> Facts:
        """The facts of a finished run."""
        spec = result["spec"]
        hyper = {**_ABSENT, **(spec.get("hyper") or {})}
        split = result.get("split")
        labelled = None if split is None else split.get("labelled")
        return cls(
            method="" if spec.get("code") else spec["method"],
            hyper=hyper,
            backbone=_backbone(spec.get("backbone") or {}, spec.get("hyper") or {}, spec["method"]),
            resolution=(spec.get("recipe") or {}).get("resolution"),
            labelled=labelled if isinstance(labelled, int) else None,
        )

    def against(self, number: Number, rule: str) -> tuple[str, ...]:
        """Why a published number of the same method, dataset and share is no number of the same thing.

        Args:
            number: the published one.
            rule: selection rule of our number.

        Returns:
            Sentences without a full stop; none if all agrees that is compared.
        """
        found = []
        if number.setting not in self._settings():
            why = ", whose pool has images of none of the classes" if number.is_polluted else ""
            found.append(f"another setting: {number.setting}{why}")
        if number.backbone != self.backbone:
            found.append(f"backbone {number.backbone or 'not stated'}, ours {self.backbone}")
        if number.resolution != str(self.resolution):
            ours = "not recorded" if self.resolution is None else f"{self.resolution} px"
            theirs = f"{number.resolution} px" if number.resolution.isdigit() else number.resolution
            found.append(f"resolution {theirs or 'not stated'}, ours {ours}")
        theirs_and_ours = (number.n_labelled, self.labelled)
        if not self._needs_no_labels and None not in theirs_and_ours and number.n_labelled != self.labelled:
            found.append(f"{number.n_labelled} labelled images, ours {self.labelled}")
        for name, value in NAMES[self.method][number.method].items():
            if self.hyper.get(name) != value:
                found.append(f"{name} {value}, ours {self.hyper.get(name)}")
        same = SELECTION[number.selection_rule]
        if number.selection_rule and rule not in same and not self._needs_no_labels:
            found.append(f"its selection rule is '{number.selection_rule}': see --rule {' or '.join(same)}")
        return tuple(found)

    @property
    def _needs_no_labels(self) -> bool:
        return self.method == "zero_shot"

    def _settings(self) -> tuple[str, ...]:
        if self._needs_no_labels:
            return ("zero-shot",)
        return (PLAIN, "1% labelled only") if self.method in _ONLY_LABELLED else (PLAIN,)


def _backbone(backbone: Mapping[str, Any], hyper: Mapping[str, Any], method: str) -> str:
    name = str(backbone.get("name", "not recorded"))
    if name in _CLIP:
        found = f"{_CLIP[name]} from scratch" if backbone.get("weights_sha256") == _RANDOM else _CLIP[name]
        named = ((kind, hyper.get(kind, _ABSENT[kind])) for kind in ("classifier", "head"))
        return found + "".join(f" with {kind} {value}" for kind, value in named if value != _ABSENT[kind])
    if name not in _IMAGE_ONLY:
        return name
    if backbone.get("weights_sha256") == _RANDOM:
        return f"{_IMAGE_ONLY[name]} from scratch"
    pooled = "" if backbone.get("pool", "avg") == "avg" else f" with {backbone['pool']} pooling"
    head = _OWN_HEADS.get(method) or hyper.get("head", _ABSENT["head"])
    return f"{_IMAGE_ONLY[name]}-ImageNet{pooled}{_HEADS.get(head, f' with head {head}')}"


@dataclass(frozen=True)
class Pair:
    """A published number beside a cell of ours.

    Attributes:
        label: row of our table.
        column: column of our table.
        number: the published one.
        ours: our mean in percent; None without.
        verdict: one of `VERDICTS`.
        reasons: why they are not comparable; empty otherwise.
    """

    label: str
    column: Column
    number: Number
    ours: float | None
    verdict: str
    reasons: tuple[str, ...] = ()

    @property
    def difference(self) -> float | None:
        """Ours minus the published number, in points; None where they are not comparable."""
        if self.ours is None or self.verdict in (OTHER, OPEN):
            return None
        return self.ours - self.number.value


@dataclass(frozen=True)
class Beside:
    """The published numbers beside a table.

    Attributes:
        pairs: by row, column and value.
    """

    pairs: tuple[Pair, ...]

    @property
    def columns(self) -> set[Column]:
        """The columns of ours that have a published number."""
        return {pair.column for pair in self.pairs}

    @cached_property
    def letters(self) -> dict[str, str]:
        """A letter for each reason, in order of appearance; after z come aa, ab and so on."""
        reasons = dict.fromkeys(reason for pair in self.pairs for reason in pair.reasons)
        return {reason: _letter(number) for number, reason in enumerate(reasons)}

    def cell(self, label: str, column: Column) -> str:
        """The published numbers for a cell of ours with their marks; "" without any."""
        marks = []
        for pair in self.pairs:
            if (pair.label, pair.column) != (label, column):
                continue
            marks.append(f"{pair.number}{_mark(pair, self.letters)}")
        return ", ".join(marks)

    def notes(self) -> list[str]:
        """Sentences of a footer: what the marks mean, by which rule, and what is doubted."""
        if not self.pairs:
            return ["Published: no number of these methods on these datasets at these labelled shares."]
        doubts: dict[str, list[str]] = {}
        for pair in self.pairs:
            if pair.number.doubt:
                doubts.setdefault(pair.number.doubt, []).append(f"{pair.number.value:g}")
        unstated = {
            f"{pair.number.value:g}"
            for pair in self.pairs
            if pair.difference is not None
            and not pair.number.selection_rule
            and pair.number.setting != "zero-shot"
        }
        sources = dict.fromkeys(pair.number.source for pair in self.pairs)
        lines = [
            "Published: numbers of papers beside ours, where method, dataset and labelled share agree. "
            "(=) reproduced: setting, number of labelled images, backbone, resolution and selection rule "
            f"agree too, and our mean is at most {POINTS:g} point away, or at most the published standard "
            "deviation if that is larger. (≠) not reproduced: they agree, and it is further away, "
            "by ours minus the published number. No mark: no number of ours yet. A letter: not comparable.",
            "Not compared with the sources: the weights beyond the backbone's name, schedule and "
            "hyper-parameters, options of the dataset, and which images are labelled (most sources: seed 1 "
            "alone).",
            *(f"({letter}) {reason}." for reason, letter in self.letters.items()),
        ]
        noted: dict[str, list[str]] = {}
        for pair in self.pairs:
            if pair.difference is not None and pair.number.note:
                noted.setdefault(pair.number.note, []).append(f"{pair.number.value:g}")
        if unstated:
            lines.append(f"Selection rule not stated by the source: {', '.join(sorted(unstated))}.")
        lines += [f"Noted of {', '.join(dict.fromkeys(v))}: {note}." for note, v in noted.items()]
        lines += [f"?: doubted, {', '.join(dict.fromkeys(v))}: {doubt}." for doubt, v in doubts.items()]
        secondary = {pair.number.source for pair in self.pairs if pair.number.evidence == "secondary"}
        named = (f"{source} (secondary)" if source in secondary else source for source in sources)
        return [*lines, f"Sources: {'; '.join(named)}."]

    def to_csv(self, rule: str) -> str:
        """CSV with a row for each published number: our mean, the verdict, the reasons, and its fields."""
        rows: list[list[Any]] = [
            ["label", "our_rule", "our_mean", "difference", "verdict", "reasons", *FIELDS]
        ]
        for pair in self.pairs:
            numbers = map(exact, (pair.ours, pair.difference))
            verdict = [pair.verdict, "; ".join(pair.reasons)]
            rows.append([pair.label, rule, *numbers, *verdict, *pair.number.record()])
        return csv_of(rows)


def beside(
    store: RunStore,
    wanted: Sequence[dict[str, Any]],
    numbers: Iterable[Number],
    means: Mapping[tuple[str, Column], float | None],
    rule: str,
    metric: str = "mAP",
) -> Beside:
    """The published numbers beside the cells of a table.

    Args:
        store: where the runs are.
        wanted: the runs of the table, as `results.frames.collect` takes them.
        numbers: from `results.published.read`.
        means: the table's cells by label and column, in percent; None without a value.
        rule: the table's selection rule.
        metric: the table's.
    """
    facts: dict[tuple[str, Column], list[Facts]] = {}
    for keys, result in finished(store, wanted):
        place = (keys["label"], Column(keys["dataset"], float(keys["ratio"]), keys["budget"]))
        facts.setdefault(place, []).append(Facts.of(result))
    methods = {str(item["label"]): str(item["method"]) for item in wanted}
    known = [number for number in numbers if number.metric == metric]
    pairs: list[Pair] = []
    for (label, column), mean in means.items():
        pairs += _pairs(label, column, methods[label], mean, facts.get((label, column), []), known, rule)
    return Beside(tuple(pairs))


def _pairs(
    label: str,
    column: Column,
    method: str,
    mean: float | None,
    facts: Sequence[Facts],
    numbers: Iterable[Number],
    rule: str,
) -> list[Pair]:
    if any(not each.method for each in facts):  # a user's own method of this name
        return []
    found = []
    labelled = {each.labelled for each in facts}
    for number in numbers:
        if number.method not in NAMES.get(method, {}) or number.dataset != column.dataset:
            continue
        if not _same_share(number, column, labelled, method):
            continue
        if mean is None or not facts:
            found.append(Pair(label, column, number, None, OPEN))
            continue
        reasons = tuple(dict.fromkeys(why for each in facts for why in each.against(number, rule)))
        verdict = OTHER
        if not reasons:
            near = abs(mean - number.value) <= max(POINTS, number.std or 0.0) + 1e-9
            verdict = REPRODUCED if near else DIFFERENT
        found.append(Pair(label, column, number, mean, verdict, reasons))
    return sorted(found, key=lambda pair: (pair.verdict == OTHER, pair.number.value))


def _same_share(number: Number, column: Column, labelled: set[int | None], method: str) -> bool:
    if method == "zero_shot":
        return number.setting == "zero-shot"
    if number.setting == "zero-shot":
        return False
    if number.ratio is not None and not column.budget:
        return abs(number.ratio - column.ratio) < 1e-9
    return number.n_labelled is not None and labelled == {number.n_labelled}


def _mark(pair: Pair, letters: Mapping[str, str]) -> str:
    if pair.verdict == OPEN:
        return ""
    if pair.verdict == OTHER:
        return f" ({', '.join(letter for reason, letter in letters.items() if reason in pair.reasons)})"
    if pair.verdict == REPRODUCED or pair.difference is None:
        return " (=)"
    sign = "+" if pair.difference > 0 else "−"
    return f" (≠ {sign}{abs(pair.difference):.2f})"


def _letter(number: int) -> str:
    first, last = divmod(number, 26)
    return (chr(96 + first) if first else "") + chr(97 + last)

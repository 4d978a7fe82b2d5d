"""What `result.json` holds: its fields, their types and the number of its format.

Format 1 has no number; format 2 says its own, and may hold the peak memory of the run; in format 3 the chosen
epochs count from 1, before from 0. Fields that are not listed here are kept and not looked at, so that a
newer writer may add some without a new format. The other files of a run are described in docs/results.md.
"""

from __future__ import annotations

import functools
import types
import typing
from typing import Any, Literal, TypedDict

from results.errors import StoreError

Rule = Literal["last", "model", "val", "max", "oracle"]
RULES: tuple[Rule, ...] = typing.get_args(Rule)

CUTS = {"logits": 0.0, "probabilities": 0.5}
"""Score above which a class counts as present, by `Result.score_scale`; scores that only rank have none."""

FORMAT = 3
"""The format that is written. All formats up to it are read."""
_FROM_ONE = 3
"""The first format whose epochs count from 1."""


class Dataset(TypedDict):
    """Which dataset; `spec.json` has the rest of its fields."""

    alias: str


class _SpecLater(TypedDict, total=False):
    label: str
    hyper: dict[str, Any]
    recipe: dict[str, Any]
    backbone: dict[str, Any]
    split_digest: str
    split_seed: int
    budget: str
    version: int
    code: str


class Spec(_SpecLater):
    """What was asked for: what `spec.json` holds too."""

    dataset: Dataset
    method: str
    ratio: float
    seed: int


class _SummaryLater(TypedDict, total=False):
    epoch: int
    weights: Literal["ema", "model"]


class Summary(_SummaryLater):
    """Measures under one selection rule, in percent; None where a measure does not exist.

    K classes each have a value in AP, groups and train_counts. The rule ``oracle`` has the epoch, which
    counts from 1, and the weights that were chosen; ``val`` has the epoch, and ``max`` the weights.
    """

    mAP: float
    num_classes: int
    AP: list[float | None]
    OF1: float | None
    CF1: float | None
    head: float | None
    medium: float | None
    tail: float | None
    groups: list[Literal["head", "medium", "tail"]]
    train_counts: list[int]


class _MetricsLater(TypedDict, total=False):
    model: Summary | None
    max: Summary | None


class Metrics(_MetricsLater):
    """Measures by selection rule; None where a rule does not apply to the run, or was not recorded.

    Records from before there were ``model`` and ``max`` do not hold them.
    """

    last: Summary
    val: Summary | None
    oracle: Summary | None


class PeakMemory(TypedDict):
    """Most memory that was in use at once, in bytes; None where it cannot be measured."""

    host: int | None
    device: int | None


class _CostLater(TypedDict, total=False):
    peak_memory_bytes: PeakMemory
    trainable_parameters: int
    images_seen: int


class Cost(_CostLater):
    """What the run took. `seconds` are of this run alone, without the stages that it shares."""

    seconds: float
    device: str


class _SplitLater(TypedDict, total=False):
    rule: str
    sees_hidden_labels: bool


class Split(_SplitLater):
    """Numbers of training images, what drew the labelled ones, and whether that looked at all labels."""

    labelled: int
    held_out: int
    unlabelled: int


class Sources(TypedDict):
    """Hash over some source files, and the first digits of each file's, by its path in the repository."""

    sha256: str
    files: dict[str, str]


class FileHash(TypedDict):
    """A file's name and SHA-256."""

    file: str
    sha256: str


class Provenance(TypedDict, total=False):
    """Code, packages and machine; `why` prints what is missing as not recorded.

    `sources` is the code of this repository that decides the number, `stages` the hashes of that which made
    the stages (None where a stage does not say it), `continued_from` the hashes of other code that began the
    training, which this one continued; `method_code` a user's method, `module_data` the data
    files (name, SHA-256) that it reads from beside it. `results.versions` compares them.
    """

    commit: str | None
    dirty: str | None
    command: str
    host: str
    platform: str
    device: str
    strategy: str
    processes: int
    threads: int
    packages: dict[str, str]
    environment: dict[str, str]
    method_code: dict[str, Any]
    sources: Sources
    stages: dict[str, str | None]
    continued_from: list[str]
    grid: FileHash
    recipe: FileHash
    module_data: list[list[str]]


class _ResultLater(TypedDict, total=False):
    format: int
    identities: int
    split: Split
    predictions_sha256: str
    arrays_sha256: dict[str, str]
    score_scale: Literal["logits", "probabilities", "ranking"]


class Result(_ResultLater):
    """One finished run. `identities` is the generation of its identity, see `results.moves`; 1 without it.

    For the hashes see `results.predictions`.
    """

    run_id: str
    spec: Spec
    metrics: Metrics
    classes: list[str]
    cost: Cost
    provenance: Provenance
    finished: str


def check(record: Any, where: str) -> Result:
    """Check the record of a finished run, field by field.

    Args:
        record: what the JSON of a `result.json` says.
        where: its file, for the message.

    Returns:
        The record; epochs of an earlier format count from 1 in it, and nothing else differs.

    Raises:
        StoreError: a field is missing or has the wrong type, or a newer version wrote the record; the first
            such field is named, ``metrics.last.AP[3]`` for example.
    """
    version = record.get("format", 1) if isinstance(record, dict) else 1
    if type(version) is not int or version < 1:
        raise StoreError(f"{where}: format is {_shown(version)}, not a whole number above 0")
    if version > FORMAT:
        raise StoreError(
            f"{where}: format {version} is newer than this version of SSMLL-Bench reads "
            f"(up to {FORMAT}); update it"
        )
    problem = _problem(record, Result, "") or _unequal_lengths(record) or _epoch_problem(record, version)
    if problem:
        raise StoreError(f"{where}: {problem}")
    return typing.cast(Result, record if version >= _FROM_ONE else _from_one(record))


def check_spec(record: Any, where: str) -> None:
    """Check what a `spec.json` says; raises StoreError with the first field that is missing or wrong."""
    problem = _problem(record, Spec, "")
    if problem:
        raise StoreError(f"{where}: {problem.removeprefix('the result ')}")


def _epoch_problem(record: dict[str, Any], version: int) -> str | None:
    """A chosen epoch that lies before the first."""
    first = 1 if version >= _FROM_ONE else 0
    for rule, summary in record["metrics"].items():
        epoch = summary.get("epoch", first) if isinstance(summary, dict) else first
        if epoch < first:
            return f"metrics.{rule}.epoch is {epoch}; epochs of format {version} count from {first}"
    return None


def _from_one(record: dict[str, Any]) -> dict[str, Any]:
    """A record of an earlier format, whose epochs count from 0, with epochs that count from 1."""
    metrics = {
        rule: {**summary, "epoch": summary["epoch"] + 1}
        if isinstance(summary, dict) and "epoch" in summary
        else summary
        for rule, summary in record["metrics"].items()
    }
    return {**record, "metrics": metrics}


def _problem(value: Any, kind: Any, field: str) -> str | None:
    """What is wrong with a value, beginning with the field's name; None if it has the type."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return None
    if typing.is_typeddict(kind):
        return _table_problem(value, kind, field)
    if origin is types.UnionType or origin is typing.Union:
        if value is None and types.NoneType in inner:
            return None
        (kind,) = (one for one in inner if one is not types.NoneType)
        return _problem(value, kind, field)
    if origin is Literal:
        if value in inner:
            return None
        return f"{field} is {_shown(value)}, not one of {', '.join(map(str, inner))}"
    if origin is list and isinstance(value, list):
        problems = (_problem(item, inner[0], f"{field}[{i}]") for i, item in enumerate(value))
        return next(filter(None, problems), None)
    if origin is dict and isinstance(value, dict):
        problems = (_problem(item, inner[1], f"{field}.{name}") for name, item in value.items())
        return next(filter(None, problems), None)
    if kind is bool:
        return None if isinstance(value, bool) else f"{field} is {_shown(value)}, not true or false"
    plain = origin or kind
    # True is an int to Python, and 1 is no float; JSON writes 1.0 as it pleases.
    accepted = (int, float) if plain is float else plain
    if isinstance(value, accepted) and not isinstance(value, bool):
        return None
    return f"{field or 'the result'} is {_shown(value)}, not {_WORDS[plain]}"


def _table_problem(value: Any, kind: Any, field: str) -> str | None:
    if not isinstance(value, dict):
        return f"{field or 'the result'} is {_shown(value)}, not {_WORDS[dict]}"
    missing = [name for name in _fields(kind) if name in kind.__required_keys__ and name not in value]
    if missing:
        return f"{field or 'the result'} lacks {', '.join(missing)}"
    problems = (
        _problem(value[name], inner, f"{field}.{name}".lstrip("."))
        for name, inner in _fields(kind).items()
        if name in value
    )
    return next(filter(None, problems), None)


def _unequal_lengths(record: Result) -> str | None:
    """Lists with a value for each class that have another number of values."""
    classes = len(record["classes"])
    metrics = record["metrics"]
    for rule in RULES:
        summary = metrics.get(rule)
        if summary is not None:
            counts = {
                "AP": len(summary["AP"]),
                "groups": len(summary["groups"]),
                "train_counts": len(summary["train_counts"]),
            }
            for name, count in counts.items():
                if count != classes:
                    return f"metrics.{rule}.{name} has {count} values for {classes} classes"
    return None


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


def _shown(value: Any) -> str:
    """A value in a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""The card of a method: what its file says of it, its hyper-parameters, its references and our numbers."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from tabulate import tabulate

from benchmarks.workspace import REPOSITORY
from methods.references import cited
from results.columns import percent
from results.published import PLAIN, read
from results.reproduced import NAMES

if TYPE_CHECKING:
    from methods.base import FitMethod, StepMethod

COMMITTED = ("field", "embedded")
"""Folders of `results/` that are asked for numbers on GlyphScenes; the first that has the method answers."""


def card(name: str) -> str:
    """The card of a method.

    Args:
        name: of a registered method.

    Returns:
        Its description, which file it is in, its hyper-parameters with defaults and ranges, our numbers on
        GlyphScenes with the command that made them, the published ones, and the BibTeX entries.

    Raises:
        UserError: unknown method, or one that cannot be imported.
    """
    import methods

    method = methods.get(name)
    text = inspect.getdoc(sys.modules[method.__module__]) or "Its file has no docstring."
    entries, _ = cited([f"method:{name}"])
    parts = [
        f"{name} (version {method.version}): {text}",
        facts(method),
        hyper_parameters(method.Hyper),
        numbers(name),
        published(name),
        "\n\n".join(entry.text for entry in entries)
        or f"No reference: methods/references.bib has no entry with method:{name}.",
    ]
    return "\n\n".join(parts)


def facts(method: type[StepMethod] | type[FitMethod]) -> str:
    """What the harness knows of a method, as lines."""
    from methods.base import StepMethod

    lines = [f"File: {_file(method)}"]
    if issubclass(method, StepMethod):
        unlabelled = "labelled and unlabelled images" if method.uses_unlabelled else "labelled images only"
        lines.append(f"Trained step by step on {unlabelled}")
        if method.warmup_name:
            lines.append(f"Starts from a warm-up: {method.warmup_name}, shared by all that start from it")
        if method.wants_teacher:
            lines.append("Its teacher is the moving average of its weights")
    else:
        lines.append("Fitted once to features of the frozen backbone")
    lines.append(
        "Backbone: a vision-language model"
        if method.needs_vlm
        else "Backbone: any, also without a text tower"
    )
    return "\n".join(lines)


def hyper_parameters(hyper: type) -> str:
    """The table of a method's hyper-parameters: default, range and meaning.

    The range is what the field's metadata declares as ``low``, ``high`` and ``scale``, or the values that a
    `Literal` allows. Meanings are read from the "Attributes" of the class's docstring and those of its bases.
    """
    kinds, meanings = get_type_hints(hyper), attributes(hyper)
    rows = []
    for field in dataclasses.fields(hyper):
        default = _default(field)
        meaning = textwrap.fill(meanings.get(field.name, ""), 62)
        allowed = textwrap.fill(_range(kinds[field.name], field.metadata), 34)
        rows.append([field.name, default, allowed, meaning])
    return tabulate(rows, ["hyper-parameter", "default", "range", "meaning"], "simple", disable_numparse=True)


def attributes(cls: type) -> dict[str, str]:
    """The "Attributes" of a class's docstring, those of its bases first: names to texts on one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        section = re.search(
            r"^Attributes:\n((?:[ ]{4}.*\n|\n)+)", f"{inspect.cleandoc(base.__doc__ or '')}\n", re.MULTILINE
        )
        for name, text in re.findall(
            r"^    (\w+): (.*(?:\n {8,}.*)*)", section[1] if section else "", re.MULTILINE
        ):
            found[name] = " ".join(text.split())
    return found


def numbers(name: str) -> str:
    """Our committed numbers of a method on GlyphScenes, with the command that made them."""
    for folder in (REPOSITORY / "results" / stem for stem in COMMITTED):
        labels = _labels(folder / "mAP-last-runs.csv", name)
        cells: dict[str, list[str]] = {}
        for row in _rows(folder / "mAP-last.csv"):
            if row["dataset"] == "glyphscenes" and row["label"] in labels and row["mean"]:
                share = row["budget"] or percent(float(row["ratio"]))
                spread = f" ± {float(row['std']):.1f}" if row["std"] else ""
                cells.setdefault(row["label"], []).append(f"{share}: {float(row['mean']):.1f}{spread}")
        if cells:
            lines = [f"  {label}: {'; '.join(found)}" for label, found in cells.items()]
            how = f"  {_command(folder / 'README.md')}  (results/{folder.name}/README.md names the machine)"
            return "\n".join(
                ["Ours on GlyphScenes, mAP, last epoch, mean ± deviation over seeds:", *lines, how]
            )
    return f"Ours on GlyphScenes: no number of {name} is committed under results/."


def published(name: str) -> str:
    """The published numbers of a method under the protocol of this harness, and how many there are beside."""
    every = read()
    found = [each for each in every if each.method in NAMES.get(name, {})]
    plain = [each for each in found if each.setting in (PLAIN, "1% labelled only", "zero-shot")]
    if not found:
        return "Published: no number is known (`published` lists those of other methods)."
    lines: dict[str, list[str]] = {}
    for each in plain:
        share = "" if each.setting == "zero-shot" or each.ratio is None else f"{percent(each.ratio)}: "
        where = [each.dataset, each.metric, each.method, each.backbone, f"{each.resolution} px", each.setting]
        where += [each.selection_rule or "selection not stated", each.source]
        lines.setdefault(", ".join(where), []).append(f"{share}{each}")
    more = len(found) - len(plain)
    shown = [f"  {'; '.join(values)}  ({where})" for where, values in lines.items()]
    rest = f" {more} more are of other settings;" if more else ""
    tail = f"  `published --method {name}`:{rest} notes, and why a number with ? is doubted"
    return "\n".join(["Published (`tables --published` holds them beside ours):", *shown, tail])


def _file(method: type) -> str:
    path = Path(inspect.getfile(method))
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return _value(field.default)
    return "required" if field.default_factory is dataclasses.MISSING else _value(field.default_factory())


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _range(kind: Any, metadata: Mapping[str, Any]) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if kind is bool:
        return "True, False"
    if "low" not in metadata:
        return ""
    scale = f", {metadata['scale']}" if metadata.get("scale", "linear") != "linear" else ""
    return f"{_value(metadata['low'])} to {_value(metadata['high'])}{scale}"


def _rows(file: Path) -> list[dict[str, str]]:
    """The rows of a committed table; none where the package was installed without it."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except FileNotFoundError:
        return []


def _labels(file: Path, method: str) -> set[str]:
    return {row["label"] for row in _rows(file) if row["method"] == method}


def _command(readme: Path) -> str:
    """The first command of a folder's README."""
    return readme.read_text(encoding="utf-8").partition("```\n")[2].partition("\n")[0]

"""Where identities of runs have moved: which differences between two specs an update of this software made.

A run's identity holds everything that can change its number, so an update that adds a field, or computes a
hash from more than before, gives each run another identity, and the results from before are of other runs.
They are *superseded*: a result is superseded by a run whose spec differs from its own in fields of the
`LEDGER` only, each in the way that its entry says. A difference in anything else, such as a learning rate, is
another run, and neither supersedes the other.

An update that moves identities adds an entry with the next generation. `RunStore.write_result` writes the
present generation (`identities`) into each result, so an entry explains the results from before it, and never
two settings that are chosen side by side today. Results without the field are of generation 1. A method's
`version` needs no entry: a higher one supersedes a lower one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

ABSENT = "absent"
"""Stands for the value of a field that a spec does not have."""
SEEDED = frozenset({"seed", "split_seed", "split_digest", "ratio"})
"""Fields in which the runs of one cell of a table differ; the ratio does where a budget is no share."""
UNIDENTIFIED = frozenset({"label", "budget"})
"""Fields of a stored spec that name a run for people."""
_HEX = re.compile(r"[0-9a-f]{32,64}$")
Values = Callable[[Any, Any], bool]
"""Whether an update changed a field from one value to the other."""


def unknown_before(old: Any, new: Any) -> bool:
    """The field did not exist, or left the value to a default, and is there now."""
    return old in (ABSENT, None) and new != ABSENT


def any_values(old: Any, new: Any) -> bool:
    """The value is computed in another way, so that old and new ones cannot be compared."""
    return True


@dataclass(frozen=True)
class Move:
    """One change of identities.

    Attributes:
        generation: of the identities that have it; results of lower ones are superseded.
        date: of the update, YYYY-MM-DD.
        field: dotted name of the field, such as "recipe.ema_warmup"; `*` stands for any text.
        values: recognises it by the old and the new value.
        reason: what changed, as a clause.
        methods: only runs of these methods; empty for all.
        concerned: whether a result of an earlier generation has another identity since, by its spec as `flat`
            gives it; a result that keeps its identity is not superseded.
    """

    generation: int
    date: str
    field: str
    values: Values
    reason: str
    methods: tuple[str, ...] = ()
    concerned: Callable[[Mapping[str, Any]], bool] = lambda spec: True

    def explains(self, field: str, old: Any, new: Any, method: str, generation: int) -> bool:
        """Whether this is why a field differs from a result of an earlier generation."""
        return (
            generation < self.generation
            and fnmatchcase(field, self.field)
            and (not self.methods or method in self.methods)
            and self.values(old, new)
        )


LEDGER: tuple[Move, ...] = (
    Move(
        2,
        "2026-11-27",
        "dataset.digest",
        any_values,
        "the dataset's hash is over the bytes of the pictures and the rule that decodes them; before, over "
        "labels and decoded pixels. Whether the data are the same, the two hashes cannot tell",
    ),
    Move(
        2,
        "2026-11-27",
        "backbone.*",
        unknown_before,
        "activation, mean and deviation belong to the weights and are told by them; openai's weights were "
        "built with another activation before",
    ),
    Move(
        2,
        "2026-11-27",
        "recipe.ema_warmup",
        unknown_before,
        "the decay of the moving average warms up; before, much of a short training's average were its "
        "starting weights",
    ),
    Move(
        2,
        "2026-11-27",
        "recipe.ema_decay",
        lambda old, new: (old, new) == (0.9997, 0.0),
        "the recipe of DualCoOp keeps no moving average, as its code",
        ("dualcoop",),
    ),
    Move(
        2,
        "2026-11-27",
        "recipe.evaluate",
        lambda old, new: (old, new) == ("both", "ema"),
        "without a moving average there is one kind of weights",
        ("dualcoop",),
    ),
    Move(
        2,
        "2026-11-27",
        "hyper.num_contexts",
        lambda old, new: old in (ABSENT, None, 10) and isinstance(new, int),
        "the default number of contexts is resolved for the dataset: 4 on VOC, else min(10, K); before, 10",
        ("csaa",),
    ),
    *(
        Move(
            3,
            "2026-11-28",
            field,
            lambda old, new: new == ABSENT,
            "without a moving average there is nothing that this field could choose; the number is the same",
            concerned=lambda spec: spec.get("recipe.ema_decay") == 0,
        )
        for field in ("recipe.ema_warmup", "recipe.warmup_weights")
    ),
)
"""All moves; see the module's text for how to add one."""
GENERATION = max(move.generation for move in LEDGER)
"""Of the identities that this version gives."""


@dataclass(frozen=True)
class Change:
    """One field in which a superseded result differs from its successor.

    Attributes:
        field: dotted name.
        old: value of the result, or `ABSENT`.
        new: value of the successor, or `ABSENT`.
        reason: why the field has moved.
    """

    field: str
    old: Any
    new: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.field} {_shown(self.old)} → {_shown(self.new)}"


def changes(old: Mapping[str, Any], new: Mapping[str, Any], generation: int) -> tuple[Change, ...] | None:
    """What has moved between a result's spec and a run's, if that is all in which they differ.

    Args:
        old: spec of the result.
        new: spec, or identity, of the run.
        generation: of the result's identities.

    Returns:
        The changes, by field; None if the run does not supersede the result: some difference is none that an
        update made, or nothing differs. Names (`UNIDENTIFIED`) are no part of an identity, and a split's seed
        is one only where it is not the run's.
    """
    before, after = ({"split_seed": spec.get("seed"), **flat(spec)} for spec in (old, new))
    method = str(after.get("method"))
    found = []
    for field in sorted((before.keys() | after.keys()) - UNIDENTIFIED):
        was, now = before.get(field, ABSENT), after.get(field, ABSENT)
        if (was == now and type(was) is type(now)) or _same_number(was, now):
            continue
        reason = _reason(field, was, now, method, generation)
        if reason is None:
            return None
        found.append(Change(field, was, now, reason))
    return tuple(found) or None


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, in the order of the fields."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value  # as JSON has it
    return found


def _reason(field: str, old: Any, new: Any, method: str, generation: int) -> str | None:
    if field == "version" and isinstance(old, int) and isinstance(new, int) and old < new:
        return f"the numbers of {method} changed with its code"
    for move in LEDGER:
        if move.explains(field, old, new, method, generation):
            return f"{move.reason} ({move.date})"
    return None


def _same_number(old: Any, new: Any) -> bool:
    """Whether both are the same number: JSON writes 1.0 as it pleases."""
    kinds = {type(old), type(new)}
    return kinds == {int, float} and old == new


def _shown(value: Any) -> str:
    if isinstance(value, str) and _HEX.match(value):
        return f"{value[:8]}…"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)

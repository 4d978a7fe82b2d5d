"""Build a checked, frozen dataclass from a table of a file. Needs the standard library only.

The annotations of the dataclass say what is valid; every problem is one `UserError` that names the
place, the field and, for a typo, the nearest valid name. A table from TOML or JSON and the same
values given in Python make equal dataclasses: whole numbers become floats, lists become tuples.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from methods.errors import UserError, nearest

T = TypeVar("T")

NAMES = {bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Wording:
    """The messages of one kind of table, as templates of `str.format`.

    A template may use ``where``, ``name``, ``value``, ``given`` (the value's type) and ``near`` (help
    for a typo); ``wrong`` may use ``wanted`` (in words), ``kind`` (the annotation) and ``default`` too.

    Attributes:
        unknown: the dataclass has no field of this name.
        wrong: the value has another type than the field.
        choice: the value is none of a ``Literal``.
        missing: a field without a default is not given.
        text: what a string is called.
    """

    unknown: str = "{where}: no field {name!r}{near}"
    wrong: str = "{where}: {name} is {value!r}; it must be {wanted}"
    choice: str = "{where}: {name}: unknown value {value!r}{near}"
    missing: str = "{where}: no {name!r} is given"
    text: str = "text"


class _MisfitError(Exception):
    """The value is not of the wanted type."""


def build(cls: type[T], table: Mapping[str, Any], where: str, wording: Wording | None = None) -> T:
    """Build a dataclass from a table; fields that the table leaves out keep their defaults.

    ======================  =========================================================
    annotation              accepted values
    ======================  =========================================================
    ``bool``, ``str``       of exactly this type
    ``int``                 whole numbers; true and false are no numbers
    ``float``               finite numbers, whole ones too
    ``Literal[...]``        one of the choices
    ``tuple[X, ...]``       lists (and tuples) of X; ``tuple[X, Y]`` of this length
    ``tuple[tuple[str,      tables of texts, or lists of pairs
    str], ...]``
    ``dict[str, Any]``      tables
    ``X | None``            X; a field is optional by its default
    ======================  =========================================================

    Args:
        cls: a dataclass.
        table: values by the name of the field.
        where: file or section, for the messages.
        wording: how problems are put; None for the plain form.

    Returns:
        The dataclass. A `UserError` of its ``__post_init__`` passes through as it is.

    Raises:
        UserError: an unknown or missing field, or a value that the annotation does not allow.

    >>> @dataclass(frozen=True)
    ... class Point:
    ...     x: float = 0.0
    ...     names: tuple[str, ...] = ()
    >>> build(Point, {"x": 1, "names": ["a"]}, "grid.toml")
    Point(x=1.0, names=('a',))
    >>> build(Point, {"name": ["a"]}, "grid.toml")
    Traceback (most recent call last):
    methods.errors.UserError: grid.toml: no field 'name'; did you mean 'names'? (valid: names, x)
    """
    wording = wording or Wording()
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    kinds = _kinds(cls)  # type: ignore[arg-type]
    values = {}
    for name, value in table.items():
        said = {"where": where, "name": name, "value": value, "given": type(value).__name__}
        if name not in fields:
            raise UserError(wording.unknown.format(**said, near=nearest(name, fields)))
        kind, default = kinds[name], fields[name].default
        try:
            values[name] = _fitted(value, kind)
        except _MisfitError:
            if typing.get_origin(kind) is Literal:
                choices = [str(choice) for choice in typing.get_args(kind)]
                raise UserError(wording.choice.format(**said, near=nearest(str(value), choices))) from None
            wanted, plain = _in_words(kind, wording.text), getattr(kind, "__name__", str(kind))
            text = wording.wrong.format(**said, near="", wanted=wanted, kind=plain, default=default)
            raise UserError(text) from None
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(wording.missing.format(where=where, name=name, value=None, given="", near=""))
    return cls(**values)


@functools.lru_cache(maxsize=256)
def _kinds(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass; a grid builds the same few classes hundreds of times."""
    return typing.get_type_hints(cls)


def _fitted(value: Any, kind: Any) -> Any:
    """The value as the annotation has it.

    Raises:
        _MisfitError: it does not fit.
        TypeError: no value of a file can fit this annotation.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (bool, int, str, types.NoneType) and type(value) is kind:
        return value
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in arguments):
        return value
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _fitted(value, option)
            except _MisfitError:
                continue
    if origin is tuple:
        if isinstance(value, dict) and _is_pairs(arguments):
            value = list(value.items())
        if isinstance(value, list | tuple):
            repeated = len(arguments) == 2 and arguments[1] is Ellipsis
            parts = [arguments[0]] * len(value) if repeated else list(arguments)
            if len(parts) == len(value):
                return tuple(_fitted(entry, part) for entry, part in zip(value, parts, strict=True))
    if (kind is dict or origin is dict) and isinstance(value, dict):
        return value
    if kind in (float, bool, int, str, dict, types.NoneType) or origin in (
        Literal,
        typing.Union,
        types.UnionType,
        tuple,
        dict,
    ):
        raise _MisfitError
    raise TypeError(f"a field of type {kind} cannot be given in a file")


def _is_pairs(arguments: tuple[Any, ...]) -> bool:
    """Whether these are the arguments of ``tuple[tuple[str, X], ...]``."""
    return (
        len(arguments) == 2
        and arguments[1] is Ellipsis
        and typing.get_origin(arguments[0]) is tuple
        and len(typing.get_args(arguments[0])) == 2
    )


def _in_words(kind: Any, text: str) -> str:
    """What an annotation asks for, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is str:
        return f"a {text}"
    if kind in NAMES:
        return NAMES[kind]
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not types.NoneType]
        return " or ".join(_in_words(option, text) for option in options)
    if origin is tuple:
        if _is_pairs(arguments):
            return f'a table such as {{ name = "{text}" }}'
        plural = {str: f"{text}s", int: "whole numbers", float: "numbers", bool: "flags"}
        each = plural.get(arguments[0], "entries")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a list of {each}"
        return f"a list of {len(arguments)} {each}"
    return "a table"


def later_fields(cls: type) -> dict[str, Any]:
    """Fields of a dataclass that were added after the first results, with the value of those results.

    A class names its own in the class variable ``later``; those of its bases are added. A field that a
    subclass declares again, to give it another default, is none of them: a class that was written
    after the field has no results from before it.
    """
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found = {name: value for name, value in found.items() if name not in vars(base)}
        found |= vars(base).get("later", {})
    return found


def identified(values: Any) -> dict[str, Any]:
    """What the identity of a run holds of a dataclass, as plain values.

    Fields that were added later are left out at the value of the earlier results, so that those keep
    their identity; see `later_fields`.
    """
    later = later_fields(type(values))
    table = dataclasses.asdict(values)
    return {name: value for name, value in table.items() if name not in later or value != later[name]}

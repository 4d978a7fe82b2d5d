"""`methods.fields`: from a table of a file to a checked dataclass, and what an identity holds of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest

import methods
from methods.errors import UserError
from methods.fields import Wording, build, identified, later_fields


@dataclass(frozen=True)
class Example:
    name: str
    flag: bool = False
    count: int = 1
    rate: float = 0.5
    kind: Literal["soft", "hard"] = "soft"
    files: tuple[str, ...] = ()
    mean: tuple[float, float, float] | None = None
    root: str | None = None
    words: tuple[tuple[str, str], ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    later: ClassVar[Mapping[str, Any]] = {}


def test_values_of_a_file_give_the_dataclass_that_python_values_give():
    table = {
        "name": "a",
        "flag": True,
        "count": 3,
        "rate": 2,
        "kind": "hard",
        "files": ["x", "y"],
        "mean": [0, 1, 0.5],
        "root": "/data",
        "words": {"cat": "small cat"},
        "extra": {"x": 1},
    }
    found = build(Example, table, "file.toml")
    assert found == Example(
        "a", True, 3, 2.0, "hard", ("x", "y"), (0.0, 1.0, 0.5), "/data", (("cat", "small cat"),), {"x": 1}
    )
    assert [type(value) for value in (found.rate, *found.mean)] == [float] * 4
    assert build(Example, {"name": "a", "words": [["cat", "small cat"]]}, "x").words == found.words
    assert build(Example, {"name": "a", "mean": None, "root": None}, "x") == Example("a")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"nam": "a"}, "file.toml: no field 'nam'; did you mean 'name'? (valid: "),
        ({}, "file.toml: no 'name' is given"),
        ({"name": 1}, "file.toml: name is 1; it must be a text"),
        ({"flag": 1}, "file.toml: flag is 1; it must be true or false"),
        ({"count": True}, "file.toml: count is True; it must be a whole number"),
        ({"count": 1.0}, "file.toml: count is 1.0; it must be a whole number"),
        ({"rate": True}, "file.toml: rate is True; it must be a number"),
        ({"rate": float("nan")}, "file.toml: rate is nan; it must be a number"),
        ({"rate": "1"}, "file.toml: rate is '1'; it must be a number"),
        ({"kind": "sotf"}, "file.toml: kind: unknown value 'sotf'; did you mean 'soft'? (valid: hard, soft)"),
        ({"kind": True}, "file.toml: kind: unknown value True; (valid: hard, soft)"),
        ({"files": "x"}, "file.toml: files is 'x'; it must be a list of texts"),
        ({"files": ["x", 1]}, "file.toml: files is ['x', 1]; it must be a list of texts"),
        ({"mean": [0, 1]}, "file.toml: mean is [0, 1]; it must be a list of 3 numbers"),
        ({"root": 1}, "file.toml: root is 1; it must be a text"),
        ({"words": ["cat"]}, "file.toml: words is ['cat']; it must be a table such as { name = \"text\" }"),
        ({"extra": 1}, "file.toml: extra is 1; it must be a table"),
        ({"later": {}}, "file.toml: no field 'later'; "),
    ],
)
def test_what_does_not_fit_is_one_line(table, message):
    with pytest.raises(UserError) as caught:
        build(Example, table, "file.toml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_wording_is_the_callers():
    wording = Wording(unknown="{where} lacks {name}", wrong="{name}: no {kind}: {value} ({given}), {default}")
    for table, message in (
        ({"x{}": 1}, "{where} lacks x{}"),
        ({"count": "{a}"}, "count: no int: {a} (str), 1"),
    ):
        with pytest.raises(UserError) as caught:
            build(Example, table, "{where}", wording)
        assert str(caught.value) == message


def test_an_annotation_that_no_file_can_fill_is_the_authors_mistake():
    @dataclass(frozen=True)
    class Odd:
        value: bytes = b""

    with pytest.raises(TypeError, match="bytes"):
        build(Odd, {"value": "x"}, "file.toml")


# -- fields that were added after the first results --------------------------------------------


@dataclass(frozen=True)
class First:
    rate: float = 1.0
    head: str = "match"
    later: ClassVar[Mapping[str, Any]] = {"head": "match"}


@dataclass(frozen=True)
class Variant(First):
    """Adds a field of its own after its first results."""

    focus: bool = False
    later: ClassVar[Mapping[str, Any]] = {"focus": False}


@dataclass(frozen=True)
class Plain(First):
    """Had `focus` from its first result on."""

    focus: bool = False


def test_later_fields_are_left_out_at_their_old_value_only():
    assert identified(First()) == identified(First(head="match")) == {"rate": 1.0}
    assert identified(First(head="linear")) == {"rate": 1.0, "head": "linear"}


def test_a_variant_inherits_the_later_fields_of_its_base():
    assert later_fields(Variant) == {"head": "match", "focus": False}
    assert identified(Variant()) == {"rate": 1.0}
    assert identified(Variant(focus=True)) == {"rate": 1.0, "focus": True}
    assert identified(Variant(head="linear")) == {"rate": 1.0, "head": "linear"}
    assert identified(Plain()) == {"rate": 1.0, "focus": False}


def test_a_later_field_must_default_to_the_value_of_the_earlier_results():
    from methods.base import FitMethod

    for later in ({"hed": "match"}, {"head": "linear"}):
        hyper = dataclass(frozen=True)(type("Hyper", (First,), {"later": later}))
        cls = type("Mine", (FitMethod,), {"name": "mine", "Hyper": hyper})
        with pytest.raises(UserError, match=r"Hyper.later has 'hea?d'"):
            methods.register(cls)


@pytest.mark.parametrize("name", methods.available())
def test_what_an_identity_leaves_out_is_what_building_from_it_fills_in(name):
    hyper = methods.hyper(name)
    assert methods.hyper(name, **identified(hyper)) == hyper
    assert identified(hyper).keys() <= dataclasses.asdict(hyper).keys()


def test_a_later_field_with_another_default_in_a_subclass_is_in_its_identity():
    @dataclass(frozen=True)
    class Decoded(Variant):
        head: str = "ml_decoder"

    assert later_fields(Decoded) == {"focus": False}
    assert identified(Decoded())["head"] == "ml_decoder"
    assert identified(Decoded(head="match"))["head"] == "match"
    assert "head" not in identified(Variant())

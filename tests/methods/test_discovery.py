import sys
import textwrap

import pytest

from methods.discovery import declared_in, scan
from methods.errors import UserError


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


ONE = """
    @register
    class {name}(Base):
        name = "{name}"
"""


def test_every_registered_class_of_every_file_is_found_and_nothing_is_run(tmp_path):
    write(
        tmp_path,
        first="""
            raise SystemExit("this file must not be run")

            @register
            class A(Base):
                other = 1
                name = "a"

            @methods.register
            class B(Base):
                name: ClassVar[str] = "b"

            class Helper(Base):
                name = "register"

            @dataclass(frozen=True)
            class Hyper:
                name: str = "register"
        """,
        second=ONE.format(name="c"),
        helpers="def register(cls): ...",
        empty="",
    )
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", third=ONE.format(name="d"))
    before = set(sys.modules)
    assert scan(tmp_path, "pack") == {"a": "pack.first", "b": "pack.first", "c": "pack.second"}
    assert not {name for name in set(sys.modules) - before if name.startswith("pack")}


def test_the_answer_is_remembered(tmp_path):
    found = scan(write(tmp_path, one=ONE.format(name="a")), "pack")
    write(tmp_path, two=ONE.format(name="b"))
    assert scan(tmp_path, "pack") is found


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"one": ONE.format(name="same"), "two": ONE.format(name="same")},
            r"one\.py and .*two\.py: both register the method name 'same'; rename one",
        ),
        (
            {"one": ONE.format(name="same") + ONE.format(name="same")},
            r"one\.py and .*one\.py: both register the method name 'same'",
        ),
        (
            {"one": "@register\nclass A:\n    name = 'a' + SUFFIX\n"},
            r"one\.py, line 3: the 'name' of A is not a plain string; write it out",
        ),
        ({"one": "@register\nclass A:\n    name = ''\n"}, "is not a plain string"),
        ({"one": "@register\nclass A:\n    pass\n"}, r"one\.py, line 2: A is registered without a 'name'"),
        ({"one": "@register\nclass A:\n    name = 'a\n"}, r"one\.py, line 3: syntax error: "),
    ],
)
def test_faults_are_one_line_with_file_and_line(tmp_path, files, message):
    with pytest.raises(UserError, match=message) as error:
        scan(write(tmp_path, **files), "pack")
    assert "\n" not in str(error.value)


def test_a_checkout_declares_entry_points_and_an_installed_package_has_none(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "pyproject.toml").write_text('[project.entry-points.g]\nx = "m.n:X"\ny = "m"\n')
    assert declared_in(tmp_path / "a", "g") == {"x": "m.n", "y": "m"}
    assert declared_in(tmp_path / "a", "other") == declared_in(tmp_path, "g") == {}
    (tmp_path / "pyproject.toml").write_text("= 3")
    declared_in.cache_clear()
    with pytest.raises(UserError, match=r"pyproject\.toml: .*line 1"):
        declared_in(tmp_path, "g")

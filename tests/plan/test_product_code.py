"""Which code decides a number: comments and other methods do not, what a method imports does."""

from __future__ import annotations

import pytest

from benchmarks.plan import product_code
from benchmarks.plan.product_code import check, differing, hashes, of_method, relevant
from methods.errors import UserError

SOURCE = b'''"""A module."""

import a  # kept with its line


# a remark
def f(x):
    """What it does.

    # not a comment
    """
    text = """
# no comment: a line of a string

"""
    return x + 1


class Stub:
    """Only this."""
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (b'"""A module."""', b'"""Another text."""', True),
        (b"What it does.", b"What it does now.", True),
        (b"# a remark\n", b"", True),
        (b"# a remark\n", b"# a remark\n# and more\n\n", True),
        (b"return x + 1", b"return x + 2", False),
        (b"# no comment: a line of a string\n", b"", False),
        (b"a line of a string\n\n", b"a line of a string\n", False),
        (b"import a", b"import b", False),
        (b"def f(x):", b"def f(x, y=1):", False),
    ],
)
def test_comments_docstrings_and_blank_lines_do_not_count(old, new, same):
    assert old in SOURCE
    changed = SOURCE.replace(old, new)
    assert (relevant(changed) == relevant(SOURCE)) is same


def test_a_source_that_is_no_python_counts_as_it_is():
    assert relevant(b"def (") == b"def ("


def test_a_methods_code_is_its_own_and_what_all_share():
    every = hashes()
    files = {name: set(of_method(name, every)["files"]) for name in ("fixmatch", "csaa", "zero_shot", None)}
    shared = files[None]
    assert {"methods/losses.py", "benchmarks/training/trainer.py", "benchmarks/launch/tasks.py"} <= shared
    assert "methods/fixmatch.py" in files["fixmatch"] - shared
    assert not any(name.startswith("csaa/") for name in files["fixmatch"])
    assert {"csaa/method.py", "csaa/contexts.py", "methods/parts/prompt_classifiers.py"} <= files["csaa"]
    assert "methods/fixmatch.py" not in files["csaa"]
    # What it gives is in the identity by its hash.
    assert not any("readers/" in name or "results/" in name or "cli/" in name for name in shared)


def test_another_file_gives_another_hash_of_those_that_have_it_only(monkeypatch):
    every = hashes()
    edited = {**every, "methods/fixmatch.py": "0" * 64}
    before, after = (
        {name: of_method(name, some)["sha256"] for name in ("fixmatch", "csaa")} for some in (every, edited)
    )
    assert before["fixmatch"] != after["fixmatch"]
    assert before["csaa"] == after["csaa"]


def test_what_differs_from_today_is_named():
    record = of_method("fixmatch", hashes())
    assert differing(record["files"]) == []
    assert differing({**record["files"], "methods/losses.py": "0" * 12}) == ["methods/losses.py"]
    assert differing({**record["files"], "methods/gone.py": "0" * 12}) == ["methods/gone.py"]


def test_code_that_is_not_the_plans_is_refused_in_one_line(monkeypatch):
    check({})  # a plan of an earlier version says nothing
    planned = product_code.hashes()
    check(planned)
    with pytest.raises(UserError, match=r"has changed since the launch \(methods/more.py\): nothing was run"):
        check({**planned, "methods/more.py": "0" * 64})
    check({name: sha for name, sha in planned.items() if "fixmatch" not in name})  # of no method in the plan

"""Each option that a message proposes exists for the verb that it names, or for the verbs that print it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from benchmarks.cli import options, slurm
from benchmarks.run import FILES, parser
from tests.conftest import ROOT

FLAG = re.compile(r"(?<![\w-])--([a-z][a-z-]+)")
COMMAND = re.compile(r"(?:`|run\.py )([a-z]+)\b([^`#\n]*)")
FOLDERS = ("plan", "data/readers", "data/splits", "data/archives", "data/cache")
PRINT = {True: ["run", "retry", "plan"], False: ["run", "plan", "prepare"]}
"""Verbs that print what is wrong with a plan (True) or with data."""
OTHERS = {"array"}
"""Options of other programs."""


def flags() -> dict[str, set[str]]:
    """The options of each verb, those of its sub-verbs included."""
    top, _ = parser()

    def of(one) -> set[str]:
        found = set()
        for action in one._actions:
            found |= {word[2:] for word in action.option_strings if word.startswith("--")}
            for below in (getattr(action, "choices", None) or {}).values() if _nests(action) else ():
                found |= of(below)
        return found

    (verbs,) = [action for action in top._actions if _nests(action)]
    return {name: of(each) for name, each in verbs.choices.items()}


def _nests(action) -> bool:
    return isinstance(getattr(action, "choices", None), dict)


def texts(path: Path) -> list[str]:
    """The strings of a module, without docstrings; what is put into one is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(v) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for v in node.values}
    found = []
    for node in ast.walk(tree):
        if id(node) in docs or id(node) in inside:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(v.value if isinstance(v, ast.Constant) else "X" for v in node.values))
    return found


def wrong(text: str, known: dict[str, set[str]], printing: list[str]) -> list[str]:
    """The options of a text that a verb does not have."""
    found = []
    for verb, rest in COMMAND.findall(text):
        if verb in known:
            found += [f"{verb} --{flag}" for flag in FLAG.findall(rest) if flag not in known[verb]]
    bare = COMMAND.sub(lambda match: "" if match[1] in known else match[0], text)
    missing = [flag for flag in FLAG.findall(bare) if flag not in OTHERS]
    found += [f"{verb} --{f}" for f in missing for verb in printing if f not in known.get(verb, ())]
    return found


def test_what_is_wrong_is_found():
    known = {"run": {"grid"}, "prepare": {"skip-bad", "grid"}}
    assert wrong("leave them out with --skip-bad", known, ["run", "prepare"]) == ["run --skip-bad"]
    assert wrong("leave them out with `prepare --skip-bad`", known, ["run"]) == []
    assert wrong("`prepare --skipbad X` does it", known, ["run"]) == ["prepare --skipbad"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_messages_on_data_and_plans(folder):
    known = flags()
    paths = list((ROOT / "benchmarks" / folder).glob("*.py"))
    if folder != "plan":
        paths.append(ROOT / "benchmarks" / "data" / "registry.py")
    found = {
        f"{path.name}: {each}"
        for path in paths
        if path.name != "csv_inspect.py"  # printed by `prepare --inspect` only
        for text in texts(path)
        for each in wrong(text, known, PRINT[folder == "plan"])
    }
    assert not found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.__name__.rpartition(".")[2])
def test_messages_of_the_command_line(file):
    known = flags()
    top = options.Parser()
    verbs = top.add_subparsers()
    file.add(verbs)
    names = [*verbs.choices, *(["run", "plan", "retry"] if file is slurm else [])]
    own = set().union(*(known[name] for name in names))
    found = {
        each for text in texts(Path(file.__file__)) for each in wrong(text, {**known, "here": own}, ["here"])
    }
    assert not found

"""Every verb's help ends with examples, and the examples are right."""

from __future__ import annotations

import argparse
import shlex

import pytest

from benchmarks import run
from benchmarks.cli import options
from methods.errors import UserError


def verbs(parser: argparse.ArgumentParser, prefix: str = "") -> dict[str, argparse.ArgumentParser]:
    """Every verb and action below a parser by the words that call it."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found[f"{prefix}{name}"] = below
                found |= verbs(below, f"{prefix}{name} ")
    return found


VERBS = verbs(run.parser()[0])


def examples(parser: argparse.ArgumentParser) -> list[str]:
    last = parser.format_help().rstrip().splitlines()[-2:]
    assert all(line.startswith(f"  {options.RUN} ") for line in last), last
    return [line.removeprefix(f"  {options.RUN} ") for line in last]


def test_the_verbs():
    assert {"run", "retry", "plan", "list", "prepare", "splits", "splits write", "splits verify"} <= set(
        VERBS
    )
    assert {"status", "logs", "cancel", "doctor", "tables", "plots", "why"} <= set(VERBS)


def test_without_a_word_the_help_is_printed(capsys):
    assert run.main([]) == 0
    alone = capsys.readouterr().out
    with pytest.raises(SystemExit):
        run.main(["--help"])
    assert capsys.readouterr().out == alone
    assert examples(run.parser()[0]) == ["--grid demo", "list csaa"]


@pytest.mark.parametrize("name", VERBS)
def test_the_help_ends_with_two_examples_that_parse(name, monkeypatch):
    called = []
    for example in examples(VERBS[name]):
        top, _ = run.parser()
        for below in verbs(top).values():
            if "execute" in below._defaults:
                execute = below.get_default("execute")
                below.set_defaults(execute=lambda args, execute=execute: called.append((execute, args)) or 0)
        monkeypatch.setattr(run, "parser", lambda top=top: (top, [*VERBS]))
        assert run.main(shlex.split(example)) == 0
        monkeypatch.undo()
    own = VERBS[name].get_default("execute")
    assert len(called) == 2
    for execute, args in called:
        assert args.verb == name.split()[0]
        assert own is None or execute is own  # `splits` alone executes nothing


@pytest.mark.parametrize("name", [name for name in VERBS if name != "splits"])
def test_a_verb_carries_out_a_function_of_its_own(name):
    execute = VERBS[name].get_default("execute")
    assert execute.__module__.startswith("benchmarks.cli.")
    assert execute.__doc__


def test_wrong_options_are_one_line():
    with pytest.raises(UserError, match=r"--lines: 0 is not a positive number; see `run.py logs --help`"):
        run.parser()[0].parse_args(["logs", "x", "--lines", "0"])
    with pytest.raises(UserError, match=r"--every: inf is not a positive number of seconds"):
        run.parser()[0].parse_args(["status", "--every", "inf"])
    with pytest.raises(UserError, match=r"--lines: ten is not a positive number"):
        run.parser()[0].parse_args(["logs", "x", "--lines", "ten"])

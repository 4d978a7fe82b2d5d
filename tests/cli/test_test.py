"""The verb `test`: which methods it takes, how it answers, and one line for what it cannot take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.checks import contract
from benchmarks.run import main
from methods import registry
from tests.conftest import ROOT

SOUND = '''
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from methods import register
from methods.base import PseudoLabels
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod


@dataclass(frozen=True)
class Hyper(PseudoLabelHyper):
    """Nothing of its own."""


@register
class {cls}(PseudoLabelMethod):
    name = "{name}"
    Hyper = Hyper

    def pseudo_labels(self, batch):
        p = self.weak_probabilities(batch)
        targets = F.one_hot(p.argmax(dim=1), p.shape[1]).float(){fault}
        return PseudoLabels(targets, torch.ones_like(targets))
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Function that writes a file with methods, one for each name, and goes to its folder."""
    monkeypatch.chdir(tmp_path)

    def file(path: str, *names: str, fault: str = "") -> str:
        text = "".join(SOUND.format(cls=f"Own{k}", name=n, fault=fault) for k, n in enumerate(names))
        Path(path).write_text(text)
        return path

    with registry.isolated():
        yield file


class Suite:
    """Stands in for the contract suite: notes the names that it is asked for, and gives an exit code."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.code = 0

    def run(self, names: list[str]) -> int:
        self.calls.append(names)
        return self.code


@pytest.fixture
def suite(monkeypatch) -> Suite:
    stand_in = Suite()
    monkeypatch.setattr(contract, "run", stand_in.run)
    return stand_in


def error(capsys, *arguments: str) -> str:
    assert main(["test", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 2), (3, 2), (5, 2)])
def test_all_methods_of_a_file_are_tested_and_the_exit_code_says_how(write, suite, capsys, code, expected):
    suite.code = code
    assert main(["test", write(f"verdict_{code}.py", f"b_{code}", f"a_{code}")]) == expected
    assert suite.calls == [[f"a_{code}", f"b_{code}"]]
    told = {0: "keeps the contract", 1: "does not keep the contract"}.get(code, "")
    assert told in capsys.readouterr().out


def test_name_chooses_one(write, suite, capsys):
    path = write("two.py", "first_one", "second_one")
    assert main(["test", path, "--name", "second_one"]) == 0
    assert suite.calls == [["second_one"]]


def test_a_wrong_name_gets_the_nearest(write, suite, capsys):
    assert "no method 'top_two'; did you mean 'top_one'?" in error(
        capsys, write("near.py", "top_one"), "--name", "top_two"
    )
    assert not suite.calls


def test_a_built_in_method_is_found_in_its_file(suite):
    assert main(["test", str(ROOT / "methods" / "fixmatch.py")]) == 0
    assert suite.calls == [["fixmatch"]]


def test_what_cannot_be_tested_is_said_in_a_line(write, suite, capsys):
    assert "no file 'absent.py'" in error(capsys, "absent.py")
    Path("folder").mkdir()
    assert "folder is no Python file" in error(capsys, "folder")
    Path("notes.txt").write_text("x")
    assert "notes.txt is no Python file" in error(capsys, "notes.txt")
    assert "cannot import 'no_such_module'" in error(capsys, "no_such_module")
    Path("empty.py").write_text("x = 1\n")
    assert "empty.py: no method there: decorate a class with methods.register" in error(capsys, "empty.py")
    Path("broken.py").write_text("def f(:\n")
    line = error(capsys, "broken.py")
    assert "cannot import 'broken.py': SyntaxError" in line
    assert "line 1" in line
    Path("nameless.py").write_text("from methods import register\n\n@register\nclass A: ...\n")
    assert "needs a class attribute 'name'" in error(capsys, "nameless.py")
    assert not suite.calls


def test_without_pytest_a_line_says_how_to_get_it(write, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest", None)
    assert "needs pytest: pip install" in error(capsys, write("bare.py", "bare_method"))


@pytest.mark.parametrize(("fault", "code"), [("", 0), (" * 2", 1)])
def test_a_real_method_in_a_process_without_the_repository_s_tests(tmp_path, fault, code):
    # As installed: the packages without tests/, and a folder of the user's own.
    site = tmp_path / "site"
    site.mkdir()
    for package in ("benchmarks", "methods", "csaa", "results", "slurm"):
        (site / package).symlink_to(ROOT / package)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "conftest.py").write_text("raise RuntimeError('not for this suite')\n")
    text = SOUND.format(cls="Own", name="top_one", fault=fault)
    (tmp_path / "own" / "top_one.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "test", "top_one.py"],
        cwd=tmp_path / "own",
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert ("failed" in done.stdout) == bool(code)
    assert "top_one: " + ("does not keep" if code else "keeps") in done.stdout

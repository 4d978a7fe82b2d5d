"""The repository keeps the rules of `tests/architecture.py`, and a tree that breaks one is found out.

`KNOWN` lists what does not hold yet; an entry that has become true fails too, so that the list only shrinks.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import architecture
from tests.architecture import PACKAGES, Tree

ROOT = Path(__file__).resolve().parent.parent

KNOWN: dict[str, str] = {}
"""Faults that are being mended, each with how."""


@pytest.fixture(scope="module")
def faults() -> dict[str, dict[str, str]]:
    return architecture.all_faults(Tree(ROOT, PACKAGES))


@pytest.mark.parametrize(
    "rule", ["packages", "rooms", "circles", "inits", "sizes", "methods", "hidden labels", "torch"]
)
def test_rule(faults, rule):
    new = {fault: detail for fault, detail in faults[rule].items() if fault not in KNOWN}
    if new:
        pytest.fail("; ".join(f"{fault} ({detail})" for fault, detail in new.items()), pytrace=False)


def test_known_faults_are_still_there(faults):
    mended = sorted(KNOWN.keys() - {fault for found in faults.values() for fault in found})
    if mended:
        pytest.fail(f"mended; take out of KNOWN in tests/test_architecture.py: {mended}", pytrace=False)


def test_the_tables_themselves_have_no_circle():
    for table in (PACKAGES, architecture.ROOMS):
        left = {name: {target.partition(".")[0] for target in targets} for name, targets in table.items()}
        while left:
            free = [name for name, targets in left.items() if not targets & left.keys()]
            assert free, f"a circle among {sorted(left)}"
            for name in free:
                del left[name]


# --- small trees that break a rule ------------------------------------------------------------------------


@pytest.fixture
def plant(tmp_path):
    """Write a small repository: module name to source; folders get an `__init__` with a purpose."""

    def write(sources: dict[str, str]) -> Tree:
        (tmp_path / "tests").mkdir()
        (tmp_path / "pyproject.toml").write_text("")
        for name, source in sources.items():
            path = tmp_path / (name.replace(".", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        for package in PACKAGES:
            (tmp_path / package).mkdir(exist_ok=True)
            for folder in [tmp_path / package, *(p for p in (tmp_path / package).rglob("*") if p.is_dir())]:
                if not (folder / "__init__.py").exists():
                    (folder / "__init__.py").write_text('"""A purpose."""\n')
        return Tree(tmp_path, PACKAGES)

    return write


def found(tree: Tree) -> set[str]:
    return {fault for faults in architecture.all_faults(tree).values() for fault in faults}


def test_a_sound_tree_has_no_fault(plant):
    tree = plant(
        {
            "benchmarks.run": "from benchmarks.cli import runs\n",
            "benchmarks.cli.runs": "def f():\n    from benchmarks.plan import jobs\n",
            "benchmarks.plan.jobs": "from methods import base\nNAMES = ['csaa.method']\n",
            "benchmarks.workspace": "from results.files import write\n",
            "csaa.method": "from methods.base import StepMethod\n",
            "methods.base": "import torch\n\nclass StepMethod: ...\n",
            "results.files": "def write(): ...\n",
        }
    )
    assert found(tree) == set()


@pytest.mark.parametrize(
    "second",
    [
        "import methods.a\n",
        "from methods import a\n",
        "from . import a\n",
        "from .a import f\n",
        "def g():\n    from methods.a import f\n",
        "class G:\n    def g(self):\n        import methods.a as a\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from methods.a import f\n",
        "import typing\nif typing.TYPE_CHECKING:\n    from methods.a import f\n",
        "import importlib\ndef g():\n    return importlib.import_module('methods.a')\n",
    ],
)
def test_a_circle_is_found_however_it_is_hidden(plant, second):
    tree = plant({"methods.a": "from methods.b import g\n\ndef f(): ...\n", "methods.b": second})
    assert found(tree) == {"circle methods.a, methods.b"}


def test_a_circle_of_three_modules_is_one_circle(plant):
    tree = plant({f"results.{a}": f"import results.{b}" for a, b in ("ab", "bc", "ca")})
    assert found(tree) == {"circle results.a, results.b, results.c"}


def test_a_circle_between_folders_is_found_though_no_module_is_in_one(plant):
    tree = plant(
        {
            "benchmarks.data.cache.a": "import benchmarks.data.views.b\n",
            "benchmarks.data.cache.c": "",
            "benchmarks.data.views.b": "",
            "benchmarks.data.views.d": "import benchmarks.data.cache.c\n",
        }
    )
    assert found(tree) == {"folder circle benchmarks.data.cache, benchmarks.data.views"}


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("methods.a", "import csaa.method", "package methods → csaa"),
        ("methods.a", "import_module('csaa.method')", "package methods → csaa"),
        ("methods.a", "POINT = 'csaa.method:CSAA'", "package methods → csaa"),
        ("results.a", "def f():\n    import methods.errors", "package results → methods"),
        ("slurm.a", "import methods.base", "package slurm → methods"),
        ("slurm.a", "words = ['python', '-m', 'benchmarks.run']", "package slurm → benchmarks"),
        ("csaa.a", "if TYPE_CHECKING:\n    import results.store", "package csaa → results"),
        ("results.a", "from tests.conftest import f", "package results → tests"),
        ("benchmarks.plan.a", "def f():\n    import benchmarks.launch.local", "room plan → launch"),
        ("benchmarks.data.a", "import_module('benchmarks.plan.jobs')", "room data → plan"),
        ("benchmarks.progress", "import benchmarks.plan.jobs", "room progress → plan"),
        ("benchmarks.training.a", "w = ('-m', 'benchmarks.run')", "room training → run"),
    ],
)
def test_a_forbidden_arrow_is_found(plant, module, source, fault):
    names = ("csaa.method", "methods.base", "methods.errors", "results.store", "benchmarks.run")
    empty = dict.fromkeys((*names, "benchmarks.launch.local", "benchmarks.plan.jobs"), "")
    assert found(plant({**empty, module: source})) == {fault}


def test_allowed_single_modules_are_allowed(plant):
    tree = plant(
        {
            "slurm.a": "from methods.errors import UserError\nfrom results import files\n",
            "methods.errors": "class UserError(Exception): ...\n",
            "results.files": "",
            "benchmarks.run": "",
            "benchmarks.launch.a": "words = ['python', '-m', 'benchmarks.run', 'prepare']\n",
        }
    )
    assert found(tree) == set()


def test_rooms_need_a_row_and_folders_a_purpose(plant):
    tree = plant(
        {
            "benchmarks.cellar.a": "",
            "methods.parts.__init__": "import os\n",
            "results.a.b": "",
            "csaa.x": "\n" * 421,
        }
    )
    assert found(tree) == {"no row for cellar", "__init__ of methods.parts", "long csaa/x.py"}


def test_the_top_floor_has_eight_modules_at_most(plant):
    names = ("run", "worker", "workspace", "arguments", "progress", "signals", "provenance")
    tree = plant({f"benchmarks.{name}": "" for name in (*names, "helpers")})
    assert found(tree) == {"no row for helpers", "top floor of benchmarks"}


def test_a_method_named_elsewhere_takes_more_than_its_file(plant):
    source = "@register\nclass A(StepMethod):\n    name = 'a'\n"
    assert found(plant({"methods.a": source, "methods.registry": "T = {'a': 'methods.a'}\n"})) == {
        "method methods.a"
    }


def test_hidden_labels_are_found_where_they_are_taken(plant):
    tree = plant(
        {
            "benchmarks.launch.a": "hidden = job.dataset.train.labels[pool]\n",
            "benchmarks.perf.b": "hidden = f(dataset.train.labels[job.split.unlabelled.numpy()])\n",
            "benchmarks.training.build": "labels = dataset.train.labels[job.split.labelled]\n",
            "benchmarks.training.hidden_labels": "hidden = job.dataset.train.labels[pool]\n",
        }
    )
    assert found(tree) == {
        "hidden labels in benchmarks/launch/a.py",
        "hidden labels in benchmarks/perf/b.py",
    }


def test_torch_is_found_through_modules_and_their_packages(plant):
    tree = plant(
        {
            "benchmarks.status.view": "import benchmarks.workspace\ndef f():\n    import torch\n",
            "benchmarks.workspace": "from results.store import RunStore\n",
            "results.store": "import numpy\n",
            "results.__init__": '"""What is kept."""\nimport torch\n',
        }
    )
    assert found(tree) == {"benchmarks.status.view loads torch", "results loads torch"}


# --- the page that describes it ---------------------------------------------------------------------------


def test_what_the_page_names_exists_and_every_folder_has_its_line():
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    paths = {word for word in re.findall(r"`([\w/]+(?:/|\.(?:py|toml|json)))`", page) if "/" in word}
    roots = (ROOT, ROOT / "benchmarks", ROOT / "results")
    absent = sorted(path for path in paths if not any((root / path).exists() for root in roots))
    assert not absent
    folders = {file.parent.relative_to(ROOT).as_posix() for file in Tree(ROOT, PACKAGES).files.values()}
    missing = sorted(folder for folder in folders if f"`{folder}/`" not in page)
    assert not missing

"""The code of a user's method: how it is imported, what it hashes to, and where the hash is recorded."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path

import pytest

import methods
from benchmarks.plan import grid, jobs
from benchmarks.plan.identity import digest
from benchmarks.plan.user_code import code_of, import_methods
from methods import registry
from methods.errors import UserError
from tests.plan import golden

METHOD = '''"""A user's method."""
import json
import numpy
{imports}
from dataclasses import dataclass
from methods import register
from methods.base import FitMethod
from methods.{base} import {base_class}


@dataclass(frozen=True)
class Hyper({base_class}.Hyper):
    """As the base."""


@register
class Mine({base_class}):
    """{doc}"""

    name = "{name}"
    Hyper = Hyper
'''


def write(path: Path, name: str = "mine", imports: str = "", doc: str = "Mine.", base: str = "linear_probe"):
    path.parent.mkdir(parents=True, exist_ok=True)
    base_class = {"linear_probe": "LinearProbe", "fixmatch": "FixMatch"}[base]
    path.write_text(METHOD.format(name=name, imports=imports, doc=doc, base=base, base_class=base_class))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def _isolated(monkeypatch):
    for name in methods.available():  # a module registers once, when it is first imported
        methods.get(name)
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with registry.isolated():
        yield
    for name in set(sys.modules) - before:
        if name.startswith((registry.USER_FILE, "helper", "theirs", "deep")):
            del sys.modules[name]


def imported(path: Path, name: str = "mine"):
    import_methods(path.name, path.parent, "test")
    found = code_of(name)
    assert found is not None
    return found


def test_methods_of_this_repository_have_no_code():
    assert {name: code_of(name) for name in methods.available()} == dict.fromkeys(methods.available())


def test_the_hash_of_one_file_is_its_own_wherever_it_lies(tmp_path):
    path = write(tmp_path / "a" / "my_method.py")
    found = imported(path)
    assert found.digest == sha256(path)
    assert found.record() == {"sha256": sha256(path), "files": {"my_method.py": sha256(path)}}
    with registry.isolated():
        registry.forget(methods.get("mine").__module__)
        moved = path.rename(tmp_path / "moved.py")
        assert imported(moved).digest == found.digest


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for name in ("first", "second"):
        import_methods("my.py", write(tmp_path / name / "my.py", name).parent, "test")
    assert methods.get("first") is not methods.get("second")
    assert code_of("first").digest != code_of("second").digest
    same = write(tmp_path / "third" / "my.py", "first")
    with pytest.raises(UserError, match=r"third/my.py: Mine: .* 'first' is taken by .*first/my.py"):
        import_methods("my.py", same.parent, "test")


def test_a_file_is_read_once_and_again_when_it_has_changed(tmp_path):
    path = write(tmp_path / "my.py")
    before = imported(path)
    cls = methods.get("mine")
    assert imported(path) == before
    assert methods.get("mine") is cls
    write(path, doc="Mine, changed.")
    assert imported(path).digest != before.digest
    assert methods.get("mine").__doc__ == "Mine, changed."


@pytest.mark.parametrize("error", ["ValueError", "SystemExit"])
def test_a_file_that_fails_leaves_nothing_behind(tmp_path, error):
    path = write(tmp_path / "my.py")
    path.write_text(path.read_text() + f"\nraise {error}('odd')\n")
    with pytest.raises(UserError, match=rf"^test: cannot import 'my.py': {error}: odd$"):
        import_methods("my.py", tmp_path, "test")
    assert "mine" not in methods.available()
    assert imported(write(path)).digest == sha256(path)


# -- helpers -----------------------------------------------------------------------------------


def test_files_that_it_imports_from_beside_it_belong_to_it(tmp_path):
    path = write(tmp_path / "my.py", imports="import helper_a\nfrom helper_p.part import value\n")
    (tmp_path / "helper_a.py").write_text("def late():\n    import helper_b\n")
    (tmp_path / "helper_b.py").write_text("value = 1\n")
    (tmp_path / "helper_c.py").write_text("not imported by anyone\n")
    write(tmp_path / "helper_p" / "part.py").write_text("from . import other\nvalue = other.value\n")
    (tmp_path / "helper_p" / "other.py").write_text("value = 1\n")
    (tmp_path / "helper_p" / "__init__.py").write_text("")
    found = imported(path)
    parts = ("__init__", "other", "part")
    names = ["helper_a.py", "helper_b.py", *(f"helper_p/{part}.py" for part in parts), "my.py"]
    assert found.files == {name: sha256(tmp_path / name) for name in names}
    assert found.digest == digest(found.files)
    (tmp_path / "helper_b.py").write_text("value = 2\n")
    assert code_of("mine").digest != found.digest


def test_a_folder_without_init_is_searched_too(tmp_path):
    path = write(tmp_path / "my.py", imports="from deep.down import value\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "down.py").write_text("value = 1\n")
    assert set(imported(path).files) == {"my.py", "deep/down.py"}


def test_a_helper_whose_name_stands_for_another_file_is_refused(tmp_path):
    for name in ("first", "second"):
        folder = write(tmp_path / name / "my.py", name, imports="import helper_same").parent
        (folder / "helper_same.py").write_text(f"value = {name!r}\n")
        import_methods("my.py", folder, "test")
    assert set(code_of("first").files) == {"my.py", "helper_same.py"}
    with pytest.raises(UserError, match=r"'second': my.py imports 'helper_same', .*first/helper_same.py, n"):
        code_of("second")


# -- installed packages ------------------------------------------------------------------------


def test_an_installed_package_is_identified_by_its_sources_and_names_its_version(tmp_path, monkeypatch):
    write(tmp_path / "theirs_package" / "method.py", "theirs", imports="import theirs_other")
    (tmp_path / "theirs_package" / "__init__.py").write_text("")
    (tmp_path / "theirs_other.py").write_text("")  # installed as well
    info = tmp_path / "theirs-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\ntheirs = theirs_package.method:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    registry._entry_points.cache_clear()
    found = code_of("theirs")
    assert found.distribution == found.record()["distribution"] == "theirs 1.2"
    assert set(found.files) == {"theirs_package/__init__.py", "theirs_package/method.py"}


def test_an_installed_module_that_a_grid_names(tmp_path, monkeypatch):
    path = write(tmp_path / "theirs_module.py", "theirs")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_methods("theirs_module", Path("anywhere"), "test")
    assert code_of("theirs").digest == sha256(path)


def test_a_method_without_a_source_is_refused():
    base = methods.get("linear_probe")
    body = {"name": "mine", "Hyper": base.Hyper, "__module__": "nowhere"}
    methods.register(type("Mine", (base,), body))
    with pytest.raises(UserError, match="method 'mine': there is no source file of 'nowhere'"):
        code_of("mine")


# -- in a plan ---------------------------------------------------------------------------------


def planned(path: Path, monkeypatch) -> list[jobs.Job]:
    monkeypatch.setattr(jobs, "split_of", golden.split_of)
    file = path.with_name("grid.toml")
    file.write_text(
        f'modules = ["{path.name}"]\ndatasets = ["voc2007"]\nratios = [0.1]\nseeds = [1]\n'
        'methods = ["mine", "fixmatch", "linear_probe"]\nrecipe = "embedded"\n'
    )
    found = grid.load(str(file))
    images = {(spec, size): golden.prepared(spec, size) for spec, (size,) in found.datasets.items()}
    return jobs.jobs(found, images)


@pytest.mark.parametrize("base", ["linear_probe", "fixmatch"])
def test_the_code_is_part_of_the_identity_of_the_methods_it_registers_only(tmp_path, monkeypatch, base):
    path = write(tmp_path / "my.py", base=base)
    before = planned(path, monkeypatch)
    assert [job.spec.code for job in before] == [sha256(path), "", ""]
    assert [job.code is None for job in before] == [False, True, True]
    assert before[0].spec.record()["code"] == sha256(path)
    write(path, base=base, doc="Mine, changed.")
    after = planned(path, monkeypatch)
    same = [one.spec.run_id == two.spec.run_id for one, two in zip(before, after, strict=True)]
    assert same == [False, True, True]


def test_a_warm_up_by_the_users_own_method_is_identified_by_its_code(tmp_path, monkeypatch):
    path = write(tmp_path / "my.py", base="fixmatch")
    (stage,) = planned(path, monkeypatch)[0].stages
    assert stage.key["method"] == "supervised"  # of this repository
    assert "code" not in stage.key
    path.write_text(path.read_text() + '    warmup_name = ""\n')
    (stage,) = planned(path, monkeypatch)[0].stages
    assert (stage.key["method"], stage.key["code"]) == ("mine", sha256(path))

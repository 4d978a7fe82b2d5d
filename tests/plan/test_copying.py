"""What a launch copies of a user's code, and what not: packages, data beside a module, equal names."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import methods
from benchmarks.plan import copies, copying, grid
from benchmarks.plan.copying import copy_grid
from methods import registry
from methods.errors import UserError
from tests.conftest import ROOT

METHOD = """
from methods import register
from methods.zero_shot import ZeroShot
{imports}


@register
class Mine(ZeroShot):
    name = "{name}"
"""
GRID = """
modules = {modules}
datasets = ["voc2007"]
ratios = [0.1]
seeds = [1]
methods = {methods}
recipe = "embedded"
"""


@pytest.fixture(autouse=True)
def _isolated(monkeypatch):
    for name in methods.available():  # a module registers once, when it is first imported
        methods.get(name)
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with registry.isolated():
        yield
        copies.stop_using()
    for name in set(sys.modules) - before:
        if name.startswith((registry.USER_FILE, "owned_")):
            del sys.modules[name]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def copied(folder: Path, modules: str, names: str) -> Path:
    (folder / "g.toml").write_text(GRID.format(modules=modules, methods=names))
    return copy_grid(grid.load(str(folder / "g.toml")), (), folder / "copies")


def loaded_from(copy: Path, script: str, *path: Path) -> str:
    """What a new process prints that loads a copy of a grid first."""
    code = f"from benchmarks.plan import grid\ng = grid.load({str(copy)!r})\nimport methods\n{script}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        # As a worker: what lies in the working directory is not found there.
        env={"PYTHONSAFEPATH": "1", "PYTHONPATH": ":".join(map(str, (ROOT, *path))), "PATH": "/usr/bin:/bin"},
        cwd=copy.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_package_on_the_path_is_copied_whole_and_found_before_the_original(tmp_path, monkeypatch):
    """As an editable install, or a folder on PYTHONPATH."""
    lib = tmp_path / "lib"
    write(
        lib,
        {
            "owned_pack/__init__.py": "",
            "owned_pack/method.py": METHOD.format(name="packed", imports="from .deep.value import VALUE"),
            "owned_pack/deep/__init__.py": "",
            "owned_pack/deep/value.py": "VALUE = 1\n",
            "owned_pack/other.py": "import owned_beside\nVALUE = owned_beside.VALUE\n",
            "owned_beside.py": "VALUE = 1\n",
        },
    )
    monkeypatch.syspath_prepend(str(lib))
    importlib.invalidate_caches()
    copy = copied(tmp_path, '["owned_pack.method"]', '["packed"]')
    for name in ("owned_pack/deep/value.py", "owned_beside.py"):
        (lib / name).write_text("VALUE = 2\n")
    script = (
        "import owned_pack.other, owned_pack.method as m\nprint(m.VALUE, owned_pack.other.VALUE, m.__file__)"
    )
    one, other, file = loaded_from(copy, script, lib).split()
    assert (one, other) == ("1", "1")
    assert Path(file).is_relative_to(copy.parent)


def test_a_module_in_a_folder_without_init_is_found_by_its_whole_name(tmp_path, monkeypatch):
    lib = tmp_path / "lib"
    write(lib, {"owned_space/sub/method.py": METHOD.format(name="spaced", imports="VALUE = 1")})
    monkeypatch.syspath_prepend(str(lib))
    importlib.invalidate_caches()
    copy = copied(tmp_path, '["owned_space.sub.method"]', '["spaced"]')
    (lib / "owned_space/sub/method.py").write_text("broken [\n")
    assert loaded_from(copy, "import owned_space.sub.method as m\nprint(m.VALUE)", lib) == "1"


def test_two_files_of_one_name_and_their_data_stay_apart(tmp_path):
    for name in ("a", "b"):
        source = METHOD.format(name=f"own_{name}", imports="DATA = ['table.txt']")
        write(tmp_path, {f"{name}/mine.py": source, f"{name}/table.txt": name})
    copy = copied(tmp_path, '["a/mine.py", "b/mine.py"]', '["own_a", "own_b"]')
    for name in ("a", "b"):
        (tmp_path / name / "mine.py").unlink()
        (tmp_path / name / "table.txt").write_text("edited")
    script = (
        "import sys\nfrom pathlib import Path\n"
        "for n in ('own_a', 'own_b'):\n"
        "    file = Path(sys.modules[methods.get(n).__module__].__file__)\n"
        "    print(file.with_name('table.txt').read_text())"
    )
    assert loaded_from(copy, script).split() == ["a", "b"]


def test_small_files_that_a_source_names_are_copies_and_others_links(tmp_path, monkeypatch):
    monkeypatch.setattr(copying, "SMALL", 10)
    texts = ["small.txt", "large.txt", "folder/part.txt", "../outside.txt", "/etc/passwd", "absent.txt", "."]
    write(
        tmp_path,
        {
            "own/mine.py": METHOD.format(name="mine", imports=f"NAMES = {texts}"),
            "own/small.txt": "small",
            "own/large.txt": "more than ten bytes",
            "own/folder/part.txt": "part",
            "own/folder/unnamed.txt": "unnamed",
            "own/unnamed.txt": "unnamed",
            "own/helper_of_nobody.py": "",
            "outside.txt": "outside",
        },
    )
    copy = copied(tmp_path, '["own/mine.py"]', '["mine"]')
    place = copy.parent / "0"
    kinds = {
        path.relative_to(place).as_posix(): "link" if path.is_symlink() else "copy"
        for path in place.rglob("*")
        if path.is_file()
    }
    assert kinds == {
        "mine.py": "copy",
        "small.txt": "copy",
        "large.txt": "link",
        "folder/part.txt": "copy",
        "folder/unnamed.txt": "link",
        "unnamed.txt": "link",
    }
    found = copies.Copies.beside(copy)
    assert found is not None
    assert [name for name, _ in found.provenance()["module_data"]] == ["folder/part.txt", "small.txt"]
    assert found.edited() == []
    (tmp_path / "own/small.txt").write_text("edited")
    (tmp_path / "g.toml").unlink()
    assert found.edited() == ["g.toml", "small.txt"]


def test_a_module_that_no_import_statement_names_is_missing_aloud(tmp_path):
    imports = "import importlib\nimportlib.import_module('owned_' + 'hidden')"
    write(tmp_path, {"mine.py": METHOD.format(name="mine", imports=imports), "owned_hidden.py": ""})
    copy = copied(tmp_path, '["mine.py"]', '["mine"]')
    with pytest.raises(AssertionError, match="No module named 'owned_hidden'; a launch copies, and"):
        loaded_from(copy, "")


def test_a_grid_without_modules_is_copied_and_its_paths_start_where_it_lay(tmp_path):
    write(tmp_path, {"lists/mine.txt": "000001\n"})
    text = GRID.format(modules="[]", methods='["zero_shot"]')
    text = text.replace('"voc2007"', '{ name = "voc2007", split = "lists/mine.txt", root = "../voc" }')
    (tmp_path / "g.toml").write_text(text)
    loaded = grid.load(str(tmp_path / "g.toml"))
    copy = copy_grid(loaded, (), tmp_path / "elsewhere" / "copies")
    (tmp_path / "g.toml").write_text("broken [\n")
    again = grid.load(str(copy))
    assert again.cells == loaded.cells
    assert again.cells[0].dataset.split == str(tmp_path / "lists" / "mine.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is not of g.toml; launch the grid again"),
        (json.dumps({"format": 99}), "was made by a newer version"),
        (json.dumps({"format": 1, "grid": {"file": "other.toml"}}), "is not of g.toml"),
    ],
)
def test_copies_that_are_none_are_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "g.toml").write_text(GRID.format(modules="[]", methods='["zero_shot"]'))
    (tmp_path / copies.NAME).write_text(text)
    with pytest.raises(UserError, match=message) as refusal:
        grid.load(str(tmp_path / "g.toml"))
    assert len(str(refusal.value).splitlines()) == 1

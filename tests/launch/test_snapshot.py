"""What jobs run is what was planned, whatever happens to the working copy meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from benchmarks import provenance
from benchmarks.launch import snapshot
from benchmarks.provenance import CODE_FILE
from methods.errors import UserError


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A working copy of a small package, with the functions pointed at it."""
    root = tmp_path / "work"
    (root / "benchmarks").mkdir(parents=True)
    (root / "benchmarks" / "__init__.py").write_text("VALUE = 1\n")
    (root / ".gitignore").write_text("runs/\n")

    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", *words],
            check=True,
            capture_output=True,
        )

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(snapshot, "REPOSITORY", root)
    monkeypatch.setattr(provenance, "REPOSITORY", root)
    provenance.code_state.cache_clear()
    yield root
    provenance.code_state.cache_clear()


def test_a_copy_holds_changes_and_new_files_and_stays_as_it_was(copy, tmp_path):
    (copy / "benchmarks" / "__init__.py").write_text("VALUE = 2\n")
    (copy / "benchmarks" / "mine.py").write_text("NEW = True\n")
    (copy / "runs").mkdir()
    (copy / "runs" / "large").write_text("ignored")
    state = dict(provenance.code_state())
    place = snapshot.snapshot(tmp_path / "code")
    assert place.name == f"{state['commit'][:12]}-{state['dirty']}"
    (copy / "benchmarks" / "__init__.py").write_text("VALUE = 3\n")
    shown = subprocess.run(
        [sys.executable, "-c", "import benchmarks, benchmarks.mine as m; print(benchmarks.VALUE, m.NEW)"],
        env={**os.environ, "PYTHONPATH": str(place)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "2 True\n"
    assert not (place / "runs").exists()
    assert json.loads((place / CODE_FILE).read_text()) == state


def test_the_same_code_is_copied_once_and_other_code_anew(copy, tmp_path):
    first = snapshot.snapshot(tmp_path / "code")
    stamp = (first / CODE_FILE).stat().st_mtime_ns
    assert snapshot.snapshot(tmp_path / "code") == first
    assert (first / CODE_FILE).stat().st_mtime_ns == stamp
    (copy / "benchmarks" / "__init__.py").write_text("VALUE = 2\n")
    provenance.code_state.cache_clear()
    assert snapshot.snapshot(tmp_path / "code") != first
    assert sorted(path.name for path in (tmp_path / "code").iterdir())[0] == first.name


def test_a_copy_tells_its_own_state_and_is_not_copied_again(copy, tmp_path, monkeypatch):
    state = dict(provenance.code_state())
    place = snapshot.snapshot(tmp_path / "code")
    monkeypatch.setattr(snapshot, "REPOSITORY", place)
    monkeypatch.setattr(provenance, "REPOSITORY", place)
    provenance.code_state.cache_clear()
    assert provenance.code_state() == state
    assert snapshot.snapshot(tmp_path / "more") == place


def test_a_file_that_changes_while_it_is_copied_is_said(copy, tmp_path, monkeypatch):
    def slow(source, target, **options):
        shutil.copyfile(source, target)
        (copy / "benchmarks" / "__init__.py").write_text("VALUE = 7\n")

    monkeypatch.setattr(snapshot.shutil, "copy2", slow)
    with pytest.raises(UserError, match="changed while it was copied"):
        snapshot.snapshot(tmp_path / "code")
    assert list((tmp_path / "code").iterdir()) == []


def test_links_pipes_and_repositories_among_the_new_files_are_no_trouble(copy, tmp_path):
    clean = dict(provenance.code_state())
    (tmp_path / "venv").mkdir()
    (copy / ".venv").symlink_to(tmp_path / "venv")
    (copy / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(copy / "pipe")
    subprocess.run(["git", "init", "--quiet", str(copy / "inner")], check=True)
    (copy / "inner" / "file").write_text("of another repository")
    (copy / os.fsdecode(b"caf\xe9.txt")).write_text("not UTF-8")
    provenance.code_state.cache_clear()
    state = dict(provenance.code_state())
    assert state["commit"] == clean["commit"]
    assert state["dirty"]
    place = snapshot.snapshot(tmp_path / "code")
    assert (place / "benchmarks" / "__init__.py").read_text() == "VALUE = 1\n"
    (copy / ".venv").unlink()
    (copy / ".venv").symlink_to(tmp_path)
    provenance.code_state.cache_clear()
    assert provenance.code_state()["dirty"] != state["dirty"]

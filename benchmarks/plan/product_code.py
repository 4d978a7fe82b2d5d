"""Which code of this repository decides a number, as hashes of its source files.

A commit says too much: the next one may differ in a document only. So a result names the files of `ROOMS`,
where data become batches, batches become weights and weights become scores, each with a hash that comments,
docstrings and blank lines do not change: of those that executing its method may import, so that another
method is free to change. Imports are read, not executed.

What plans a run is not among them: what it decides is in the run's identity.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any

from benchmarks.plan.identity import digest
from benchmarks.plan.reads import sources as files_below
from benchmarks.plan.user_code import imported_names, module_of, sources
from benchmarks.workspace import REPOSITORY
from methods.errors import UserError
from methods.registry import built_in
from results.text import listed

ROOMS = ("benchmarks/data", "benchmarks/training", "csaa", "methods")
SINGLE = ("benchmarks/launch/tasks.py",)
"""What executes a run or stage: all that decides its number is imported from here, or by its method."""
_ROOMS = tuple(f"{room}/" for room in ROOMS)
_MODULE = re.compile(r"(benchmarks|csaa|methods)(\.\w+)+")
IDENTIFIED = tuple(f"benchmarks/data/{room}/" for room in ("archives", "glyphscenes", "readers", "splits"))
"""Left out: what they give is in a run's identity by its hash."""
DIGITS = 12
"""Of the hash of a file that a result names."""


def hashes() -> dict[str, str]:
    """The present SHA-256 of each file that may decide a number, by its path in the repository."""
    found = {}
    for name in (*files_below(ROOMS), *SINGLE):
        if name.startswith(IDENTIFIED):
            continue
        content = (REPOSITORY / name).read_bytes()
        found[name] = _hash(content) if name.endswith(".py") else hashlib.sha256(content).hexdigest()
    return found


@cache
def loaded() -> dict[str, str]:
    """What `hashes` gave when this process first asked, which it does before it executes runs."""
    return hashes()


def check(planned: Mapping[str, str]) -> None:
    """Compare the code with that of a plan.

    Args:
        planned: hashes when the plan was made, from `needed`; nothing is compared with an empty one.

    Raises:
        UserError: names the files that differ.
    """
    if not planned:
        return
    now = hashes()
    changed = sorted(name for name, sha in planned.items() if now.get(name) != sha)
    if changed:
        raise UserError(
            f"the code in {REPOSITORY} has changed since the launch ({_some(changed)}): nothing was run; "
            "start it again"
        )


def needed(names: Iterable[str | None], every: Mapping[str, str]) -> dict[str, str]:
    """The hashes of the files that decide the numbers of some methods, by path.

    Args:
        names: of the methods; None for what is computed without one, such as features.
        every: from `hashes`.
    """
    files = set().union(*(_reached(name) for name in names))
    return {file: sha for file, sha in every.items() if file in files}


def of_method(name: str | None, every: Mapping[str, str]) -> dict[str, Any]:
    """What a result says of the code that made it, as JSON values: a hash over all files, and each file's.

    Args:
        name: as for `needed`.
        every: from `hashes`.
    """
    files = needed([name], every)
    return {"sha256": digest(files), "files": {file: sha[:DIGITS] for file, sha in files.items()}}


def _reached(name: str | None) -> frozenset[str]:
    """The files that executing a method may import, directly or through each other."""
    start = set(SINGLE)
    if name is not None:
        ours = built_in().get(name)
        if ours is not None:
            start |= _files_of(ours)
        else:
            own = module_of(name)
            for source in sources(own, f"method {name!r}").files if own else ():
                start |= _imports(source.content)
    return _closure(frozenset(start))


@cache
def _closure(start: frozenset[str]) -> frozenset[str]:
    left, found = set(start), set[str]()
    while left:
        file = left.pop()
        found.add(file)
        left |= _imports((REPOSITORY / file).read_bytes()) - found
    return frozenset(found)


@lru_cache(maxsize=1024)
def _imports(content: bytes) -> frozenset[str]:
    """The files of `ROOMS` that a source may import; a module's name in a string counts, for lazy imports."""
    tree = ast.parse(content)
    names = set(imported_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            names.add(node.value)
    return frozenset().union(*(_files_of(name) for name in names))


@cache
def _files_of(dotted: str) -> frozenset[str]:
    """The files that importing a name executes: of the module, and of the packages that it lies in."""
    found, path = set(), ""
    for part in dotted.split("."):
        path = f"{path}/{part}" if path else part
        for file in (f"{path}/__init__.py", f"{path}.py"):
            if file in SINGLE or (file.startswith(_ROOMS) and (REPOSITORY / file).is_file()):
                found.add(file)
    return frozenset(found)


def _some(names: list[str]) -> str:
    return listed(names, 3)


@lru_cache(maxsize=1024)
def _hash(content: bytes) -> str:
    return hashlib.sha256(relevant(content)).hexdigest()


def relevant(content: bytes) -> bytes:
    """A Python source without docstrings, lines of comments and blank lines; other strings are kept whole."""
    lines = content.split(b"\n")
    try:
        tree = ast.parse(content)
    except SyntaxError:
        return content
    kept: set[int] = set()  # numbers of lines that lie inside a string, where "#" is no comment
    dropped: set[int] = set()
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                value = first.value
                start, end = value.lineno - 1, (value.end_lineno or value.lineno) - 1
                rest = lines[start][: value.col_offset] + lines[end][value.end_col_offset :]
                if isinstance(value.value, str) and not rest.strip() and len(node.body) > 1:
                    docstrings.add(id(value))
                    dropped |= set(range(start, end + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in docstrings:
            kept |= set(range(node.lineno, node.end_lineno or node.lineno))
    found = []
    for number, line in enumerate(lines):
        if number in kept:
            found.append(line)
        elif number not in dropped and (text := line.rstrip()) and not text.lstrip().startswith(b"#"):
            found.append(text)
    return b"\n".join(found)


def differing(files: Mapping[str, str]) -> list[str]:
    """Of the files that a result names those that are not what they are now."""
    now = hashes()
    return [name for name, sha in files.items() if now.get(name, "")[:DIGITS] != sha]

"""Which code of this repository decides a number, as hashes of its source files.

A commit says too much: the next one may differ in a document only. So a result names the files of `ROOMS`,
where data become batches, batches become weights and weights become scores, each with a hash that comments,
docstrings and blank lines do not change. Of the files that define methods only those count that the run's
own method lies in or imports.

What plans a run is not among them: what it decides is in the run's identity.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any

from benchmarks.plan.identity import digest
from benchmarks.plan.reads import sources as files_below
from benchmarks.plan.user_code import imported_names, module_of, sources
from benchmarks.workspace import REPOSITORY
from methods.errors import UserError
from methods.registry import built_in

ROOMS = ("benchmarks/data", "benchmarks/training", "csaa", "methods")
SINGLE = ("benchmarks/launch/tasks.py",)
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
        planned: what `hashes` gave when the plan was made; nothing is compared with an empty one.

    Raises:
        UserError: names the files that differ.
    """
    if not planned:
        return
    now = hashes()
    changed = sorted({name for name, _ in now.items() ^ planned.items()})
    if changed:
        raise UserError(
            f"the code in {REPOSITORY} has changed since the launch ({_some(changed)}): nothing was run; "
            "start it again"
        )


def of_method(name: str | None, every: Mapping[str, str]) -> dict[str, Any]:
    """What a result says of the code that made it, as JSON values: a hash over all files, and each file's.

    Args:
        name: of the method; None for what is computed without one, such as features.
        every: from `hashes`.
    """
    owners = _method_files()
    wanted = {file for file in every if not _is_methods(file, owners)} | _reached(name)
    files = {file: sha[:DIGITS] for file, sha in every.items() if file in wanted}
    return {"sha256": digest({file: every[file] for file in files}), "files": files}


def _is_methods(file: str, owners: Iterable[str]) -> bool:
    """Whether a file belongs to a method, and not to all of them."""
    return file in owners or file.startswith("csaa/")


def _method_files() -> set[str]:
    return {_file_of(module) for module in built_in().values()}


def _file_of(module: str) -> str:
    """Path of a module of this repository."""
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (REPOSITORY / path).is_dir() else f"{path}.py"


def _reached(name: str | None) -> set[str]:
    """The files of methods that a method lies in or imports, directly or through each other."""
    if name is None:
        return set()
    module = built_in().get(name)
    if module is not None:
        left = _files_of(module)
    else:
        own = module_of(name)
        contents = [file.content for file in sources(own, f"method {name!r}").files] if own else []
        left = {file for content in contents for file in _imports(content)}
    owners, found = _method_files(), set[str]()
    while left:
        file = left.pop()
        if file not in found and _is_methods(file, owners):
            found.add(file)
            left |= _imports((REPOSITORY / file).read_bytes())
    return found


def _files_of(module: str) -> set[str]:
    """The files of a method's module: of a package all."""
    if module.partition(".")[0] == "csaa":
        return {file for file in files_below(["csaa"]) if file.endswith(".py")}
    return {_file_of(module)}


def _imports(content: bytes) -> set[str]:
    """The files of methods that a source may import."""
    found = set()
    for dotted in imported_names(ast.parse(content)):
        top, *parts = dotted.split(".")
        if top == "csaa":
            found |= _files_of("csaa")
        elif top == "methods" and parts and (REPOSITORY / "methods" / f"{parts[0]}.py").is_file():
            found.add(f"methods/{parts[0]}.py")
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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

"""Find method classes by reading sources; nothing is imported.

A built-in method is one file in the folder of this module: a class with the decorator `@register`
and a ``name`` that is written out as a string. One file may hold several such classes. The entry
points of a checkout are read from its ``pyproject.toml``, so they need no installation.
"""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

from methods.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@functools.lru_cache(maxsize=8)
def scan(folder: Path, package: str) -> dict[str, str]:
    """Find the methods in the files directly in ``folder``.

    Args:
        folder: its ``*.py`` files are read, those of folders below are not.
        package: dotted name of the package that the files belong to.

    Returns:
        Method name to module name, sorted by method name. The result is cached: do not change it.

    Raises:
        UserError: a file has a syntax error, a name is not written out, or two classes share one.
    """
    found: dict[str, tuple[str, Path]] = {}
    for path in sorted(folder.glob("*.py")):
        for name in _names(path):
            if name in found:
                raise UserError(
                    f"{found[name][1]} and {path}: both register the method name {name!r}; rename one"
                )
            found[name] = (f"{package}.{path.stem}", path)
    return {name: module for name, (module, _) in sorted(found.items())}


@functools.lru_cache(maxsize=8)
def declared_in(checkout: Path, group: str) -> dict[str, str]:
    """Find the entry points that a checkout declares, installed or not.

    Args:
        checkout: folder with a ``pyproject.toml``; a package that was installed lies beside none.
        group: of entry points.

    Returns:
        Entry point name to module name. The result is cached: do not change it.

    Raises:
        UserError: the file is no TOML.
    """
    path = checkout / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: {error}") from error
    points = project.get("entry-points", {}).get(group, {})
    return {name: value.partition(":")[0] for name, value in points.items()}


def _names(path: Path) -> list[str]:
    """The names of the registered classes of one file, in their order."""
    text = path.read_text(encoding="utf-8")
    if "register" not in text:  # parsing the large helpers would take most of the time
        return []
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: syntax error: {error.msg}") from error
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return [_name(node, path) for node in classes if any(map(_is_register, node.decorator_list))]


def _is_register(decorator: ast.expr) -> bool:
    """Whether a decorator is ``@register`` or ``@….register``."""
    if isinstance(decorator, ast.Attribute):
        return decorator.attr == "register"
    return isinstance(decorator, ast.Name) and decorator.id == "register"


def _name(node: ast.ClassDef, path: Path) -> str:
    """The value of the class attribute ``name``."""
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        if any(isinstance(target, ast.Name) and target.id == "name" for target in targets):
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value:
                return value.value
            raise UserError(
                f"{path}, line {statement.lineno}: the 'name' of {node.name} is not a plain string; "
                'write it out, as in name = "my_method": methods are found without running their files'
            )
    raise UserError(f"{path}, line {node.lineno}: {node.name} is registered without a 'name'; give it one")

"""The files of a grid: its own and its recipe's, as tables, with the users' modules imported.

A file is one of this repository, by name, or the user's own, by path; or a launch's copy of either, see
`benchmarks.plan.copies`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import methods
from benchmarks.data.registry import available as available_datasets
from benchmarks.plan import paths
from benchmarks.plan.copies import Copies
from benchmarks.plan.user_code import import_methods
from benchmarks.workspace import REPOSITORY
from methods.errors import UserError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = REPOSITORY / "benchmarks"
GRID_KEYS = (
    "description",
    "datasets",
    "ratios",
    "seeds",
    "split_seeds",
    "methods",
    "recipe",
    "backbone",
    "override",
    "hyper",
    "dataset",
    "modules",
)
RECIPE_KEYS = ("description", "backbone", "recipe", "hyper", "dataset")
CLASSIFIERS = "LinearMethod"
"""Section of hyper-parameters for every method that derives from `methods.parts.linear.LinearMethod`."""


def available(folder: str = "grids") -> list[str]:
    """Return the names of the grids (or of the recipes) in this repository."""
    return sorted(path.stem for path in (HERE / folder).glob("*.toml"))


@dataclass(frozen=True)
class GridFiles:
    """What the files of a grid say.

    Attributes:
        path: the grid's file; for a copy the file that it was copied from.
        table: its content.
        recipe_path: the recipe's file; for a copy the file that it was copied from.
        recipe: its content.
        files: both (absolute path, bytes that were read), the grid's first.
        modules: what is named under `modules`: names in `sys.modules`, each with its file, or None for an
            installed module.
    """

    path: Path
    table: dict[str, Any]
    recipe_path: Path
    recipe: dict[str, Any]
    files: tuple[tuple[Path, bytes], tuple[Path, bytes]]
    modules: tuple[tuple[str, Path | None], ...]


def read(name: str) -> GridFiles:
    """Read the files of a grid, and import the modules that it names.

    Args:
        name: of a grid, or the path of its file.

    Raises:
        UserError: a file, a key, or the name of a method or dataset in a section is wrong; a module cannot be
            imported; a launch's copy is damaged.
    """
    path = _file(name, "grids")
    copies = Copies.beside(path)
    if copies is not None:
        path, content = copies.original("grid"), copies.read("grid")
        copies.use()
    else:
        content = path.read_bytes()
    where = path.name
    table = _parse(path, content, GRID_KEYS)
    modules = [import_methods(module, path.parent, f"{where}: modules") for module in _modules(table, where)]
    _check_names(table, where)
    recipe_name = table.get("recipe")
    if not isinstance(recipe_name, str):
        raise UserError(f"{where}: 'recipe' must name one of {', '.join(available('recipes'))}")
    if copies is not None:
        recipe_path, recipe_content = copies.original("recipe"), copies.read("recipe")
    else:
        recipe_path = _file(paths.of_recipe(recipe_name, path.parent), "recipes")
        recipe_content = recipe_path.read_bytes()
    recipe = _parse(recipe_path, recipe_content, RECIPE_KEYS)
    _check_names(recipe, recipe_path.name)
    files = (_absolute(path), content), (_absolute(recipe_path), recipe_content)
    return GridFiles(path, table, recipe_path, recipe, files, tuple(modules))


def _absolute(path: Path) -> Path:
    """Links stay: relative paths in a file start where its name lies."""
    return Path(os.path.abspath(path))


def _file(name: str, folder: str) -> Path:
    """The file of a grid or recipe, by name or path."""
    path = Path(name) if name.endswith(".toml") else HERE / folder / f"{name}.toml"
    if not path.is_file():
        kind = folder[:-1]
        raise UserError(f"no {kind} {name!r}{nearest(name, available(folder))}")
    return path


def _parse(path: Path, content: bytes, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        table = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    for key in table:
        if key not in keys:
            raise UserError(f"{path.name}: no key {key!r}{nearest(key, list(keys))}")
    return table


def _modules(table: dict[str, Any], where: str) -> list[str]:
    found = table.get("modules", [])
    if not isinstance(found, list) or not all(isinstance(module, str) for module in found):
        raise UserError(f"{where}: 'modules' is {found!r}; it is a list of files and names of modules")
    return found


def _check_names(table: dict[str, Any], where: str) -> None:
    """Check that the methods and datasets of the sections exist; modules are imported before."""
    sections = [*methods.available(), CLASSIFIERS]
    _check_section(table, "hyper", sections, where)
    _check_section(table, "dataset", available_datasets(), where)
    for dataset, part in table.get("dataset", {}).items():
        _check_section(part, "hyper", sections, where, f"dataset.{dataset}.")


def _check_section(
    table: dict[str, Any], section: str, names: Sequence[str], where: str, above: str = ""
) -> None:
    """Check that ``[above section.NAME]`` is a table for every NAME, and that the names exist."""
    content = table.get(section, {})
    if not isinstance(content, dict):
        raise UserError(f"{where}: {above}{section} is {content!r}; write [{above}{section}.NAME]")
    for name, values in content.items():
        if name not in names:
            raise UserError(f"{where}: [{above}{section}.{name}]: unknown{nearest(name, names)}")
        if not isinstance(values, dict):
            raise UserError(f"{where}: {above}{section}.{name} is {values!r}; it must be a table")

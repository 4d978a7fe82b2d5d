"""Grids: small declarative files that name a set of runs.

A grid file (TOML) says which datasets, ratios, seeds and methods to cross, and takes its training
recipe from `benchmarks/recipes/`; both may be the user's own, given by path. Every name is checked
before anything starts.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import methods
from benchmarks.data.registry import DatasetSpec
from benchmarks.data.registry import available as available_datasets
from benchmarks.plan.recipe import Kind, Recipe, check_strategy, checked
from benchmarks.workspace import REPOSITORY
from methods.backbones import BackboneSpec
from methods.base import FitMethod
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
    "methods",
    "recipe",
    "backbone",
    "override",
    "hyper",
    "dataset",
    "modules",
)
RECIPE_KEYS = ("description", "backbone", "recipe", "hyper", "dataset")
METHOD_KEYS = ("name", "label", "hyper", "recipe")


@dataclass(frozen=True)
class Cell:
    """One run of a grid before its data is known.

    Attributes:
        dataset: which images and labels.
        ratio: labelled share.
        seed: seed of everything random in the run.
        method: registered name.
        label: row of the table.
        hyper: the method's hyper-parameters, resolved (a frozen dataclass).
        backbone: the image (and text) tower.
        recipe: the training recipe, resolved for this dataset and ratio.
    """

    dataset: DatasetSpec
    ratio: float
    seed: int
    method: str
    label: str
    hyper: Any
    backbone: BackboneSpec
    recipe: Recipe

    @property
    def kind(self) -> Kind:
        """How the method is trained: "fit", "labelled" or "semi"."""
        cls = methods.get(self.method)
        if issubclass(cls, FitMethod):
            return "fit"
        return "semi" if cls.uses_unlabelled else "labelled"


@dataclass(frozen=True)
class Grid:
    """A named set of runs.

    Attributes:
        name: the file's stem.
        description: one line for `list`.
        cells: the runs, in the order of datasets, ratios, seeds, methods.
        path: the grid file.
    """

    name: str
    description: str
    cells: tuple[Cell, ...]
    path: Path

    @property
    def datasets(self) -> dict[DatasetSpec, list[int]]:
        """The datasets with the resolutions they are needed at."""
        found: dict[DatasetSpec, list[int]] = {}
        for cell in self.cells:
            sizes = found.setdefault(cell.dataset, [])
            if cell.recipe.resolution not in sizes:
                sizes.append(cell.recipe.resolution)
        return found


def restrict(grid: Grid, ratios: Sequence[float], seeds: Sequence[int], labels: Sequence[str]) -> Grid:
    """The part of a grid with some ratios, seeds and methods (by label); empty means all.

    Raises:
        UserError: a value that the grid does not have.
    """
    cells = grid.cells
    for name, wanted, of in (
        ("ratio", ratios, lambda cell: cell.ratio),
        ("seed", seeds, lambda cell: cell.seed),
        ("method", labels, lambda cell: cell.label),
    ):
        present = list(dict.fromkeys(of(cell) for cell in grid.cells))
        for value in wanted:
            if value not in present:
                raise UserError(
                    f"grid {grid.name!r} has no {name} {value!r}{nearest(str(value), map(str, present))}"
                )
        if wanted:
            cells = tuple(cell for cell in cells if of(cell) in wanted)
    return dataclasses.replace(grid, cells=cells)


def with_strategy(grid: Grid, strategy: str | None) -> Grid:
    """The grid with every trained run spread over processes in another way; None changes nothing.

    Raises:
        UserError: see `benchmarks.plan.recipe.check_strategy`.
    """
    if strategy is None:
        return grid
    cells = []
    for cell in grid.cells:
        check_strategy(strategy, cell.recipe.precision, f"{grid.name}, --strategy")
        recipe = dataclasses.replace(cell.recipe, strategy=strategy)
        cells.append(dataclasses.replace(cell, recipe=recipe))
    return dataclasses.replace(grid, cells=tuple(cells))


def available(folder: str = "grids") -> list[str]:
    """Names of the grids (or of the recipes) that come with the package."""
    return sorted(path.stem for path in (HERE / folder).glob("*.toml"))


def load(name: str) -> Grid:
    """Read a grid by name or by path.

    Raises:
        UserError: the file, a key, a dataset, method, field or value is wrong; the message names
            the file, the key and the nearest valid name.
    """
    path, table = _read(name, "grids", GRID_KEYS)
    recipe_name = table.get("recipe")
    if not isinstance(recipe_name, str):
        raise UserError(f"{path.name}: 'recipe' must name one of {', '.join(available('recipes'))}")
    recipe_path, recipe = _read(recipe_name, "recipes", RECIPE_KEYS)
    backbone = _backbone(table.get("backbone", recipe.get("backbone")), path.name)
    entries = [_method_entry(entry, path.name) for entry in _list(table, "methods", path.name)]
    for entry in entries:
        if methods.get(entry["name"]).needs_vlm and not backbone.is_vlm:
            raise UserError(
                f"{path.name}: method {entry['name']!r} needs a vision-language backbone "
                f"(glyphclip or open_clip/<model>), not {backbone.name!r}"
            )
    cells = []
    for dataset in _datasets(table, path.name):
        for ratio in map(float, _list(table, "ratios", path.name, (int, float))):
            if not 0 < ratio <= 1:
                raise UserError(f"{path.name}: ratio {ratio:g} is outside (0, 1]")
            for seed in _list(table, "seeds", path.name, (int,)):
                for entry in entries:
                    values = _merged(
                        ratio,
                        f"{path.name}, {entry['label']}",
                        recipe.get("recipe", {}),
                        recipe.get("dataset", {}).get(dataset.name, {}),
                        table.get("override", {}),
                        table.get("dataset", {}).get(dataset.name, {}),
                        entry["recipe"],
                    )
                    hyper = {
                        **recipe.get("hyper", {}).get(entry["name"], {}),
                        **table.get("hyper", {}).get(entry["name"], {}),
                        **entry["hyper"],
                    }
                    cells.append(
                        Cell(
                            dataset,
                            ratio,
                            seed,
                            entry["name"],
                            entry["label"],
                            methods.hyper(entry["name"], **hyper),
                            backbone,
                            checked(Recipe, values, f"{path.name} with {recipe_path.name}"),
                        )
                    )
    labels = [entry["label"] for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"{path.name}: two methods are labelled {label!r}; give each a label")
    return Grid(path.stem, str(table.get("description", "")), tuple(cells), path)


def _read(name: str, folder: str, keys: tuple[str, ...]) -> tuple[Path, dict[str, Any]]:
    path = Path(name) if name.endswith(".toml") else HERE / folder / f"{name}.toml"
    if not path.is_file():
        kind = folder[:-1]
        raise UserError(f"no {kind} {name!r}{nearest(name, available(folder))}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    for key in table:
        if key not in keys:
            raise UserError(f"{path.name}: no key {key!r}{nearest(key, list(keys))}")
    for module in table.get("modules", []):
        import_methods(module, path.parent, f"{path.name}: modules")
    known = {"hyper": methods.available(), "dataset": available_datasets()}
    for section, names in known.items():
        for name in table.get(section, {}):
            if name not in names:
                raise UserError(f"{path.name}: [{section}.{name}]: unknown{nearest(name, names)}")
    return path, table


def import_methods(module: str, folder: Path, where: str) -> None:
    """Import a user's methods: a file (``*.py``), seen from a folder, or an installed module.

    Args:
        module: which.
        folder: that of the grid file.
        where: what names the module, for the message.

    Raises:
        UserError: whatever goes wrong in it.
    """
    try:
        if not module.endswith(".py"):
            importlib.import_module(module)
            return
        place = (folder / module).resolve()
        name = f"ssmll_bench_user_{place.stem}"
        if name in sys.modules:
            return
        spec = importlib.util.spec_from_file_location(name, place)
        assert spec is not None  # it always is for a name that ends in .py
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[name] = loaded  # dataclasses look their module up while it is executed
        try:
            spec.loader.exec_module(loaded)
        except BaseException:
            del sys.modules[name]
            raise
    except UserError:
        raise
    except Exception as error:  # the user's own code: whatever is wrong in it, say where
        raise UserError(f"{where}: cannot import {module!r}: {type(error).__name__}: {error}") from error


def _list(table: dict[str, Any], key: str, where: str, kinds: tuple[type, ...] = (str, dict)) -> list[Any]:
    values = table.get(key)
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: {key!r} must be a list with at least one entry")
    for value in values:
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserError(f"{where}: {key!r} holds {value!r}, which is not valid there")
    return values


def _method_entry(entry: str | dict[str, Any], where: str) -> dict[str, Any]:
    table = {"name": entry} if isinstance(entry, str) else dict(entry)
    for key in table:
        if key not in METHOD_KEYS:
            raise UserError(f"{where}: a method has no key {key!r}{nearest(key, METHOD_KEYS)}")
    name = table.get("name", "")
    if name not in methods.available():
        raise UserError(f"{where}: no method {name!r}{nearest(name, methods.available())}")
    return {"label": name, "hyper": {}, "recipe": {}, **table}


def _datasets(table: dict[str, Any], where: str) -> list[DatasetSpec]:
    found = [_dataset(entry, where) for entry in _list(table, "datasets", where)]
    for k, spec in enumerate(found):
        if any(spec != other and spec.alias == other.alias for other in found[:k]):
            raise UserError(f"{where}: two datasets are shown as {spec.alias!r}; give each an alias")
    return found


def _dataset(entry: str | dict[str, Any], where: str) -> DatasetSpec:
    table: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
    defaults = {field.name: field.default for field in dataclasses.fields(DatasetSpec)}
    for key in table:
        if key not in defaults:
            raise UserError(f"{where}: a dataset has no key {key!r}{nearest(key, defaults)}")
    name = table.get("name", "")
    if name not in available_datasets():
        raise UserError(f"{where}: no dataset {name!r}{nearest(str(name), available_datasets())}")
    values = {
        key: _dataset_value(key, value, defaults[key], f"{where}: dataset {name!r}")
        for key, value in table.items()
    }
    try:
        return DatasetSpec(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _dataset_value(key: str, value: Any, default: Any, where: str) -> Any:
    """A value of a grid as `DatasetSpec` has it; the type of the default says what is expected."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{where}: {key} is {value!r}; it must be true or false")
        return value
    if key == "prompts":
        texts = value.values() if isinstance(value, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(
                f'{where}: {key} is {value!r}; it must be a table such as {{ tvmonitor = "television" }}'
            )
        return tuple(value.items())
    if key == "classes":
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise UserError(f"{where}: {key} is {value!r}; it must be a list of texts")
        return tuple(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is {value!r}; it must be a text")
    return expand(value, where) if key in ("root", "train", "test", "images", "split") else value


def _backbone(entry: str | dict[str, Any] | None, where: str) -> BackboneSpec:
    if entry is None:
        raise UserError(f"{where}: neither the grid nor its recipe names a backbone")
    table: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
    fields = [field.name for field in dataclasses.fields(BackboneSpec)]
    for key in table:
        if key not in fields:
            raise UserError(f"{where}: a backbone has no key {key!r}{nearest(key, fields)}")
    for key in ("mean", "std"):
        if key in table:
            table[key] = tuple(float(value) for value in table[key])
    if "weights" in table:
        table["weights"] = expand(table["weights"], where)
    return BackboneSpec(**table)


def _merged(ratio: float, where: str, *tables: dict[str, Any]) -> dict[str, Any]:
    """Later tables win; a value that is itself a table is looked up by the labelled share."""
    merged: dict[str, Any] = {}
    for table in tables:
        merged.update(table)
    for name, value in merged.items():
        if isinstance(value, dict):
            by_ratio = {float(key): entry for key, entry in value.items() if key != "default"}
            if ratio in by_ratio:
                merged[name] = by_ratio[ratio]
            elif "default" in value:
                merged[name] = value["default"]
            else:
                raise UserError(
                    f"{where}: {name} is given for ratios {sorted(by_ratio)} and not for "
                    f"{ratio:g}; add it or a 'default'"
                )
    return merged


def expand(text: str, where: str) -> str:
    """Replace ${NAME} by the environment variable NAME and ~ by the home folder."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise UserError(f"{where}: {text!r} needs the environment variable {match[1]}: set it")
        return found

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", value, text))

"""Grids: TOML files that each declare a set of runs.

A grid crosses datasets, ratios, seeds and methods, and takes its training recipe from
`benchmarks/recipes/`. Both files may be the user's own, given by path. Every name and value is checked
before anything starts.

`benchmarks.plan.paths` says where relative paths start.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import methods
from benchmarks.data.registry import DatasetSpec
from benchmarks.data.splits.budget import Budget
from benchmarks.plan import grid_file, paths
from benchmarks.plan.grid_file import CLASSIFIERS, HERE
from benchmarks.plan.grid_file import available as available
from benchmarks.plan.recipe import Kind, Recipe, check_strategy, recipe_of
from methods.backbones.spec import BackboneSpec
from methods.errors import UserError, nearest
from methods.fields import Wording, build


@dataclass(frozen=True)
class Cell:
    """One run of a grid, before its data is opened.

    Attributes:
        dataset: which images and labels.
        ratio: labelled share of the training images, in (0, 1].
        seed: seed of everything random in the run, but for the labelled subset if that has its own.
        method: registered name.
        label: row of the table.
        hyper: the method's hyper-parameters, resolved (a frozen dataclass).
        backbone: the image (and text) tower.
        recipe: the training recipe, resolved for this dataset and ratio.
        budget: what the grid says instead of a ratio: "100 images" or "4 per class"; the ratio is then 0
            until the number of training images is known.
        split_seed: seed of the labelled subset; None for the run's seed.
    """

    dataset: DatasetSpec
    ratio: float
    seed: int
    method: str
    label: str
    hyper: Any
    backbone: BackboneSpec
    recipe: Recipe
    budget: str = ""
    split_seed: int | None = None

    @property
    def subset_seed(self) -> int:
        """Seed of the labelled subset."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def kind(self) -> Kind:
        """How the method is trained: "fit", "labelled" or "semi"."""
        from methods.base import FitMethod  # here, because it imports torch

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
        path: the grid file; for a launch's copy the file that it was copied from.
        files: the grid file and its recipe, each with the bytes that were read.
        modules: what it names under `modules`: names in `sys.modules`, each with its file, or None for an
            installed module.
        methods: the methods of all rows of the file, of `cells` or not.
    """

    name: str
    description: str
    cells: tuple[Cell, ...]
    path: Path
    files: tuple[tuple[Path, bytes], ...] = field(default=(), compare=False, repr=False)
    modules: tuple[tuple[str, Path | None], ...] = field(default=(), compare=False, repr=False)
    methods: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def argument(self) -> str:
        """What names the grid on a command line."""
        return self.name if self.path.parent == HERE / "grids" else shlex.quote(str(self.path))

    @property
    def datasets(self) -> dict[DatasetSpec, list[int]]:
        """The datasets, each with the resolutions in pixels that its runs need."""
        found: dict[DatasetSpec, list[int]] = {}
        for cell in self.cells:
            sizes = found.setdefault(cell.dataset, [])
            if cell.recipe.resolution not in sizes:
                sizes.append(cell.recipe.resolution)
        return found


def restrict(
    grid: Grid,
    ratios: Sequence[float | str] = (),
    seeds: Sequence[int] = (),
    labels: Sequence[str] = (),
    split_seeds: Sequence[int] = (),
) -> Grid:
    """Return the part of a grid with these ratios, seeds, methods (by label) and splits; empty means all.

    Raises:
        UserError: a value that the grid does not have.
    """
    cells = grid.cells
    for name, wanted, of in (
        ("ratio", ratios, lambda cell: cell.budget or cell.ratio),
        ("seed", seeds, lambda cell: cell.seed),
        ("split seed", split_seeds, lambda cell: cell.subset_seed),
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
    if not cells:  # all else is crossed with all
        asked, splits = (", ".join(map(str, chosen)) for chosen in (seeds, split_seeds))
        raise UserError(
            f"grid {grid.name!r} has no split_seeds, so each seed has its own split: no run has one of the "
            f"seeds {asked} and one of the split seeds {splits}"
        )
    return dataclasses.replace(grid, cells=cells)


def with_strategy(grid: Grid, strategy: str | None) -> Grid:
    """Return the grid with another strategy for every run; None changes nothing.

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


@dataclass(frozen=True)
class _Row:
    """An entry of a grid's list of methods.

    Attributes:
        name: registered name.
        label: row of the table; the name by default.
        hyper: hyper-parameters of this row.
        vary: hyper-parameters with several values each; the entry stands for a row of every combination.
        recipe: fields of the recipe for this row.
        backbone: of this row; None for the grid's.
    """

    name: str
    label: str = ""
    hyper: dict[str, Any] = field(default_factory=dict)
    vary: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    backbone: str | dict[str, Any] | None = None


def load(name: str) -> Grid:
    """Read a grid by name or by path; with a launch's copy its recipe and modules are copies too.

    See `benchmarks.plan.copies`.

    Raises:
        UserError: the file, a key, a dataset, method, field or value is wrong; the message names
            the file, the key and the nearest valid name.
    """
    read = grid_file.read(name)
    path, table, recipe_path, recipe = read.path, read.table, read.recipe_path, read.recipe
    where = path.name
    rows = [row for entry in _list(table, "methods", where) for row in _rows(entry, where)]
    _check_labels(rows, where)
    usual = (table["backbone"], path) if "backbone" in table else (recipe.get("backbone"), recipe_path)
    backbones = [_backbone_of(row, usual, path) for row in rows]
    cells = []
    for dataset in _datasets(table, path):
        for value in _list(table, "ratios", where, (int, float, str)):
            budget = Budget.of(value, where)
            budget.rule(dataset.split, where)
            for split_seed, seed in itertools.product(
                _list(table, "split_seeds", where, (int,)) if "split_seeds" in table else [None],
                _list(table, "seeds", where, (int,)),
            ):
                for row, backbone in zip(rows, backbones, strict=True):
                    place = f"{where}, {row.label}"
                    layers = _layers(recipe, table, dataset.name, row, place)
                    values, hyper = (_merged(budget, place, *parts) for parts in layers)
                    cells.append(
                        Cell(
                            dataset,
                            budget.ratio,
                            seed,
                            row.name,
                            row.label,
                            _hyper(row.name, hyper, place),
                            backbone,
                            recipe_of(values, f"{where} with {recipe_path.name}"),
                            budget.label,
                            split_seed,
                        )
                    )
    return Grid(
        path.stem,
        str(table.get("description", "")),
        tuple(cells),
        path,
        read.files,
        read.modules,
        tuple(dict.fromkeys(row.name for row in rows)),
    )


def _layers(
    recipe: dict[str, Any], grid: dict[str, Any], dataset: str, row: _Row, where: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Tables of recipe fields, and of hyper-parameters, for one row on one dataset; later ones win.

    For both: the recipe file, its part for the dataset, the grid, its part for the dataset, the row. In each,
    the section of the method counts more than that of all classifiers.
    """
    parts = [file.get("dataset", {}).get(dataset, {}) for file in (recipe, grid)]
    fields = [{name: value for name, value in part.items() if name != "hyper"} for part in parts]
    sections = (CLASSIFIERS, row.name) if _is_classifier(row.name) else (row.name,)
    hyper = [
        table.get("hyper", {}).get(section, {})
        for table in (recipe, parts[0], grid, parts[1])
        for section in sections
    ]
    return (
        [recipe.get("recipe", {}), fields[0], grid.get("override", {}), fields[1], row.recipe],
        [*hyper, row.hyper],
    )


def _is_classifier(name: str) -> bool:
    from methods.parts.linear import LinearMethod

    return issubclass(methods.get(name), LinearMethod)


def _hyper(name: str, values: dict[str, Any], where: str) -> Any:
    try:
        return methods.hyper(name, **values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _list(table: dict[str, Any], key: str, where: str, kinds: tuple[type, ...] = (str, dict)) -> list[Any]:
    values = table.get(key)
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: {key!r} must be a list with at least one entry")
    for value in values:
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserError(f"{where}: {key!r} holds {value!r}, which is not valid there")
    return values


def _rows(entry: str | dict[str, Any], where: str) -> list[_Row]:
    """The rows of an entry: one, or with `vary` one for each combination of values, which its label says."""
    wording = Wording(unknown="{where}: a method has no key {name!r}{near}")
    table = {"name": entry} if isinstance(entry, str) else entry
    row = build(_Row, table, where, wording)
    if row.name not in methods.available():
        raise UserError(f"{where}: no method {row.name!r}{nearest(row.name, methods.available())}")
    row = dataclasses.replace(row, label=row.label or row.name)
    place = f"{where}, {row.label}"
    for name, values in row.vary.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{place}: vary.{name} is {values!r}; it must be a list of values")
        if name in row.hyper:
            raise UserError(f"{place}: {name} stands in `hyper` and in `vary`; leave one out")
    rows = []
    for chosen in itertools.product(*row.vary.values()):
        setting = dict(zip(row.vary, chosen, strict=True))
        said = ", ".join(f"{name} {value}" for name, value in setting.items())
        label = f"{row.label} ({said})" if said else row.label
        rows.append(dataclasses.replace(row, label=label, hyper={**row.hyper, **setting}, vary={}))
    return rows


def _check_labels(rows: Sequence[_Row], where: str) -> None:
    labels = [row.label for row in rows]
    for row in rows:
        if labels.count(row.label) > 1:
            raise UserError(f"{where}: two methods are labelled {row.label!r}; give each a label")


def _backbone_of(row: _Row, usual: tuple[str | dict[str, Any] | None, Path], path: Path) -> BackboneSpec:
    """The backbone of a row: its own, or the usual one, each with the file that it stands in.

    It is checked for a text tower where one is needed.
    """
    where = path.name
    entry, file = (row.backbone, path) if row.backbone is not None else usual
    if entry is None:
        raise UserError(f"{where}: neither the grid nor its recipe names a backbone")
    backbone = _backbone(entry, where if row.backbone is None else f"{where}, {row.label}", file.parent)
    if methods.get(row.name).needs_vlm and not backbone.is_vlm:
        raise UserError(
            f"{where}: method {row.name!r} needs a vision-language backbone "
            f"(glyphclip or open_clip/<model>), not {backbone.name!r}"
        )
    return backbone


def _datasets(table: dict[str, Any], path: Path) -> list[DatasetSpec]:
    where = path.name
    found = [_dataset(entry, where, path.parent) for entry in _list(table, "datasets", where)]
    for k, spec in enumerate(found):
        if any(spec != other and spec.alias == other.alias for other in found[:k]):
            raise UserError(f"{where}: two datasets are shown as {spec.alias!r}; give each an alias")
    return found


def _dataset(entry: str | dict[str, Any], where: str, folder: Path) -> DatasetSpec:
    wording = Wording(unknown="{where}: a dataset has no key {name!r}{near}")
    table: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
    place = f"{where}: dataset {table.get('name', '')!r}"
    try:
        return build(DatasetSpec, paths.of_dataset(table, folder, place), place, wording)
    except UserError as error:
        # What the dataclass itself finds wrong says the dataset and not the file.
        message = str(error)
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from None


def _backbone(entry: str | dict[str, Any], where: str, folder: Path) -> BackboneSpec:
    wording = Wording(unknown="{where}: a backbone has no key {name!r}{near}")
    table: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
    place = f"{where}: backbone {table.get('name', '')!r}"
    return build(BackboneSpec, paths.of_backbone(table, folder, place), place, wording)


def _merged(budget: Budget, where: str, *tables: dict[str, Any]) -> dict[str, Any]:
    """Merge tables: later ones win, and a value that is a table is looked up by the labelling budget.

    A number of images has the value of its own key, or the default; never that of a share which is near.
    """
    merged: dict[str, Any] = {}
    for table in tables:
        merged.update(table)
    for name, value in merged.items():
        if isinstance(value, dict):
            place = f"{where}: {name} is a table, so its keys are ratios"
            by_ratio = {Budget.of(key, place).key: one for key, one in value.items() if key != "default"}
            if budget.key in by_ratio:
                merged[name] = by_ratio[budget.key]
            elif "default" in value:
                merged[name] = value["default"]
            else:
                raise UserError(
                    f"{where}: {name} is given for ratios [{', '.join(map(str, by_ratio))}] and not for "
                    f"{budget.key}; add it or a 'default'"
                )
    return merged

"""What is known of a grid before anything is prepared: for `plan` and `--dry-run`, which make nothing.

Nothing is rendered, decoded, fetched or written. A run has its identity where its images are in the cache and
its weights are here; its state is then in the store. Of the others the state is unknown. What a grid lacks is
listed, each with what brings it. What is wrong with a grid (hyper-parameters that cannot work with a number
of classes, weights that are no weights) is found as far as it can be: the classic datasets have a known
number of classes where they are absent, too. Split files are held against what their rules draw.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from benchmarks.data.cache.prepared import Prepared, find
from benchmarks.data.dataset import Dataset
from benchmarks.data.registry import AbsentError, DatasetSpec, number_of_classes, open_dataset
from benchmarks.data.splits.budget import Budget, draw_budget
from benchmarks.data.splits.files import FOLDER, SplitRecord, compare
from benchmarks.data.splits.rules import is_rule
from benchmarks.plan.grid import Cell, Grid
from benchmarks.plan.jobs import Job, jobs, resolved_hyper, split_records
from benchmarks.plan.remarks import remarks
from benchmarks.plan.summary import PlanSummary
from benchmarks.workspace import Workspace
from methods.backbones.conventions import conventions
from methods.backbones.formats import weights_format
from methods.backbones.hub import parts
from methods.backbones.open_clip_models import cached_tag_file, tag_source
from methods.backbones.spec import BackboneSpec
from methods.errors import UserError
from results.columns import seeds_name, subset_name
from results.text import one_line

UNKNOWN = "unknown"
"""State of a run that has no identity yet."""


@dataclass(frozen=True)
class Outlook:
    """What is known of a grid.

    Attributes:
        grid: the grid.
        jobs: the runs that have an identity, in the order of the grid.
        states: state of each cell of the grid, in its order; `UNKNOWN` where it has no identity.
        summary: the runs that have an identity.
        lacks: what has to be brought or made, a line each, with what does it.
        problems: what is wrong with the grid or its files, a line each.
    """

    grid: Grid
    jobs: tuple[Job, ...]
    states: tuple[str, ...]
    summary: PlanSummary
    lacks: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every run has its identity."""
        return len(self.jobs) == len(self.grid.cells)


def look(grid: Grid, workspace: Workspace) -> Outlook:
    """Find out what is known of a grid; nothing is made.

    Args:
        grid: the cells.
        workspace: where data and runs lie; the folders need not exist.
    """
    lacks: dict[str, None] = {}
    problems: dict[str, None] = {}
    prepared: dict[tuple[DatasetSpec, int], Prepared] = {}
    classes: dict[DatasetSpec, int | None] = {}
    opened: dict[DatasetSpec, Dataset] = {}
    for spec, sizes in grid.datasets.items():
        classes[spec] = number_of_classes(spec)
        try:
            dataset = opened[spec] = open_dataset(spec, workspace.data, make=False)
            classes[spec] = len(dataset.classes)
            for size in sizes:
                found = find(dataset, size, workspace.cache, skip_bad=spec.skip_bad)
                if found is not None:
                    prepared[spec, size] = found
                else:
                    lacks[
                        f"{spec.alias} at {size} px is not prepared: a run prepares it, and so does "
                        f"`prepare --grid {grid.argument}`"
                    ] = None
        except AbsentError as error:
            lacks[str(error)] = None
        except UserError as error:
            problems[str(error)] = None
    ready = {}
    for backbone in dict.fromkeys(cell.backbone for cell in grid.cells):
        missing, wrong = _backbone(backbone, grid)
        lacks.update(dict.fromkeys(missing))
        problems.update(dict.fromkeys(wrong))
        ready[backbone] = not missing and not wrong
    problems.update(dict.fromkeys(_tasks(grid, classes)))
    known = [
        k
        for k, cell in enumerate(grid.cells)
        if ready[cell.backbone] and (cell.dataset, cell.recipe.resolution) in prepared
    ]
    found_jobs: list[Job] = []
    if known and not problems:
        part = dataclasses.replace(grid, cells=tuple(grid.cells[k] for k in known))
        try:
            found_jobs = jobs(part, prepared)
        except UserError as error:
            problems[str(error)] = None
    problems.update(dict.fromkeys(_splits(grid, found_jobs, opened, workspace)))
    summary = PlanSummary.of(grid.name, found_jobs, workspace, remarks(found_jobs))
    kinds = iter(summary.standing(workspace).values())
    states = dict(zip(known if found_jobs else [], kinds, strict=True))
    return Outlook(
        grid,
        tuple(found_jobs),
        tuple(states.get(k, UNKNOWN) for k in range(len(grid.cells))),
        summary,
        tuple(lacks),
        tuple(problems),
    )


def title(cell: Cell) -> str:
    """A run's name for people, before it has an identity."""
    seeds = seeds_name(cell.seed, cell.split_seed)
    return one_line(f"{cell.label} · {cell.dataset.alias} {column(cell)} {seeds}")


def column(cell: Cell) -> str:
    """The labelled subset that a cell asks for: "p=0.05", or a number of images."""
    return subset_name(cell.ratio, cell.budget)


def _tasks(grid: Grid, classes: dict[DatasetSpec, int | None]) -> list[str]:
    """What is wrong with hyper-parameters, for numbers of classes that are known."""
    found: dict[str, None] = {}
    seen = set()
    for cell in grid.cells:
        count = classes[cell.dataset]
        size = cell.recipe.resolution
        key = (cell.method, repr(cell.hyper), count, cell.backbone, size, cell.dataset.alias)
        if count is None or key in seen:
            continue
        seen.add(key)
        try:
            resolved_hyper(cell, count, grid.path.name, cell.dataset.alias)
        except UserError as error:
            found[str(error)] = None
    return list(found)


def _splits(
    grid: Grid, found: list[Job], opened: dict[DatasetSpec, Dataset], workspace: Workspace
) -> list[str]:
    """What is wrong with split files: those that differ from what their rule draws now, or are damaged.

    A split is drawn where its dataset is here, prepared or not; but where unreadable images are left out,
    which these are is known only after the preparation.
    """
    problems: dict[str, None] = {}
    records = list(split_records(found, opened))
    known = {job.cell.dataset for job in found}
    rest = dict.fromkeys(
        (cell.dataset, Budget.of(cell.budget or cell.ratio, grid.name), cell.subset_seed)
        for cell in grid.cells
        if cell.dataset in opened and cell.dataset not in known and not cell.dataset.skip_bad
    )
    for spec, budget, seed in rest:
        try:
            drawn, rule, ratio = draw_budget(opened[spec], spec.split, budget, seed)
        except UserError as error:
            problems[str(error)] = None
            continue
        if is_rule(rule):
            records.append(SplitRecord.of(opened[spec], spec.table(), rule, ratio, seed, drawn.labelled))
    for record in records:
        try:
            compare(workspace.data / FOLDER, record)
        except UserError as error:
            problems[str(error)] = None
    return list(problems)


def _backbone(spec: BackboneSpec, grid: Grid) -> tuple[list[str], list[str]]:
    """What a backbone lacks here, and what is wrong with it."""
    try:
        conventions(spec)  # a tag that there is not, or fields that contradict it
        lacks = [
            f"{part} {lack}: `prepare --grid {grid.argument} --weights` fetches it; "
            f"without a network: {part.bring()}"
            for part in parts(spec)
            if (lack := part.lack())
        ]
        file = spec.file
        if file is not None and not file.is_file():
            lacks.append(f"weights of {spec.name}: {file} does not exist; copy the file there")
        elif file is None and spec.weights:
            file = cached_tag_file(spec)
            if file is None:
                lacks.append(
                    f"weights {spec.weights!r} of {spec.name} are not here: `prepare --grid {grid.argument} "
                    f"--weights` fetches them ({tag_source(spec)}); without a network: copy the file and set "
                    "`weights` in [backbone] to its path"
                )
        if file is not None and file.is_file():
            weights_format(file)
    except UserError as error:
        return [], [f"{grid.path.name}: {error}"]
    return lacks, []

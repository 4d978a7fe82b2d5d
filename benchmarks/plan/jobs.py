"""Turn a grid into runs with identities; list what is finished and which stages they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import methods
from benchmarks.data.cache.prepared import Prepared, is_prepared, prepare
from benchmarks.data.dataset import Dataset
from benchmarks.data.registry import DatasetSpec, open_dataset, renders
from benchmarks.data.splits.budget import Budget, draw_budget
from benchmarks.data.splits.files import FOLDER, SplitRecord, keep
from benchmarks.data.splits.rules import absent_classes, is_rule, split_digest
from benchmarks.plan.grid import Cell, Grid
from benchmarks.plan.identity import RunSpec
from benchmarks.plan.stages import CACHED_VIEW, Stage
from benchmarks.plan.user_code import UserCode, code_of
from benchmarks.progress import silent
from benchmarks.workspace import Workspace
from methods.backbones import BackboneSpec
from methods.backbones.conventions import conventions
from methods.backbones.load import bring, weights_digest
from methods.errors import UserError
from methods.fields import identified
from methods.planned import check_patches


@dataclass(frozen=True)
class Split:
    """The labelled subset of a run.

    Attributes:
        labelled: (n_l,) int64 positions in the training images that are trained on.
        held_out: (n_v,) int64 labelled positions kept for the "val" rule.
        unlabelled: (n_u,) int64 positions of all other training images.
        digest: SHA-256 of the labelled subset.
        absent: classes without a positive image among `labelled`.
        notes: remarks on the subset, such as on a user's list of labelled images.
        rule: what drew it, see `splits.rules.draw`.
        ratio: the labelled share p.
    """

    labelled: NDArray[np.int64]
    held_out: NDArray[np.int64]
    unlabelled: NDArray[np.int64]
    digest: str
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rule: str = "published"
    ratio: float = 0.0

    @property
    def subset(self) -> NDArray[np.int64]:
        """The whole labelled subset, in the order it was drawn."""
        return np.concatenate([self.labelled, self.held_out])


@dataclass(frozen=True)
class Job:
    """One run, ready to be executed.

    Attributes:
        spec: the run with its identity.
        cell: the run as the grid asks for it.
        prepared: its images.
        split: its labelled subset.
        stages: computations that must be finished before it starts.
        code: source of a method that is not part of this repository; None for those that are.
    """

    spec: RunSpec
    cell: Cell
    prepared: Prepared
    split: Split
    stages: tuple[Stage, ...]
    code: UserCode | None = None

    @property
    def process_kind(self) -> tuple[str, str]:
        """Precision and strategy; accelerate sets both up once for a whole process."""
        return self.cell.recipe.precision, self.cell.recipe.strategy

    def directory(self, workspace: Workspace) -> Path:
        """Return the run's directory in the store."""
        spec = self.spec
        return workspace.store.directory(
            spec.run_id,
            {
                "dataset": {"alias": spec.dataset},
                "method": spec.method,
                "ratio": spec.ratio,
                "seed": spec.seed,
            },
        )


def process_kinds(found: Sequence[Job]) -> list[tuple[str, str]]:
    """Return the kinds of process that runs need, sorted."""
    return sorted({job.process_kind for job in found})


def split_of(dataset: Dataset, rule: str, ratio: float | Budget, seed: int, val_share: float) -> Split:
    """Draw the labelled subset by a rule (see `splits.rules.draw`); hold out its tail, a share ``val_share``.

    Raises:
        UserError: nothing is left to train on, or the rule or list is wrong.
    """
    budget = ratio if isinstance(ratio, Budget) else Budget(ratio=ratio)
    drawn, rule, share = draw_budget(dataset, rule, budget, seed)
    labelled = drawn.labelled
    kept = len(labelled) - int(val_share * len(labelled))
    if kept < 1:
        raise UserError(f"val_share {val_share:g} leaves none of {len(labelled)} labelled images")
    return Split(
        labelled[:kept],
        labelled[kept:],
        drawn.unlabelled,
        split_digest(labelled),
        absent_classes(dataset, labelled[:kept]),
        drawn.notes,
        rule,
        share,
    )


def _stages(cell: Cell, prepared: Prepared, split: Split, backbone: dict[str, Any]) -> list[Stage]:
    if cell.kind == "fit":
        frozen = {"data": prepared.digest, "backbone": backbone, "precision": cell.recipe.precision}
        count = cached_views(cell)
        labelled = {"split": split.digest, "val_share": cell.recipe.val_share, "seed": cell.seed}
        drawn = {**frozen, **labelled, "view": CACHED_VIEW, "count": count}
        return [Stage("features", frozen), *([Stage("views", drawn)] if count else [])]
    found = warmup(cell) if cell.kind == "semi" else None
    if found is None or not cell.recipe.warmup_epochs:
        return []
    name, hyper = found
    return [
        Stage(
            "warmup",
            {
                "data": prepared.digest,
                "split": split.digest,
                "seed": cell.seed,
                "backbone": backbone,
                "recipe": cell.recipe.warmup_part(),
                "method": name,
                "version": methods.get(name).version,
                "hyper": identified(hyper),
                **({"code": code.digest} if (code := code_of(name)) else {}),
            },
        )
    ]


def cached_views(cell: Cell) -> int:
    """How many views of each labelled image the method of a run that is fitted asks for."""
    from methods.base import FitMethod  # here, because it imports torch

    cls = methods.get(cell.method)
    assert issubclass(cls, FitMethod)  # what the kind of the cell says
    return cls.cached_views(cell.hyper)


def warmup(cell: Cell) -> tuple[str, Any] | None:
    """Return method and hyper-parameters of the labelled-only training that a run starts from, or None."""
    from methods.base import StepMethod  # here, because it imports torch

    cls = methods.get(cell.method)
    assert issubclass(cls, StepMethod)  # only these are trained
    hyper = cls.warmup_hyper(cell.hyper)
    if hyper is None:
        return None
    name = cls.warmup_name or cell.method
    if cls.phases(cell.hyper):
        raise UserError(f"method {cell.method!r} has phases and a warm-up; its first phase can be one")
    if cls.estimation_share(cell.hyper) != methods.get(name).estimation_share(hyper):
        raise UserError(f"method {cell.method!r}: its warm-up {name!r} would train on its estimation images")
    return name, hyper


def resolve(
    grid: Grid,
    workspace: Workspace,
    *,
    progress: Callable[[str], Callable[[int, int], None]],
    workers: int,
    announce: Callable[[str], None] = lambda line: None,
) -> list[Job]:
    """Open and prepare the data of a grid, and make its runs.

    Args:
        grid: the cells.
        workspace: where data and runs lie.
        progress: makes a (done, total) callback from a title.
        workers: processes that prepare images.
        announce: called with one-line remarks on the preparation.

    Raises:
        UserError: datasets, weights or tokenizers are absent (all are named, with what brings them); a split
            differs from the file that an earlier call wrote; or as in `jobs`.
    """
    opened, prepared = {}, {}
    problems = without_weights(grid)  # before hours are spent on images
    for spec in grid.datasets:
        try:
            opened[spec] = open_dataset(spec, workspace.data, progress=progress(f"render {spec.name}"))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    for spec, sizes in grid.datasets.items():
        dataset = opened[spec]
        for size in sizes:
            prepared[spec, size] = prepare(
                dataset,
                size,
                workspace.cache,
                workers=workers,
                skip_bad=spec.skip_bad,
                progress=progress(f"prepare {dataset.name} at {size} px"),
                announce=announce,
            )
    found = jobs(grid, prepared)
    for record in split_records(found, opened):
        keep(workspace.data / FOLDER, record)
    return found


def without_weights(grid: Grid) -> list[str]:
    """Have the weights and tokenizers of a grid here; a line for each backbone that cannot have its own."""
    problems = []
    for backbone in dict.fromkeys(cell.backbone for cell in grid.cells):
        try:
            bring(backbone)
        except UserError as error:
            problems.append(str(error))
    return problems


def uncached(grid: Grid, workspace: Workspace) -> list[str]:
    """Name the datasets and sizes of a grid that have no cache yet; prepare nothing.

    Raises:
        UserError: datasets are absent.
    """
    found = []
    for spec, sizes in grid.datasets.items():
        if renders(spec, workspace.data):
            found.append(spec.name)
            continue
        dataset = open_dataset(spec, workspace.data, progress=silent("open"), make=False)
        found += [
            f"{dataset.name} at {size} px"
            for size in sizes
            if not is_prepared(dataset, size, workspace.cache, skip_bad=spec.skip_bad)
        ]
    return found


def split_records(found: Iterable[Job], opened: Mapping[DatasetSpec, Dataset]) -> Iterator[SplitRecord]:
    """The splits that rules have drawn for runs, each once, as their files hold them.

    Args:
        found: the runs.
        opened: their datasets before unreadable images were left out.
    """
    seen = set()
    for job in found:
        spec, ratio, seed, rule = job.cell.dataset, job.cell.ratio, job.cell.subset_seed, job.split.rule
        dataset = job.prepared.dataset
        key = (dataset.digest, rule, ratio, seed)
        if key not in seen and is_rule(rule):  # a user's list is a file already
            seen.add(key)
            subset = job.split.subset
            yield SplitRecord.of(dataset, spec.table(), rule, ratio, seed, subset, opened[spec])


def jobs(grid: Grid, prepared: dict[tuple[DatasetSpec, int], Prepared]) -> list[Job]:
    """Make the runs of a grid whose images are prepared.

    Raises:
        UserError: a method does not work on a dataset, with a backbone or at a ratio; or the source of a
            user's method, or a weights file, cannot be read.
    """
    splits: dict[tuple[Any, ...], Split] = {}
    backbones: dict[Any, dict[str, Any]] = {}
    codes = {name: code_of(name) for name in dict.fromkeys(cell.method for cell in grid.cells)}
    grid = _resolved(grid, prepared)
    found = []
    for cell in grid.cells:
        if cell.backbone not in backbones:
            backbones[cell.backbone] = {
                **_as_built(cell.backbone),
                "weights_sha256": weights_digest(cell.backbone),
            }
        backbone = backbones[cell.backbone]
        images = prepared[cell.dataset, cell.recipe.resolution]
        budget = Budget.of(cell.budget, grid.name) if cell.budget else cell.ratio
        key = (images.digest, cell.dataset.split, budget, cell.subset_seed, cell.recipe.val_share)
        if key not in splits:
            splits[key] = split_of(images.dataset, *key[1:])
        split = splits[key]
        if cell.budget:
            cell = dataclasses.replace(cell, ratio=split.ratio)
        if cell.kind == "semi" and not len(split.unlabelled):
            asked = cell.budget or f"ratio {cell.ratio:g}"
            raise UserError(
                f"{cell.label} uses unlabelled images and at {asked} there are none; leave it out there"
            )
        code = codes[cell.method]
        spec = RunSpec(
            dataset=images.dataset.name,
            dataset_digest=images.digest,
            ratio=cell.ratio,
            seed=cell.seed,
            split_digest=split.digest,
            method=cell.method,
            version=methods.get(cell.method).version,
            hyper=identified(cell.hyper),
            backbone=backbone,
            recipe=cell.recipe.relevant(cell.kind),
            code=code.digest if code else "",
            label=cell.label,
            split_seed=cell.split_seed,
            budget=cell.budget,
        )
        stages = _stages(cell, images, split, backbone)
        found.append(Job(spec, cell, images, split, tuple(stages), code))
    return found


def _resolved(grid: Grid, prepared: dict[tuple[DatasetSpec, int], Prepared]) -> Grid:
    """Have each method fill in what depends on the number of classes and the backbone, and check it."""
    cells, known = [], {}
    for cell in grid.cells:
        dataset = prepared[cell.dataset, cell.recipe.resolution].dataset
        key = (cell.method, repr(cell.hyper), len(dataset.classes), cell.backbone, cell.recipe.resolution)
        if key not in known:
            known[key] = resolved_hyper(cell, len(dataset.classes), grid.path.name, dataset.name)
        cells.append(dataclasses.replace(cell, hyper=known[key]))
    return dataclasses.replace(grid, cells=tuple(cells))


def resolved_hyper(cell: Cell, num_classes: int, where: str, dataset: str) -> Any:
    """The hyper-parameters of a cell for a number of classes, checked; the dataset's name is for messages.

    Raises:
        UserError: they cannot work there; names the row and the field.
    """
    method = methods.get(cell.method)
    try:
        hyper = method.resolve_hyper(cell.hyper, num_classes, cell.backbone)
        method.check_task(hyper, num_classes, cell.backbone)
        check_patches(cell.recipe.resolution, method.patches(hyper), "recipe.resolution")
    except UserError as error:
        raise UserError(f"{where}, {cell.label} on {dataset}: {error}") from None
    return hyper


def states(found: Sequence[Job], workspace: Workspace) -> dict[str, list[Job]]:
    """Group runs by their state in the store: done, running, dead, failed, not started."""
    grouped: dict[str, list[Job]] = {}
    for job in found:
        kind = workspace.store.state(job.directory(workspace)).kind
        grouped.setdefault(kind, []).append(job)
    return grouped


def _as_built(backbone: BackboneSpec) -> dict[str, Any]:
    """Return the fields of a backbone, with what its weights demand in the place of what nobody wrote.

    The path of the weights is left out: their hash identifies them.
    """
    demands = conventions(backbone)
    values = dataclasses.asdict(backbone)
    del values["weights"]
    return {
        **values,
        "quick_gelu": demands.quick_gelu,
        "mean": list(demands.mean),
        "std": list(demands.std),
    }

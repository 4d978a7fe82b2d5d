"""What a launcher asks its processes to do, in the file plan.json.

The launcher writes a `WorkOrder`; each process that it starts gets the file's path and reads it. A file
may wait in a queue for days, or be saved by hand (`plan --save`) for `slurm/array.sbatch`, so it names
the copy of the code and the module that serve it, and its keys do not change. A launch adds keys of its
own to the file, which only `slurm.launches` reads.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.launch.bundles import Bundle
from benchmarks.plan.grid import load, with_strategy
from benchmarks.plan.jobs import Job, resolve
from benchmarks.plan.product_code import check as check_code
from benchmarks.plan.product_code import hashes, needed
from benchmarks.plan.stages import Stage
from benchmarks.progress import silent
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results.files import atomic_write_json

NAME = "plan.json"
FORMAT = 1
"""Of the files that this code writes. Files from before formats were counted have no such key."""
_TYPES: dict[str, Any] = {
    "grid": str,
    "data": str,
    "runs": str,
    "run_ids": list,
    "strategy": str | None,
    "threads": int,
    "checkpoint_seconds": int | float,
    "hang_seconds": int | float,
    "launch": str,
    "command": str,
    "launcher": int | None,
    "bundles": list,
    "code": str,
    "format": int,
    "module": str,
    "sources": dict,
    "planned": dict,
    "keep_weights": str,
}
"""JSON types of the fields."""
_LATER = ("bundles", "code", "sources", "planned", "keep_weights")
"""Fields that earlier files do not have."""


@dataclass(frozen=True)
class WorkOrder:
    """What processes are asked to do, and how.

    Attributes:
        grid: path of the grid's file: of the launch's own copy, see `benchmarks.plan.copies`.
        data: folder of the datasets.
        runs: folder of the run store.
        run_ids: identities of the runs that the order is about.
        strategy: overrides the recipes' way of spreading a step over processes; None leaves it.
        threads: CPU threads of each process; 0 leaves torch's choice.
        checkpoint_seconds: seconds between checkpoints inside an epoch.
        hang_seconds: seconds without progress after which a process group counts as hung.
        launch: names the launch; runs that failed in an earlier launch are tried again.
        command: the user's command line, for the provenance of results.
        launcher: process id of the launcher, without which the processes stop; None for none.
        bundles: parts of the order, one for each job of a cluster; empty for an order that is not divided.
        code: folder of the code that the order was made with; "" for the code that reads it.
        format: see `FORMAT`; 0 in files without one.
        module: the Python module that serves the order; "" in files of format 0.
        sources: SHA-256 of each source file that decides a number of these runs, by its path, see
            `benchmarks.plan.product_code`; empty in earlier files.
        planned: the hashes in the identities of the runs, by field; empty in earlier files.
        keep_weights: whether runs keep their weights: "", as in earlier files, "all" or "best".
    """

    grid: str
    data: str
    runs: str
    run_ids: tuple[str, ...]
    strategy: str | None
    threads: int
    checkpoint_seconds: float
    hang_seconds: float
    launch: str
    command: str
    launcher: int | None
    bundles: tuple[Bundle, ...] = ()
    code: str = ""
    format: int = FORMAT
    module: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    planned: Mapping[str, list[str]] = field(default_factory=dict)
    keep_weights: str = ""

    @classmethod
    def make(
        cls,
        grid: Path,
        workspace: Workspace,
        jobs: Sequence[Job],
        *,
        module: str,
        strategy: str | None,
        checkpoint_seconds: float,
        hang_seconds: float,
        threads: int = 0,
        launcher: int | None = None,
        bundles: Sequence[Bundle] = (),
        code: Path | None = None,
        keep_weights: str = "",
    ) -> WorkOrder:
        """An order of a new launch by this command.

        Args:
            grid: the copy of the grid's file, from `benchmarks.plan.copying`.
            workspace: where data and runs lie.
            jobs: the runs.
            module: for this and the others see the class.
            strategy: see the class.
            checkpoint_seconds: see the class.
            hang_seconds: see the class.
            threads: see the class.
            launcher: see the class.
            bundles: see the class.
            code: see the class.
            keep_weights: see the class.
        """
        return cls(
            grid=str(grid.resolve()),
            data=str(workspace.data.resolve()),
            runs=str(workspace.runs.resolve()),
            run_ids=tuple(job.spec.run_id for job in jobs),
            strategy=strategy,
            threads=threads,
            checkpoint_seconds=checkpoint_seconds,
            hang_seconds=hang_seconds,
            launch=uuid.uuid4().hex,
            command=shlex.join(sys.argv),
            launcher=launcher,
            bundles=tuple(bundles),
            code="" if code is None else str(code),
            module=module,
            sources=needed(_methods(jobs), hashes()),
            planned=_hashes(jobs),
            keep_weights=keep_weights,
        )

    @classmethod
    def from_record(cls, record: Any, where: str) -> WorkOrder:
        """An order from JSON values; keys of a launch are left out.

        Args:
            record: as `record` makes it, or as earlier versions did.
            where: names the source in messages.

        Raises:
            UserError: it is none, or of a newer version.
        """
        if not isinstance(record, Mapping) or not {"grid", "run_ids"} <= record.keys():
            raise UserError(f"{where} is no plan of runs; `run.py plan --save FILE` writes one")
        values = {"format": 0, "module": "", **record}
        if isinstance(values["format"], int) and values["format"] > FORMAT:
            raise UserError(
                f"{where} was written by a newer version (format {values['format']}, this code reads up "
                f"to {FORMAT}); update the code or save the plan again"
            )
        for name, kind in _TYPES.items():
            if name not in values and name not in _LATER:
                raise UserError(f"{where} lacks {name!r}: save the plan again with this version")
            if name in values and not isinstance(values[name], kind):
                raise UserError(f"{where}: {name} = {values[name]!r} is not what a plan holds there")
        try:
            bundles = tuple(Bundle.from_record(each) for each in values.get("bundles", ()))
        except (TypeError, AttributeError):
            raise UserError(f"{where}: its bundles are not those of this version; save it again") from None
        fields = {name: values[name] for name in _TYPES if name in values}
        return cls(**{**fields, "run_ids": tuple(values["run_ids"]), "bundles": bundles})

    @classmethod
    def read(cls, path: Path) -> WorkOrder:
        """The order of a file.

        Raises:
            UserError: one line on why the file is no order for this code.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise UserError(f"{path} is no plan of runs: it is not JSON") from None
        return cls.from_record(record, str(path))

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        bundles = [bundle.record() for bundle in self.bundles]
        return {**values, "run_ids": list(self.run_ids), "bundles": bundles}

    def write(self, path: Path) -> None:
        """Write the file; it appears whole.

        Raises:
            OSError: it cannot be written.
        """
        atomic_write_json(path, self.record())

    def argv(self, path: Path, bundle: int | None = None) -> tuple[str, ...]:
        """Arguments of the Python that serves this order.

        Args:
            path: where the order was written.
            bundle: number of the bundle to work on; None for all runs.
        """
        return ("-m", self.module, str(path), *(() if bundle is None else (str(bundle),)))

    @property
    def workspace(self) -> Workspace:
        """Where data and runs lie."""
        return Workspace(Path(self.data), Path(self.runs))

    def resolve(self, dataset: str | None = None) -> list[Job]:
        """The order's runs, resolved again from the launch's copy of the grid; what has changed is noticed.

        Args:
            dataset: the name of the only dataset to open; None for all of the grid.

        Raises:
            UserError: a run is no longer what was planned, or the code is not that of the launch.
        """
        check_code(self.sources)
        wanted = set(self.run_ids)
        grid = with_strategy(load(self.grid), self.strategy)
        if dataset is not None:
            cells = tuple(cell for cell in grid.cells if cell.dataset.alias == dataset)
            grid = dataclasses.replace(grid, cells=cells)
        every = resolve(grid, self.workspace, progress=silent, workers=1)
        jobs = [job for job in every if job.spec.run_id in wanted]
        missing = wanted - {job.spec.run_id for job in jobs}
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(wanted)} runs of grid {grid.name} are not what was planned any "
                f"more: {self._changed(every)}; nothing was run: start it again"
            )
        check_code(self.sources)  # again: what was imported meanwhile is what was compared
        return jobs

    def _changed(self, jobs: Sequence[Job]) -> str:
        """What differs between the plan and the runs of now."""
        if not self.planned:
            return f"{self.grid} or what it reads (recipe, modules, data, weights) has changed"
        now = _hashes(jobs)
        fields = [name for name, values in self.planned.items() if not set(values) <= set(now.get(name, ()))]
        words = [_WORDS[name] for name in _WORDS if name in fields]
        if words:
            return f"{', '.join(words)} changed since"
        return "a version or a setting of the code changed since"

    def tasks(self, jobs: Sequence[Job], bundle: int | None) -> list[tuple[Stage | None, Job]]:
        """What one worker does, in the order in which it tries it.

        A bundle of runs makes their missing stages too: the stages' own jobs may have been lost.

        Args:
            jobs: from `resolve`.
            bundle: number of the bundle; None for all of the order.

        Returns:
            Stages, each with a run that needs it, and runs, each with None.

        Raises:
            UserError: the order has no such bundle.
        """
        if bundle is None:
            return order(jobs)
        if not 0 <= bundle < len(self.bundles):
            raise UserError(f"bundle {bundle}: the plan has bundles 0 to {len(self.bundles) - 1}")
        part = self.bundles[bundle]
        stage_ids, run_ids = set(part.stage_ids), set(part.run_ids)
        stages: dict[str, tuple[Stage | None, Job]] = {}
        for job in jobs:
            for stage in job.stages:
                if stage.stage_id in stage_ids:
                    stages.setdefault(stage.stage_id, (stage, job))
        return [*stages.values(), *order([job for job in jobs if job.spec.run_id in run_ids])]


_WORDS = {
    "code": "the code of a user's method",
    "dataset_digest": "the data",
    "split_digest": "the labelled images",
    "weights_sha256": "the weights of a backbone",
}


def _methods(jobs: Sequence[Job]) -> set[str | None]:
    """The methods of runs and of their stages; None for a stage that is computed without one."""
    stages = {stage.key.get("method") for job in jobs for stage in job.stages}
    return stages | {job.spec.method for job in jobs}


def _hashes(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """The hashes in the identities of runs, by field, sorted."""
    found: dict[str, set[str]] = {name: set() for name in _WORDS}
    for job in jobs:
        spec = job.spec
        values = (spec.code, spec.dataset_digest, spec.split_digest, spec.backbone["weights_sha256"])
        for name, value in zip(_WORDS, values, strict=True):
            if value:
                found[name].add(value)
    return {name: sorted(values) for name, values in found.items() if values}


def order(jobs: Sequence[Job]) -> list[tuple[Stage | None, Job]]:
    """Stages first, then runs, the longest kind first, so that no long run starts last."""
    stages: dict[str, tuple[Stage | None, Job]] = {}
    longest_first = {"semi": 0, "labelled": 1, "fit": 2}
    jobs = sorted(jobs, key=lambda job: longest_first[job.cell.kind])
    for job in jobs:
        for stage in job.stages:
            stages.setdefault(stage.stage_id, (stage, job))
    return [*stages.values(), *((None, job) for job in jobs)]

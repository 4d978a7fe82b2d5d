"""What tables, figures and `status` need of a plan: plain values, without data, methods or torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.workspace import Workspace
from results.lineage import SUPERSEDED, Predecessor, predecessors

if TYPE_CHECKING:
    from benchmarks.plan.jobs import Job


def counted(states: Iterable[str]) -> str:
    """How many runs are in each state, in the order in which the states appear: "2 done, 1 failed"."""
    return ", ".join(f"{count} {state}" for state, count in Counter(states).items())


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan.

    Attributes:
        run_id: its identity, 64 hexadecimal digits.
        title: its name for people.
        path: its directory, relative to the folder of runs.
        dataset: the dataset's name in tables.
        ratio: labelled share.
        seed: seed of everything random in the run.
        method: the method's registered name.
        label: its row in a table.
        spec: everything that its identity is made of; empty in plans of earlier versions.
        budget: how the labelled images were asked for; "" for the ratio.
        split_seed: seed of the labelled subset; None for the run's seed.
    """

    run_id: str
    title: str
    path: str
    dataset: str
    ratio: float
    seed: int
    method: str
    label: str
    spec: dict[str, Any] = field(default_factory=dict, compare=False)
    budget: str = ""
    split_seed: int | None = None

    def directory(self, workspace: Workspace) -> Path:
        """The run's directory in the store."""
        return workspace.runs / self.path

    def wanted(self) -> dict[str, Any]:
        """The run as `results.frames` asks for it."""
        keys = ("run_id", "dataset", "ratio", "seed", "method", "label", "spec", "budget", "split_seed")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True)
class PlanSummary:
    """The runs of a grid, or of a part of it.

    Attributes:
        name: the grid's name.
        runs: its runs, in the order of the grid.
        stages: directories of the stages that the runs share, relative to the folder of runs.
        remarks: what a reader of the numbers should know of data and splits, a line each.
        notices: what preparing the data announces each time, such as images that are left out.
    """

    name: str
    runs: tuple[PlannedRun, ...]
    stages: tuple[str, ...]
    remarks: tuple[str, ...]
    notices: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        jobs: Sequence[Job],
        workspace: Workspace,
        remarks: Iterable[str] = (),
        notices: Iterable[str] = (),
    ) -> PlanSummary:
        """The summary of resolved jobs."""
        runs = tuple(
            PlannedRun(
                job.spec.run_id,
                job.spec.title,
                str(job.directory(workspace).relative_to(workspace.runs)),
                job.spec.dataset,
                job.spec.ratio,
                job.spec.seed,
                job.spec.method,
                job.cell.label,
                job.spec.identity(),
                job.spec.budget,
                job.spec.split_seed,
            )
            for job in jobs
        )
        found = (
            stage.directory(workspace).relative_to(workspace.runs) for job in jobs for stage in job.stages
        )
        return cls(name, runs, tuple(dict.fromkeys(map(str, found))), tuple(remarks), tuple(notices))

    def states(self, workspace: Workspace) -> dict[str, list[PlannedRun]]:
        """Runs by their state in the store: done, running, dead, failed, not started."""
        grouped: dict[str, list[PlannedRun]] = {}
        for run in self.runs:
            kind = workspace.store.state(run.directory(workspace)).kind
            grouped.setdefault(kind, []).append(run)
        return grouped

    def standing(self, workspace: Workspace) -> dict[PlannedRun, str]:
        """The state of each run, where one that was not begun and has a superseded result is "superseded"."""
        kinds = {run: workspace.store.state(run.directory(workspace)).kind for run in self.runs}
        old = self.superseded(workspace) if "not started" in kinds.values() else {}
        return {
            run: SUPERSEDED if kind == "not started" and run.run_id in old else kind
            for run, kind in kinds.items()
        }

    def superseded(self, workspace: Workspace) -> dict[str, list[Predecessor]]:
        """The superseded results of the runs, by identity."""
        return predecessors(workspace.store, [run.wanted() for run in self.runs])

    def overview(self, workspace: Workspace) -> str:
        """One line: the grid's runs by state, and its shared stages."""
        counts = counted(self.standing(workspace).values())
        return f"grid {self.name}: {len(self.runs)} runs ({counts}), {len(self.stages)} shared stages"

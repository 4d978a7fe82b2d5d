"""The state of runs, put together from the store, the launches and SLURM's queue.

The store knows which runs are done, running, failed, started or not started. Launches know which were
submitted, and the queue which of those still wait; without it (a copied folder, a laptop) the answer
names what is unknown. No heavy module is imported: the status of 10,000 runs takes less than a second.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.status import progress_file as progressfile
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results.columns import seeds_name, subset_name
from results.damage import refused
from results.files import folders
from results.lineage import SUPERSEDED, Predecessor
from results.merge import STAGE
from results.store import RunStore
from results.text import one_line
from slurm import client
from slurm.launches import Launch, Launches, assigned, last_jobs

STANDINGS = (
    "done",
    "running",
    "preempted",
    "queued",
    "submitted",
    "dead",
    "failed",
    "unreadable",
    SUPERSEDED,
    "not started",
)
QUEUE_SECONDS = 15.0
"""Minimum seconds between two queue queries, however often the live view is redrawn."""
READERS, PART = 8, 64
"""Threads that look at results, and how many results each takes at a time."""
SHORT = 16
"""Characters of a run's identity that its directory's name holds."""
Wanted = Sequence[tuple[str, str, Path | None]]
"""Run id, title ("" for unknown) and directory of each run; None where only its spec would tell."""


@dataclass(slots=True)
class Run:
    """What is known of one run, or of a shared stage that is being computed.

    Attributes:
        run_id: its identity, or the first 16 characters of it.
        kind: one of `STANDINGS`; "superseded" is a run that was not begun and has a superseded result.
        directory: the run's directory; None for a submitted run that was never started.
        known_title: its name for people, from a grid or a launch; see `title`.
        age: seconds since the last heartbeat; running and dead runs.
        detail: one line.
        error: the record of the failure; failed runs only.
        attempts: how often it was started.
        progress: the values of its progress file, see `benchmarks.status.progress_file`; None without one.
        current: whether that file is from the process that now executes the run.
        said: seconds since that file was written, by the clock of the file system.
        launch: the launch that submitted it last, or whose job has it now.
        job: number of that job.
        why: why its job waits, or how the job ended, in SLURM's terms.
        old: its superseded results, the newest first.
    """

    run_id: str
    kind: str
    directory: Path | None = None
    known_title: str = ""
    age: float | None = None
    detail: str = ""
    error: dict[str, Any] | None = None
    attempts: int = 0
    progress: dict[str, Any] | None = None
    current: bool = False
    said: float | None = None
    launch: Launch | None = None
    job: str | None = None
    why: str = ""
    old: Sequence[Predecessor] = ()

    @property
    def title(self) -> str:
        """The run's name for people; read from its spec if no grid and no launch names it."""
        if not self.known_title and self.directory is not None:
            self.known_title = _title(self.directory, self.run_id)
        return self.known_title or self.run_id[:8]

    def left(self) -> float | None:
        """Estimated seconds to the run's end, when it was looked at; None where nothing is known."""
        if not self.current or self.progress is None or self.progress.get("left") is None:
            return None
        return max(0.0, self.progress["left"] - (self.said or 0.0))


@dataclass
class Overview:
    """The state of all runs at one moment.

    Attributes:
        name: names the grid or folder that it is about.
        root: the folder of runs.
        runs: every run, in no particular order.
        stages: shared stages that are being computed.
        remarks: what is not known, one line each.
        hidden: folders whose runs cannot be listed; the remarks name them.
        taken: the moment, seconds since the epoch.
    """

    name: str
    root: Path
    runs: list[Run]
    stages: list[Run] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    hidden: int = 0
    taken: float = field(default_factory=time.time)

    def of(self, *kinds: str) -> list[Run]:
        """The runs of some kinds."""
        return [run for run in self.runs if run.kind in kinds]

    def counts(self) -> dict[str, int]:
        """The number of runs of each kind that occurs."""
        found = dict.fromkeys(STANDINGS, 0)
        for run in self.runs:
            found[run.kind] += 1
        return {kind: count for kind, count in found.items() if count}

    @property
    def settled(self) -> bool:
        """Whether every run is done, cannot be read, or failed with no job that would try it again."""
        ended = ("done", "unreadable")
        return all(run.kind in ended or (run.kind == "failed" and not run.why) for run in self.runs)


class QueueCache:
    """Keeps SLURM's answers for `QUEUE_SECONDS`, and which results were found sound.

    Attributes:
        sound: directories of finished runs whose result need not be looked at again.
    """

    def __init__(self) -> None:
        self.sound: set[Path] = set()
        self._asked = float("-inf")
        self._queue: dict[str, client.Queued] | None = None
        self._remark = ""
        self._ended: dict[str, str] = {}

    def queue(self, names: Iterable[str]) -> tuple[dict[str, client.Queued] | None, str]:
        """The queued and running jobs of these names; or None, and why they are not known."""
        if time.monotonic() - self._asked >= QUEUE_SECONDS:
            self._queue, self._remark = None, ""
            if not client.available():
                self._remark = "no squeue here: which submitted runs still wait is not known"
            else:
                try:
                    self._queue = client.queue(names, client.BRIEF)
                except client.SlurmError as error:
                    self._remark = f"the queue is not known: {error}"
            self._asked = time.monotonic()
        return self._queue, self._remark

    def ended(self, jobs: Iterable[str]) -> dict[str, str]:
        """How jobs ended, by number, as far as the accounting knows; an end is final and is kept."""
        asked = set(jobs)
        found = client.ended(asked - self._ended.keys(), client.BRIEF)
        # The accounting may lag behind the queue.
        self._ended |= {k: v for k, v in found.items() if v not in ("PENDING", "RUNNING")}
        return {job: self._ended[job] for job in asked & self._ended.keys()}


def overview(
    runs: Path,
    wanted: Wanted | None = None,
    *,
    name: str = "",
    stages: Iterable[Path] | None = None,
    cluster: QueueCache | None = None,
    old: Mapping[str, Sequence[Predecessor]] | None = None,
) -> Overview:
    """Read the state of all runs once.

    Args:
        runs: the folder of runs.
        wanted: the runs of a grid; None for all of the store and all that was submitted.
        name: names the grid in the first line; "" for the folder.
        stages: directories of the grid's shared stages; None for all.
        cluster: keeps answers of SLURM between calls.
        old: superseded results by the identity of the run that supersedes them.
    """
    workspace = Workspace(Path(), runs)
    found = Overview(name or str(runs), runs, [])
    launches = _sound(Launches(runs), found.remarks)
    # By what a directory's name holds of an identity.
    submitted = {run[:SHORT]: each for run, each in last_jobs(launches).items()}
    if wanted is None:
        store = workspace.store
        wanted = _everything(store, launches, submitted)
        found.remarks += store.hidden.values()
        found.hidden = len(store.hidden)
    cluster = cluster or QueueCache()
    live: dict[str, client.Queued] | None = {}
    remark = ""
    if launches:  # asked before the store is read: what ends meanwhile is seen as done
        live, remark = cluster.queue({launch.job_name for launch in launches})
    waiting = {run[:SHORT]: each for run, each in assigned(launches, live or {}).items()}
    for run_id, title, directory in wanted:
        run = _look(workspace.store, run_id, directory)
        run.known_title = title
        if run.kind not in ("done", "running", "unreadable"):
            _queued(run, waiting.get(run_id[:SHORT]), submitted.get(run_id[:SHORT]), live is None)
        run.old = (old or {}).get(run_id, ())
        if run.old and run.kind == "not started" and not run.job:
            run.kind, run.detail = SUPERSEDED, run.old[0].line()
        found.runs.append(run)
    _look_at_results(workspace.store, found.of("done"), cluster.sound)
    if found.of("running", "dead") and not workspace.store.clock_is_own:
        found.remarks.append(
            f"{workspace.store.root} cannot be written to, so the clock of its file system is not known: "
            "what runs and what is dead is told by this machine's clock"
        )
    found.remarks += _displaced(launches, live or {})
    for launch in launches:
        if launch.unsettled() and not launch.elsewhere:
            found.remarks.append(
                f"launch {launch.folder.name} is submitting, or broke off: SLURM may have jobs that it "
                "does not know; the next `run` or `cancel` settles it"
            )
    if remark and found.of("submitted"):
        found.remarks.append(remark)
    if live is not None:
        gone = [run for run in found.of("dead", "not started") if run.job]
        ended = cluster.ended({run.job for run in gone if run.job}) if gone else {}
        for run in gone:
            run.why = ended.get(run.job or "", "")
    store = RunStore(workspace.stages)
    for directory in _stages(workspace, found.remarks) if stages is None else stages:
        if not os.path.exists(directory / STAGE):
            stage = _look(store, directory.name, directory)
            if stage.kind == "running":
                stage.known_title = str((stage.progress or {}).get("title") or directory.name)
                found.stages.append(stage)
    return found


def _stages(workspace: Workspace, remarks: list[str]) -> list[Path]:
    try:
        return list(map(Path, sorted(folders(workspace.stages))))
    except OSError as error:
        remarks.append(refused(workspace.stages, error))
        return []


def _look(store: RunStore, run_id: str, directory: Path | None) -> Run:
    """The state of a run as the store knows it."""
    if directory is None:
        return Run(run_id, "not started")
    state = store.state(directory)
    run = Run(
        run_id, state.kind, directory, "", state.heartbeat_age, state.detail, state.error, state.attempts
    )
    if state.kind in ("running", "dead"):
        run.progress = progressfile.read(directory)
        run.said = store.age(directory / progressfile.NAME) if run.progress else None
    if run.progress and state.kind == "running":
        holder = f"process {run.progress.get('pid')} on {run.progress.get('host')}"
        run.current = state.detail == holder
        run.job = run.progress.get("job") if run.current else None
    return run


def _look_at_results(store: RunStore, runs: Sequence[Run], sound: set[Path]) -> None:
    """Find the results that are damaged.

    Reading is waiting, on a file system that is far away: some threads wait at once.
    """
    unknown = [run for run in runs if run.directory is not None and run.directory not in sound]

    def look(part: Sequence[Run]) -> None:
        for run in part:
            assert run.directory is not None
            problem = store.problem(run.directory)
            if problem:
                run.kind, run.detail = "unreadable", problem
            else:
                sound.add(run.directory)

    parts = [unknown[k : k + PART] for k in range(0, len(unknown), PART)]
    with ThreadPoolExecutor(READERS) as readers:
        list(readers.map(look, parts))


def _queued(
    run: Run,
    waits: tuple[Launch, client.Queued] | None,
    last: tuple[Launch, str] | None,
    unknown: bool,
) -> None:
    """Add what launches and the queue know of a run that no process executes."""
    if last is not None:
        run.launch, run.job = last
    if waits is not None:
        run.launch, run.job = waits[0], waits[1].job
        run.why = waits[1].why
        if run.kind != "failed":
            run.kind = "preempted" if run.attempts else "queued"
    elif unknown and last is not None and run.kind != "failed":
        run.kind = "submitted"


def _sound(launches: Launches, remarks: list[str]) -> list[Launch]:
    found = []
    try:
        for launch in launches:
            try:
                launch.plan  # noqa: B018 - read once and kept
                launch.jobs()
                found.append(launch)
            except UserError as error:
                remarks.append(str(error))
    except UserError as error:  # their folder cannot be listed
        remarks.append(str(error))
    return found


def _displaced(launches: Sequence[Launch], live: Mapping[str, client.Queued]) -> list[str]:
    """Lines on jobs in the queue that belong to another place of this folder: it was copied, or moved."""
    counts: dict[tuple[str, bool], int] = {}
    for launch in launches:
        if launch.elsewhere or launch.moved:
            place = (str(launch.plan["runs"]), launch.moved)
            counts[place] = counts.get(place, 0) + sum(job in live for job in launch.jobs().values())
    return [
        f"{count} jobs in the queue were submitted for {place}, which is not here: if this folder was moved, "
        "they will not find it; `cancel`, and run again"
        if moved
        else f"{count} jobs in the queue work in {place}, of which this folder is a copy: none counts here"
        for (place, moved), count in counts.items()
        if count
    ]


def _everything(store: RunStore, launches: Sequence[Launch], submitted: Iterable[str]) -> Wanted:
    """All runs of the store and of the launches."""
    titles: dict[str, str] = {}
    for launch in reversed(launches):  # the newest has the last word
        titles |= {run[:SHORT]: name for run, name in launch.titles.items()}
    found: list[tuple[str, str, Path | None]]
    found = [
        (run, titles.get(run, ""), path) for path in store.scan() for run in (path.name.rsplit("-", 1)[1],)
    ]
    begun = {run for run, _, _ in found}
    for run in dict.fromkeys([*submitted, *titles]):
        if run not in begun:
            found.append((run, titles.get(run, ""), None))
    return found


def _title(directory: Path, run_id: str) -> str:
    """As `RunSpec.title`, from the spec that was stored, or else from the directory's name."""
    ratio, seed = directory.name.rsplit("-", 1)[0].removeprefix("p").rsplit("-s", 1)
    method, dataset = directory.parent.name, directory.parent.parent.name
    subset = f"p={ratio} seed={seed}"
    try:
        spec = json.loads((directory / "spec.json").read_text(encoding="utf-8"))
        budget = subset_name(spec["ratio"], spec.get("budget", ""))
        method, dataset = spec.get("label") or method, spec["dataset"]["alias"]
        subset = f"{budget} {seeds_name(spec['seed'], spec.get('split_seed'))}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # never begun, or written by a newer version: the name says nearly as much
    return one_line(f"{method} · {dataset} {subset} [{run_id[:8]}]")

"""A resolved plan, remembered in the run store, so that its next use imports neither torch nor data.

`<runs>/plans/<grid>-<16 digits>.json` holds the `PlanSummary` of one question: a grid, the part of it
that is wanted, the strategy, the data folder and the folder that relative paths start from. The digits
are the start of the question's SHA-256, so the answer to a question replaces the one before. The file
also holds the key of the answer, SHA-256 values or states of everything that the plan was made from:

- the grid file, the recipe and the files of users' modules, by content;
- the code that makes plans: the sources of `CODE`, which of them there are and their content;
- Python and the names and versions of all installed packages;
- the environment: variables that a grid or recipe names as ${NAME}, and those of `VARIABLES`;
- the data: every annotation file, list, array, split file, record of unreadable images and weights
  file that was read, by size and time of change, and by content up to 16 MB; the folders of the
  datasets that these files lie in, by time of change, so that a file that appears counts too;
- the prepared caches: `meta.json`, and size and time of change of the pixels;
- the pictures: size and times of each, as `benchmarks.data.cache.sources` remembers them, with their hashes.

`recall` returns the plan only if all of that is as it was; otherwise, and for a file that is truncated,
damaged or of another format, it returns None, and the plan is resolved and written anew. Files are
written atomically, so that of two calls at once the later one wins and no reader sees half a file. A
plan is written only if nothing changed while it was resolved; a first call, which renders scenes,
builds caches and writes split files, resolves once more to see that.

Not noticed: a user's module that computes its hyper-parameters from something other than files, such
as an environment variable that no grid names; and pixels of a cache that are overwritten in place
with size and time kept (`prepare --verify` finds those).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.plan.reads import Reads, State, installed, modules, sources
from benchmarks.plan.summary import PlannedRun, PlanSummary
from benchmarks.workspace import REPOSITORY, Workspace
from results.files import atomic_write_bytes, canonical_json

if TYPE_CHECKING:
    from benchmarks.plan.grid import Grid
    from benchmarks.plan.jobs import Job

FORMAT = 1
FOLDER = "plans"
CODE = ("benchmarks/plan", "benchmarks/data", "methods", "csaa", "results")
VARIABLES = ("HOME", "PYTHONPATH", "TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")
"""Environment variables that say where modules and weights lie."""
MOST = 50_000
"""Files that a plan may stand on; one that was made from more is not remembered."""
Announce = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """Which plan is asked for.

    Attributes:
        grid: a grid's name, or the path of a .toml file.
        ratios: only these; empty for all.
        seeds: only these; empty for all.
        methods: only these, by label; empty for all.
        strategy: instead of the recipe's; None for the recipe's.
        split_seeds: only the labelled subsets of these seeds; empty for all.
    """

    grid: str
    ratios: Sequence[float | str] = ()
    seeds: Sequence[int] = ()
    methods: Sequence[str] = ()
    strategy: str | None = None
    split_seeds: Sequence[int] = ()

    def values(self, workspace: Workspace) -> dict[str, Any]:
        """The question as plain JSON values, with the folders that it depends on."""
        name = os.path.abspath(self.grid) if self.grid.endswith(".toml") else self.grid
        asked = dataclasses.asdict(self)
        if not self.split_seeds:  # as earlier versions asked, whose answers hold
            del asked["split_seeds"]
        return {
            **asked,
            "grid": name,
            "data": os.path.abspath(workspace.data),
            "from": os.getcwd(),
        }

    def file(self, workspace: Workspace) -> Path:
        """Where its answer is kept."""
        digest = _digest(self.values(workspace))
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", Path(self.grid).stem) or "grid"
        return workspace.runs / FOLDER / f"{stem}-{digest[:16]}.json"


def recall(question: Question, workspace: Workspace) -> PlanSummary | None:
    """The remembered plan; None without one, or when something that it was made from has changed."""
    try:
        body = read(question.file(workspace))
        fresh = body is not None and (
            body["question"] == _plain(question.values(workspace))
            and body["installed"] == installed()
            and body["environment"] == _environment(body["environment"])
            and sorted(body["code"]) == sources(CODE)
            and _hold(body["code"], REPOSITORY)
            and _hold(body["files"])
            and _hold(body["folders"])
            and all(_stat(path) == state for path, state in body["pixels"].items())
            and _pictures_hold(body["pictures"])
        )
        return plan_of(body) if body is not None and fresh else None
    # What was written by something else is no answer.
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read(file: Path) -> dict[str, Any] | None:
    """What a file says: question, key and plan; None if it is absent, damaged or of another format."""
    try:
        record = json.loads(file.read_bytes())
        body = record["body"]
        return body if record["format"] == FORMAT and record["digest"] == _digest(body) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def resolved(
    question: Question,
    workspace: Workspace,
    resolve: Callable[[Announce], tuple[Grid, list[Job]]],
    announce: Announce,
) -> tuple[Grid, list[Job], PlanSummary]:
    """Resolve a plan and remember it.

    Args:
        question: which plan `resolve` makes.
        workspace: where data and runs lie.
        resolve: loads the grid and resolves it; gets what takes remarks on the preparation.
        announce: gets these remarks, once.

    Raises:
        UserError: whatever `resolve` raises.
    """
    heard: list[str] = []

    def first(line: str) -> None:
        heard.append(line)
        announce(line)

    with Reads() as reads:
        grid, jobs = resolve(first)
    from benchmarks.plan.remarks import remarks

    plan = PlanSummary.of(grid.name, jobs, workspace, remarks(jobs))
    _keep_inputs(reads, jobs, workspace)
    if heard or reads.changed():
        # Scenes, caches or split files were made on the way: look again, now that they are there.
        heard.clear()
        with Reads() as again:
            grid_again, jobs_again = resolve(heard.append)
        _keep_inputs(again, jobs_again, workspace)
        once = {path for path in reads.files if path not in again.files}
        found = PlanSummary.of(grid_again.name, jobs_again, workspace, remarks(jobs_again), heard)
        if again.changed() or once & reads.changed() or found.runs != plan.runs:
            return grid, jobs, plan  # it changes under our eyes: not to be relied on later
        again.files |= {path: reads.files[path] for path in once}
        reads, plan = again, found
    _remember(question, workspace, reads, jobs, plan)
    return grid, jobs, plan


def _keep_inputs(reads: Reads, jobs: Sequence[Job], workspace: Workspace) -> None:
    """Leave out what is no input of a plan: what is derived from inputs, and folders of other things.

    Of a cache, its record and that of the unreadable images are inputs; indexes are derived.
    """
    cache, runs = _below(workspace.cache), _below(workspace.runs)
    made = cache + runs + _below(workspace.data / "splits")
    datasets = _below(*{job.cell.dataset.folder(workspace.data) for job in jobs})

    def is_input(path: str) -> bool:
        if os.path.isdir(path):  # opened to flush what was written in it
            return False
        record = path.endswith((f"{os.sep}meta.json", "-skipped.json"))
        return record if path.startswith(cache) else not path.startswith(runs)

    def above_inputs(path: str) -> bool:
        folder = f"{path}{os.sep}"
        return folder.startswith(datasets) and not folder.startswith(made)

    # Opened to be hashed or decoded; their hashes are remembered elsewhere.
    prepared = {id(job.prepared): job.prepared.dataset for job in jobs}.values()
    pictures = {
        os.path.abspath(path) for some in prepared for part in (some.train, some.test) for path in part.paths
    }
    reads.keep(lambda path: path not in pictures and is_input(path), above_inputs)


def _below(*folders: Path | str) -> tuple[str, ...]:
    return tuple(f"{os.path.abspath(folder)}{os.sep}" for folder in folders)


def _remember(
    question: Question, workspace: Workspace, reads: Reads, jobs: Sequence[Job], plan: PlanSummary
) -> None:
    """Write a plan and its key."""
    from methods.backbones.load import weights_file

    files = {*reads.files, *modules()}
    # Hashes of weights are kept in memory, so a second plan of one process does not read them.
    files |= {os.path.abspath(file) for file in {weights_file(job.cell.backbone) for job in jobs} if file}
    if len(files) > MOST:
        return
    names = {*VARIABLES, *(name for path in files if path.endswith(".toml") for name in _variables(path))}
    body = {
        "question": question.values(workspace),
        "installed": installed(),
        "environment": _environment(names),
        "code": {path: _state(REPOSITORY / path) for path in sources(CODE)},
        "files": {path: _state(path) for path in files},
        "folders": {path: _state(path) for path in reads.folders},
        "pixels": {
            path: _stat(path)
            for folder in {os.path.abspath(job.prepared.directory) for job in jobs}
            for path in (os.path.join(folder, f"{split}.u8") for split in ("train", "test"))
        },
        "pictures": {
            os.path.abspath(file): digest
            for file, digest in {job.prepared.manifest for job in jobs if job.prepared.manifest}
        },
        "plan": dataclasses.asdict(plan),
    }
    text = canonical_json({"format": FORMAT, "digest": _digest(body), "body": body})
    file = question.file(workspace)
    with suppress(OSError):  # a full or read-only disk costs time at the next call, not the result
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, text.encode())


def _state(path: Path | str) -> list[Any]:
    return list(dataclasses.astuple(State.recorded(str(path))))


def _stat(path: Path | str) -> list[int]:
    """Size and time of change of a cache's pixels, of whose content a plan reads nothing."""
    found = State.of(str(path))
    return [found.size, found.changed]


def _pictures_hold(manifests: dict[str, str]) -> bool:
    from benchmarks.data.cache.sources import holds  # needs NumPy, and is the last question

    return all(holds(file, digest) for file, digest in manifests.items())


def _hold(states: dict[str, list[Any]], root: Path | str = "") -> bool:
    return all(State(*state).holds(os.path.join(root, path)) for path, state in states.items())


def _variables(path: str) -> list[str]:
    """Names of the environment variables that a grid or recipe mentions."""
    return re.findall(r"\$\{(\w+)\}", Path(path).read_text(encoding="utf-8"))


def _environment(names: Iterable[str]) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}


def plan_of(body: dict[str, Any]) -> PlanSummary:
    """The plan in what `read` returns.

    Raises:
        KeyError, TypeError: another version wrote it.
    """
    values = body["plan"]
    texts = {name: tuple(values[name]) for name in ("stages", "remarks", "notices")}
    return PlanSummary(values["name"], tuple(PlannedRun(**run) for run in values["runs"]), **texts)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values as they come back from a file."""
    return json.loads(canonical_json(values))


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()

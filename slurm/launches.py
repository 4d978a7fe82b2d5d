"""What was submitted: one folder per launch, readable without SLURM.

<runs>/slurm/launches/<time>-<grid>-<4 characters>/
    plan.json       the jobs' work order (benchmarks.launch.work_order) and what is shown of them:
                    job_name, titles and estimates (seconds or null) by run, processes, nodes
    jobs.jsonl      one line before each submission: its mark (see slurm.sbatch) and its bundles; one line
                    after it: which job does which bundle; one when a mark is settled otherwise
    jobs/           submitit's folder: scripts, and the jobs' logs

Status reads launches without the rest of the harness, so the keys of plan.json that it needs are named
here: job_name, titles, estimates, and the run_ids and stage_ids of each of the bundles.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from methods.errors import UserError
from results.files import atomic_write_json, canonical_json, filesystem_now
from slurm import client
from slurm.client import Queued

JOBS = "jobs.jsonl"
_UNKNOWN = "which runs it has queued is not known; remove the folder when none of its jobs is left"
LATE_SECONDS = 3600.0
"""How long after an unanswered submission its jobs are still looked for."""


@dataclass(frozen=True)
class Launch:
    """One call that submitted jobs.

    Attributes:
        folder: where it is recorded.
    """

    folder: Path

    @cached_property
    def plan(self) -> dict[str, Any]:
        """The JSON values of plan.json.

        Raises:
            UserError: the file is damaged, or no launch's.
        """
        path = self.folder / "plan.json"
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; {_UNKNOWN}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}); {_UNKNOWN}") from None
        if not _is_plan(plan):
            raise UserError(f"{self.folder} is no launch of this version; move the folder away")
        return plan

    @cached_property
    def elsewhere(self) -> Path | None:
        """The folder of runs that its jobs work in, if this is a record that was copied with the folder.

        None too where that folder is not here: this one may have been moved, or be seen from another machine.
        """
        try:
            copied = bool(self._runs) and not os.path.samefile(self._runs, self.folder.parents[2])
        except OSError:
            return None
        return Path(self._runs) if copied else None

    @property
    def moved(self) -> bool:
        """Whether the folder of runs of its jobs is not here, so that jobs which start now do not find it."""
        return bool(self._runs) and not os.path.exists(self._runs)

    @property
    def _runs(self) -> str:
        said = self.plan.get("runs")
        return said if isinstance(said, str) else ""

    @property
    def job_name(self) -> str:
        """The name that all its jobs have in the queue."""
        return self.plan["job_name"]

    @property
    def run_ids(self) -> list[list[str]]:
        """The identities of each bundle's runs."""
        return [list(bundle.get("run_ids", ())) for bundle in self.plan["bundles"]]

    @property
    def stage_ids(self) -> list[list[str]]:
        """The identities of each bundle's stages."""
        return [list(bundle.get("stage_ids", ())) for bundle in self.plan["bundles"]]

    @property
    def titles(self) -> dict[str, str]:
        """The names for people of the runs that were submitted, by identity."""
        return self.plan.get("titles", {})

    @property
    def estimates(self) -> dict[str, float | None]:
        """Seconds that each run was estimated to take when it was submitted; None for unknown."""
        return self.plan.get("estimates", {})

    @property
    def log_folder(self) -> Path:
        """Where submitit keeps scripts and logs."""
        return self.folder / "jobs"

    @property
    def submitted(self) -> str:
        """When it was made, for people: date and time in UTC by the submitting machine; "" if renamed."""
        try:
            moment = time.strptime(self.folder.name[:15], "%Y%m%d-%H%M%S")
        except ValueError:
            return ""
        return time.strftime("%Y-%m-%d %H:%M", moment)

    def intend(self, mark: str, bundles: Sequence[int]) -> None:
        """Record that bundles are about to be submitted with a mark: whatever happens, it can be found."""
        self._note({"mark": mark, "bundles": list(bundles)})

    def settle(self, mark: str) -> None:
        """Record that nothing with this mark is queued, nor will be."""
        self._note({"settled": mark})

    def unsettled(self) -> list[str]:
        """Marks of submissions of which it is not known whether SLURM has taken them."""
        found: dict[str, set[int]] = {}
        for line in self._lines():
            if "mark" in line:
                found[str(line["mark"])] = set(line["bundles"])
            else:
                found.pop(str(line.get("settled")), None)
        known = self.jobs().keys()
        return [mark for mark, bundles in found.items() if not bundles <= known]

    def quiet(self) -> float:
        """Seconds since something was last recorded of its jobs, by the clock of the file system.

        The times in the record itself are of the machines that submitted, and for people only.
        """
        return filesystem_now(self.folder) - (self.folder / JOBS).stat().st_mtime

    def record(self, jobs: Mapping[int, str]) -> None:
        """Record which job does which bundle; called after each submitted array."""
        self._note({"jobs": {str(k): v for k, v in jobs.items()}})

    def _note(self, values: dict[str, Any]) -> None:
        line = canonical_json({"time": time.time(), **values})
        with open(self.folder / JOBS, "ab+") as file:
            # A torn line, left by a call that was killed, is not continued.
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            torn = file.read() not in (b"", b"\n")
            file.write((("\n" if torn else "") + line).encode())
            file.flush()
            os.fsync(file.fileno())

    def jobs(self) -> dict[int, str]:
        """Numbers of the jobs, by the number of their bundle; bundles that were not submitted are absent."""
        found: dict[int, str] = {}
        for line in self._lines():
            if "jobs" in line:
                found |= {int(k): str(job) for k, job in line["jobs"].items()}
        return found

    def _lines(self) -> list[dict[str, Any]]:
        """The sound lines of jobs.jsonl, in their order.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.folder / JOBS
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; {_UNKNOWN}") from None
        found = []
        for line in text.splitlines():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):  # the last line of a call that was killed
                continue
            if _is_line(values):
                found.append(values)
        return found

    def log(self, job: str, task: int = 0) -> Path:
        """The log of one task of a job; it need not exist yet."""
        return self.log_folder / f"{job}_{task}_log.out"


class Launches:
    """All launches of a folder of runs.

    Args:
        runs: the folder of the run store.
    """

    def __init__(self, runs: Path) -> None:
        self.root = runs / "slurm" / "launches"

    def __iter__(self) -> Iterator[Launch]:
        """The launches, newest first, but for folders without a plan, which killed calls leave behind."""
        try:
            names = sorted(os.listdir(self.root), reverse=True)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise UserError(f"{self.root} cannot be read: {error.strerror}; {_UNKNOWN}") from None
        for name in names:
            try:
                os.lstat(self.root / name / "plan.json")
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:  # there may be one: what is asked of it says why it is not known
                pass
            yield Launch(self.root / name)

    def create(self, grid: str, plan: dict[str, Any]) -> Launch:
        """A new launch.

        Args:
            grid: the grid's name.
            plan: the JSON values of plan.json.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        folder = self.root / f"{stamp}-{safe(grid)}-{secrets.token_hex(2)}"
        folder.mkdir(parents=True)
        atomic_write_json(folder / "plan.json", plan)
        return Launch(folder)

    def names(self) -> set[str]:
        """The names that jobs may have in the queue."""
        return {launch.job_name for launch in self}


def _is_plan(values: Any) -> bool:
    """Whether JSON values are a launch's plan, as far as its readers need it."""
    if not isinstance(values, dict) or not isinstance(values.get("job_name"), str):
        return False
    bundles = values.get("bundles")
    if not isinstance(bundles, list) or not all(isinstance(bundle, dict) for bundle in bundles):
        return False
    ids = [bundle.get(name, []) for bundle in bundles for name in ("run_ids", "stage_ids")]
    if not all(isinstance(some, list) and all(isinstance(each, str) for each in some) for some in ids):
        return False
    return all(isinstance(values.get(name, {}), dict) for name in ("titles", "estimates"))


def _is_line(values: Any) -> bool:
    """Whether JSON values are a line of jobs.jsonl."""
    if not isinstance(values, dict):
        return False
    if "mark" in values:
        bundles = values.get("bundles")
        return isinstance(bundles, list) and all(isinstance(bundle, int) for bundle in bundles)
    jobs = values.get("jobs", {})
    return isinstance(jobs, dict) and all(bundle.isdecimal() for bundle in jobs)


def job_name(grid: str) -> str:
    """The name that the jobs of a grid have in the queue."""
    return f"ssmll-{safe(grid)}"


def safe(name: str) -> str:
    """A name without what SLURM's commands and patterns read as something else, such as "," and "%".

    A name that had some keeps apart from others by a few characters of its hash.
    """
    plain = re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII)
    return name if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def last_jobs(launches: Iterable[Launch]) -> dict[str, tuple[Launch, str]]:
    """The newest launch and job of each run that was submitted, by its identity.

    Args:
        launches: the newest first.
    """
    found: dict[str, tuple[Launch, str]] = {}
    for launch in launches:
        if launch.elsewhere:
            continue
        run_ids = launch.run_ids
        for bundle, job in launch.jobs().items():
            if bundle < len(run_ids):
                for run_id in run_ids[bundle]:
                    found.setdefault(run_id, (launch, job))
    return found


def assigned(launches: Sequence[Launch], live: Mapping[str, Queued]) -> dict[str, tuple[Launch, Queued]]:
    """The runs that have a job in the queue.

    Args:
        launches: the newest first.
        live: what `client.queue` found.

    Returns:
        Run id to its launch and job; of several the newest.
    """
    return _by_identity(launches, live, lambda launch: launch.run_ids)


def assigned_stages(launches: Sequence[Launch], live: Mapping[str, Queued]) -> dict[str, str]:
    """The stages that have a job in the queue, and the job; see `assigned`."""
    found = _by_identity(launches, live, lambda launch: launch.stage_ids)
    return {stage: queued.job for stage, (_, queued) in found.items()}


def _by_identity(
    launches: Sequence[Launch],
    live: Mapping[str, Queued],
    identities: Callable[[Launch], list[list[str]]],
) -> dict[str, tuple[Launch, Queued]]:
    found: dict[str, tuple[Launch, Queued]] = {}
    numbers = {job.partition("_")[0] for job in live}
    for launch in launches:
        if launch.elsewhere:
            continue
        ids = identities(launch)
        for bundle, job in launch.jobs().items():
            if job.partition("_")[0] in numbers and job in live and bundle < len(ids):
                for identity in ids[bundle]:
                    found.setdefault(identity, (launch, live[job]))
    return found


def withdraw(launches: Iterable[Launch], say: Callable[[str], None]) -> None:
    """Cancel the jobs of submissions that broke off before their jobs were recorded.

    submitit had not yet stored what such a job has to do, so it could do nothing.

    Args:
        launches: whose submissions are settled; nobody may be submitting for them.
        say: gets a line about each that is cancelled.

    Raises:
        SlurmError: SLURM does not answer, or refuses.
    """
    open_marks: list[tuple[Launch, str, float]] = []
    for launch in launches:
        if launch.elsewhere:  # whoever works there settles it
            continue
        marks = launch.unsettled()
        quiet = launch.quiet() if marks else 0.0  # before anything is settled, which is recorded
        open_marks += [(launch, mark, quiet) for mark in marks]
    found = client.marked(mark for _, mark, _ in open_marks)
    for launch, mark, quiet in open_marks:
        live = [job for job, state in found[mark].items() if state not in client.ENDED]
        if live:
            say(f"launch {launch.folder.name} broke off while it submitted {', '.join(live)}: cancelled")
            client.cancel(live)
        # One that SLURM has not shown in that time never reached it.
        if live or found[mark] or quiet > LATE_SECONDS:
            launch.settle(mark)

"""What was submitted: one folder per launch, readable without SLURM.

<runs>/slurm/launches/<time>-<grid>-<4 characters>/
    plan.json       the jobs' work order (benchmarks.launch.work_order) and what is shown of them:
                    job_name, titles and estimates (seconds or null) by run, processes, nodes
    jobs.jsonl      one line per submitted array: which job does which bundle
    jobs/           submitit's folder: scripts, and the jobs' logs

Status reads launches without the rest of the harness, so the keys of plan.json that it needs are named
here: job_name, titles, estimates, and the run_ids of each of the bundles.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from methods.errors import UserError
from results.files import atomic_write_json, canonical_json
from slurm.client import Queued


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
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}); remove the folder") from None
        sound = isinstance(plan, dict) and isinstance(plan.get("job_name"), str)
        if not sound or not isinstance(plan.get("bundles"), list):
            raise UserError(f"{self.folder} is no launch of this version; move the folder away")
        return plan

    @property
    def job_name(self) -> str:
        """The name that all its jobs have in the queue."""
        return self.plan["job_name"]

    @property
    def run_ids(self) -> list[list[str]]:
        """The identities of each bundle's runs."""
        return [list(bundle.get("run_ids", ())) for bundle in self.plan["bundles"]]

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

    def record(self, jobs: Mapping[int, str]) -> None:
        """Record which job does which bundle; called after each submitted array."""
        line = canonical_json({"time": time.time(), "jobs": {str(k): v for k, v in jobs.items()}})
        with open(self.folder / "jobs.jsonl", "ab+") as file:
            # A torn line, left by a call that was killed, is not continued.
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            torn = file.read() not in (b"", b"\n")
            file.write((("\n" if torn else "") + line).encode())
            file.flush()
            os.fsync(file.fileno())

    def jobs(self) -> dict[int, str]:
        """Numbers of the jobs, by the number of their bundle; bundles that were not submitted are absent."""
        found: dict[int, str] = {}
        try:
            lines = (self.folder / "jobs.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        for line in lines:
            try:
                found |= {int(k): job for k, job in json.loads(line)["jobs"].items()}
            except (ValueError, KeyError):  # the last line of a call that was killed
                continue
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
        if self.root.is_dir():
            for name in sorted(os.listdir(self.root), reverse=True):
                if (self.root / name / "plan.json").is_file():
                    yield Launch(self.root / name)

    def create(self, grid: str, plan: dict[str, Any]) -> Launch:
        """A new launch.

        Args:
            grid: the grid's name.
            plan: the JSON values of plan.json.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        folder = self.root / f"{stamp}-{grid}-{secrets.token_hex(2)}"
        folder.mkdir(parents=True)
        atomic_write_json(folder / "plan.json", plan)
        return Launch(folder)

    def names(self) -> set[str]:
        """The names that jobs may have in the queue."""
        return {launch.job_name for launch in self}


def assigned(launches: Sequence[Launch], live: Mapping[str, Queued]) -> dict[str, tuple[Launch, Queued]]:
    """The runs that have a job in the queue.

    Args:
        launches: the newest first.
        live: what `client.queue` found.

    Returns:
        Run id to its launch and job; of several the newest.
    """
    found: dict[str, tuple[Launch, Queued]] = {}
    numbers = {job.partition("_")[0] for job in live}
    for launch in launches:
        run_ids = launch.run_ids
        for bundle, job in launch.jobs().items():
            if job.partition("_")[0] in numbers and job in live:
                for run_id in run_ids[bundle]:
                    found.setdefault(run_id, (launch, live[job]))
    return found

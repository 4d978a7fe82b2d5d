"""How long runs and shared stages will take, from finished ones or from a short probe.

A training's wall seconds are modelled as `start + image · images + score · scored`: its start, the
images that go through its steps (the pool's scores, once per epoch, are part of that: they grow
alike), and the images that its evaluations score. `cost.seconds` of a finished run covers the
second term only; the time from its claim to its result, less that, is the rest.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import methods
from benchmarks.launch.memory import keep_large_blocks
from benchmarks.launch.timing import measure_features, measure_fit, measure_steps
from benchmarks.plan.grid import load, with_strategy
from benchmarks.plan.identity import canonical, digest
from benchmarks.plan.jobs import Job, Stage, process_kinds, resolve
from benchmarks.plan.recipe import LATER_FIELDS
from benchmarks.progress import silent
from benchmarks.provenance import device_name
from benchmarks.training.group import Group
from benchmarks.training.strategy import Strategy, make
from benchmarks.workspace import Workspace
from methods.base import StepMethod
from methods.errors import UserError
from results.files import atomic_write_json

READ = 24
"""Newest results that are read of a (dataset, method) folder."""
STAGES = 200
"""Newest shared stages that are looked at."""
SCORE_SHARE = 1 / 3
"""Time to score an image over that of a training image, at most, where it was not measured: a
training image is at least a forward and a backward pass."""
SAME, OTHER, RESUMED, PROBE, SIMILAR = range(5)
"""How near a measurement is to what is asked, the nearest first; see `_NAMES`."""
_NAMES = (
    "finished {}{s}",
    "finished {}{s} with other settings",
    "resumed {}{s}",
    "probe",
    "finished {}{s} of another method",
)


@dataclass(frozen=True)
class Estimate:
    """How long something will take.

    Attributes:
        seconds: wall seconds of one group of processes; None when nothing is known.
        source: where the number comes from, in one short phrase.
    """

    seconds: float | None
    source: str


@dataclass(frozen=True)
class _Key:
    """What a speed depends on, besides the device."""

    method: str
    data: str
    backbone: str
    resolution: int
    batches: tuple[int, int]
    views: str
    precision: str
    strategy: str
    processes: int


@dataclass(frozen=True)
class _Speed:
    """A measurement: seconds per image trained and scored, seconds of the start, and whence."""

    nearness: int
    what: str
    device: str
    when: float
    images: int
    image: float
    score: float | None = None
    start: float = 0.0


def _key(method: str, data: str, backbone: str, recipe: dict[str, Any], processes: int, semi: bool) -> _Key:
    """From a run's or a warm-up's part of the recipe; a warm-up is like a labelled-only run."""
    recipe = {**LATER_FIELDS, **recipe}
    names = ("batch_labelled", "batch_unlabelled") if semi else ("batch_warmup", "")
    first, second = (recipe.get(name, 0) for name in names)
    return _Key(
        method,
        data,
        backbone,
        recipe["resolution"],
        (first, second),
        recipe["views"],
        recipe["precision"],
        recipe["strategy"],
        processes,
    )


def _run_key(spec: dict[str, Any], data: str, processes: int) -> _Key:
    """Of a run, from `RunSpec`'s values; methods that are fitted use one process of a group."""
    recipe, semi = spec["recipe"], "batch_unlabelled" in spec["recipe"]
    alone = not semi and "batch_warmup" not in recipe
    backbone = canonical(spec["backbone"])
    return _key(spec["method"], data, backbone, recipe, 1 if alone else processes, semi)


def _stage_key(key: dict[str, Any], processes: int) -> _Key:
    """Of a stage, from its own key; the resolution of features is that of their data."""
    recipe = key.get("recipe") or {"resolution": 0, "precision": key["precision"]}
    method, backbone = key.get("method", "features"), canonical(key["backbone"])
    return _key(method, key["data"], backbone, recipe, processes, False)


def _scored(recipe: dict[str, Any], tests: int, held_out: int) -> int:
    """Images that a training's evaluations score."""
    epochs = recipe["labelled_epochs"] if "labelled_epochs" in recipe else recipe["epochs"]
    rounds = -(-epochs // recipe["eval_every"])
    return rounds * (tests * (2 if recipe["evaluate"] == "both" else 1) + held_out)


def _per_epoch(labelled: int, pool: int, batches: tuple[int, int]) -> int:
    """Images of an epoch's steps; see `SemiSampler`."""
    return pool + -(-pool // batches[1]) * batches[0] if batches[1] else labelled


class Estimates:
    """Estimates from a workspace's finished runs, finished stages and probes, read as needed.

    Args:
        workspace: where they lie.
        device: name, or a part of it, of the device whose measurements are preferred; None
            prefers the one with the most recent measurement of what is asked for.
        processes: processes that train a run together; others' measurements are left out.
    """

    def __init__(self, workspace: Workspace, device: str | None = None, processes: int = 1) -> None:
        self.workspace, self.device, self.processes = workspace, device, processes
        self._speeds: dict[Any, list[_Speed]] = {}
        self._folders: dict[Path, list[dict[str, Any]]] = {}
        self._stages: list[dict[str, Any]] | None = None
        self._probes: list[os.DirEntry[str]] | None = None

    def run(self, job: Job) -> Estimate:
        """Of a run, without the stages that it needs."""
        key = _run_key(vars(job.spec), job.spec.dataset_digest, self.processes)
        split = job.split
        if job.cell.kind == "fit":
            return self._estimate(self.measured(key, job), len(split.labelled), 0)
        recipe = job.spec.recipe
        images = _per_epoch(len(split.labelled), len(split.unlabelled), key.batches)
        epochs = recipe["epochs"] if key.batches[1] else recipe["labelled_epochs"]
        scored = _scored(recipe, len(job.prepared.dataset.test), len(split.held_out))
        return self._estimate(self.measured(key, job), images * epochs, scored)

    def stage(self, stage: Stage, job: Job) -> Estimate:
        """Of a shared stage, with the data of a run that needs it."""
        features, dataset = stage.kind == "features", job.prepared.dataset
        # Features need no group: one process makes them, also where several train together.
        key = _stage_key(stage.key, 1 if features else self.processes)
        if features:
            count = len(dataset.train) + len(dataset.test)
            return self._estimate(self.measured(key, job, stage), count, 0)
        count = len(job.split.labelled)
        images = count * int(stage.key["recipe"]["warmup_epochs"])
        return self._estimate(self.measured(key, job, stage), images, count)

    def measured(self, key: _Key, job: Job, stage: Stage | None = None) -> list[_Speed]:
        """All that is known of a speed, of any device."""
        hyper = canonical(job.spec.hyper if stage is None else stage.key.get("hyper"))
        known = (key, job.spec.dataset, hyper, stage and stage.kind)
        if known not in self._speeds:
            speeds = list(self._of_probes(key))
            if stage is None:
                speeds += self._of_runs(key, job, key.method, hyper)
            else:
                speeds += self._of_stages(key, job, stage, hyper)
            if stage is not None and stage.kind == "warmup":  # a labelled-only training, too
                for name in filter(_labelled_only, methods.available()):
                    speeds += self._of_runs(key, job, name, None)
            self._speeds[known] = speeds
        return self._speeds[known]

    def _estimate(self, speeds: list[_Speed], images: int, scored: int) -> Estimate:
        wanted = (self.device or "").casefold()
        speeds = [speed for speed in speeds if wanted in speed.device.casefold()] or speeds
        if not speeds:
            return Estimate(None, "not measured")
        device = max(speeds, key=lambda speed: speed.when).device
        speeds = [speed for speed in speeds if speed.device == device]
        nearness = min(speed.nearness for speed in speeds)
        speeds = [speed for speed in speeds if speed.nearness == nearness]
        what = speeds[0].what
        if what == "fit":  # how its time grows is its own affair: the most alike count
            apart = {speed: abs(speed.images - images) for speed in speeds}
            speeds = [speed for speed in speeds if apart[speed] == min(apart.values())]
            what = "run"
        image = statistics.median(speed.image for speed in speeds)
        scores = [speed.score for speed in speeds if speed.score is not None]
        score = statistics.median(scores) if scores else image * SCORE_SHARE
        start = statistics.median(speed.start for speed in speeds)
        name = _NAMES[nearness].format(what, s="s" if len(speeds) > 1 else "")
        count = "" if nearness == PROBE else f"{len(speeds)} "
        return Estimate(start + image * images + score * scored, f"{count}{name} on {device}")

    # -- what is on the disk -------------------------------------------------------------------

    def _of_runs(self, key: _Key, job: Job, method: str, hyper: str | None) -> Iterable[_Speed]:
        """Of the newest results; for a warm-up, `hyper` is None and the method may be another."""
        for found in self._results(job, method):
            if found["key"] != dataclasses.replace(key, method=method):
                continue
            cost, recipe, images = found["cost"], found["recipe"], found["cost"]["images_seen"]
            nearness = OTHER if found["hyper"] != hyper else SAME
            if hyper is None:
                nearness = SIMILAR if method != key.method else OTHER
            elif found["attempts"] > 1:  # an earlier part may be of another device
                nearness = RESUMED
            score = None
            # Rest of the time from the claim on; not of copies, whose files may all be new.
            if "eval_every" in recipe and nearness != RESUMED and found["wall"] >= cost["seconds"]:
                tests = len(job.prepared.dataset.test)
                scored = _scored(recipe, tests, found["held_out"])
                score = (found["wall"] - cost["seconds"]) / scored
            what = "run" if "eval_every" in recipe else "fit"
            yield _Speed(
                nearness, what, cost["device"], found["when"], images, cost["seconds"] / images, score
            )

    def _results(self, job: Job, method: str) -> list[dict[str, Any]]:
        """What matters of the newest results of a (dataset, method) folder."""
        place = {"dataset": {"alias": job.spec.dataset}, "method": method, "ratio": 1, "seed": 0}
        folder = self.workspace.store.directory("", place).parent
        if folder not in self._folders:
            self._folders[folder] = _sound(_result, _newest(folder, "result.json", READ))
        return self._folders[folder]

    def _of_stages(self, key: _Key, job: Job, stage: Stage, hyper: str) -> Iterable[_Speed]:
        """Of finished stages; a warm-up's images are known where its split is."""
        if self._stages is None:
            paths = _newest(self.workspace.stages, "stage.json", STAGES)
            self._stages = _sound(_stage_record, paths)
        sizes = {(job.spec.split_digest, job.cell.recipe.val_share): len(job.split.labelled)}
        for found in self._results(job, job.spec.method):
            sizes[found["split"], found["recipe"]["val_share"]] = found["labelled"]
        dataset = job.prepared.dataset
        for found in self._stages:
            if found["kind"] != stage.kind or found["key"] != key or found["resumed"]:
                continue  # a resumed one has the seconds of its last attempt only
            images, name = len(dataset.train) + len(dataset.test), "stage"
            if stage.kind == "warmup":
                images, name = sizes.get(found["split"], 0) * found["epochs"], "warm-up"
            if images:
                nearness = SAME if found["hyper"] == hyper else OTHER
                yield _Speed(
                    nearness, name, found["device"], found["when"], images, found["seconds"] / images, 0.0
                )

    def _of_probes(self, key: _Key) -> Iterable[_Speed]:
        if self._probes is None:
            folder = _probes(self.workspace)
            self._probes = list(os.scandir(folder)) if folder.is_dir() else []
        name = _name(key)
        paths = [Path(entry) for entry in self._probes if entry.name.startswith(name)]
        for found in _sound(_probe_record, paths):
            yield found["speed"]


def _labelled_only(name: str) -> bool:
    cls = methods.get(name)
    return issubclass(cls, StepMethod) and not cls.uses_unlabelled


def _newest(folder: Path, name: str, count: int) -> list[Path]:
    """The newest files of a name in a folder's sub-folders."""
    found = []
    try:
        entries = [entry.path for entry in os.scandir(folder)]
    except OSError:
        return []
    for entry in entries:
        path = os.path.join(entry, name)
        try:
            found.append((os.stat(path).st_mtime, path))
        except OSError:  # not finished
            continue
    return [Path(path) for _, path in sorted(found, reverse=True)[:count]]


def _sound(read: Callable[[Path], dict[str, Any]], paths: list[Path]) -> list[dict[str, Any]]:
    """Records that can be read; a damaged one only makes an estimate a little worse."""
    found = []
    for path in paths:
        try:
            found.append(read(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def _result(path: Path) -> dict[str, Any]:
    record, when = json.loads(path.read_bytes()), path.stat().st_mtime
    spec, cost, split = record["spec"], record["cost"], record["split"]
    key = _run_key(spec, spec["dataset"]["digest"], record["provenance"].get("processes", 1))
    if not (cost["seconds"] > 0 and cost["images_seen"] > 0):
        raise ValueError(f"{path}: cost {cost}")
    return {
        "key": key,
        "cost": {**cost, "device": str(cost["device"])},
        "recipe": spec["recipe"],
        "hyper": canonical(spec["hyper"]),
        "split": spec["split_digest"],
        "labelled": split["labelled"],
        "held_out": split["held_out"],
        "attempts": 1 + (path.parent / "lease.000002").exists(),
        "when": when,
        "wall": when - (path.parent / "spec.json").stat().st_mtime,
    }


def _stage_record(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_bytes())
    key, recipe = record["key"], record["key"].get("recipe", {})
    return {
        "kind": record["kind"],
        "key": _stage_key(key, record.get("processes", 1)),
        "split": (key.get("split"), recipe.get("val_share")),
        "hyper": canonical(key.get("hyper")),
        "epochs": recipe.get("warmup_epochs", 0),
        "seconds": float(record["seconds"]),
        "device": str(record["device"]),
        "resumed": (path.parent / "lease.000002").exists(),
        "when": path.stat().st_mtime,
    }


def _probe_record(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_bytes())
    speed = _Speed(
        PROBE,
        "run",
        str(record["device"]),
        path.stat().st_mtime,
        int(record["images"]),
        *(float(record[name]) for name in ("image", "score", "start")),
    )
    return {"speed": speed}


def _probes(workspace: Workspace) -> Path:
    return workspace.runs / "slurm" / "probes"


def _name(key: _Key) -> str:
    return digest(dataclasses.asdict(key))[:16]


# -- measuring ---------------------------------------------------------------------------------


def probe(
    jobs: Sequence[Job], workspace: Workspace, strategy: Strategy, report: Callable[[str], None]
) -> None:
    """Time a few steps and scored images of each kind of run and stage that is not measured yet.

    Called by all processes of a group, on the device in question. What was measured is left in
    `<runs>/slurm/probes`; nothing goes to the run store. What fails is reported and left out.

    Args:
        jobs: runs whose precision and strategy are the strategy's.
        workspace: where measurements are looked for and left.
        strategy: processes, device and precision.
        report: called with one line of progress.
    """
    group, device = strategy.group, device_name(strategy.accelerator.device)
    known, seen = Estimates(workspace, device, group.world), set()
    tasks = [(stage, job) for job in jobs for stage in (*job.stages, None)]
    for stage, job in tasks:
        if stage is None:
            key = _run_key(vars(job.spec), job.spec.dataset_digest, group.world)
        else:
            key = _stage_key(stage.key, group.world)
        if key in seen or (key.processes > 1 and stage is not None and stage.kind == "features"):
            continue
        seen.add(key)
        speeds = known.measured(key, job, stage) if group.is_main else []
        here = any(speed.device == device and speed.nearness <= PROBE for speed in speeds)
        if group.told(int(here))[0]:  # rank 0 alone looks: the disk may show others another state
            continue
        title = f"{key.method} on {job.spec.dataset}"
        try:
            found = _measure(job, stage, strategy)
        except Exception as error:  # whatever it is, the run will meet it and record it
            if group.world > 1:  # the others wait for this one
                raise
            report(f"no probe of {title}: {type(error).__name__}: {error}")
            continue
        if group.is_main:
            _probes(workspace).mkdir(parents=True, exist_ok=True)
            path = _probes(workspace) / f"{_name(key)}-{digest(device)[:8]}.json"
            atomic_write_json(path, {"key": dataclasses.asdict(key), "device": device, **found})
            report(f"probed {title}: {1000 * found['image']:.3g} ms per image")


def _measure(job: Job, stage: Stage | None, strategy: Strategy) -> dict[str, float]:
    if stage is None and job.cell.kind == "fit":
        return measure_fit(job, strategy)
    if stage is not None and stage.kind == "features":
        return measure_features(job, strategy)
    return measure_steps(job, stage, strategy)


def main() -> int:
    """Entry point of `python -m benchmarks.launch.estimate PLAN`: probe what a plan needs.

    The plan is that of `benchmarks.launch.local.plan_of`.
    """
    plan: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    keep_large_blocks()
    if plan["threads"]:
        torch.set_num_threads(plan["threads"])
    workspace = Workspace(Path(plan["data"]), Path(plan["runs"]))
    wanted = set(plan["run_ids"])
    try:
        grid = with_strategy(load(plan["grid"]), plan["strategy"])
        jobs = resolve(grid, workspace, progress=silent, workers=1)
        jobs = [job for job in jobs if job.spec.run_id in wanted]
        if len(jobs) < len(wanted):
            raise UserError(f"{len(wanted) - len(jobs)} runs of the plan are not in its grid")
        group = Group.join()
        ((precision, strategy),) = process_kinds(jobs)  # accelerate knows one per process
        probe(jobs, workspace, make(strategy, precision, group), _say)
        group.leave()
    except UserError as error:
        _say(f"error: {error}")
        return 2
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

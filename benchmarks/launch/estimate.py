"""Estimates how long runs and shared stages take, from finished ones or from measurements.

The wall time of a training is modelled as `start + image · images + score · scored` seconds: its start,
the images that go through its steps (scoring the pool once per epoch counts here, because it grows with
them), and the images that its evaluations score. `cost.seconds` of a finished run covers the second term
only; the rest is the time from its claim to its result, less that.

`benchmarks.launch.timing` makes the measurements. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import methods
from benchmarks.plan.identity import canonical, digest
from benchmarks.plan.jobs import Job
from benchmarks.plan.phases import batches_of, epochs_of, phases_of
from benchmarks.plan.recipe import Recipe
from benchmarks.plan.stages import FROZEN, Stage
from benchmarks.workspace import Workspace
from results.files import atomic_write_json

READ = 24
"""How many results of a (dataset, method) folder are read, the newest first."""
STAGES = 200
"""How many shared stages are read, the newest first."""
SCORE_SHARE = 1 / 3
"""Seconds per scored image over seconds per trained image where the first was not measured. It is an
upper bound: a trained image is at least a forward and a backward pass."""
SAME, OTHER, RESUMED, PROBE, SIMILAR = range(5)
"""How well a measurement matches the run, best match first; see `_NAMES`."""
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
        seconds: wall seconds of one process group; None when nothing is known.
        source: what the number was measured from, in one short phrase.
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
    """A measured speed: seconds per trained image, per scored image, start-up time, and its source."""

    nearness: int
    what: str
    device: str
    when: float
    images: int
    image: float
    score: float | None = None
    start: float = 0.0


def _key(method: str, data: str, backbone: str, recipe: dict[str, Any], processes: int, semi: bool) -> _Key:
    """The key of a run or a warm-up from its part of the recipe; a warm-up is a labelled-only training."""
    recipe = {**Recipe.later, **recipe}
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
    """The key of a run from `RunSpec`'s values; methods that are fitted use one process of a group."""
    recipe, semi = spec["recipe"], "batch_unlabelled" in spec["recipe"]
    alone = not semi and "batch_warmup" not in recipe
    backbone = canonical(spec["backbone"])
    return _key(spec["method"], data, backbone, recipe, 1 if alone else processes, semi)


def _stage_key(key: dict[str, Any], processes: int) -> _Key:
    """The key of a stage from the stage's own key; the resolution of features is that of their data."""
    recipe = key.get("recipe") or {"resolution": 0, "precision": key["precision"]}
    method, backbone = key.get("method", "features"), canonical(key["backbone"])
    return _key(method, key["data"], backbone, recipe, processes, False)


def _scored(recipe: dict[str, Any], tests: int, held_out: int) -> int:
    """Number of images that a training's evaluations score."""
    epochs = recipe["labelled_epochs"] if "labelled_epochs" in recipe else recipe["epochs"]
    rounds = -(-epochs // recipe["eval_every"])
    return rounds * (tests * (2 if recipe["evaluate"] == "both" else 1) + held_out)


def _per_epoch(labelled: int, pool: int, batches: tuple[int, int], over_labelled: bool = False) -> int:
    """Number of images in an epoch's steps; see `SemiSampler`."""
    if over_labelled:
        return labelled + -(-labelled // batches[0]) * batches[1]
    return pool + -(-pool // batches[1]) * batches[0] if batches[1] else labelled


def _images(job: Job, batches: tuple[int, int]) -> int:
    """Number of images in all steps of a run, those of its phases together."""
    sizes, recipe = (len(job.split.labelled), len(job.split.unlabelled)), job.cell.recipe
    phases = phases_of(job.cell)
    if not phases:
        epochs = recipe.epochs if batches[1] else recipe.labelled_epochs
        return epochs * _per_epoch(*sizes, batches)
    # Estimation images are few, and counted as labelled ones here.
    return sum(
        epochs_of(recipe, phase)
        * _per_epoch(*sizes, batches_of(recipe, phase), phase.pool and phase.epoch_over == "labelled")
        for phase in phases
    )


def _passed(job: Job, stage: Stage) -> int:
    """Number of images that go through the backbone in a stage of it alone."""
    if stage.kind == "views":
        return len(job.split.labelled) * int(stage.key["count"])
    return len(job.prepared.dataset.train) + len(job.prepared.dataset.test)


class Estimates:
    """Estimates from a workspace's finished runs, finished stages and measurements, read when needed.

    Args:
        workspace: where they lie.
        device: name, or a part of the name, of the device whose measurements are preferred; None
            prefers the device of the most recent measurement.
        processes: processes that train a run together; measurements with other numbers are left out.
    """

    def __init__(self, workspace: Workspace, device: str | None = None, processes: int = 1) -> None:
        self.workspace, self.device, self.processes = workspace, device, processes
        self._speeds: dict[Any, list[_Speed]] = {}
        self._folders: dict[Path, list[dict[str, Any]]] = {}
        self._stages: list[dict[str, Any]] | None = None
        self._probes: list[os.DirEntry[str]] | None = None

    def run(self, job: Job) -> Estimate:
        """How long a run takes, without the stages that it needs."""
        key, split = self._key_of(job, None), job.split
        if job.cell.kind == "fit":
            return self._estimate(self._measured(key, job), len(split.labelled), 0)
        recipe = job.spec.recipe
        images = _images(job, key.batches)
        scored = _scored(recipe, len(job.prepared.dataset.test), len(split.held_out))
        return self._estimate(self._measured(key, job), images, scored)

    def stage(self, stage: Stage, job: Job) -> Estimate:
        """How long a shared stage takes, given a run that needs it."""
        key, count = self._key_of(job, stage), len(job.split.labelled)
        if stage.kind in FROZEN:
            return self._estimate(self._measured(key, job, stage), _passed(job, stage), 0)
        images = count * int(stage.key["recipe"]["warmup_epochs"])
        return self._estimate(self._measured(key, job, stage), images, count)

    def is_measured(self, job: Job, stage: Stage | None, device: str) -> bool:
        """Whether the speed of a run (or of its stage) was measured on a device, not only inferred."""
        speeds = self._measured(self._key_of(job, stage), job, stage)
        return any(speed.device == device and speed.nearness <= PROBE for speed in speeds)

    def name_of(self, job: Job, stage: Stage | None) -> str:
        """A file name for what the speed of a run (or of its stage) depends on, but for the device."""
        return _name(self._key_of(job, stage))

    def record(self, job: Job, stage: Stage | None, device: str, measured: Mapping[str, float]) -> None:
        """Keep a measurement, in `<runs>/slurm/probes`.

        Args:
            job: the run.
            stage: the shared stage that was measured; None for the run itself.
            device: name of the device.
            measured: seconds per trained image ("image"), per scored image ("score"), of the start
                ("start"), and the number of images of the measurement ("images").
        """
        key, folder = self._key_of(job, stage), _probes(self.workspace)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{_name(key)}-{digest(device)[:8]}.json"
        atomic_write_json(path, {"key": dataclasses.asdict(key), "device": device, **measured})

    def _key_of(self, job: Job, stage: Stage | None) -> _Key:
        if stage is None:
            return _run_key(vars(job.spec), job.spec.dataset_digest, self.processes)
        # Features need no group: one process makes them, also where several train together.
        return _stage_key(stage.key, 1 if stage.kind in FROZEN else self.processes)

    def _measured(self, key: _Key, job: Job, stage: Stage | None = None) -> list[_Speed]:
        """All that is known of a speed, on any device."""
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
        if what == "fit":  # its time need not grow linearly: only runs of the nearest size count
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
        """Speeds of the newest results; for a warm-up, `hyper` is None and the method may be another."""
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
        """The values needed here of the newest results of a (dataset, method) folder."""
        place = {"dataset": {"alias": job.spec.dataset}, "method": method, "ratio": 1, "seed": 0}
        folder = self.workspace.store.directory("", place).parent
        if folder not in self._folders:
            self._folders[folder] = _sound(_result, _newest(folder, "result.json", READ))
        return self._folders[folder]

    def _of_stages(self, key: _Key, job: Job, stage: Stage, hyper: str) -> Iterable[_Speed]:
        """Speeds of finished stages; the images of a warm-up are known where its split is."""
        if self._stages is None:
            paths = _newest(self.workspace.stages, "stage.json", STAGES)
            self._stages = _sound(_stage_record, paths)
        sizes = {(job.spec.split_digest, job.cell.recipe.val_share): len(job.split.labelled)}
        for found in self._results(job, job.spec.method):
            sizes[found["split"], found["recipe"]["val_share"]] = found["labelled"]
        for found in self._stages:
            if found["kind"] != stage.kind or found["key"] != key or found["resumed"]:
                continue  # a resumed one has the seconds of its last attempt only
            images = sizes.get(found["split"], 0) * found["passes"]
            name = "warm-up" if stage.kind == "warmup" else "stage"
            if stage.kind == "features":
                images = _passed(job, stage)
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
    from methods.base import StepMethod  # imports torch, as any method does

    cls = methods.get(name)
    return issubclass(cls, StepMethod) and not cls.uses_unlabelled


def _newest(folder: Path, name: str, count: int) -> list[Path]:
    """The newest files of one name in a folder's sub-folders."""
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
    """The records that can be read; leaving out a damaged one makes an estimate only a little worse."""
    found = []
    for path in paths:
        try:
            found.append(read(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
        "split": (key.get("split"), recipe.get("val_share", key.get("val_share"))),
        "hyper": canonical(key.get("hyper")),
        "passes": recipe.get("warmup_epochs", key.get("count", 0)),  # over the labelled images
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

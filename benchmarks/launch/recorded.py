"""What a finished run leaves: the arrays of `predictions.npz` and the record of `result.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import methods
from benchmarks.data.splits.rules import sees_hidden_labels
from benchmarks.plan.copies import used
from benchmarks.plan.jobs import Job
from benchmarks.plan.product_code import loaded, of_method
from benchmarks.plan.stages import STAGE_RECORD
from benchmarks.provenance import device_name, now, provenance
from benchmarks.training.strategy import Strategy
from benchmarks.workspace import Workspace
from methods.base import FitMethod, StepMethod


@dataclass(frozen=True)
class Finished:
    """What the training or fit of a run came to.

    Attributes:
        scores: (n_test, K) test scores on the CPU.
        raw_scores: the same of the raw weights; None where there is no moving average beside them.
        metrics: summary by selection rule.
        seconds: training time, over all attempts.
        trainable: number of trainable parameters.
        images: views that went through a training step, or images that were fitted to.
        method: with the weights that `scores` are of.
        features: (n_test, d) of the test images, where the method was fitted to features.
    """

    scores: Tensor
    raw_scores: Tensor | None
    metrics: dict[str, Any]
    seconds: float
    trainable: int
    images: int
    method: StepMethod | FitMethod
    features: Tensor | None = None


def arrays(job: Job, found: Finished) -> dict[str, np.ndarray]:
    """The arrays of `predictions.npz`, see docs/results.md."""
    dataset = job.prepared.dataset
    arrays: dict[str, np.ndarray] = {
        "scores": np.ascontiguousarray(found.scores.numpy(), dtype=np.float32),
        # With them every metric can be computed again.
        "labels": np.ascontiguousarray(dataset.test.labels, dtype=np.uint8),
        "ids": np.array(dataset.test.ids, dtype=np.str_),
        "classes": np.array(dataset.classes, dtype=np.str_),
    }
    if found.raw_scores is not None:
        arrays["raw_scores"] = np.ascontiguousarray(found.raw_scores.numpy(), dtype=np.float32)
    return arrays


def record(
    job: Job,
    found: Finished,
    hashes: dict[str, str],
    workspace: Workspace,
    strategy: Strategy,
    peak_memory: dict[str, int | None],
    earlier: Sequence[str],
) -> dict[str, Any]:
    """The record of a run, see `results.schema.Result`.

    Args:
        job: the run.
        found: what it came to.
        hashes: of its arrays, by name.
        workspace: where its stages lie.
        strategy: device and processes.
        peak_memory: see `results.schema.PeakMemory`.
        earlier: hashes of the code of processes that began the training, the oldest first.
    """
    device = strategy.accelerator.device
    return {
        "run_id": job.spec.run_id,
        "spec": job.spec.record(),
        "metrics": found.metrics,
        "classes": list(job.prepared.dataset.classes),
        "cost": {
            "seconds": found.seconds,
            "device": device_name(device),
            "trainable_parameters": found.trainable,
            "images_seen": found.images,
            "peak_memory_bytes": peak_memory,
        },
        "split": {
            "labelled": len(job.split.labelled),
            "held_out": len(job.split.held_out),
            "unlabelled": len(job.split.unlabelled),
            "rule": job.split.rule,
            "sees_hidden_labels": sees_hidden_labels(job.split.rule, len(job.split.unlabelled)),
        },
        "score_scale": methods.get(job.spec.method).score_scale,
        "predictions_sha256": hashes["scores"],
        "arrays_sha256": hashes,
        "provenance": {
            **provenance(device, strategy.group.world, strategy.name),
            **({"method_code": job.code.record()} if job.code else {}),
            **_versions(job, workspace, earlier),
        },
        "finished": now(),
    }


def _versions(job: Job, workspace: Workspace, earlier: Sequence[str]) -> dict[str, Any]:
    """Hashes of what the run was made by, besides its method's own code: see `results.versions`."""
    stages = {stage.kind: _sources_of(stage.directory(workspace)) for stage in job.stages}
    copies = used()
    return {
        "sources": of_method(job.spec.method, loaded()),
        **({"continued_from": list(earlier)} if earlier else {}),
        **({"stages": stages} if stages else {}),
        **(copies.provenance() if copies is not None else {}),
    }


def _sources_of(stage: Path) -> str | None:
    """The hash of the code that made a stage; None for a stage that does not say it, as earlier ones."""
    try:
        return json.loads((stage / STAGE_RECORD).read_text(encoding="utf-8")).get("sources")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None

"""Writes the weights of a finished run, and looks whether they give its scores again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import methods
from benchmarks.data.cache.decode import DECODING, RESIZE
from benchmarks.models.rebuild import ESTIMATION, LABELS, STATE, Kept, Model
from benchmarks.plan.jobs import Job
from benchmarks.training.build import phases_of, task_of
from benchmarks.training.strategy import Strategy
from methods.base import FitMethod, StepMethod
from methods.errors import first_line
from results.errors import LeaseLostError
from results.weights import FORMAT, NAME, PLACEHOLDER, metadata, write

CLOSE = {"fp32": 1e-5, "fp64": 1e-5, "bf16": 5e-2, "fp16": 5e-2}
"""By how much scores may differ, beside 1 or their size, whichever is more: of one batch on one device."""


def keep(
    directory: Path,
    job: Job,
    method: StepMethod | FitMethod,
    scores: Tensor,
    scores_sha256: str,
    *,
    mode: str,
    strategy: Strategy,
    features: Tensor | None,
    require: Callable[[], None],
) -> str:
    """Write the weights of a run that is about to be finished; rank 0 calls it.

    The file is then read, and the model built from it has to give the scores of the first batch again. Where
    it cannot be written or does not, it is removed, and the run is finished without weights.

    Args:
        directory: of the run.
        job: the run.
        method: with the weights that the scores are of.
        scores: (N, K) float32 test scores.
        scores_sha256: their hash in the result.
        mode: "all" or "best".
        strategy: device and precision of the training.
        features: (N, d) test features that a fitted method was given; None for a trained one.
        require: raises where another process has taken the run over.

    Returns:
        Why the weights are not kept, one line; "" where they are.

    Raises:
        LeaseLostError: another process has the run.
    """
    path = directory / NAME
    strategy.group.watch.mark("weights")
    try:
        state = state_of(method)
        record = _record(job, method, mode, scores_sha256)
        tensors = {f"{STATE}{name}": value for name, value in state.items()}
        task = task_of(job)
        tensors[LABELS] = task.labels.to(torch.uint8)
        if task.estimation is not None:
            tensors[ESTIMATION] = task.estimation.to(torch.uint8)
        data = safetensors.torch.save(tensors, metadata(record))
        require()
        write(path, data, record)
        del data, tensors
        why = _differs(path, job, scores, strategy, features)
    except LeaseLostError:
        raise
    except Exception as error:  # a full disk, a user's method: the run is worth more than they
        why = f"{type(error).__name__}: {first_line(error)}"
    if why:
        require()
        path.unlink(missing_ok=True)
    return why


def state_of(method: StepMethod | FitMethod) -> dict[str, Tensor]:
    """What training or fitting has left, by name, as copies on the CPU.

    Of a fitted method these are the tensors among its attributes.
    """
    if isinstance(method, StepMethod):
        found = method.training_state()
    else:
        found = {name: value for name, value in vars(method).items() if isinstance(value, Tensor)}
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in found.items()
    }


def _record(job: Job, method: StepMethod | FitMethod, mode: str, scores_sha256: str) -> dict[str, Any]:
    """What the file says of itself, see docs/models.md."""
    recipe, dataset, task = job.cell.recipe, job.prepared.dataset, task_of(job)
    last = phases_of(job)[-1]
    trained = isinstance(method, StepMethod)
    return {
        "format": FORMAT,
        "kept": mode,
        "run_id": job.spec.run_id,
        "spec": job.spec.record(),
        "weights": ("ema" if recipe.ema_decay else "model") if trained else "fitted",
        "phase": last.name if last is not None else "",
        "classes": list(dataset.classes),
        "score_scale": methods.get(job.spec.method).score_scale,
        "scores_sha256": scores_sha256,
        "input": {
            "size": recipe.resolution,
            "channels": "RGB",
            "range": [0.0, 1.0],
            "layout": "(B, 3, S, S) float32",
            "resize": RESIZE,
            "decoding": DECODING,
            "batch": recipe.eval_batch,
            "precision": recipe.precision,
            "patches": method.patches(method.hyper) if isinstance(method, StepMethod) else 0,
        },
        "backbone": dataclasses.asdict(job.cell.backbone),
        "task": {"prompts": list(dataset.prompts), "unlabelled": task.num_unlabelled, "seed": task.seed},
        "sha256": PLACEHOLDER,
    }


def _differs(path: Path, job: Job, scores: Tensor, strategy: Strategy, features: Tensor | None) -> str:
    """How the scores of the model that a file gives differ from the run's, or ""."""
    model = Model(Kept.read(path), strategy)
    if features is not None:
        found, expected = model.finish(features), scores
    else:
        # The first batch of this process in the run, with the same images beside each other.
        world = strategy.group.world
        where = torch.arange(strategy.group.rank, len(scores), world)[: model.batch]
        found, expected = model.finish(model.rows(job.prepared.images("test", where))), scores[where]
    scale = expected.abs().clamp(min=1.0)
    worst = float(((found - expected).abs() / scale).max()) if found.shape == expected.shape else float("inf")
    if worst <= CLOSE[job.cell.recipe.precision]:
        return ""
    return (
        f"the model that is built from them gives other scores than the run's (by {worst:.2g}): "
        f"method {job.spec.method!r} keeps something beside its parameters and state"
        + (" (what `predict` reads has to be in tensor attributes)" if features is not None else "")
    )

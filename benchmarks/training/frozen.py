"""Forward passes of a frozen backbone whose results several runs share: the stages "features" and "views"."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.plan.jobs import Job
from benchmarks.plan.stages import CACHED_VIEW, Stage
from benchmarks.training.build import build_backbone
from benchmarks.training.scoring import Scorer
from benchmarks.training.strategy import Strategy


def frozen_features(job: Job, stage: Stage, strategy: Strategy) -> dict[str, Callable[[], Tensor]]:
    """What computes the files of a stage, by their names; called by all processes, one after the other.

    Args:
        job: a run that needs the stage.
        stage: "features": (N, d) of the unchanged training and test images; or "views": (V, n_l, d) of
            views of the labelled images, each view drawn as that of an epoch of the run's seed.
        strategy: device, processes and precision.
    """
    backbone = build_backbone(job).to(strategy.accelerator.device, strategy.dtype).eval()
    scorer = Scorer(job.prepared, strategy, job.cell.recipe.eval_batch, job.spec.seed)
    if stage.kind == "views":
        return {"views.npy": partial(_of_views, scorer, backbone.features, job, int(stage.key["count"]))}

    def of_split(split: str) -> Tensor:
        everything = torch.arange(len(getattr(job.prepared, split)))
        return scorer.scores(backbone.features, split, everything, "test", 0)

    return {f"{split}.npy": partial(of_split, split) for split in ("train", "test")}


def _of_views(scorer: Scorer, features: Callable[[Tensor], Tensor], job: Job, count: int) -> Tensor:
    labelled = torch.from_numpy(job.split.labelled)
    views = [scorer.scores(features, "train", labelled, CACHED_VIEW, view) for view in range(count)]
    return torch.stack(views)

"""The stage of augmented views: what it holds, what it depends on, and who shares it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.data.views.views import make_view
from benchmarks.plan.grid import load
from benchmarks.plan.jobs import resolve
from benchmarks.plan.stages import CACHED_VIEW, FROZEN, Stage
from benchmarks.progress import silent
from benchmarks.training.build import build_backbone
from benchmarks.training.frozen import frozen_features
from benchmarks.training.group import Group
from benchmarks.training.strategy import make
from benchmarks.workspace import Workspace
from tests.conftest import grid_text

ROWS = """[
  "linear_probe",
  { name = "clap", hyper = { views = 3 } }, { name = "clip_adapter", hyper = { views = 3 } },
]"""


@pytest.fixture(scope="module")
def jobs(voc_root, tmp_path_factory):
    """Runs of two seeds, by method and seed."""
    folder = tmp_path_factory.mktemp("frozen")
    file = folder / "views.toml"
    file.write_text(grid_text(voc_root, ROWS).replace("seeds = [1]", "seeds = [1, 2]"))
    found = resolve(load(str(file)), Workspace(folder / "data", folder / "runs"), progress=silent, workers=1)
    return {(job.spec.method, job.spec.seed): job for job in found}


def test_methods_that_ask_for_as_many_views_share_their_stage_and_others_have_none(jobs):
    assert [stage.kind for stage in jobs["linear_probe", 1].stages] == ["features"]
    clap, adapter, other = (jobs[key].stages for key in (("clap", 1), ("clip_adapter", 1), ("clap", 2)))
    assert [stage.kind for stage in clap] == list(FROZEN)
    assert [stage.stage_id for stage in clap] == [stage.stage_id for stage in adapter]
    assert clap[0].stage_id == other[0].stage_id == jobs["linear_probe", 2].stages[0].stage_id
    assert clap[1].stage_id != other[1].stage_id
    fewer = Stage("views", {**clap[1].key, "count": 2})
    assert fewer.stage_id != clap[1].stage_id


def test_the_features_are_those_of_the_views_of_the_labelled_images(jobs):
    job = jobs["clap", 2]
    (compute,) = frozen_features(job, job.stages[1], make("ddp", "fp32", Group())).values()
    found = compute()
    labelled = torch.as_tensor(np.array(job.split.labelled))
    assert found.shape[:2] == (3, len(labelled))
    backbone = build_backbone(job).eval()
    images = job.prepared.images("train", labelled)
    for view in range(3):
        drawn = make_view(images, labelled, policy=CACHED_VIEW, seed=2, epoch=view)
        with torch.no_grad():
            expected = backbone.features(drawn)
        torch.testing.assert_close(found[view], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_held_out_images_have_no_views(jobs):
    job = jobs["clap", 1]
    split = dataclasses.replace(job.split, labelled=job.split.labelled[:5], held_out=job.split.labelled[5:])
    short = dataclasses.replace(job, split=split)
    (compute,) = frozen_features(short, job.stages[1], make("ddp", "fp32", Group())).values()
    assert compute().shape[:2] == (3, 5)

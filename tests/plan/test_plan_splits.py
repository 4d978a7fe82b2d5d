"""Splits in the plan: which rule, what a run is called after it, and the files it leaves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.cache.prepared import Prepared
from benchmarks.data.registry import DatasetSpec
from benchmarks.data.splits.rules import draw, labelled_indices, split_digest
from benchmarks.plan.grid import Grid, load
from benchmarks.plan.jobs import Job, jobs, resolve, split_of
from benchmarks.workspace import Workspace
from methods.errors import UserError
from tests.conftest import grid_text
from tests.data.splits.test_rules import dataset_of, long_tailed

LABELS = long_tailed(400, 12, 3)
LABELS[:, 11] = 0
LABELS[7, 11] = 1  # the only image of its class; the published rule leaves it out
DATASET = dataset_of(LABELS)


def grid_of(voc_root: Path, folder: Path, split: str = "published", **recipe) -> Grid:
    file = folder / "grid.toml"
    file.write_text(grid_text(voc_root, '["linear_probe"]', **recipe))
    grid = load(str(file))
    return dataclasses.replace(
        grid,
        cells=tuple(
            dataclasses.replace(cell, dataset=dataclasses.replace(cell.dataset, split=split))
            for cell in grid.cells
        ),
    )


def planned(grid: Grid) -> Job:
    (cell,) = grid.cells
    prepared = Prepared(DATASET, cell.recipe.resolution, "d" * 64, Path("absent"))
    (job,) = jobs(grid, {(cell.dataset, cell.recipe.resolution): prepared})
    return job


def test_the_published_rule_is_what_it_was():
    split = split_of(DATASET, "published", 0.1, 1, 0.25)
    labelled, unlabelled = labelled_indices(400, 0.1, 1)
    assert split.labelled.tolist() == labelled[:30].tolist()
    assert split.held_out.tolist() == labelled[30:].tolist()
    assert split.subset.tolist() == labelled.tolist()
    assert split.unlabelled.tolist() == unlabelled.tolist()
    assert split.digest == split_digest(labelled)


def test_absent_classes_are_those_that_nothing_trained_on_shows():
    assert "class11" in split_of(DATASET, "published", 0.1, 1, 0.0).absent
    assert split_of(DATASET, "stratified", 0.1, 1, 0.0).absent == ()
    held = split_of(DATASET, "stratified", 0.1, 1, 0.5)
    shown = LABELS[held.labelled].any(axis=0)
    assert held.absent == tuple(f"class{k}" for k in np.flatnonzero(~shown))
    assert held.absent  # half of the labelled images do not show all of twelve classes


def test_a_held_out_part_must_leave_something():
    with pytest.raises(UserError, match="leaves none of 1 labelled images"):
        split_of(DATASET, "published", 0.0025, 1, 1.0)


def test_the_rule_is_in_the_identity_by_the_subset_it_draws(tmp_path, voc_root):
    """The published rule and a list of the same images are one run; another subset is another."""
    published = planned(grid_of(voc_root, tmp_path))
    stratified = planned(grid_of(voc_root, tmp_path, "stratified"))
    assert stratified.spec.run_id != published.spec.run_id
    assert "split" not in published.spec.recipe
    np.save(tmp_path / "p0.5-seed1.npy", labelled_indices(400, 0.5, 1)[0])
    listed = planned(grid_of(voc_root, tmp_path, str(tmp_path / "p{ratio}-seed{seed}.npy")))
    assert listed.spec.run_id == published.spec.run_id
    assert listed.split.unlabelled.tolist() == published.split.unlabelled.tolist()


def test_a_list_that_is_not_quite_the_ratio_is_noted(tmp_path, voc_root):
    (tmp_path / "l.json").write_text(json.dumps(list(range(201))))
    job = planned(grid_of(voc_root, tmp_path, str(tmp_path / "l.json")))
    assert len(job.split.labelled) == 201
    assert "201 images, where ratio 0.5 of 400 is 200" in job.split.notes[0]


def resolved(grid: Grid, folder: Path) -> list[Job]:
    workspace = Workspace(folder / "data", folder / "runs")
    return resolve(grid, workspace, progress=lambda title: lambda d, n: None, workers=1)


def test_a_grid_leaves_a_file_for_each_of_its_splits(tmp_path, voc_root):
    for rule in ("published", "stratified"):
        grid = grid_of(voc_root, tmp_path, rule, val_share=0.25)
        # Runs that share a split share a file.
        cells = [
            dataclasses.replace(cell, ratio=ratio, seed=seed, label=label)
            for cell in grid.cells
            for ratio in (0.2, 0.5)
            for seed in (1, 2)
            for label in ("a", "b")
        ]
        (job, *_) = resolved(dataclasses.replace(grid, cells=tuple(cells)), tmp_path)
        folder = tmp_path / "data" / "splits" / f"tiny-{job.prepared.dataset.digest[:12]}"
        names = {f"{rule}-p{ratio}-seed{seed}.json" for ratio in (0.2, 0.5) for seed in (1, 2)}
        assert {path.name for path in folder.glob(f"{rule}-*")} == names
        content = json.loads((folder / f"{rule}-p0.2-seed1.json").read_text())
        dataset = job.prepared.dataset
        assert content["labelled"] == draw(dataset, rule, 0.2, 1).labelled.tolist()
        assert content["sha256"] == job.spec.split_digest  # whole, though a part is held out


def test_a_grid_stops_when_a_split_is_drawn_otherwise(tmp_path, voc_root):
    grid = grid_of(voc_root, tmp_path)
    (job,) = resolved(grid, tmp_path)
    (path,) = (tmp_path / "data" / "splits").rglob("*.json")
    before = path.stat().st_mtime_ns
    (again,) = resolved(grid, tmp_path)
    assert again.spec.run_id == job.spec.run_id
    assert path.stat().st_mtime_ns == before
    content = json.loads(path.read_text())
    for key in ("labelled", "ids"):
        content[key].reverse()
    content["sha256"] = split_digest(np.array(content["labelled"]))
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"split file .* differs from what the rule 'published'"):
        resolved(grid, tmp_path)
    path.unlink()
    resolved(grid, tmp_path)


def test_a_data_folder_that_takes_no_files_stops_nothing(tmp_path, voc_root):
    grid = grid_of(voc_root, tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "splits").write_text("in the way")
    assert len(resolved(grid, tmp_path)) == 1


def test_a_users_list_is_not_written_again(tmp_path, voc_root):
    (tmp_path / "l.json").write_text(json.dumps(list(range(45))))
    (job,) = resolved(grid_of(voc_root, tmp_path, str(tmp_path / "l.json")), tmp_path)
    assert job.split.labelled.tolist() == list(range(45))
    assert not (tmp_path / "data" / "splits").exists()


def test_datasets_that_differ_in_the_rule_only_have_splits_of_their_own(tmp_path, voc_root):
    grids = [grid_of(voc_root, tmp_path, rule) for rule in ("published", "stratified")]
    cells = tuple(
        dataclasses.replace(cell, dataset=dataclasses.replace(cell.dataset, alias=f"tiny-{k}"))
        for k, grid in enumerate(grids)
        for cell in grid.cells
    )
    first, second = resolved(dataclasses.replace(grids[0], cells=cells), tmp_path)
    assert isinstance(first.cell.dataset, DatasetSpec)
    assert first.split.digest != second.split.digest

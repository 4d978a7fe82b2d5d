"""COCO files in the folders that exporters make."""

from __future__ import annotations

import json

import pytest

from benchmarks.data.readers.files import relative
from benchmarks.data.registry import DatasetSpec, open_dataset
from methods.errors import UserError


def export(root, note, images):
    """Both splits; `note` and `images` are the JSON and the folder of the images, with {} for the split."""
    for split, start in (("train", 1), ("test", 100)):
        file, folder = root / note.format(split), root / images.format(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        entries = [{"id": start + k, "file_name": f"{split}_{k}.png"} for k in range(3)]
        for entry in entries:
            (folder / entry["file_name"]).touch()
        notes = [{"image_id": entry["id"], "category_id": 1} for entry in entries]
        content = {"images": entries, "annotations": notes, "categories": [{"id": 1, "name": "cat"}]}
        file.write_text(json.dumps(content))
    return root


ROBOFLOW, FIFTYONE = "{}/_annotations.coco.json", "{}/labels.json"


@pytest.mark.parametrize(
    ("note", "images", "options"),
    [
        (ROBOFLOW, "{}", {}),
        (ROBOFLOW, "{}", {"images": "."}),
        (FIFTYONE, "{}/data", {}),
        (FIFTYONE, "{}/data", {"images": "data"}),
        ("{}.json", "{}", {}),  # Kaggle
        ("annotations/{}.json", "{}", {}),
        ("annotations/{}.json", "data/{}", {}),
        ("annotations/{}.json", "pictures/{}", {"images": "pictures"}),
        ("annotations/{}.json", "all", {"images": "all"}),
        ("{}/x.json", "{}/pixels", {"images": "pixels"}),
        ("{}.json", "{}-pixels", {"train_images": "train-pixels", "test_images": "test-pixels"}),
        ("{}/x.json", "{}/p", {"train_images": "p", "test_images": "test/p"}),
    ],
)
def test_images_are_found(tmp_path, note, images, options):
    export(tmp_path, note, images)
    spec = DatasetSpec(
        "coco", root=str(tmp_path), train=note.format("train"), test=note.format("test"), **options
    )
    dataset = open_dataset(spec, tmp_path / "none")
    folders = {tmp_path / images.format(split) for split in ("train", "test")}
    assert {path.parent for part in (dataset.train, dataset.test) for path in part.paths} == folders
    assert DatasetSpec.from_table(spec.table(), "published") == spec


@pytest.mark.parametrize("note", [ROBOFLOW, FIFTYONE])
def test_names_of_exporters_need_no_option(tmp_path, note):
    export(tmp_path, note, "{}/data")
    assert len(open_dataset(DatasetSpec("coco", root=str(tmp_path)), tmp_path).train) == 3


def test_the_folders_that_were_looked_in_are_named(tmp_path):
    export(tmp_path, ROBOFLOW, "elsewhere")
    with pytest.raises(
        UserError, match=r"3 of 3 images .* is in none of .*/images, .* \(images, or train_images"
    ):
        open_dataset(DatasetSpec("coco", root=str(tmp_path)), tmp_path)


def test_options_that_are_not_used_stay_out_of_split_files(tmp_path):
    assert DatasetSpec("coco").table() == {"name": "coco", "alias": "coco"}
    with pytest.raises(UserError, match=r"'voc2007' has no option 'train_images'; coco have it"):
        DatasetSpec("voc2007", train_images="x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("C:\\Users\\me\\a.jpg", "starts with a drive letter"),
        ("d:/a.jpg", "starts with a drive letter"),
        ("https://host/a.jpg?x=1", "is a URL"),
        ("s3://bucket/a.jpg", "is a URL"),
        ("file:///a.jpg", "is a URL"),
        ("data:image/png;base64,AAAA", "is a URL"),
        ("\\\\server\\share\\a.jpg", "is not a path below"),
    ],
)
def test_paths_of_other_machines_are_named(name, message):
    with pytest.raises(UserError, match=f"^here: .*{message}"):
        relative("here", name)


@pytest.mark.parametrize("name", ["ab:c.jpg", "data/a.jpg", "x//a.jpg", "c.jpg"])
def test_other_colons_and_slashes_are_names(name):
    assert relative("here", name).name

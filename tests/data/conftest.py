"""Tiny datasets in the official layouts, with real JPEG files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.data.dataset import Dataset, ImageSet
from benchmarks.data.readers.class_names import VOC


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photo_like(seed: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: smooth areas, edges, noise and clipped whites and blacks."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    values = np.asarray(image).astype(np.int64) + rng.integers(-12, 13, (height, width, 3))
    values[height // 3 : height // 2, width // 4 :] += 90
    values[:, : width // 6] -= 120
    return np.clip(values, 0, 255).astype(np.uint8)


def save_jpeg(path: Path, seed: int, width: int = 50, height: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo_like(seed, height, width)).save(path, quality=90)
    return path


def build_voc(root: Path, year: str, splits: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Path:
    """`splits[split][image][class]` = 1 or 0 (difficult); every other class is -1.

    The same is written as lists and as XML.
    """
    tree = root / "VOCdevkit" / f"VOC{year}"
    lists = tree / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (tree / "Annotations").mkdir()
    for split, images in splits.items():
        for name in VOC:
            lines = [f"{image} {labels.get(name, -1):2d}\n" for image, labels in images.items()]
            (lists / f"{name}_{split}.txt").write_text("".join(lines))
        (lists / f"{split}.txt").write_text("".join(f"{image}\n" for image in images))
        for k, (image, labels) in enumerate(images.items()):
            save_jpeg(tree / "JPEGImages" / f"{image}.jpg", k)
            (tree / "Annotations" / f"{image}.xml").write_text(voc_xml(image, labels))
    return tree


def voc_xml(image: str, labels: Mapping[str, int]) -> str:
    """An image's annotation as the archives have it: an easy object among difficult ones for 1,
    a difficult one for 0, and the head of a bird, which is no bird."""
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    objects = [
        f"\t<object>\n\t\t<name>{name}</name>\n\t\t<pose>Left</pose>\n"
        f"\t\t<difficult>{difficult}</difficult>\n\t\t{box}\n"
        f"\t\t<part>\n\t\t\t<name>bird</name>\n\t\t\t{box}\n\t\t</part>\n\t</object>\n"
        for name, value in labels.items()
        for difficult in ((1, 0, 1) if value == 1 else (1,))
    ]
    return (
        f"<annotation>\n\t<folder>VOC</folder>\n\t<filename>{image}.jpg</filename>\n"
        f"{''.join(objects)}</annotation>\n"
    )


def instances(images: Mapping[int, list[int]], categories: Mapping[int, str]) -> dict:
    """A COCO-style file: image id to the category ids of its annotations."""
    return {
        "images": [{"id": i, "file_name": f"{i:06d}.jpg"} for i in images],
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
        "annotations": [
            {"id": 1000 * i + k, "image_id": i, "category_id": c}
            for i, found in images.items()
            for k, c in enumerate(found)
        ],
    }


def build_coco(folder: Path, split: str, content: dict) -> tuple[Path, Path]:
    file = folder / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    for image in content["images"]:
        save_jpeg(folder / split / image["file_name"], image["id"])
    return file, folder / split


def build_dataset(folder: Path, train: int, test: int, **size: int) -> Dataset:
    """A dataset of random JPEG files and labels."""

    def images(split: str, count: int, seed: int) -> ImageSet:
        names = tuple(f"{split}-{k:04d}" for k in range(count))
        paths = tuple(save_jpeg(folder / f"{n}.jpg", seed + k, **size) for k, n in enumerate(names))
        labels = np.random.default_rng(seed).integers(0, 2, (count, 3), dtype=np.uint8)
        labels[:, 0] = 1
        return ImageSet(names, paths, labels)

    return Dataset(
        "tiny", ("a", "b", "c"), ("a", "b", "c"), images("train", train, 0), images("test", test, 10_000)
    )


def save_arrays(root: Path, names: Mapping[str, list[str]], classes: int) -> None:
    """The four arrays: `names[split]` are the images of "train" or "val", which all have class 1."""
    root.mkdir(parents=True, exist_ok=True)
    for split, some in names.items():
        labels = np.zeros((len(some), classes))
        labels[:, 1] = 1
        np.save(root / f"formatted_{split}_images.npy", np.array(some))
        np.save(root / f"formatted_{split}_labels.npy", labels)


def _builder(function: Callable) -> Callable:
    return pytest.fixture(name=function.__name__)(lambda: function)


photo_like_fixture = _builder(photo_like)
save_jpeg_fixture = _builder(save_jpeg)
build_voc_fixture = _builder(build_voc)
instances_fixture = _builder(instances)
build_coco_fixture = _builder(build_coco)
build_dataset_fixture = _builder(build_dataset)
save_arrays_fixture = _builder(save_arrays)


@pytest.fixture
def small_voc(tmp_path: Path) -> Callable[[str], Path]:
    """Builds `voc<year>` with 3 + 2 images, one of them without a label; gives the folder of the tree."""
    splits = {"2007": ("trainval", "test"), "2012": ("train", "val")}

    def build(year: str) -> Path:
        train, test = splits[year]
        return build_voc(
            tmp_path / f"voc{year}",
            year,
            {
                train: {"000001": {"car": 1, "diningtable": 1}, "000002": {"cat": 1}, "000003": {}},
                test: {"000004": {"car": 1}, "000005": {"dog": 1}},
            },
        )

    return build

"""GlyphScenes: the renderer is a pure function, the files survive interruption, the labels fit."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.data.glyphscenes import scenes as glyphscenes

SIZES = {"train": 230, "test": 40}


def tree_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Folder written by one process without interruption."""
    return glyphscenes.write(tmp_path_factory.mktemp("reference"), workers=1, sizes=SIZES)


@pytest.fixture(scope="module")
def labels():
    """Label matrix of 1,500 training scenes and the number of objects that are no label."""
    names = glyphscenes.class_names()
    found = np.zeros((1500, len(names)), dtype=bool)
    hidden = 0
    for index in range(len(found)):
        for item in glyphscenes.render(0, index, "train")[1]:
            found[index, names.index(item.name)] |= item.is_label
            hidden += not item.is_label
    return found, hidden


def test_forty_distinct_plain_english_names_each_with_a_glyph_of_its_own():
    names = glyphscenes.class_names()
    assert len(set(names)) == len(names) == 40
    assert all(word.isalpha() and word.islower() for name in names for word in name.split())
    masks = {glyphscenes.glyph_mask(name).tobytes() for name in names}
    assert len(masks) == 40


def test_a_character_without_glyph_is_an_error():
    with pytest.raises(ValueError, match=r"no glyph for .* \(U\+4E00\)"):
        glyphscenes.glyph_mask("一")


def test_contexts_partition_the_classes():
    members = [name for group in glyphscenes.contexts().values() for name in group]
    assert tuple(members) == glyphscenes.class_names()
    assert len(glyphscenes.contexts()) >= 8


def test_an_image_depends_on_seed_split_and_index_only():
    def pixels(*key):
        return glyphscenes.render(*key)[0].tobytes()

    first = pixels(0, 7, "train")
    others = [pixels(1, 7, "train"), pixels(0, 8, "train"), pixels(0, 7, "test")]
    assert pixels(0, 7, "train") == first  # independent of images rendered in between
    assert len({first, *others}) == 4


def test_visible_boxes_and_areas_agree_with_the_image():
    for index in range(60):
        image, objects = glyphscenes.render(0, index, "test")
        assert image.size == (128, 128)
        assert image.mode == "RGB"
        assert 2 <= len(objects) <= 5
        for item in objects:
            x, y, width, height = item.bbox
            assert 0 <= x <= x + width <= 128
            assert 0 <= y <= y + height <= 128
            assert item.area <= width * height
            assert 0 <= item.visible <= 1
            assert item.is_label == (item.visible >= 0.35)


def test_label_density_and_long_tail(labels):
    found, hidden = labels
    frequency = np.sort(found.mean(axis=0))[::-1]
    assert 2.3 <= found.sum(axis=1).mean() <= 3.2
    assert found.any(axis=1).mean() > 0.999
    assert hidden > 0  # occlusion does remove labels
    assert 0.20 <= frequency[0] <= 0.30
    assert 0.008 <= frequency[-1] <= 0.025
    assert frequency[0] / np.median(frequency) > 4


def test_classes_of_a_context_occur_together(labels):
    found, _ = labels
    names = glyphscenes.class_names()
    group = {n: key for key, members in glyphscenes.contexts().items() for n in members}
    together = found.T.astype(float) @ found
    expected = np.outer(found.sum(0), found.sum(0)) / len(found)
    same = np.array([[group[a] == group[b] and a != b for b in names] for a in names])
    other = np.array([[group[a] != group[b] for b in names] for a in names])
    lift_same = together[same].sum() / expected[same].sum()
    lift_other = together[other].sum() / expected[other].sum()
    assert lift_same > 2 * lift_other


def test_files_do_not_depend_on_the_number_of_workers(reference, tmp_path):
    folder = glyphscenes.write(tmp_path, workers=2, sizes=SIZES)
    assert tree_digest(folder) == tree_digest(reference)


def test_interrupted_rendering_resumes_to_the_same_files(reference, tmp_path):
    class StoppedError(Exception):
        pass

    def interrupt(done, total):
        assert total == 270
        if done >= 200:
            raise StoppedError

    with pytest.raises(StoppedError):
        glyphscenes.write(tmp_path, workers=1, sizes=SIZES, progress=interrupt)
    folder = tmp_path / "glyphscenes"
    assert not (folder / "annotations" / "instances_train.json").exists()
    kept = folder / "images" / "train" / "000003.jpg"
    before = kept.stat().st_mtime_ns
    (folder / "images" / "train" / "000150.jpg").unlink()  # a lost file is rendered again
    calls = []
    glyphscenes.write(
        tmp_path, workers=1, sizes=SIZES, progress=lambda done, total: calls.append((done, total))
    )
    assert calls[0] == (0, 270)
    assert calls[-1] == (270, 270)
    assert kept.stat().st_mtime_ns == before
    assert tree_digest(folder) == tree_digest(reference)


def test_complete_data_is_left_alone_and_other_data_is_refused(reference, monkeypatch):
    before = tree_digest(reference)
    monkeypatch.setattr(glyphscenes, "render", None)  # nothing may be rendered
    calls = []
    glyphscenes.write(reference.parent, workers=1, sizes=SIZES, progress=lambda *call: calls.append(call))
    assert calls == [(270, 270)]
    with pytest.raises(ValueError, match="seed 0, 230 images; wanted version 1, seed 5"):
        glyphscenes.write(reference.parent, seed=5, workers=1, sizes=SIZES)
    assert tree_digest(reference) == before


def test_annotations_follow_the_coco_schema(reference):
    record = json.loads((reference / "annotations" / "instances_train.json").read_text())
    assert [c["name"] for c in record["categories"]] == list(glyphscenes.class_names())
    for category in record["categories"]:
        assert category["name"] in glyphscenes.contexts()[category["supercategory"]]
    ids = [c["id"] for c in record["categories"]]
    assert ids == sorted(set(ids))
    images = {i["id"]: i for i in record["images"]}
    assert len(images) == 230
    assert len({a["id"] for a in record["annotations"]}) == len(record["annotations"])
    by_image = Counter()
    for annotation in record["annotations"]:
        assert annotation["category_id"] in ids
        assert annotation["iscrowd"] == 0
        assert annotation["area"] > 0
        by_image[annotation["image_id"]] += 1
    assert set(by_image) <= set(images)
    for image in record["images"][:5]:
        with Image.open(reference / "images" / "train" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])
            assert opened.format == "JPEG"
    # The stored objects are those of the renderer.
    expected = [o for o in glyphscenes.render(0, 4, "train")[1] if o.is_label]
    stored = [a for a in record["annotations"] if a["image_id"] == 5]
    assert [tuple(a["bbox"]) for a in stored] == [o.bbox for o in expected]


def test_contact_sheet_is_a_small_png(tmp_path):
    path = glyphscenes.contact_sheet(tmp_path / "sheet.png")
    assert path.stat().st_size < 300_000
    with Image.open(path) as image:
        assert image.format == "PNG"

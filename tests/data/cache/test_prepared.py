from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.data.cache import build
from benchmarks.data.cache.decode import load_image
from benchmarks.data.cache.prepared import find, prepare
from benchmarks.data.dataset import Dataset, ImageSet
from methods.errors import UserError


def test_images_come_back_as_they_were_decoded(tmp_path, dataset):
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1)
    assert ready.directory.name == f"tiny-{ready.digest[:12]}-16"
    assert ready.train.shape == (20, 3, 16, 16)
    assert ready.test.shape == (9, 3, 16, 16)
    for pixels, images in ((ready.train, dataset.train), (ready.test, dataset.test)):
        for k, path in enumerate(images.paths):
            assert (pixels[k] == load_image(path, 16)).all()
    indices = [3, 3, 19, 0]
    for some in (indices, np.array(indices), torch.tensor(indices)):
        gathered = ready.images("train", some)
        assert gathered.dtype == torch.uint8
        assert gathered.is_contiguous()
        assert (gathered.numpy() == ready.train[indices]).all()
    gathered[:] = 0  # a copy: the cache is read-only
    assert ready.images("test", [8]).shape == (1, 3, 16, 16)
    assert ready.images("train", []).shape == (0, 3, 16, 16)
    with pytest.raises(IndexError):
        ready.images("test", [9])
    ready.verify()


def test_a_second_call_is_instant_and_touches_nothing(tmp_path, dataset):
    first = prepare(dataset, 16, tmp_path / "cache", workers=1)
    before = {f: f.stat().st_mtime_ns for f in first.directory.iterdir()}
    start = time.process_time()  # other processes do not count
    again = prepare(dataset, 16, tmp_path / "cache", progress=lambda *a: pytest.fail("worked"))
    assert time.process_time() - start < 0.5
    assert again.digest == first.digest
    assert {f: f.stat().st_mtime_ns for f in first.directory.iterdir()} == before


def test_the_digest_covers_dataset_size_and_pixels(tmp_path, dataset, photo_like):
    base = prepare(dataset, 16, tmp_path / "a", workers=1)
    assert prepare(dataset, 16, tmp_path / "b", workers=1).digest == base.digest
    assert prepare(dataset, 18, tmp_path / "b", workers=1).digest != base.digest
    Image.fromarray(photo_like(99, 40, 50)).save(dataset.test.paths[-1])
    changed = prepare(dataset, 16, tmp_path / "c", workers=1)
    assert changed.directory.name != base.directory.name
    assert changed.digest != base.digest


def test_the_digest_does_not_depend_on_the_number_of_processes(tmp_path, dataset):
    seen = []
    one = prepare(dataset, 16, tmp_path / "a", workers=1)
    two = prepare(dataset, 16, tmp_path / "b", workers=2, progress=lambda *a: seen.append(a))
    assert one.digest == two.digest
    assert (one.train == two.train).all()
    assert seen[0] == (0, 29)
    assert seen[-1] == (29, 29)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_verify_finds_a_changed_byte(tmp_path, dataset):
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1)
    with open(ready.directory / "test.u8", "r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match=r"test.u8 has changed on the disk; remove the folder"):
        prepare(dataset, 16, tmp_path / "cache").verify()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: os.truncate(d / "train.u8", 100), r"train.u8 has 100 bytes for 20 images"),
        (lambda d: (d / "test.u8").unlink(), r"test.u8 has 0 bytes"),
        (lambda d: (d / "meta.json").write_text("{"), r"meta.json"),
        (lambda d: (d / "meta.json").write_text(""), r"meta.json"),
        (lambda d: (d / "meta.json").write_text("[]"), r"meta.json holds no table"),
        (lambda d: (d / "meta.json").write_text("[" * 99_999), r"meta.json"),
        (lambda d: (d / "meta.json").write_bytes(b'{"dataset": "\xe9"}'), r"meta.json"),
        (lambda d: (d / "meta.json").write_text('{"format": 2}'), r"'dataset' is missing"),
    ],
)
def test_a_damaged_cache_is_named_and_made_again(tmp_path, dataset, damage, message):
    root, lines = tmp_path / "cache", []
    ready = prepare(dataset, 16, root, workers=1)
    pixels, inode = np.array(ready.train), os.stat(ready.directory).st_ino
    damage(ready.directory)
    with pytest.raises(UserError, match=message) as caught:
        find(dataset, 16, root)
    assert "remove the folder and prepare again" in str(caught.value)
    again = prepare(dataset, 16, root, workers=1, announce=lines.append)
    assert (again.digest, again.directory) == (ready.digest, ready.directory)
    assert (again.train == pixels).all()
    again.verify()
    (line,) = [line for line in lines if "is damaged" in line]
    assert re.search(message, line)
    (aside,) = root.glob(".damaged-*")
    assert os.stat(aside).st_ino == inode  # who still reads it can go on
    lines.clear()
    assert prepare(dataset, 16, root, announce=lines.append).digest == ready.digest
    assert not lines


@pytest.mark.parametrize("number", [0, 99])
def test_a_cache_of_another_version_is_left_alone(tmp_path, dataset, number):
    meta = prepare(dataset, 16, tmp_path / "cache", workers=1).directory / "meta.json"
    meta.write_text(f'{{"format": {number}}}')
    with pytest.raises(UserError, match=f"format {number} instead of 2; remove the folder and prepare again"):
        prepare(dataset, 16, tmp_path / "cache")
    assert meta.exists()


def test_damage_of_other_caches_of_a_dataset_stops_nobody(tmp_path, dataset):
    """Their pixels would be taken over where the pictures are equal."""
    for k, text in enumerate(["", "[]", '{"format": 2}', '{"format": 2, "dataset": 3}', "[" * 99_999]):
        other = tmp_path / "cache" / f"{dataset.name}-{k:012d}-16"
        other.mkdir(parents=True)
        (other / "meta.json").write_text(text)
    first = prepare(dataset, 16, tmp_path / "cache", workers=1)
    for k, content in enumerate((b"", b"PK\x03\x04", b"\x93NUMPY", b"random")):
        (first.directory / "sources.npy").write_bytes(content)
        smaller = dataset.without([dataset.train.ids[k]], split="train")
        assert len(prepare(smaller, 16, tmp_path / "cache", workers=1).train) == 19


def test_hashes_that_are_missing_from_the_record_are_no_agreement(tmp_path, dataset):
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1)
    meta = json.loads((ready.directory / "meta.json").read_text())
    meta["chunks"]["test"].pop()
    (ready.directory / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"meta.json has hashes of 28 of 29 images; remove the folder"):
        prepare(dataset, 16, tmp_path / "cache").verify()


def test_a_pickled_cache_carries_no_pixels(tmp_path, dataset):
    ready = prepare(dataset, 64, tmp_path / "cache", workers=1)
    assert ready.train.size > 200_000
    packed = pickle.dumps(ready)
    assert len(packed) < 20_000
    assert (pickle.loads(packed).train == ready.train).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_unreadable_images_are_all_named_and_the_rest_is_kept(tmp_path, dataset, workers):
    bad = [dataset.train.paths[k] for k in (2, 17)] + [dataset.test.paths[5]]
    good = {path: path.read_bytes() for path in bad}
    bad[0].write_bytes(b"")
    bad[1].write_bytes(good[bad[1]][:400])  # truncated
    bad[2].write_bytes(b"not an image at all")
    with pytest.raises(UserError) as caught:
        prepare(dataset, 16, tmp_path / "cache", workers=workers)
    message = str(caught.value)
    assert message.startswith("dataset 'tiny': 3 of 29 images cannot be read: ")
    assert all(str(path) in message for path in bad)
    assert "\n" not in message
    listed = next((tmp_path / "cache").iterdir()) / "unreadable.txt"
    assert [line.split("\t")[0] for line in listed.read_text().splitlines()] == sorted(map(str, bad))
    for path, content in good.items():
        path.write_bytes(content)
    seen = []
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1, progress=lambda *a: seen.append(a))
    assert seen[0] == (29 - 12, 29)  # only the three damaged chunks of four are left to do
    assert not listed.exists()
    assert ready.digest == prepare(dataset, 16, tmp_path / "other", workers=1).digest


def test_a_file_in_the_place_of_the_folder_is_a_clear_error(tmp_path, dataset):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        prepare(dataset, 16, tmp_path / "cache")
    with pytest.raises(UserError, match="image size is 0"):
        prepare(dataset, 0, tmp_path)


def test_a_kill_just_before_the_clean_up_leaves_nothing_behind(tmp_path, build_dataset):
    dataset = build_dataset(tmp_path / "images", 10, 5)
    first = prepare(dataset, 32, tmp_path / "cache", workers=1)
    markers = first.directory / "chunks"
    markers.mkdir()
    (markers / "train-00000.json").write_text("{}")
    again = prepare(dataset, 32, tmp_path / "cache", workers=1)
    assert again.digest == first.digest
    assert not markers.exists()


def test_torn_markers_are_not_believed(tmp_path, dataset, monkeypatch):
    def interrupted(self, hashes):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build.Builder, "_finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(dataset, 16, tmp_path / "cache", workers=1)
    directory = next((tmp_path / "cache").iterdir())
    markers = sorted((directory / "chunks").iterdir())
    assert len(markers) == 8
    markers[0].write_text("")
    markers[3].write_text("abc")
    (directory / "chunks" / ".x.tmp").write_text("left behind")
    seen = []
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1, progress=lambda *a: seen.append(a))
    chunk_sizes = [1 if m.name.startswith("test-000002") else 4 for m in (markers[0], markers[3])]
    assert seen[0] == (29 - sum(chunk_sizes), 29)
    assert ready.digest == prepare(dataset, 16, tmp_path / "other", workers=1).digest


def test_a_data_file_of_another_length_starts_over(tmp_path, dataset, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(build.Builder, "_finish", lambda self, hashes: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(dataset, 16, tmp_path / "cache", workers=1)
    directory = next((tmp_path / "cache").iterdir())
    os.truncate(directory / "train.u8", 5)
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1)
    ready.verify()
    assert ready.digest == prepare(dataset, 16, tmp_path / "other", workers=1).digest


def test_the_digest_is_what_it_says(tmp_path, dataset):
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1)
    meta = json.loads((ready.directory / "meta.json").read_text())
    chunks = [
        [hashlib.sha256(np.asarray(p[k : k + 4]).tobytes()).hexdigest() for k in range(0, len(p), 4)]
        for p in (ready.train, ready.test)
    ]
    pixels = hashlib.sha256("\n".join([*chunks[0], "-", *chunks[1]]).encode()).hexdigest()
    assert meta["pixels"] == pixels
    files = (*dataset.train.paths, *dataset.test.paths)
    sources = hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()
    assert ready.digest == hashlib.sha256(f"{dataset.digest} {sources} 1 16".encode()).hexdigest()
    assert meta["resize"] == "PIL bilinear, antialiased"


def test_restricted_classes_have_a_cache_of_their_own(tmp_path, dataset):
    labels = dataset.train.labels.copy()
    labels[:, 0] = np.arange(20) % 2
    images = ImageSet(dataset.train.ids, dataset.train.paths, labels)
    whole = Dataset("tiny", dataset.classes, dataset.prompts, images, dataset.test)
    some = whole.restrict(("a",))
    assert prepare(some, 16, tmp_path, workers=1).train.shape[0] == 10
    assert prepare(whole, 16, tmp_path, workers=1).train.shape[0] == 20

"""Pictures are part of a prepared dataset: replaced, swapped, touched, copied, missing, twice the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.cache import build, source, sources
from benchmarks.data.cache import prepared as cache
from benchmarks.data.cache.decode import load_image
from benchmarks.data.cache.prepared import find, is_prepared, known_digest, prepare
from benchmarks.data.cache.sources import Sources, holds
from benchmarks.data.dataset import Dataset, ImageSet
from methods.errors import UserError


@pytest.fixture
def hashed(monkeypatch):
    """The files that are hashed by `Sources`, in a list."""
    seen = []
    real = source.read
    monkeypatch.setattr(sources, "read", lambda path: seen.append(Path(path)) or real(path))
    return seen


def age(dataset: Dataset, cache_root: Path) -> None:
    """As if the pictures had been written long before they were hashed: their times prove something."""
    (file,) = (cache_root / "sources").glob(f"{dataset.name}-{dataset.digest[:12]}-*.npz")
    with np.load(file) as arrays:
        values = dict(arrays)
    values["young"][:] = False
    with open(file, "wb") as stream:
        np.savez(stream, **values)


def elsewhere(dataset: Dataset, folder: Path) -> Dataset:
    """The same names and labels, with copies of the files in another folder."""
    folder.mkdir()

    def moved(images: ImageSet) -> ImageSet:
        paths = tuple(Path(shutil.copyfile(path, folder / path.name)) for path in images.paths)
        return ImageSet(images.ids, paths, images.labels)

    return dataclasses.replace(dataset, train=moved(dataset.train), test=moved(dataset.test))


def check_pixels(ready: cache.Prepared) -> None:
    """Every image of the cache against its file, and the digest against one computed by hand."""
    for pixels, images in ((ready.train, ready.dataset.train), (ready.test, ready.dataset.test)):
        for k, path in enumerate(images.paths):
            assert (pixels[k] == load_image(path, ready.size)).all(), path
    files = (*ready.dataset.train.paths, *ready.dataset.test.paths)
    pictures = hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()
    text = f"{ready.dataset.digest} {pictures} 1 {ready.size}"
    assert ready.digest == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("aged", [True, False])
@pytest.mark.parametrize("kept", ["nothing", "size and time"])
def test_a_replaced_picture_is_decoded_again_and_only_that(tmp_path, dataset, decoded, save_jpeg, aged, kept):
    root = tmp_path / "cache"
    first = prepare(dataset, 16, root, workers=1)
    if aged:
        age(dataset, root)
    old = np.array(first.train)
    path = dataset.train.paths[7]
    before = path.stat()
    if kept == "nothing":
        save_jpeg(path, 777)
    else:
        content = bytearray(path.read_bytes())
        content[-40] ^= 4
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    decoded.clear()
    assert not is_prepared(dataset, 16, root)
    lines = []
    second = prepare(dataset, 16, root, workers=1, announce=lines.append)
    assert decoded == [path]
    assert second.digest != first.digest
    check_pixels(second)
    second.verify()
    assert f"1 of 29 pictures are not those of last time, such as {path}" in lines[0]
    assert str(first.directory) in lines[0]
    # A run that has the earlier cache open goes on with the earlier pixels.
    assert (first.train == old).all()
    assert (np.fromfile(first.directory / "train.u8", np.uint8) == old.ravel()).all()


def test_two_swapped_pictures_make_another_dataset(tmp_path, dataset, decoded):
    first = prepare(dataset, 16, tmp_path / "cache", workers=1)
    one, two = dataset.train.paths[3], dataset.test.paths[5]
    decoded.clear()
    for a, b in ((one, tmp_path / "aside"), (two, one), (tmp_path / "aside", two)):
        os.rename(a, b)
    second = prepare(dataset, 16, tmp_path / "cache", workers=1)
    assert second.digest != first.digest
    assert decoded == []  # the pixels are known, in the other places
    check_pixels(second)


def test_a_picture_that_returns_finds_its_cache(tmp_path, dataset, decoded, save_jpeg):
    first = prepare(dataset, 16, tmp_path / "cache", workers=1)
    path = dataset.test.paths[0]
    content = path.read_bytes()
    save_jpeg(path, 5)
    prepare(dataset, 16, tmp_path / "cache", workers=1)
    path.write_bytes(content)
    decoded.clear()
    again = prepare(dataset, 16, tmp_path / "cache", workers=1)
    assert (again.digest, again.directory, decoded) == (first.digest, first.directory, [])


def test_touched_pictures_are_hashed_once_and_change_nothing(tmp_path, dataset, decoded, hashed):
    first = prepare(dataset, 16, tmp_path / "cache", workers=1)
    age(dataset, tmp_path / "cache")
    decoded.clear()
    hashed.clear()
    assert prepare(dataset, 16, tmp_path / "cache", workers=1).digest == first.digest
    assert hashed == []
    past = time.time() - 1000
    for path in dataset.train.paths[:3]:
        os.utime(path, (past, past))
    assert prepare(dataset, 16, tmp_path / "cache", workers=1).digest == first.digest
    assert sorted(hashed) == sorted(dataset.train.paths[:3])
    assert decoded == []
    age(dataset, tmp_path / "cache")
    hashed.clear()
    assert prepare(dataset, 16, tmp_path / "cache", workers=1).digest == first.digest
    assert hashed == []


def test_another_folder_with_the_same_names_has_its_own_pixels(tmp_path, dataset, save_jpeg):
    other = elsewhere(dataset, tmp_path / "other")
    for k, path in enumerate(other.train.paths):
        save_jpeg(path, 500 + k)
    assert other.digest == dataset.digest
    first = prepare(dataset, 16, tmp_path / "cache", workers=1)
    second = prepare(other, 16, tmp_path / "cache", workers=1)
    assert first.digest != second.digest
    check_pixels(first)
    check_pixels(second)
    assert prepare(dataset, 16, tmp_path / "cache", workers=1).digest == first.digest


def test_the_same_pictures_in_another_folder_share_cache_and_digest(tmp_path, dataset, decoded):
    first = prepare(dataset, 16, tmp_path / "cache", workers=1)
    decoded.clear()
    second = prepare(elsewhere(dataset, tmp_path / "other"), 16, tmp_path / "cache", workers=1)
    assert (second.digest, second.directory, decoded) == (first.digest, first.directory, [])
    alone = prepare(elsewhere(dataset, tmp_path / "third"), 16, tmp_path / "another cache", workers=1)
    assert alone.digest == first.digest


def test_times_that_lie_near_the_record_are_not_believed(tmp_path, dataset):
    """A change within a tick of the clock leaves size and times as they are."""
    root = tmp_path / "cache"
    first = prepare(dataset, 16, root, workers=1)
    found = Sources(dataset, root)
    assert not found.known.any(), "files of this moment"
    manifest = sources.load(found.file)
    manifest.hashes[4] ^= 1  # as if the file had other bytes when it was hashed
    with open(found.file, "wb") as stream:
        np.savez(stream, **_content(manifest))
    assert prepare(dataset, 16, root, workers=1).digest == first.digest
    assert not holds(str(found.file), manifest.digest)


def test_a_time_in_the_future_is_no_reason_to_hash_each_time(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert source.read(path).young
    future = time.time() + 10_000
    os.utime(path, (future, future))
    time.sleep(2.1)
    found = source.read(path)
    assert not found.young
    assert found.confirmed(path) is found
    os.utime(path)
    assert found.confirmed(path) == source.read(path)  # the same bytes
    path.write_bytes(b"abd")
    assert found.confirmed(path) is None


def test_verify_finds_what_size_and_times_do_not_show(tmp_path, dataset, decoded):
    root = tmp_path / "cache"
    ready = prepare(dataset, 16, root, workers=1)
    ready.verify_sources()
    file = Sources(dataset, root).file
    dataset.train.paths[9].write_bytes(dataset.train.paths[8].read_bytes())
    # A file system that tells nothing of it: the stamps of now stand beside the hashes of before.
    manifest = sources.load(file)
    now = Sources(dataset, root)
    manifest.stamps[:] = now.stamps
    manifest.young[:] = False
    with open(file, "wb") as stream:
        np.savez(stream, **_content(manifest))
    assert prepare(dataset, 16, root, workers=1).digest == ready.digest
    with pytest.raises(
        UserError, match=r"of 29 pictures, 1 changed: .*train-0009.jpg; the cache .* is of other"
    ):
        ready.verify_sources()
    decoded.clear()
    second = prepare(dataset, 16, root, workers=1)
    assert second.digest != ready.digest
    assert decoded == []  # its pixels are those of its neighbour
    check_pixels(second)
    second.verify_sources()
    dataset.test.paths[2].unlink()
    dataset.train.paths[1].write_bytes(b"other")
    with pytest.raises(UserError) as caught:
        second.verify_sources(workers=2)
    message = str(caught.value)
    assert f"1 changed: {dataset.train.paths[1]}; 1 missing or unreadable: {dataset.test.paths[2]}" in message
    assert not is_prepared(dataset, 16, root)


def test_missing_pictures_are_refused_although_their_pixels_are_there(tmp_path, dataset):
    prepare(dataset, 16, tmp_path / "cache", workers=1)
    dataset.train.paths[2].unlink()
    with pytest.raises(UserError, match=r"1 of 29 images cannot be read: .*train-0002.jpg \(No such file"):
        prepare(dataset, 16, tmp_path / "cache", workers=1)
    assert find(dataset, 16, tmp_path / "cache") is None


def test_pictures_that_are_twice_the_same_are_named(tmp_path, dataset):
    root = tmp_path / "cache"
    assert prepare(dataset, 16, root, workers=1).notes == ()
    for images, k, other in ((dataset.test, 0, 3), (dataset.test, 4, 3), (dataset.train, 9, 2)):
        shutil.copyfile(dataset.train.paths[other], images.paths[k])
    notes = prepare(dataset, 16, root, workers=1).notes
    one, two = dataset.test.paths[0], dataset.train.paths[3]
    assert notes == (
        f"tiny: 2 of 9 test images are byte for byte training images, such as {one} and {two}",
        "tiny: 1 of 20 training images are byte for byte the same as an earlier one, such as "
        f"{dataset.train.paths[9]} and {dataset.train.paths[2]}",
    )
    assert find(dataset, 16, root).notes == notes


def test_looking_writes_nothing_and_knows_every_size(tmp_path, dataset, monkeypatch):
    root = tmp_path / "cache"
    assert find(dataset, 16, root) is None
    assert known_digest(dataset, 16, root) is None
    assert not is_prepared(dataset, 16, root)
    assert not root.exists()
    ready = prepare(dataset, 16, root, workers=1)
    before = _tree(root)
    monkeypatch.setattr(cache, "exclusive", lambda path: pytest.fail("locked"))
    found = find(dataset, 16, root)
    assert (found.digest, found.directory, found.manifest) == (ready.digest, ready.directory, ready.manifest)
    assert is_prepared(dataset, 16, root)
    digest = known_digest(dataset, 18, root)
    assert not is_prepared(dataset, 18, root)
    assert _tree(root) == before
    monkeypatch.undo()
    assert prepare(dataset, 18, root, workers=1).digest == digest


def test_an_interrupted_call_does_not_keep_what_was_replaced_since(tmp_path, dataset, decoded, save_jpeg):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build.Builder, "_finish", lambda self, hashes: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(dataset, 16, tmp_path / "cache", workers=1)
    path = dataset.train.paths[6]
    save_jpeg(path, 99)
    decoded.clear()
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1)
    assert set(decoded) == set(dataset.train.paths[4:8])  # its chunk
    check_pixels(ready)


def test_damage_of_an_earlier_cache_is_not_copied(tmp_path, dataset, decoded, save_jpeg):
    first = prepare(dataset, 16, tmp_path / "cache", workers=1)
    with open(first.directory / "train.u8", "r+b") as file:
        file.seek(10 * 768)
        file.write(bytes(50))
    save_jpeg(dataset.test.paths[0], 99)
    decoded.clear()
    second = prepare(dataset, 16, tmp_path / "cache", workers=1)
    assert set(decoded) == {*dataset.train.paths[8:12], dataset.test.paths[0]}
    check_pixels(second)


def test_a_cache_of_an_earlier_format_is_left_alone(tmp_path, dataset):
    old = tmp_path / "cache" / f"tiny-{dataset.digest[:12]}-16"
    old.mkdir(parents=True)
    for split, count in (("train", 20), ("test", 9)):
        (old / f"{split}.u8").write_bytes(bytes(count * 768))
    (old / "meta.json").write_text(
        json.dumps({"format": 1, "dataset": "tiny", "dataset_digest": dataset.digest})
    )
    lines = []
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1, announce=lines.append)
    assert lines[0].startswith(f"{old}: made by an earlier version")
    check_pixels(ready)
    assert sorted(file.name for file in old.iterdir()) == ["meta.json", "test.u8", "train.u8"]
    prepare(dataset, 16, tmp_path / "cache", workers=1, announce=lines.append)
    assert len(lines) == 2  # and the space


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(b"no"), lambda f: f.unlink()])
def test_a_damaged_manifest_costs_a_hash(tmp_path, dataset, decoded, damage):
    first = prepare(dataset, 16, tmp_path / "cache", workers=1)
    decoded.clear()
    damage(first.manifest[0])
    again = prepare(dataset, 16, tmp_path / "cache", workers=1)
    assert (again.digest, decoded) == (first.digest, [])


def test_unreadable_images_of_another_folder_are_its_own(tmp_path, dataset):
    good = elsewhere(dataset, tmp_path / "other")
    bad = dataset.train.paths[2]
    bad.write_bytes(b"x" * good.train.paths[2].stat().st_size)
    times = (bad.stat().st_atime_ns, bad.stat().st_mtime_ns)
    os.utime(good.train.paths[2], ns=times)
    first = prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    assert [name for name, _ in first.skipped] == ["train-0002"]
    assert prepare(good, 16, tmp_path / "cache", workers=1, skip_bad=True).skipped == ()


def _content(manifest: sources.Manifest) -> dict:
    paths = np.frombuffer(json.dumps(manifest.paths).encode(), np.uint8)
    values = manifest._asdict()
    return {**values, "paths": paths, "version": np.array(sources.VERSION)}


def _tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

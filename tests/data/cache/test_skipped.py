from __future__ import annotations

import json
import os

import numpy as np
import pytest

from benchmarks.data.cache import build
from benchmarks.data.cache import prepared as cache
from benchmarks.data.cache.build import UnreadableError
from benchmarks.data.cache.decode import load_image
from benchmarks.data.cache.prepared import prepare
from benchmarks.data.dataset import Dataset, ImageSet
from methods.errors import UserError


@pytest.fixture
def bad(dataset):
    """Damages train 2 and 17 and test 5; returns their former contents."""
    paths = [dataset.train.paths[2], dataset.train.paths[17], dataset.test.paths[5]]
    contents = {path: path.read_bytes() for path in paths}
    paths[0].write_bytes(b"")
    paths[1].write_bytes(contents[paths[1]][:400])
    paths[2].write_bytes(b"not an image at all")
    return contents


def without(dataset, train, test):
    """The same by hand."""

    def rest(images, dropped):
        where = [k for k in range(len(images)) if k not in dropped]
        return ImageSet(
            tuple(images.ids[k] for k in where), tuple(images.paths[k] for k in where), images.labels[where]
        )

    return Dataset(
        dataset.name, dataset.classes, dataset.prompts, rest(dataset.train, train), rest(dataset.test, test)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_unreadable_images_are_left_out_and_recorded(tmp_path, dataset, bad, workers):
    lines = []
    ready = prepare(dataset, 16, tmp_path / "cache", workers=workers, skip_bad=True, announce=lines.append)
    expected = without(dataset, (2, 17), (5,))
    assert ready.dataset.digest == expected.digest
    assert ready.skipped == (
        ("train-0002", "empty file"),
        ("train-0017", ready.skipped[1][1]),
        ("test-0005", "not an image"),
    )
    assert "truncated" in ready.skipped[1][1].lower()
    alone = prepare(expected, 16, tmp_path / "alone", workers=1)
    assert ready.digest == alone.digest
    assert ready.directory.name == alone.directory.name
    assert (ready.train == alone.train).all()
    ready.verify()
    record = tmp_path / "cache" / f"tiny-{dataset.digest[:12]}-skipped.json"
    content = json.loads(record.read_text())
    assert [(i["split"], i["id"], i["path"]) for i in content["skipped"]] == [
        ("train", "train-0002", str(dataset.train.paths[2])),
        ("train", "train-0017", str(dataset.train.paths[17])),
        ("test", "test-0005", str(dataset.test.paths[5])),
    ]
    # nothing of the half cache of the whole dataset is left
    assert sorted((tmp_path / "cache").iterdir()) == sorted(
        [record, ready.directory, tmp_path / "cache" / "sources"]
    )
    assert len(lines) == 3  # space for all images, space for the readable ones, the images left out
    assert lines[-1].startswith("tiny: 3 of 29 images cannot be read and are left out: ")
    assert str(dataset.train.paths[2]) in lines[-1]
    assert str(record) in lines[-1]


def test_no_image_is_decoded_twice_but_those_beside_a_bad_one(tmp_path, dataset, bad, decoded):
    prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    times = {path: decoded.count(path) for path in (*dataset.train.paths, *dataset.test.paths)}
    for images, broken in ((dataset.train, (2, 17)), (dataset.test, (5,))):
        for k, path in enumerate(images.paths):
            beside = any(k // 4 == other // 4 and k != other for other in broken)
            assert times[path] == (2 if beside else 1), path


def test_a_later_call_decodes_nothing_at_any_size(tmp_path, dataset, bad, decoded):
    first = prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    decoded.clear()
    lines = []
    again = prepare(dataset, 16, tmp_path / "cache", skip_bad=True, announce=lines.append)
    assert (again.digest, again.skipped, decoded) == (first.digest, first.skipped, [])
    assert len(lines) == 1
    assert "left out" in lines[0]
    larger = prepare(dataset, 18, tmp_path / "cache", workers=1, skip_bad=True)
    assert larger.dataset.digest == first.dataset.digest
    assert not set(decoded) & set(bad)
    assert len(decoded) == 26


def test_a_finished_cache_needs_no_right_to_write(tmp_path, dataset, bad, monkeypatch):
    first = prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    monkeypatch.setattr(cache, "exclusive", lambda path: pytest.fail("locked"))
    assert prepare(dataset, 16, tmp_path / "cache", skip_bad=True).digest == first.digest


def test_replaced_files_are_looked_at_again(tmp_path, dataset, bad, decoded):
    prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    paths = list(bad)
    decoded.clear()
    paths[1].write_bytes(bad[paths[1]])
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    assert [name for name, _ in ready.skipped] == ["train-0002", "test-0005"]
    assert ready.dataset.digest == without(dataset, (2,), (5,)).digest
    assert not {paths[0], paths[2]} & set(decoded)
    paths[0].write_bytes(b"damaged in another way")
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    assert ready.skipped == (("train-0002", "not an image"), ("test-0005", "not an image"))
    for path, content in bad.items():
        path.write_bytes(content)
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    assert ready.skipped == ()
    assert ready.dataset.digest == dataset.digest
    assert not list((tmp_path / "cache").glob("*skipped*"))


def test_an_image_that_breaks_later_is_added(tmp_path, dataset, bad):
    prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    dataset.train.paths[9].write_bytes(b"")
    ready = prepare(dataset, 18, tmp_path / "cache", workers=1, skip_bad=True)
    assert [name for name, _ in ready.skipped] == [
        "train-0002",
        "train-0009",
        "train-0017",
        "test-0005",
    ]
    assert (
        ready.digest == prepare(without(dataset, (2, 9, 17), (5,)), 18, tmp_path / "alone", workers=1).digest
    )


def test_what_the_system_refuses_to_read_is_tried_each_time(tmp_path, dataset):
    path = dataset.train.paths[3]
    content = path.read_bytes()
    path.unlink()
    first = prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    assert first.skipped == (("train-0003", "No such file or directory"),)
    path.write_bytes(content)
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    assert ready.skipped == ()


def test_with_nothing_unreadable_it_is_the_plain_cache(tmp_path, dataset):
    plain = prepare(dataset, 16, tmp_path / "cache", workers=1)
    lines = []
    ready = prepare(dataset, 16, tmp_path / "cache", skip_bad=True, announce=lines.append)
    assert (ready.digest, ready.skipped, lines) == (plain.digest, (), [])
    assert sorted((tmp_path / "cache").iterdir()) == [tmp_path / "cache" / "sources", plain.directory]


def test_failing_is_the_default_and_names_the_way_out(tmp_path, dataset, bad, decoded):
    with pytest.raises(UnreadableError, match=r"`prepare --skip-bad` \(skip_bad = true in a grid\)"):
        prepare(dataset, 16, tmp_path / "cache", workers=1)
    good = set(dataset.train.paths + dataset.test.paths) - set(bad)
    decoded.clear()
    prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    assert len(good & set(decoded)) == 9  # those beside a bad one only; the failed call's are used
    with pytest.raises(UnreadableError):  # the record changes nothing for a call without it
        prepare(dataset, 16, tmp_path / "cache", workers=1)


def test_one_name_in_both_splits_is_left_out_of_its_own_only(tmp_path, dataset):
    test = ImageSet(dataset.train.ids[:9], dataset.test.paths, dataset.test.labels)
    both = Dataset("tiny", dataset.classes, dataset.prompts, dataset.train, test)
    test.paths[4].write_bytes(b"")
    ready = prepare(both, 16, tmp_path / "cache", workers=1, skip_bad=True)
    assert (len(ready.train), len(ready.test)) == (20, 8)
    assert (ready.train[4] == load_image(dataset.train.paths[4], 16)).all()


def test_a_split_of_unreadable_images_only_is_an_error(tmp_path, dataset):
    contents = {path: path.read_bytes() for path in dataset.test.paths}
    for path in contents:
        path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(UserError, match="no test image would be left"):
            prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    for path, content in contents.items():
        path.write_bytes(content)
    assert prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True).skipped == ()


def test_where_there_is_no_room_for_both_it_is_decoded_again(tmp_path, dataset, bad, monkeypatch):
    real, calls = build.reserve, []

    def reserve(file):
        calls.append(file.parent.name)
        others = [d for d in file.parents[1].iterdir() if d.is_dir() and d != file.parent]
        if others:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(build, "reserve", reserve)
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    assert len(set(calls)) == 2
    assert ready.digest == prepare(without(dataset, (2, 17), (5,)), 16, tmp_path / "alone", workers=1).digest


def test_a_damaged_record_is_named(tmp_path, dataset, bad):
    prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True)
    (record,) = (tmp_path / "cache").glob("*skipped.json")
    whole = json.loads(record.read_text())
    unknown = [{**whole["skipped"][0], "id": "train-0099"}]
    for text in (
        "{",
        "[]",
        '{"dataset_digest": "0"}',
        json.dumps({**whole, "skipped": [{}]}),
        json.dumps({**whole, "skipped": unknown}),
    ):
        record.write_text(text)
        with pytest.raises(UserError, match=r"skipped.json: damaged: .*remove it and run again"):
            prepare(dataset, 16, tmp_path / "cache", skip_bad=True)


def test_two_calls_at_once_agree(tmp_path, dataset, bad):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(3) as threads:  # separate descriptors: they lock each other out
        found = list(
            threads.map(
                lambda _: prepare(dataset, 16, tmp_path / "cache", workers=1, skip_bad=True), range(3)
            )
        )
    assert len({ready.digest for ready in found}) == 1
    assert all((np.asarray(ready.train) == found[0].train).all() for ready in found)
    assert len(os.listdir(tmp_path / "cache")) == 3  # the cache, the record and the hashes

from __future__ import annotations

import shutil

import numpy as np
import pytest

from benchmarks.data.readers import nuswide
from benchmarks.data.readers.class_names import NUS
from benchmarks.data.registry import DatasetSpec, open_dataset
from methods.errors import UserError

TRAIN = [
    ("zebra/0002_2.jpg", {"zebra", "animal"}),
    ("actor/0001_2124494179.jpg", {"person"}),
    ("sky/0004_4.jpg", set()),
    ("sky/0003_3.jpg", {"sky", "airport"}),
]
TEST = [("sea/0009_9.jpg", {"water"}), ("sea/0008_8.jpg", set())]


@pytest.fixture
def root(tmp_path, save_jpeg):
    """The official layout, as the archives unpack side by side."""
    root = tmp_path / "nuswide"
    truth = root / "Groundtruth" / "TrainTestLabels"
    truth.mkdir(parents=True)
    (root / "ImageList").mkdir()
    (root / "ConceptsList").mkdir()
    (root / "ConceptsList" / "Concepts81.txt").write_text("\r\n".join(NUS) + "\r\n")
    for split, images in (("Train", TRAIN), ("Test", TEST)):
        lines = [name.replace("/", "\\") + "\n" for name, _ in images]
        (root / "ImageList" / f"{split}Imagelist.txt").write_text("".join(lines))
        for concept in NUS:
            lines = [f"{int(concept in labels)}\n" for _, labels in images]
            (truth / f"Labels_{concept}_{split}.txt").write_text("".join(lines))
        for k, (name, _) in enumerate(images):
            save_jpeg(root / "Flickr" / name, k)
    return root


def read(root, split="Train", **options):
    tree = nuswide.find_tree(root)
    return nuswide.read_split(tree, split, nuswide.image_folders(root, tree), **options)


def found(images):
    return [
        (name, {NUS[k] for k in row.nonzero()[0]})
        for name, row in zip(images.ids, images.labels, strict=True)
    ]


def test_the_order_of_the_list_is_kept_and_images_without_a_label_are_dropped(root):
    images, listed = read(root)
    assert listed == 4
    assert found(images) == [TRAIN[0], TRAIN[1], TRAIN[3]]
    assert images.paths[1] == root / "Flickr" / "actor" / "0001_2124494179.jpg"
    assert found(read(root, "Test")[0]) == TEST[:1]


def test_images_without_a_label_are_kept_when_asked_for(root):
    assert found(read(root, empty="keep")[0]) == TRAIN


def below(name):
    def move(root):
        (root / name).mkdir()
        for folder in ("ImageList", "Groundtruth", "ConceptsList", "Flickr"):
            shutil.move(root / folder, root / name / folder)

    return move


def flat(root):
    for file in (*(root / "ImageList").iterdir(), *(root / "ConceptsList").iterdir()):
        shutil.move(file, root / file.name)
    shutil.move(root / "Groundtruth" / "TrainTestLabels", root / "TrainTestLabels")


def all_in_one(root):
    flat(root)
    for file in (root / "TrainTestLabels").iterdir():
        shutil.move(file, root / file.name)


def other_images(root):
    shutil.move(root / "Flickr", root / "images")


def absolute(root):
    for file in (root / "ImageList").iterdir():
        lines = [f"C:\\ImageData\\Flickr\\{line}\r\n" for line in file.read_text().splitlines()]
        file.write_text("".join(lines))


def outside(root):
    below("NUS-WIDE")(root)
    shutil.move(root / "NUS-WIDE" / "Flickr", root / "Flickr")


def no_concepts(root):
    shutil.rmtree(root / "ConceptsList")


@pytest.mark.parametrize(
    "unpacked", [below("NUS-WIDE"), flat, all_in_one, other_images, absolute, outside, no_concepts]
)
def test_other_ways_to_unpack_are_understood(root, unpacked):
    before = read(root)[0]
    unpacked(root)
    after = read(root)[0]
    assert after.ids == before.ids
    assert (after.labels == before.labels).all()
    assert all(path.is_file() for path in after.paths)


@pytest.mark.parametrize("end", ["\r\n", "\r", " \n", "\n\n", "\t\r\n"])
def test_line_ends_and_a_byte_order_mark_are_read(root, end):
    before = read(root)[0]
    for file in (root / "Groundtruth" / "TrainTestLabels").iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", end.encode()))
    for file in (root / "ImageList").iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", end.encode()))
    after = read(root)[0]
    assert after.ids == before.ids
    assert (after.labels == before.labels).all()
    label_file = root / "Groundtruth" / "TrainTestLabels" / "Labels_sky_Train.txt"
    label_file.write_bytes(label_file.read_bytes().rstrip())  # no end of the last line
    assert (read(root)[0].labels == before.labels).all()


def labels_of(concept):
    return f"Groundtruth/TrainTestLabels/Labels_{concept}_Train.txt"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (labels_of("sky"), "0\n0\n2\n1\n", r"Labels_sky_Train.txt:3: '2' is not 0 or 1"),
        (labels_of("sky"), "0\n0\n-1\n1\n", r"Labels_sky_Train.txt:3: '-1' is not 0 or 1"),
        (labels_of("sky"), "0 0\n0\n1\n", r"Labels_sky_Train.txt:1: '0 0' is not 0 or 1"),
        (labels_of("sky"), "00\n0\n1\n", r"Labels_sky_Train.txt:1: '00' is not 0 or 1"),
        (labels_of("sky"), "", r"Labels_sky_Train.txt: 0 labels, where TrainImagelist.txt lists 4"),
        (labels_of("sky"), "0\n0\n1\n", r"Labels_sky_Train.txt: 3 labels, .* lists 4 images"),
        (labels_of("sky"), "0\n0\n0\n0\n1\n", r"Labels_sky_Train.txt: 5 labels, .* lists 4"),
        (labels_of("sky"), None, r"Labels_sky_Train.txt: no such file; unpack"),
        (
            "ImageList/TrainImagelist.txt",
            "a\\1.jpg\nb\\2.jpg\n\na\\1.jpg\nc\\3.jpg\n",
            r"TrainImagelist.txt:4: image 'a/1.jpg' is also in line 1",
        ),
        ("ImageList/TrainImagelist.txt", "a\\1.jpg\n..\\..\\x\n", r"TrainImagelist.txt:2: .*not a"),
        ("ConceptsList/Concepts81.txt", "airport\nzebras\n", r"Concepts81.txt: .*'zebras'; did"),
        ("ConceptsList/Concepts81.txt", "airport\n", r"81.txt: concept 'animal' is missing"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(root, file, text, message):
    if text is None:
        (root / file).unlink()
    else:
        (root / file).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read(root)
    assert "\n" not in str(caught.value)


def test_missing_images_and_lists_are_named(root):
    (root / "Flickr" / "sky" / "0003_3.jpg").unlink()
    (root / "Flickr" / "sky" / "0004_4.jpg").unlink()  # has no label, is not missed
    with pytest.raises(UserError, match=r"1 of 3 images are not on disk, such as .*0003_3.jpg"):
        read(root)
    (root / "ImageList" / "TestImagelist.txt").unlink()
    with pytest.raises(UserError, match=r"TestImagelist.txt: no such file; unpack"):
        read(root, "Test")


# -- as a dataset ------------------------------------------------------------------------------


def test_counts_are_those_of_the_lists(root):
    with pytest.raises(UserError, match=r"4 training and 2 test .* 161,789 and 107,859"):
        open_dataset(DatasetSpec("nuswide"), root.parent)
    dataset = open_dataset(DatasetSpec("nuswide", allow_counts=True), root.parent)
    assert dataset.classes == NUS
    assert (len(dataset.train), len(dataset.test)) == (3, 1)


def test_arrays_go_before_lists_and_a_root_without_them_reads_the_lists(root, tmp_path):
    for split, name in (("train", "sky/0004_4.jpg"), ("val", "sea/0008_8.jpg")):
        np.save(root / f"formatted_{split}_images.npy", np.array([name]))
        np.save(root / f"formatted_{split}_labels.npy", np.ones((1, 81)))
    dataset = open_dataset(DatasetSpec("nuswide", allow_counts=True), root.parent)
    assert dataset.train.ids == ("sky/0004_4.jpg",)
    # the other cut of the same images: the lists in a folder of their own
    (tmp_path / "lists").mkdir()
    for folder in ("ImageList", "Groundtruth"):
        shutil.move(root / folder, tmp_path / "lists" / folder)
    for images in ("../nuswide/Flickr", str(root / "Flickr")):
        spec = DatasetSpec("nuswide", root=str(tmp_path / "lists"), allow_counts=True, images=images)
        assert found(open_dataset(spec, tmp_path).train) == [TRAIN[0], TRAIN[1], TRAIN[3]]
    with pytest.raises(UserError, match=r"are not on disk"):
        open_dataset(DatasetSpec("nuswide", root=str(tmp_path / "lists"), allow_counts=True), tmp_path)


def test_the_official_lists_are_accepted_without_a_note(root, monkeypatch):
    truth = root / "Groundtruth" / "TrainTestLabels"
    for split, count, start in (("Train", 161_789, 0), ("Test", 107_859, 200_000)):
        lines = (f"all\\{k:07d}.jpg\n" for k in range(start, start + count))
        (root / "ImageList" / f"{split}Imagelist.txt").write_text("".join(lines))
        zeros = truth / f"Labels_{NUS[0]}_{split}.txt"
        zeros.write_bytes(b"0\n" * count)
        for concept in NUS[1:]:
            file = truth / f"Labels_{concept}_{split}.txt"
            file.unlink()
            file.symlink_to(zeros)
        (truth / f"Labels_sky_{split}.txt").unlink()
        (truth / f"Labels_sky_{split}.txt").write_bytes(b"1\n0\n1\n" + b"1\n" * (count - 3))
    monkeypatch.setattr("benchmarks.data.readers.nuswide.check_files", lambda paths, where: paths)
    dataset = open_dataset(DatasetSpec("nuswide"), root.parent)
    assert dataset.notes == ()
    assert (len(dataset.train), len(dataset.test)) == (161_788, 107_858)
    assert dataset.train.ids[:2] == ("all/0000000.jpg", "all/0000002.jpg")
    assert dataset.train.labels.sum(axis=0).tolist() == [161_788 * (c == "sky") for c in NUS]

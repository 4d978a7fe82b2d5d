"""Split files: their content, the comparison with a new draw, and `verify`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.dataset import Dataset, ImageSet
from benchmarks.data.registry import DatasetSpec
from benchmarks.data.splits.files import FORMAT, SplitRecord, Verdict, Verifier, keep, load
from benchmarks.data.splits.rules import draw, split_digest
from methods.errors import UserError
from tests.data.splits.test_rules import dataset_of, long_tailed

TOY = dataset_of(long_tailed(300, 8, 1))


def record(
    rule: str = "published", ratio: float = 0.1, seed: int = 1, dataset: Dataset = TOY, **fields
) -> SplitRecord:
    spec = DatasetSpec("voc2007", alias="toy", allow_counts=True, split=rule, **fields)
    labelled = draw(dataset, rule, ratio, seed).labelled
    return SplitRecord.of(dataset, spec.table(), rule, ratio, seed, labelled)


def change(path: Path, **values) -> None:
    """Alter a file as a hand or another version would; the hash follows the positions."""
    content = json.loads(path.read_text())
    content.update(values)
    if "labelled" in values and "sha256" not in values:
        content["sha256"] = split_digest(np.array(values["labelled"]))
    path.write_text(json.dumps(content))


def test_a_file_says_who_is_labelled_and_by_what_rule(tmp_path):
    wanted = record("stratified", 0.1, 3)
    assert keep(tmp_path, wanted) == "written"
    (path,) = tmp_path.rglob("*.*")
    assert path == tmp_path / f"toy-{TOY.digest[:12]}" / "stratified-p0.1-seed3.json"
    content = json.loads(path.read_text())
    labelled = wanted.labelled.tolist()
    assert content == {
        "format": FORMAT,
        "dataset": "toy",
        "dataset_digest": TOY.digest,
        "n_train": 300,
        "reader": {"name": "voc2007", "alias": "toy", "allow_counts": True},
        "skipped": {},
        "rule": "stratified",
        "ratio": 0.1,
        "seed": 3,
        "numpy": np.__version__,
        "labelled": labelled,
        "ids": [f"image{k}" for k in labelled],
        "sha256": split_digest(wanted.labelled),
    }


def test_a_file_is_read_back_whole(tmp_path):
    wanted = record(root="here", classes=("class0", "class1"))
    path = wanted.path(tmp_path)
    keep(tmp_path, wanted)
    found = load(path)
    for field in dataclasses.fields(SplitRecord):
        before, after = getattr(wanted, field.name), getattr(found, field.name)
        if field.name == "reader":  # JSON has lists where it has tuples
            before = {**before, "classes": list(before["classes"])}
        assert np.array_equal(before, after), field.name
    assert DatasetSpec.from_table(found.reader, found.rule) == DatasetSpec(
        "voc2007",
        alias="toy",
        allow_counts=True,
        root=str(Path("here").absolute()),
        classes=("class0", "class1"),
    )


def test_ratios_that_print_alike_have_files_of_their_own(tmp_path):
    paths = {record(ratio=ratio).path(tmp_path) for ratio in (0.1, 0.10000001, 1.0)}
    assert len(paths) == 3


def test_a_later_call_compares(tmp_path):
    for rule in ("published", "stratified"):
        wanted = record(rule)
        assert keep(tmp_path, wanted) == "written"
        before = wanted.path(tmp_path).read_bytes()
        assert keep(tmp_path, wanted) == "present"
        assert wanted.path(tmp_path).read_bytes() == before
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_a_split_that_is_drawn_otherwise_is_an_error(tmp_path):
    wanted = record()
    path = wanted.path(tmp_path)
    keep(tmp_path, wanted)
    order = wanted.labelled.tolist()
    order[3], order[4] = order[4], order[3]
    change(path, labelled=order, ids=[f"image{k}" for k in order], numpy="1.2.3")
    with pytest.raises(UserError) as caught:
        keep(tmp_path, wanted)
    text = str(caught.value)
    assert text.startswith(f"split file {path} differs from what the rule 'published' draws now:")
    assert f"labelled image 4 is 'image{order[3]}' in the file and 'image{order[4]}' now" in text
    assert "written with NumPy 1.2.3" in text
    assert "\n" not in text
    assert path.is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 2}, "seed is 2 in the file and 1 now"),
        ({"ratio": 0.2}, "ratio is 0.2 in the file and 0.1 now"),
        ({"dataset_digest": "0" * 64}, "dataset_digest is 0000"),
        ({"labelled": [1, 2], "ids": ["image1", "image2"]}, "2 images are labelled there, 30 now"),
        ({"ids": ["x"] * 30}, "labelled image 1 is called 'x' there and 'image"),
    ],
)
def test_every_field_that_matters_is_compared(tmp_path, values, message):
    wanted = record()
    keep(tmp_path, wanted)
    change(wanted.path(tmp_path), **values)
    with pytest.raises(UserError, match=message):
        keep(tmp_path, wanted)


def test_another_numpy_or_root_alone_is_no_difference(tmp_path):
    keep(tmp_path, record(root="/elsewhere"))
    change(record().path(tmp_path), numpy="1.26.4")
    assert keep(tmp_path, record()) == "present"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 99}, "no split file of format 1"),
        ({"ids": None}, "'ids' is missing or of the wrong kind"),
        ({"seed": True}, "'seed' is missing or of the wrong kind"),
        ({"skipped": {"train": [1]}}, "'skipped' holds 'train': "),
        ({"skipped": {"all": []}}, "'skipped' holds 'all': "),
        ({"rule": "publshed"}, "no rule 'publshed'; did you mean 'published'"),
        ({"labelled": [0, 300], "ids": ["a", "b"]}, "a position outside 0 … 299"),
        ({"labelled": [0, 0], "ids": ["a", "b"]}, r"2 positions \(1 different\) and 2 ids"),
        ({"labelled": [0, 1], "ids": ["a"]}, r"2 positions \(2 different\) and 1 ids"),
        ({"labelled": [0, 1], "ids": ["a", "b"], "sha256": "0"}, "'labelled' was changed"),
    ],
)
def test_a_damaged_file_is_one_clear_line(tmp_path, values, message):
    wanted = record()
    path = wanted.path(tmp_path)
    keep(tmp_path, wanted)
    change(path, **values)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"split file {path}: ")
    with pytest.raises(UserError, match=message + r".*; remove it, and the split is written anew"):
        keep(tmp_path, wanted)
    assert Verifier(toy).check(path).problem in str(caught.value)


def test_files_that_are_no_json_are_one_clear_line(tmp_path):
    path = tmp_path / "x.json"
    for content in (b"", b"[1", b"\xff\xfe", b"[]", b"null"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.json: (not valid JSON|no split file of format)"):
            load(path)
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "absent.json")


def test_a_folder_that_cannot_be_written_to_gives_the_reason(tmp_path):
    (tmp_path / "splits").write_text("a file where the folder would be")
    assert keep(tmp_path / "splits", record()) in ("Not a directory", "File exists")


# -- verify ------------------------------------------------------------------------------------


def absent(record: SplitRecord) -> Dataset:
    raise UserError("dataset 'voc2007' is not in /x; get it with: curl")


def toy(record: SplitRecord) -> Dataset:
    DatasetSpec.from_table(record.reader, record.rule)
    return TOY


def check(folder: Path, wanted: SplitRecord, opener=toy, **values) -> Verdict:
    keep(folder, wanted)
    path = wanted.path(folder)
    change(path, **values)
    return Verifier(opener).check(path)


def test_files_as_they_were_written_are_right(tmp_path):
    for rule in ("published", "stratified"):
        finding = check(tmp_path, record(rule))
        assert finding.problem == ""
        assert finding.text == f"toy, {rule}, ratio 0.1, seed 1: 30 of 300"


def test_a_published_split_is_recognised(tmp_path):
    voc = dataset_of(np.ones((5717, 1), np.uint8))
    finding = check(tmp_path, record(ratio=0.05, dataset=voc), absent)
    assert "285 of 5,717, equal to the published split; names not compared: data" in finding.text
    assert finding.problem == ""
    further = check(tmp_path, record(ratio=0.05, seed=2, dataset=voc), lambda record: voc)
    assert further == Verdict(further.path, "toy, published, ratio 0.05, seed 2: 285 of 5,717")
    one_off = record(ratio=0.05, dataset=voc).labelled.tolist()
    one_off[0] = next(k for k in range(5717) if k not in one_off)
    finding = check(tmp_path, record(ratio=0.05, dataset=voc), absent, labelled=one_off)
    assert finding.problem == "not the published split"


def test_without_the_dataset_a_published_split_is_drawn_from_its_numbers(tmp_path):
    wanted = record()
    assert check(tmp_path, wanted, absent).problem == ""
    backwards = wanted.labelled.tolist()[::-1]
    assert "draws another subset" in check(tmp_path, wanted, absent, labelled=backwards).problem


def test_without_the_dataset_a_stratified_split_is_not_verified(tmp_path):
    finding = check(tmp_path, record("stratified"), absent)
    assert "cannot be drawn again without labels: dataset 'voc2007' is not in" in finding.problem


def test_what_differs_is_named(tmp_path):
    wanted = record("stratified")
    backwards = wanted.labelled.tolist()[::-1]
    finding = check(tmp_path, wanted, labelled=backwards, ids=[f"image{k}" for k in backwards])
    assert "labelled image 1 is" in finding.problem
    ids = list(record().ids)
    ids[2] = "somebody"
    finding = check(tmp_path, record(), ids=ids)
    assert "labelled image 3 is called 'somebody'" in finding.problem
    other = dataset_of(long_tailed(301, 8, 1))
    finding = check(tmp_path / "b", record(), lambda record: other)
    assert f"made for another dataset (digest {TOY.digest[:12]})" in finding.problem
    assert "301 training images" in finding.problem
    keep(tmp_path / "c", record())
    path = record().path(tmp_path / "c")
    change(path, ratio=7.0)
    finding = Verifier(absent).check(path.rename(path.with_name("renamed.json")))
    assert "ratio is 7; the labelled share must lie in" in finding.problem
    change(finding.path, ratio=0.1, n_train=10**30)
    assert "that ratio is 1" in Verifier(absent).check(finding.path).problem


def test_a_file_under_the_name_of_another_is_found(tmp_path):
    wanted = record(seed=1)
    keep(tmp_path, wanted)
    path = wanted.path(tmp_path)
    moved = path.with_name("published-p0.1-seed2.json")
    path.rename(moved)
    assert "should be called published-p0.1-seed1.json" in Verifier(absent).check(moved).problem
    sent = moved.rename(path.with_name("from a colleague.json"))
    assert Verifier(toy).check(sent).problem == ""


def test_a_dataset_is_opened_once_and_as_it_was(tmp_path):
    opened = []

    def opener(record: SplitRecord) -> Dataset:
        opened.append(DatasetSpec.from_table(record.reader, record.rule))
        return TOY

    verifier = Verifier(opener)
    for seed in (1, 2, 3):
        wanted = record(seed=seed, root="/data/voc")
        keep(tmp_path, wanted)
        assert verifier.check(wanted.path(tmp_path)).problem == ""
    assert opened == [DatasetSpec("voc2007", alias="toy", allow_counts=True, root="/data/voc")]


def test_a_reader_of_another_version_is_reported(tmp_path):
    finding = check(tmp_path, record("stratified"), reader={"name": "voc2007", "colour": 1})
    assert finding.problem.endswith("'reader' has 'colour' = 1, which no dataset has here")
    for wrong in ({"name": ["voc2007"]}, {"name": "voc2007", "classes": [1]}, {"root": 1}, {}):
        finding = check(tmp_path, record("stratified"), reader=wrong)
        assert "'reader' has " in finding.problem


def test_images_that_were_left_out_are_left_out_again(tmp_path):
    # The two splits may use the same names, and one of them may be at fault in one split only.
    ids = ("image3", "t2")
    two = ImageSet(ids, tuple(Path(f"test/{k}.jpg") for k in ids), TOY.test.labels.repeat(2, 0))
    whole = dataclasses.replace(TOY, test=two)
    smaller = whole.without(("image3", "image250"), split="train").without(["t2"], split="test")
    spec = DatasetSpec("voc2007", alias="toy", skip_bad=True, split="stratified")
    labelled = draw(smaller, "stratified", 0.1, 1).labelled
    wanted = SplitRecord.of(smaller, spec.table(), "stratified", 0.1, 1, labelled, whole)
    assert wanted.skipped == {"train": ("image3", "image250"), "test": ("t2",)}
    assert wanted.n_train == 298
    assert check(tmp_path, wanted, lambda record: whole).problem == ""
    finding = check(tmp_path, wanted, lambda record: whole, skipped={})
    assert "made for another dataset" in finding.problem

"""Tables as people have them: options, divisions, duplicates, and the proposal of `prepare csv --inspect`."""

from __future__ import annotations

import random

import pytest

from benchmarks.data.readers.csv_inspect import propose
from benchmarks.data.registry import DatasetSpec, open_dataset
from benchmarks.plan import grid
from methods.errors import UserError


def opened(root, **options):
    spec = DatasetSpec("csv", root=str(root), **options)
    assert DatasetSpec.from_table(spec.table(), "published") == spec
    return open_dataset(spec, root / "none")


def classes_of(dataset):
    return {
        name: {dataset.classes[k] for k in row.nonzero()[0]}
        for part in (dataset.train, dataset.test)
        for name, row in zip(part.ids, part.labels, strict=True)
    }


@pytest.fixture
def xray(tmp_path):
    """A folder like ChestX-ray14's: names joined by bars, lists, images in several folders."""
    findings = ["Edema|Effusion", "No Finding", "Effusion", "Edema", "Mass|Edema|Effusion", "Mass"]
    lines = ["Image Index,Finding Labels,Follow-up #,Patient Age,View Position"]
    for k in range(24):
        folder = tmp_path / f"images_{1 + k % 2:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k:04d}_000.png").touch()
        lines.append(f"{k:04d}_000.png,{findings[k % 6]},{k % 3},{30 + k},PA")
    (tmp_path / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    names = [f"{k:04d}_000.png" for k in range(24)]
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[:16]))
    (tmp_path / "test_list.txt").write_text("\n".join(names[16:]) + "\n")
    return tmp_path


XRAY = {
    "train": "Data_Entry_2017.csv",
    "path_column": "Image Index",
    "images": "images_*/images",
    "labels_column": "Finding Labels",
    "separator": "|",
    "nothing": "No Finding",
    "train_list": "train_val_list.txt",
    "test_list": "test_list.txt",
}


def test_a_table_like_chestxray14_is_read(xray):
    dataset = opened(xray, **XRAY, empty="keep")
    assert dataset.classes == ("Edema", "Effusion", "Mass")
    assert (len(dataset.train), len(dataset.test)) == (16, 8)
    found = classes_of(dataset)
    assert found["0000_000.png"] == {"Edema", "Effusion"}
    assert found["0001_000.png"] == set()
    assert dataset.test.ids[0] == "0016_000.png"
    assert dataset.train.paths[1] == xray / "images_002" / "images" / "0001_000.png"


def test_a_one_hot_table_with_other_columns_is_read(tmp_path):
    lines = [",id,age,site,edema,nodule"]
    for k in range(10):
        (tmp_path / f"s{k}.png").touch()
        lines.append(f"{k},s{k},{40 + k},north,{'1.0' if k % 2 else '0.0'},{bool(k % 3)}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    options = {"path_column": "id", "suffix": ".png", "test_share": 0.3, "empty": "keep"}
    dataset = opened(tmp_path, **options, columns=("edema", "nodule"))
    assert dataset.classes == ("edema", "nodule")
    assert classes_of(dataset)["s3.png"] == {"edema"}
    assert opened(tmp_path, **options, ignore=("", "age", "site")).digest == dataset.digest
    with pytest.raises(UserError, match=r"labels.csv:1: columns: no column 'edma'; did you mean 'edema'"):
        opened(tmp_path, **options, columns=("edma",))


def test_a_drawn_share_is_that_of_the_seed_whatever_the_order(tmp_path):
    lines = [f"{k}.png,cat" for k in range(40)]
    for k in range(40):
        (tmp_path / f"{k}.png").touch()

    def test_images(seed):
        (tmp_path / "labels.csv").write_text("\n".join(["path,labels", *lines]))
        return set(opened(tmp_path, test_share=0.25, test_seed=seed).test.ids)

    one = test_images(1)
    random.Random(0).shuffle(lines)
    assert test_images(1) == one
    assert len(one) == 10
    assert test_images(2) != one
    # Fixed: another draw would move published numbers.
    assert sorted(one, key=lambda name: int(name[:-4]))[:4] == ["9.png", "10.png", "11.png", "26.png"]


def test_lists_are_held_against_the_table(xray):
    (xray / "test_list.txt").write_text("0016_000.png\nnone.png\n0000_000.png\n0016_000.png\n")
    with pytest.raises(UserError) as caught:
        opened(xray, **XRAY)
    assert [line.split("test_list.txt:", 1)[1] for line in str(caught.value).splitlines()] == [
        "2: no line of the table names the image 'none.png'",
        f"3: image '0000_000.png' is also in {xray}/train_val_list.txt:1",
        f"4: image '0016_000.png' is also in {xray}/test_list.txt:1",
    ]
    (xray / "test_list.txt").write_text("0017_000\n")
    dataset = opened(xray, **{**XRAY, "suffix": ".png"})
    assert dataset.test.ids == ("0017_000.png",)
    assert "7 of 24 images are in neither list and are left out" in dataset.notes
    assert len(opened(xray, **{**XRAY, "suffix": ".png", "train_list": ""}, empty="keep").train) == 23


def test_every_problem_is_said_at_once(tmp_path):
    (tmp_path / "labels.csv").write_text(
        "path,labels,split\n0.png,nan,train\n../1.png,cat,train\n2.png,cat,val\n3.png,cat\n4.png,cat,test\n4.png,dog,test\n"
    )
    with pytest.raises(UserError) as caught:
        opened(tmp_path)
    lines = [line.split("labels.csv:", 1)[1] for line in str(caught.value).splitlines()]
    assert [int(line.split(":")[0]) for line in lines] == [2, 3, 4, 5, 7]
    assert "set nothing = 'nan'" in lines[0]
    assert lines[-1].endswith("is also in line 6; to make one image of such lines, set duplicates = 'merge'")
    rows = [f"{k}.png,nan,train" for k in range(50)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,labels,split", *rows]))
    with pytest.raises(UserError, match=r"and 30 more problems$"):
        opened(tmp_path)


def test_lines_of_one_image_are_merged_when_asked_for(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.png").touch()
    text = "path,label,split\n0.png,cat,train\n1.png,dog,test\n0.png,dog,train\n0.png,cat,train\n"
    (tmp_path / "labels.csv").write_text(text)
    dataset = opened(tmp_path, duplicates="merge")
    assert classes_of(dataset) == {"0.png": {"cat", "dog"}, "1.png": {"dog"}}
    assert dataset.notes == (
        "2 lines merged with an earlier one: 0.png (lines 2 and 4), 0.png (lines 2 and 5)",
    )
    (tmp_path / "labels.csv").write_text(text + "1.png,cat,train\n")
    with pytest.raises(UserError, match=r":6: '1.png' is a train image, and a test image in line 3"):
        opened(tmp_path, duplicates="merge")


@pytest.mark.parametrize("nothing", ["nan", "None", "[]", " no finding ", "N/A"])
def test_what_a_message_proposes_for_nothing_is_read(tmp_path, nothing):
    for k in range(3):
        (tmp_path / f"{k}.png").touch()
    text = f"path,labels,split\n0.png,cat,train\n1.png,{nothing},train\n2.png,cat,test\n"
    (tmp_path / "labels.csv").write_text(text)
    dataset = opened(tmp_path, nothing=nothing, empty="keep")
    assert dataset.classes == ("cat",)
    assert classes_of(dataset) == {"0.png": {"cat"}, "1.png": set(), "2.png": {"cat"}}
    columns = f"path,cat,{nothing},split\n0.png,1,0,train\n1.png,0,1,train\n2.png,1,0,test\n"
    (tmp_path / "labels.csv").write_text(columns)
    assert opened(tmp_path, nothing=nothing, empty="keep").digest == dataset.digest


def test_nothing_beside_a_class_is_a_contradiction(xray):
    table = xray / "Data_Entry_2017.csv"
    table.write_text(table.read_text().replace("0001_000.png,No", "0001_000.png,Mass|No"))
    with pytest.raises(UserError, match=r":3: 'No Finding' stands beside 'Mass'"):
        opened(xray, **XRAY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_share": 1.0}, r"test_share is 1.0; it must be in \[0, 1\)"),
        ({"test_seed": -1}, r"test_seed is -1"),
        ({"duplicates": "join"}, r"duplicates: .*'join'"),
        ({"separator": ""}, r"each must be a character"),
        ({"delimiter": "ab"}, r"each must be a character"),
        ({"test_share": 0.5, "test_list": "x"}, r"test_share draws the test images; it cannot"),
        ({"test_share": 0.5, "test": "x.csv", "train": "labels.csv"}, r"are for one file"),
        ({"test_share": 0.5}, r"there is a column split, .*ignore = \['split'\]"),
        ({"images": "x*"}, r"no folder is called 'x\*'"),
        ({"path_column": "pth"}, r"labels.csv:1: path_column: no column 'pth'; did you mean 'path'"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    (tmp_path / "labels.csv").write_text("path,labels,split\n0.png,cat,train\n1.png,cat,test\n")
    with pytest.raises(UserError, match=message):
        opened(tmp_path, **options)


# -- proposals ---------------------------------------------------------------------------------


def proposed(root, tmp_path, name=""):
    """The dataset that the proposed line reads, pasted into a grid."""
    lines = propose(root, name)
    assert all(line.startswith("# ") for line in lines[:-1])
    file = tmp_path / "mine.toml"
    rest = 'description = "x"\nratios = [0.5]\nseeds = [1]\nmethods = ["zero_shot"]\nrecipe = "embedded"\n'
    file.write_text(f"{lines[-1]}\n{rest}")
    (spec,) = grid.load(str(file)).datasets
    return spec, open_dataset(spec, tmp_path / "none")


def test_the_proposal_reads_a_table_like_chestxray14(xray, tmp_path):
    spec, dataset = proposed(xray, tmp_path)
    assert {name: getattr(spec, name) for name in XRAY} == {**XRAY, "images": "images_00*/images"}
    assert dataset.classes == ("Edema", "Effusion", "Mass")


def test_the_proposal_reads_one_hot_columns(tmp_path):
    root = tmp_path / "my scans"
    (root / "pixels").mkdir(parents=True)
    lines = ["id\tage\tedema\tnodule\tNo Finding"]
    for k in range(12):
        (root / "pixels" / f"s{k}.png").touch()
        lines.append(f"s{k}\t{40 + k}\t{k % 2}\t{k % 3 % 2}\t{int(not (k % 2 or k % 3 % 2))}")
    (root / "table.tsv").write_text("\n".join(lines))
    spec, dataset = proposed(root, tmp_path)
    assert (spec.alias, spec.delimiter, spec.suffix, spec.images) == ("my-scans", "tab", ".png", "pixels")
    assert spec.columns == ("edema", "nodule", "No Finding")
    assert (spec.nothing, spec.test_share) == ("No Finding", 0.2)
    assert dataset.classes == ("edema", "nodule")


@pytest.mark.parametrize("separator", ["|", ",", " ", ";"])
def test_the_proposal_finds_the_separator(tmp_path, separator):
    root = tmp_path / "pets"
    root.mkdir()
    lines = ["path,labels,split"]
    for k, labels in enumerate([("cat", "dog"), ("cat",), ("dog",), ("dog", "car"), ("car",), ("cat",)] * 2):
        (root / f"{k}.png").touch()
        lines.append(f'{k}.png,"{separator.join(labels)}",{"train" if k < 6 else "test"}')
    (root / "labels.csv").write_text("\n".join(lines))
    spec, dataset = proposed(root, tmp_path)
    assert spec.separator == separator
    assert dataset.classes == ("car", "cat", "dog")


def test_what_no_proposal_can_be_made_of_is_said(tmp_path):
    with pytest.raises(UserError, match=r"no .csv or .tsv file is there"):
        propose(tmp_path)
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match=r"a.csv: no column holds names of images"):
        propose(tmp_path)
    (tmp_path / "a.csv").write_text("x,y\n1.jpg,2\n")
    with pytest.raises(UserError, match=r"no column holds names of classes"):
        propose(tmp_path)
    (tmp_path / "a.csv").write_text("x,y\n")
    with pytest.raises(UserError, match=r"no line below the header"):
        propose(tmp_path)

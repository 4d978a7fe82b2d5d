"""The options of datasets: in a `DatasetSpec`, in a grid, and what they do to a dataset."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.data.readers.class_names import VOC, prompt_names
from benchmarks.data.registry import CHOICES, CSV_OPTIONS, OPTIONS, DatasetSpec, available, open_dataset
from benchmarks.plan import grid
from methods.errors import UserError

OTHER = {
    "difficult": "positive",
    "empty": "keep",
    "labels": "xml",
    "order": "file",
    "train": "x",
    "test": "x",
    "images": "x",
    "train_images": "x",
    "test_images": "x",
    **dict.fromkeys(CSV_OPTIONS, "x"),
    "columns": ("x",),
    "ignore": ("x",),
    "delimiter": "x",
    "test_share": 0.5,
    "test_seed": 2,
    "duplicates": "merge",
}
HAVE = {
    "glyphscenes": set(),
    "glyphscenes-dev": set(),
    "voc2007": set(CHOICES),
    "voc2012": set(CHOICES),
    "coco2014": {"empty", "order"},
    "nuswide": {"empty", "images"},
    "coco": {"empty", "order", "train", "test", "images", "train_images", "test_images"},
    "csv": {"empty", "train", "test", "images", *CSV_OPTIONS},
    "npy": {"empty", "images"},
}


@pytest.mark.parametrize("name", HAVE)
def test_an_option_that_a_reader_does_not_have_is_refused(name):
    assert set(HAVE) == set(available())
    assert set(OTHER) == set(OPTIONS)
    for option, value in OTHER.items():
        if option in HAVE[name]:
            assert getattr(DatasetSpec(name, **{option: value}), option) == value
            continue
        with pytest.raises(UserError, match=f"dataset {name!r} has no option {option!r}; ") as error:
            DatasetSpec(name, **{option: value})
        others = [other for other in HAVE if option in HAVE[other]]
        assert all(other in str(error.value) for other in others)


def test_values_are_checked():
    with pytest.raises(UserError, match=r"dataset 'csv': empty: .*'kept'; did you mean 'keep'"):
        DatasetSpec("csv", empty="kept")
    with pytest.raises(UserError, match=r"no split 'stratifed'; did you mean 'stratified'"):
        DatasetSpec("csv", split="stratifed")
    assert DatasetSpec("csv", split="stratified", skip_bad=True).split == "stratified"
    assert hash(DatasetSpec("csv", prompts=(("a", "b"),)))


def test_defaults_are_the_published_protocol():
    defaults = {field.name: field.default for field in dataclasses.fields(DatasetSpec)}
    assert {name: defaults[name] for name in CHOICES} == {
        "difficult": "ignore",
        "empty": "drop",
        "labels": "lists",
        "order": "published",
    }
    assert defaults["split"] == "published"
    assert defaults["skip_bad"] is defaults["allow_counts"] is False
    assert DatasetSpec("voc2007", **{name: defaults[name] for name in OPTIONS}) == DatasetSpec("voc2007")


# -- prompts -----------------------------------------------------------------------------------


def test_names_in_prompts():
    classes = ("diningtable", "cat", "motorbike")
    assert prompt_names(classes) == ("dining table", "cat", "motorbike")
    own = (("motorbike", "motor bike"), ("diningtable", "table"))
    assert prompt_names(classes, own) == ("table", "cat", "motor bike")
    with pytest.raises(UserError, match=r"prompts: no class 'motobike'; did you mean 'motorbike'"):
        prompt_names(classes, (("motobike", "motor bike"),))
    with pytest.raises(UserError, match=r"prompts: class 'cat' needs one text, not 'kitten'"):
        prompt_names(classes, (("cat", "feline"), ("cat", "kitten")))
    with pytest.raises(UserError, match=r"prompts: class 'cat' needs one text, not ' '"):
        prompt_names(classes, (("cat", " "),))


# -- VOC ---------------------------------------------------------------------------------------

SPLITS = {
    "trainval": {"3": {"car": 1, "person": 0}, "1": {"chair": 1}, "2": {"sofa": 0}, "4": {}},
    "test": {"6": {"car": 1}, "5": {"car": 0}},
}


@pytest.fixture
def voc(tmp_path, build_voc):
    build_voc(tmp_path / "voc2007", "2007", SPLITS)

    def read(**options):
        return open_dataset(DatasetSpec("voc2007", allow_counts=True, **options), tmp_path)

    return read


def test_options_reach_the_reader(voc):
    assert (voc().train.ids, voc().test.ids) == (("1", "3"), ("6",))
    assert voc(difficult="positive").train.ids == ("1", "2", "3")
    assert voc(empty="keep").train.ids == ("1", "2", "3", "4")
    assert voc(order="file").train.ids == ("3", "1")
    assert voc(order="file", empty="keep", difficult="positive").test.ids == ("6", "5")
    assert voc(prompts=(("tvmonitor", "television"),)).prompts[-1] == "television"
    options = [
        {},
        {"difficult": "positive"},
        {"empty": "keep"},
        {"order": "file"},
        {"prompts": (("tvmonitor", "television"),)},
    ]
    assert len({voc(**some).digest for some in options}) == 5
    for some in options:  # where labels come from does not matter, only what they are
        assert voc(labels="xml", **some).digest == voc(**some).digest


def test_kept_images_are_kept_when_classes_are_restricted(voc):
    assert voc(classes=("car",)).train.ids == ("3",)
    some = voc(classes=("car",), empty="keep", prompts=(("sofa", "couch"), ("car", "auto")))
    assert some.train.ids == ("1", "2", "3", "4")
    assert some.train.labels[:, 0].tolist() == [0, 0, 1, 0]
    assert some.prompts == ("auto",)


def test_arrays_of_voc2007_are_read_before_the_tree_unless_only_the_tree_can_say(voc, tmp_path):
    root = tmp_path / "voc2007"
    for split, names in (("train", ["3.jpg", "1.jpg", "2.jpg"]), ("val", ["6.jpg"])):
        labels = np.zeros((len(names), 20))
        labels[:2, VOC.index("bird")] = 1
        np.save(root / f"formatted_{split}_images.npy", np.array(names))
        np.save(root / f"formatted_{split}_labels.npy", labels)
    arrays = voc()
    assert arrays.train.ids == ("3", "1")
    assert arrays.train.labels.sum(axis=0)[VOC.index("bird")] == 2
    assert "3 training and 1 test images" in arrays.notes[0]  # the rows of the arrays
    assert voc(labels="xml").train.labels.sum(axis=0)[VOC.index("bird")] == 0
    assert voc(difficult="positive").train.ids == ("1", "2", "3")
    (root / "VOCdevkit" / "VOC2007" / "ImageSets").rename(root / "elsewhere")
    assert voc().train.ids == ("3", "1")
    with pytest.raises(UserError, match=r"difficult = 'positive' needs the official tree"):
        voc(difficult="positive")


# -- users' own files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("csv", ["train.csv and test.csv", "labels.csv", "split", "path,labels"]),
        ("coco", ["annotations/instances_train.json", "instances_test.json", "images/"]),
        ("npy", ["formatted_{train,val}_{images,labels}.npy", "classes.txt"]),
    ],
)
def test_an_absent_folder_of_a_user_comes_with_what_belongs_there(tmp_path, name, parts):
    with pytest.raises(UserError) as caught:
        open_dataset(DatasetSpec(name, root=str(tmp_path / "mine")), tmp_path)
    message = str(caught.value)
    assert message.startswith(f"dataset {name!r} is not in {tmp_path}/mine; expected there: ")
    assert "\n" not in message
    assert all(part in message for part in parts)


def test_arrays_of_a_user(tmp_path, save_jpeg):
    root = tmp_path / "mine"
    for split, names in (("train", ["b/1.jpg", "a/2.jpg", "c.jpg"]), ("val", ["d.jpg"])):
        for k, name in enumerate(names):
            save_jpeg(root / "photos" / name, k)
        np.save(root / f"formatted_{split}_images.npy", np.array(names))
        labels = np.array([[1, 0], [1, 1], [0, 0]], dtype=bool)[: len(names)]
        np.save(root / f"formatted_{split}_labels.npy", labels)
    spec = DatasetSpec("npy", root=str(root), images="photos")
    with pytest.raises(UserError, match=r"classes.txt: no such file; it holds the names of the"):
        open_dataset(spec, tmp_path)
    (root / "classes.txt").write_text("zebra\nant\n")
    dataset = open_dataset(spec, tmp_path)
    assert dataset.classes == ("zebra", "ant")  # the order of the columns
    assert dataset.train.ids == ("b/1.jpg", "a/2.jpg")
    assert dataset.notes == ()
    (root / "photos").rename(root / "images")
    assert open_dataset(DatasetSpec("npy", root=str(root)), tmp_path).digest == dataset.digest
    (root / "classes.txt").write_text("zebra\n")
    with pytest.raises(UserError, match=r"labels.npy: bool \(3, 2\); numbers of shape \(3, 1\)"):
        open_dataset(DatasetSpec("npy", root=str(root)), tmp_path)


@pytest.mark.parametrize("place", ["images/{}", "{}", "images", "."])
def test_instances_of_a_user_with_their_images_in_the_usual_places(tmp_path, build_coco, instances, place):
    root = tmp_path / "mine"
    for split, images in (("train", {5: [2], 12: [1, 2]}), ("test", {7: [1]})):
        folder = root / place.format(split)
        folder.mkdir(parents=True, exist_ok=True)
        _, made = build_coco(tmp_path / "made", split, instances(images, {1: "cat", 2: "dog"}))
        for file in made.iterdir():
            file.rename(folder / file.name)
    (tmp_path / "made" / "annotations").rename(root / "annotations")
    dataset = open_dataset(DatasetSpec("coco", root=str(root), alias="mine"), tmp_path)
    assert (dataset.name, dataset.classes) == ("mine", ("cat", "dog"))
    assert dataset.train.ids == ("12", "5")
    assert dataset.test.paths == (root / place.format("test") / "000007.jpg",)
    named = {split: f"annotations/instances_{split}.json" for split in ("train", "test")}
    if "{" not in place:
        named["images"] = place
    assert (
        open_dataset(DatasetSpec("coco", root=str(root), alias="mine", **named), tmp_path).digest
        == dataset.digest
    )


def test_instances_of_a_user_of_which_one_is_missing(tmp_path, build_coco, instances):
    build_coco(tmp_path / "mine", "train", instances({1: [1]}, {1: "cat"}))
    with pytest.raises(UserError, match=r"annotations/instances_test.json: no such file"):
        open_dataset(DatasetSpec("coco", root=str(tmp_path / "mine")), tmp_path)
    with pytest.raises(UserError, match=r"mine/here.json: no such file"):
        open_dataset(DatasetSpec("coco", root=str(tmp_path / "mine"), train="here.json"), tmp_path)
    with pytest.raises(UserError, match=r"1 of 1 images are not on disk, such as .*/there/0"):
        open_dataset(DatasetSpec("coco", root=str(tmp_path / "mine"), images="there"), tmp_path)


def test_an_image_in_both_splits_is_refused(tmp_path, build_coco, instances):
    for split in ("train", "test"):
        build_coco(tmp_path / "coco", split, instances({1: [1]}, {1: "cat"}))
    with pytest.raises(UserError, match=r"1 images are in train and in test, such as .*000001"):
        open_dataset(DatasetSpec("coco", images="train"), tmp_path)


# -- in a grid ---------------------------------------------------------------------------------


def load(tmp_path, *datasets):
    file = tmp_path / "mine.toml"
    file.write_text(
        f"datasets = [{', '.join(datasets)}]\nratios = [0.1]\nseeds = [1]\n"
        'methods = ["linear_probe"]\nrecipe = "embedded"\n'
    )
    return [cell.dataset for cell in grid.load(str(file)).cells]


def test_every_field_can_be_given_in_a_grid(tmp_path, monkeypatch):
    monkeypatch.setenv("PHOTOS", "/data/photos")
    (found,) = load(
        tmp_path,
        '{ name = "coco", root = "${PHOTOS}/coco", alias = "mine", allow_counts = true, '
        'skip_bad = true, split = "stratified", classes = ["cat", "dog"], empty = "keep", '
        'order = "file", prompts = { cat = "small cat", "big dog" = "wolf" }, '
        'train = "a.json", test = "b.json", images = "${PHOTOS}" }',
    )
    assert found == DatasetSpec(
        "coco",
        root="/data/photos/coco",
        alias="mine",
        allow_counts=True,
        skip_bad=True,
        split="stratified",
        classes=("cat", "dog"),
        empty="keep",
        order="file",
        prompts=(("cat", "small cat"), ("big dog", "wolf")),
        train="a.json",
        test="b.json",
        images="/data/photos",
    )
    (voc,) = load(tmp_path, '{ name = "voc2012", difficult = "positive", labels = "xml" }')
    assert voc == DatasetSpec("voc2012", difficult="positive", labels="xml")
    assert load(tmp_path, '"voc2007"') == [DatasetSpec("voc2007")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('skip_bad = "yes"', r"skip_bad is 'yes'; it must be true or false"),
        ("allow_counts = 1", r"allow_counts is 1; it must be true or false"),
        ('classes = "cat"', r"classes is 'cat'; it must be a list of texts"),
        ("classes = [1]", r"classes is \[1\]; it must be a list of texts"),
        ('prompts = ["cat"]', r"prompts is \['cat'\]; it must be a table such as"),
        ("prompts = { cat = 1 }", r"prompts is \{'cat': 1\}; it must be a table such as"),
        ("root = 7", r"root is 7; it must be a text"),
        ("difficult = true", r"difficult is True; it must be a text"),
        ('difficult = "positiv"', r"difficult: .*'positiv'; did you mean 'positive'"),
        ('train = "a.csv"', r"dataset 'voc2007' has no option 'train'; coco, csv have it"),
        ('dificult = "ignore"', r"a dataset has no key 'dificult'; did you mean 'difficult'"),
        ('split = "strat"', r"no split 'strat'"),
        ('root = "${NOWHERE_SET}/x"', r"needs the environment variable NOWHERE_SET: set it"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path, fields, message):
    with pytest.raises(UserError, match=f"^mine.toml: .*{message}") as caught:
        load(tmp_path, f'{{ name = "voc2007", {fields} }}')
    assert "\n" not in str(caught.value)


def test_two_datasets_of_a_grid_need_two_names(tmp_path):
    one, two = (f'{{ name = "csv", root = "{name}" }}' for name in "ab")
    with pytest.raises(UserError, match=r"mine.toml: two datasets are .*'csv'; give .* an alias"):
        load(tmp_path, one, two)
    found = load(tmp_path, one, two.replace(" }", ', alias = "b" }'))
    assert [spec.alias for spec in found] == ["csv", "b"]

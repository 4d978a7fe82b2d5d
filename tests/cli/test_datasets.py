from __future__ import annotations

import hashlib
import os
import re
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.archives import catalogue as archives
from benchmarks.data.archives.catalogue import Archive
from benchmarks.data.cache.decode import load_image
from benchmarks.data.cache.prepared import prepare
from benchmarks.data.registry import DatasetSpec, open_dataset
from benchmarks.plan.grid import load
from benchmarks.run import parser
from methods.errors import UserError


@pytest.fixture
def run(tmp_path):
    """The verb as the command line calls it, with its own data and runs folders."""

    def call(*argv: object) -> int:
        places = ["--data", tmp_path / "data", "--runs", tmp_path / "runs", "--workers", 1]
        args = parser()[0].parse_args(["prepare", *map(str, [*places, *argv])])
        return args.execute(args)

    return call


@pytest.fixture
def voc(tmp_path, build_voc):
    """A small VOC2007 tree outside the data folder: 3 + 2 images, one of them without a label."""
    build_voc(
        tmp_path / "voc",
        "2007",
        {
            "trainval": {"000001": {"car": 1, "diningtable": 1}, "000002": {"cat": 1}, "000003": {}},
            "test": {"000004": {"car": 1, "cat": 1}, "000005": {"dog": 1}},
        },
    )
    return tmp_path / "voc"


def images(root):
    return root / "VOCdevkit" / "VOC2007" / "JPEGImages"


def test_a_tree_is_checked_and_cached(tmp_path, run, voc, capsys):
    assert run("voc2007", "--root", voc, "--size", 16, "--allow-counts") == 0
    out, err = capsys.readouterr()
    spec = DatasetSpec("voc2007", root=str(voc), allow_counts=True)
    dataset = open_dataset(spec, tmp_path / "data")
    ready = prepare(dataset, 16, tmp_path / "data" / "cache")
    # 2 + 1 labels in training, 2 + 1 in test, over four images
    assert out == (
        "voc2007: 2 training and 2 test images, 20 classes, 1.50 labels an image, 16 px, "
        f"digest {ready.digest[:16]}, {ready.directory}\n"
    )
    lines = err.splitlines()
    assert lines[0].endswith(f"in {voc}, read as voc2007")
    assert "3 training and 2 test images, where the classic voc2007 has 5,011 and 4,952" in lines[1]
    assert lines[2].startswith("voc2007: classes, with training/test images: aeroplane ")
    assert " diningtable 1/0, dog 0/1, " in lines[2]
    assert [line.split(" has aeroplane, ")[0] for line in lines[3:5]] == [
        "voc2007: no training image",
        "voc2007: no test image",
    ]
    assert re.match(r"cache of 4 images at 16 px: 0\.0 MiB in .* free$", lines[5])
    assert run("voc2007", "--root", voc, "--size", 16, "--allow-counts", "--verify") == 0
    out, err = capsys.readouterr()
    assert ", verified, " in out
    assert "cache of" not in err  # it is there
    pixels = (ready.directory / "test.u8").read_bytes()
    (ready.directory / "test.u8").write_bytes(bytes([pixels[0] ^ 1]) + pixels[1:])
    with pytest.raises(UserError, match=r"test.u8 has changed on the disk"):
        run("voc2007", "--root", voc, "--size", 16, "--allow-counts", "--verify")


def test_several_sizes_and_another_folder(tmp_path, run, voc, capsys):
    run("voc2007", "--root", voc, "--size", 16, 24, 16, "--allow-counts", "--cache", tmp_path / "c")
    out, err = capsys.readouterr()
    assert [line.split(", ")[3] for line in out.splitlines()] == ["16 px", "24 px"]
    assert len(list((tmp_path / "c").glob("voc2007-*"))) == 2
    assert f"grids read their caches in {tmp_path / 'data' / 'cache'}, not in" in err
    run(
        "voc2007", "--root", voc, "--size", 16, "--allow-counts", "--cache", tmp_path / "data" / "." / "cache"
    )
    assert "grids read" not in capsys.readouterr().err


def test_options_reach_the_reader(tmp_path, run, voc, capsys):
    run("voc2007", "--root", voc, "--size", 16, "--allow-counts", "--alias", "photos", "--empty", "keep")
    out, err = capsys.readouterr()
    assert out.startswith("photos: 3 training and 2 test images")
    assert "read as voc2007" in err
    with pytest.raises(UserError, match=r"labels: unknown value 'xmls'; did you mean 'xml'"):
        run("voc2007", "--root", voc, "--labels", "xmls")


def test_counts_that_differ_end_it(run, voc):
    with pytest.raises(UserError, match=r"3 training and 2 test images.* 5,011 and 4,952.*--allow"):
        run("voc2007", "--root", voc)


def test_an_absent_dataset_comes_with_its_commands_and_the_others_are_prepared(tmp_path, run, voc, capsys):
    (tmp_path / "data").mkdir()
    voc.rename(tmp_path / "data" / "voc2007")
    with pytest.raises(UserError) as caught:
        run("voc2012", "voc2007", "coco2014", "--size", 16, "--allow-counts")
    first, second = str(caught.value).splitlines()
    assert "VOCtrainval_11-May-2012.tar" in first
    assert "--download" in first
    assert "annotations_trainval2014.zip" in second
    assert capsys.readouterr().out.startswith("voc2007: 2 training")


def test_bad_usage_is_named(tmp_path, run):
    for words, message in (
        ([], "name either datasets or a --grid"),
        (["voc2007", "--grid", "demo"], "name either datasets or a --grid"),
        (["--grid", "demo", "--root", "x"], "--root is the grid file's business"),
        (["--grid", "demo", "--size", "64"], "--size is the grid file's business"),
        (["--grid", "demo", "--skip-bad"], "--skip-bad is the grid file's business"),
        (["--grid", "demo", "--alias", "x"], "--alias is the grid file's business"),
        (["voc2007", "voc2012", "--alias", "x"], "--alias is for one dataset, not for 2"),
        (["voc2021"], "no dataset 'voc2021'; did you mean 'voc20"),
        (["voc2007", "--train", "a.csv"], "has no option 'train'"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            run(*words)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--size: 0 is not a positive number"):
        run("voc2007", "--size", "0")


def test_a_table_is_looked_at_and_read_with_the_proposed_options(tmp_path, run, save_jpeg, capsys):
    lines = ["Image,Finding,Age", "0.jpg,a|b,30", "1.jpg,a,31", "2.jpg,b,32", "3.jpg,a,33", "4.jpg,b,34"]
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "all.csv").write_text("\n".join(lines))
    for k in range(5):
        save_jpeg(tmp_path / "t" / f"{k}.jpg", k)
    assert run("csv", "--inspect", "--root", tmp_path / "t") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert 'labels_column = "Finding", separator = "|", test_share = 0.2 }]' in line
    options = ["--train", "all.csv", "--path-column", "Image", "--labels-column", "Finding"]
    options += ["--separator", "|", "--test-share", "0.2"]
    assert run("csv", "--root", tmp_path / "t", "--size", 8, *options) == 0
    out, err = capsys.readouterr()
    assert out.startswith("csv: 4 training and 1 test images, 2 classes, ")
    assert "csv: classes, with training/test images: a " in err
    columns = [
        "--train",
        "all.csv",
        "--path-column",
        "Image",
        "--columns",
        "Finding",
        "Age",
        "--test-share",
        ".2",
    ]
    with pytest.raises(UserError, match=r"all.csv:2: column 'Finding' is 'a\|b'; it must be 0 or 1"):
        run("csv", "--root", tmp_path / "t", "--size", 8, *columns)
    with pytest.raises(UserError, match=r"--inspect is for a table"):
        run("voc2007", "--inspect")


def test_unreadable_images_are_named_or_left_out(tmp_path, run, voc, capsys):
    (images(voc) / "000004.jpg").write_bytes(b"")
    words = ("voc2007", "--root", voc, "--size", 16, "--allow-counts")
    with pytest.raises(UserError, match=r"000004.jpg \(empty file\); .* --skip-bad") as caught:
        run(*words)
    assert "\n" not in str(caught.value)
    capsys.readouterr()
    run(*words, "--skip-bad", "--verify")
    out, err = capsys.readouterr()
    assert "2 training and 1 test images" in out
    assert ", 1 unreadable images left out, verified, " in out
    assert "voc2007: 1 of 4 images cannot be read and are left out: " in err
    assert "000004.jpg (empty file); recorded in " in err


GRID = """
description = "tiny"
datasets = [{{ name = "voc2007", alias = "tiny", root = "{root}", allow_counts = true, {more} }}]
ratios = [0.5]
seeds = [1]
methods = ["supervised", {{ name = "supervised", label = "b", recipe = {{ resolution = 48 }} }}]
recipe = "embedded"
[override]
resolution = 32
"""


@pytest.mark.parametrize("skip", ["false", "true"])
def test_a_grid_s_datasets_are_prepared_as_it_needs_them(tmp_path, run, voc, capsys, skip):
    if skip == "true":
        (images(voc) / "000001.jpg").write_bytes(b"")
    grid = tmp_path / "tiny.toml"
    more = f'classes = ["car", "cat"], skip_bad = {skip}'
    grid.write_text(GRID.format(root=voc, more=more))
    run("--grid", grid)
    out = capsys.readouterr().out
    count = "1 training and 1" if skip == "true" else "2 training and 1"
    assert [line.split(", ")[0] for line in out.splitlines()] == [f"tiny: {count} test images"] * 2
    # what the grid itself then finds: nothing is left to be decoded
    ((spec, sizes),) = load(str(grid)).datasets.items()
    assert sizes == [32, 48]
    for size in sizes:
        ready = prepare(
            open_dataset(spec, tmp_path / "data"),
            size,
            tmp_path / "data" / "cache",
            progress=lambda *a: pytest.fail("decoded"),
            skip_bad=spec.skip_bad,
        )
        assert f"{size} px, digest {ready.digest[:16]}" in out


def test_a_csv_of_one_s_own(tmp_path, run, save_jpeg, capsys):
    folder = tmp_path / "my photos"
    names = [f"images/Bild {k} ä.jpg" for k in range(5)]
    for k, name in enumerate(names):
        save_jpeg(folder / name, k)
    labels = ["dog;cat", "cat", "dog", "cat", "dog;cat"]
    for file, part in (("train.csv", slice(0, 3)), ("test.csv", slice(3, 5))):
        lines = [f"{n},{c}" for n, c in zip(names[part], labels[part], strict=True)]
        (folder / file).write_text("\n".join(["path,labels", *lines]) + "\n", encoding="utf-8")
    run(
        "csv", "--root", folder, "--train", "train.csv", "--test", "test.csv", "--size", 16, "--alias", "pets"
    )
    out, err = capsys.readouterr()
    assert out.startswith(
        "pets: 3 training and 2 test images, 2 classes, 1.40 labels an image, 16 px, digest "
    )
    directory = Path(out.rstrip("\n").split(", ", 5)[-1])
    pixels = np.fromfile(directory / "train.u8", np.uint8).reshape(3, 3, 16, 16)
    assert (pixels[1] == load_image(folder / names[1], 16)).all()
    assert f"in {folder}, read as csv" in err
    with pytest.raises(UserError, match="csv"):
        run("csv", "--root", tmp_path / "nowhere")


@pytest.fixture
def published(tmp_path, voc, monkeypatch):
    """The tree as two archives on a server of this process, in place of the official ones."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "server"
    folder.mkdir()
    with tarfile.open(folder / "VOCtrainval.tar", "w") as file:
        file.add(voc / "VOCdevkit", "VOCdevkit", filter=lambda m: None if "4.jpg" in m.name else m)
    with tarfile.open(folder / "VOCtest.tar", "w") as file:
        file.add(images(voc) / "000004.jpg", "VOCdevkit/VOC2007/JPEGImages/000004.jpg")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    found = []
    for name in ("VOCtrainval.tar", "VOCtest.tar"):
        content = (folder / name).read_bytes()
        url = f"http://127.0.0.1:{http.server_port}/{name}"
        digest = "md5:" + hashlib.md5(content).hexdigest()
        found.append(Archive((url,), len(content), digest, "VOCdevkit/VOC2007", len(content)))
    monkeypatch.setattr(archives, "ARCHIVES", {"voc2007": tuple(found)})
    yield folder
    http.shutdown()
    http.server_close()


def test_an_absent_dataset_is_brought(tmp_path, run, published, capsys):
    run("voc2007", "--size", 16, "--allow-counts", "--download")
    out, err = capsys.readouterr()
    assert out.startswith("voc2007: 2 training and 2 test images")
    assert "VOCtrainval.tar: 0.1 MiB from http://127.0.0.1" in err
    assert "are needed for archives" in err
    assert (tmp_path / "data" / "voc2007" / "VOCtest.tar").is_file()
    for path in published.iterdir():
        path.unlink()
    run("voc2007", "--size", 16, "--allow-counts", "--download")  # all there


def test_an_incomplete_copy_is_completed(tmp_path, run, voc, published, capsys):
    (images(voc) / "000002.jpg").unlink()
    (images(voc) / "000004.jpg").unlink()
    with pytest.raises(UserError, match="1 of 2 images are not on disk"):
        run("voc2007", "--root", voc, "--size", 16, "--allow-counts")
    run("voc2007", "--root", voc, "--size", 16, "--allow-counts", "--download")
    assert capsys.readouterr().out.startswith("voc2007: 2 training and 2 test images")


def test_nothing_is_unpacked_over_a_copy_that_can_be_read(tmp_path, run, voc, published):
    before = sorted(os.listdir(voc))
    with pytest.raises(UserError, match="--allow-counts"):
        run("voc2007", "--root", voc, "--download")
    assert sorted(os.listdir(voc)) == before


def test_what_cannot_be_brought_says_so(tmp_path, run, capsys):
    with pytest.raises(UserError, match=r"Flickr\.zip"):
        run("nuswide", "--download")
    assert "--download: nuswide has no public archives" in capsys.readouterr().err


def test_real_photographs(tmp_path, run, capsys):
    if "SSMLL_TEST_DATA" not in os.environ:
        pytest.skip("set SSMLL_TEST_DATA to the folder of real photographs (see its README)")
    root = Path(os.environ["SSMLL_TEST_DATA"]) / "voc2007-subset"
    with pytest.raises(UserError, match=r"996 training and 1,011 test.* 5,011 and 4,952"):
        run("voc2007", "--root", root)
    run("voc2007", "--root", root, "--allow-counts", "--size", 32, "--workers", 2, "--verify")
    out, err = capsys.readouterr()
    lists = (root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main").glob("*_t*.txt")
    whole = [path for path in lists if path.stem.endswith(("_trainval", "_test"))]
    labels = sum(line.split()[1] == "1" for path in whole for line in path.open())
    assert out.startswith(
        "voc2007: 996 training and 1011 test images, 20 classes, "
        f"{labels / (996 + 1011):.2f} labels an image, 32 px, digest "
    )
    assert "996 training and 1,011 test images, where the classic voc2007 has 5,011" in err
    assert "verified" in out

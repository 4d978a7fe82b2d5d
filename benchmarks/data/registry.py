"""Datasets by name, where their files belong, and how to get them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from benchmarks.data import coco, npy, voc
from benchmarks.data.locks import exclusive
from benchmarks.data.names import COCO, NUS, VOC, prompt_names
from benchmarks.data.types import Dataset, ImageSet
from methods.errors import UserError, nearest

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DatasetSpec:
    """Which dataset, and how it is looked at.

    Attributes:
        name: one of `available()`.
        root: folder that holds it; None is `<data root>/<name>`. For glyphscenes: the folder in
            which `glyphscenes/` lies or is rendered.
        allow_counts: accept a copy whose numbers of images are not the classic ones.
        classes: restrict the label set to these classes; empty for all. Images that are left
            without a label are dropped.
        alias: the name shown in tables and kept in the run identity; by default the name.
    """

    name: str
    root: str | None = None
    allow_counts: bool = False
    classes: tuple[str, ...] = ()
    alias: str = ""

    def __post_init__(self) -> None:
        if self.name not in _READERS:
            raise UserError(f"no dataset {self.name!r}{nearest(self.name, available())}")
        if not self.alias:
            object.__setattr__(self, "alias", self.name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.alias):
            raise UserError(
                f"dataset alias {self.alias!r} names folders: use letters, digits, '.', '_', '-'"
            )


@dataclass(frozen=True)
class _Contents:
    """What a reader found; `counts` are the numbers of images to hold against the classic ones."""

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    counts: tuple[int, int]


@dataclass(frozen=True)
class _Reader:
    """How a dataset is read and where it comes from.

    Attributes:
        read: opens the folder; None when the dataset is not there.
        counts: numbers of training and test images of the classic copy; None accepts any.
        fetch: shell commands that bring it, with {root} for the folder.
    """

    read: Callable[[Path, Progress | None, int | None], _Contents | None]
    counts: tuple[int, int] | None
    fetch: str


def available() -> list[str]:
    """Names of the datasets, sorted."""
    return sorted(_READERS)


def open_dataset(
    spec: DatasetSpec,
    data_root: Path,
    *,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Dataset:
    """Read a dataset's lists and labels; no image is decoded.

    Args:
        spec: which one.
        data_root: folder in which datasets lie, one folder each.
        progress: called with (done, total) while the embedded dataset is rendered.
        workers: processes that render the embedded dataset; None is one for each core.

    Raises:
        UserError: it is absent (the message holds the commands that bring it), its files are
            wrong, its counts are not the classic ones, or a class of `spec.classes` is unknown.
    """
    reader = _READERS[spec.name]
    root = Path(spec.root).expanduser() if spec.root else data_root / spec.name
    if spec.name == "glyphscenes":
        root = Path(spec.root).expanduser() if spec.root else data_root
    found = reader.read(root, progress, workers)
    if found is None:
        raise UserError(
            f"dataset {spec.name!r} is not in {root}; get it with: "
            + reader.fetch.format(root=shlex.quote(str(root)))
        )
    notes = _check_counts(spec, reader.counts, found.counts, root)
    dataset = Dataset(
        spec.alias, found.classes, prompt_names(found.classes), found.train, found.test, notes
    )
    return dataset.restrict(spec.classes) if spec.classes else dataset


def _check_counts(
    spec: DatasetSpec, classic: tuple[int, int] | None, counts: tuple[int, int], root: Path
) -> tuple[str, ...]:
    if classic is None or counts == classic:
        return ()
    text = (
        f"{root}: {counts[0]:,} training and {counts[1]:,} test images, where the classic "
        f"{spec.name} has {classic[0]:,} and {classic[1]:,}"
    )
    if not spec.allow_counts:
        raise UserError(
            text + "; complete the copy, or accept it with --allow-counts "
            "(allow_counts = true in a grid); its numbers are then not comparable with published "
            "ones"
        )
    return (text + "; accepted",)


# -- readers -----------------------------------------------------------------------------------


def _glyphscenes(seed: int) -> Callable[..., _Contents]:
    """Reader of the rendering with a seed, which renders it first where it is absent."""

    def read(root: Path, progress: Progress | None, workers: int | None) -> _Contents:
        from benchmarks.data import glyphscenes  # its renderer is needed by nobody else

        folder = root / "glyphscenes"
        splits = [(folder / "annotations" / f"instances_{split}.json", folder / "images" / split)
                  for split in ("train", "test")]  # fmt: skip
        # The annotations are written last: where they are, nothing is left to do, and the folder
        # may be one that this user cannot write to.
        rendered = all(file.is_file() for file, _ in splits)
        if not rendered:
            root.mkdir(parents=True, exist_ok=True)
        with nullcontext() if rendered else exclusive(root / ".glyphscenes.lock"):
            try:
                glyphscenes.write(root, seed=seed, workers=workers, progress=progress)
            except ValueError as error:  # another version's or seed's files are there
                raise UserError(str(error)) from None
            except BrokenProcessPool:
                raise UserError(
                    f"{folder}: a rendering process died: out of memory, or the script that called "
                    "this does not have its work under `if __name__ == '__main__':`"
                ) from None
        return _instances(*splits)

    return read


def _coco2014(root: Path, progress: Progress | None, workers: int | None) -> _Contents | None:
    if npy.present(root):
        return _arrays(root, COCO, ["."], _coco_id)
    files = [(root / "annotations" / f"instances_{split}.json", root / split)
             for split in ("train2014", "val2014")]  # fmt: skip
    if not all(file.is_file() for file, _ in files):
        return None
    return _instances(*files)


def _coco_id(path: PurePosixPath) -> str:
    """COCO's image id out of `train2014/COCO_train2014_000000000009.jpg`: "9"."""
    digits = path.stem.rsplit("_", 1)[-1]
    if not digits.isdecimal():
        raise UserError(f"{str(path)!r} does not end in COCO's image number")
    return str(int(digits))


def _voc(year: str, train: str, test: str) -> Callable[..., _Contents | None]:
    def read(root: Path, progress: Progress | None, workers: int | None) -> _Contents | None:
        if year == "2012" and npy.present(root):
            folders = ["VOCdevkit/VOC2012/JPEGImages", "."]
            return _arrays(root, VOC, folders, lambda path: path.stem)
        tree = voc.find_tree(root, year)
        if tree is None:
            return None
        (train_images, listed), (test_images, test_listed) = (
            voc.read_split(tree, split) for split in (train, test)
        )
        return _Contents(VOC, train_images, test_images, (listed, test_listed))

    return read


def _nuswide(root: Path, progress: Progress | None, workers: int | None) -> _Contents | None:
    return _arrays(root, NUS, ["Flickr", "."], str) if npy.present(root) else None


def _instances(train: tuple[Path, Path], test: tuple[Path, Path]) -> _Contents:
    classes, train_images, test_images = coco.read_pair(train, test)
    return _Contents(classes, train_images, test_images, (len(train_images), len(test_images)))


def _arrays(
    root: Path,
    classes: tuple[str, ...],
    folders: list[str],
    name_of: Callable[[PurePosixPath], str],
) -> _Contents:
    train, test = (
        npy.read_split(root, split, classes, folders, name_of) for split in ("train", "val")
    )
    return _Contents(classes, train, test, (len(train), len(test)))


_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_COCO = "http://images.cocodataset.org"

_READERS: dict[str, _Reader] = {
    "glyphscenes": _Reader(_glyphscenes(0), None, ""),
    # Other scenes of the same kind: hyper-parameters are chosen here, never on the test images.
    "glyphscenes-dev": _Reader(_glyphscenes(99), None, ""),
    "voc2007": _Reader(
        _voc("2007", "trainval", "test"),
        (5011, 4952),
        "mkdir -p {root} && cd {root}"
        " && for f in VOCtrainval_06-Nov-2007.tar VOCtest_06-Nov-2007.tar;"
        f" do curl -fLO -C - {_VOC}/voc2007/$f && tar -xf $f; done",
    ),
    "voc2012": _Reader(
        _voc("2012", "train", "val"),
        (5717, 5823),
        "mkdir -p {root} && cd {root}"
        f" && curl -fLO -C - {_VOC}/voc2012/VOCtrainval_11-May-2012.tar"
        " && tar -xf VOCtrainval_11-May-2012.tar",
    ),
    "coco2014": _Reader(
        _coco2014,
        (82081, 40137),
        "mkdir -p {root} && cd {root}"
        f" && for f in zips/train2014.zip zips/val2014.zip"
        " annotations/annotations_trainval2014.zip;"
        f" do curl -fLO -C - {_COCO}/$f && unzip -q $(basename $f); done",
    ),
    "nuswide": _Reader(
        _nuswide,
        (150000, 60260),
        "mkdir -p {root}; put the four arrays formatted_{{train,val}}_{{images,labels}}.npy of "
        "https://zenodo.org/records/10162606 (or of the folder linked in data/README of "
        "JiahaoXxX/SSMLL-D2L_MAT) into {root}; ask for the images (Flickr.zip) at "
        "https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html "
        "and run: unzip -q Flickr.zip -d {root}",
    ),
}

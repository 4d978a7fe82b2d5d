"""The verb `prepare`: check datasets, download them where that is asked for, and cache their images.

`prepare DATASET ...` takes what the options say; `prepare --grid NAME` takes every dataset of a
grid as the grid looks at it, at every resolution it is needed at, and with --weights the weights and
tokenizers of its backbones.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.arguments import positive
from benchmarks.cli import options
from benchmarks.progress import Progress
from methods.errors import UserError

if TYPE_CHECKING:
    from benchmarks.data.dataset import Dataset
    from benchmarks.data.registry import DatasetSpec

SIZE = 224
TABLE = (
    "path_column",
    "labels_column",
    "columns",
    "separator",
    "ignore",
    "nothing",
    "suffix",
    "delimiter",
    "test_share",
    "test_seed",
    "train_list",
    "test_list",
    "duplicates",
)
"""Fields that say how a CSV is written and divided."""
SHARED = ("root", "allow_counts", "skip_bad", "difficult", "empty", "labels", "order")
"""Fields of `DatasetSpec` that options give to every dataset of the call."""
OWN = ("alias", "train", "test", "images", "train_images", "test_images", *TABLE)
"""Fields that make sense for one dataset only."""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    parser = options.verb(
        verbs,
        "prepare",
        prepare,
        help="check, download and cache datasets",
        examples=["prepare voc2012 --download", "prepare --grid full --weights --verify"],
        parents=[options.folders()],
    )
    option = parser.add_argument
    option("datasets", nargs="*", metavar="DATASET", help="names of datasets")
    option("--grid", default=None, help="instead: all datasets of a grid, as it needs them")
    option(
        "--size",
        type=positive,
        nargs="+",
        default=None,
        metavar="PIXELS",
        help=f"pixels a side (default {SIZE}); several make several caches",
    )
    option("--cache", type=Path, default=None, help="where the cache goes (default: DATA/cache)")
    option("--download", action="store_true", help="download the official archives of an absent dataset")
    option(
        "--weights",
        action="store_true",
        help="with --grid: fetch, hash and list the weights and tokenizers of its backbones, too",
    )
    option("--verify", action="store_true", help="hash all pictures and the whole cache again, and compare")
    option("--root", default=None, help="where the dataset lies, if not under --data")
    option(
        "--allow-counts",
        action="store_true",
        help="accept a copy whose image counts differ from the classic ones",
    )
    option(
        "--skip-bad",
        action="store_true",
        help="leave unreadable images out and record them, instead of failing",
    )
    option("--alias", default=None, help="the dataset's name in tables")
    option("--train", default=None, metavar="FILE", help="coco, csv: file of the training images")
    option("--test", default=None, metavar="FILE", help="coco, csv: file of the test images")
    option("--images", default=None, metavar="FOLDER", help="folder that image paths start from")
    option("--train-images", default=None, metavar="FOLDER", help="coco: the same for training images")
    option("--test-images", default=None, metavar="FOLDER", help="coco: the same for test images")
    _table_options(parser.add_argument_group("csv: tables of other forms").add_argument)
    option("--labels", default=None, help="VOC: lists (default) or xml")
    option("--difficult", default=None, help="VOC's difficult objects: ignore (default), positive")
    option("--empty", default=None, help="images without a label: drop (default) or keep")
    option("--order", default=None, help="VOC, COCO: order of images, published (default) or file")


def _table_options(option: Callable[..., argparse.Action]) -> None:
    option("--inspect", action="store_true", help="look at the table and propose a dataset line for a grid")
    option("--path-column", default=None, metavar="NAME", help="column of the image's path (default: path)")
    option("--labels-column", default=None, metavar="NAME", help="column of the classes (default: labels)")
    option("--columns", nargs="+", default=None, metavar="NAME", help="columns that are classes")
    option("--ignore", nargs="+", default=None, metavar="NAME", help="columns that are no classes")
    option("--separator", default=None, help="between the classes of a cell (default: ;)")
    option("--nothing", default=None, metavar="CLASS", help="the class that says that there is none")
    option("--suffix", default=None, help="what paths lack, such as .jpg")
    option("--delimiter", default=None, help="between columns (default: a comma; tab is a tab)")
    option("--test-share", type=float, default=None, metavar="SHARE", help="share drawn for the test")
    option("--test-seed", type=int, default=None, metavar="SEED", help="seed of that draw (default: 1)")
    option("--train-list", default=None, metavar="FILE", help="file that lists the training images")
    option("--test-list", default=None, metavar="FILE", help="file that lists the test images")
    option("--duplicates", default=None, help="lines that name one image: refuse (default) or merge")


def prepare(args: argparse.Namespace) -> int:
    """Run `prepare`.

    Prints one line for each cache; everything else goes to the progress display.

    Returns:
        The exit code, 0.

    Raises:
        UserError: bad usage, or datasets that are absent, wrong or unreadable (one line each; the
            others are prepared).
    """
    if args.inspect:
        return _inspect(args)
    progress, workspace = Progress(), options.workspace(args)
    cache = args.cache or workspace.cache
    if cache.resolve() != workspace.cache.resolve():
        progress.line(f"grids read their caches in {workspace.cache}, not in {cache}")
    wanted = _wanted(args)
    problems = _bring_weights(args) if args.weights else []
    for spec, sizes in wanted.items():
        try:
            _prepare(spec, sizes, cache, args, progress)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return 0


def _bring_weights(args: argparse.Namespace) -> list[str]:
    """Fetch and list the weights of a grid; returns what could not be fetched."""
    from benchmarks.cli import weights
    from benchmarks.plan.grid import load

    return weights.bring(load(args.grid), print)


def _inspect(args: argparse.Namespace) -> int:
    """Look at a table, and print a dataset line that reads it."""
    from benchmarks.data.readers.csv_inspect import propose

    if args.datasets != ["csv"] or args.grid:
        raise UserError("prepare: --inspect is for a table: `prepare csv --inspect --root FOLDER`")
    root = Path(args.root).expanduser() if args.root else args.data / "csv"
    print("\n".join(propose(root, args.train or "")))
    return 0


def _wanted(args: argparse.Namespace) -> dict[DatasetSpec, list[int]]:
    """The datasets that the command line names, with the sizes of each."""
    from benchmarks.data.registry import DatasetSpec

    given: dict[str, Any] = {
        field: tuple(value) if isinstance(value, list) else value
        for field in (*SHARED, *OWN)
        if (value := getattr(args, field)) is not None
    }
    if bool(args.datasets) == bool(args.grid):
        raise UserError("prepare: name either datasets or a --grid")
    if args.weights and not args.grid:
        raise UserError("prepare: --weights brings those of a grid's backbones: add --grid NAME")
    if args.grid:
        from benchmarks.plan.grid import load

        for field, value in {**given, "size": args.size}.items():
            if value:
                flag = field.replace("_", "-")
                raise UserError(f"prepare --grid: --{flag} is the grid file's business")
        return load(args.grid).datasets
    for field in OWN:
        if field in given and len(args.datasets) > 1:
            raise UserError(
                f"prepare: --{field.replace('_', '-')} is for one dataset, not for {len(args.datasets)}; "
                "prepare them one by one"
            )
    sizes = list(dict.fromkeys(args.size or [SIZE]))
    return {DatasetSpec(name=name, **given): sizes for name in args.datasets}


def _prepare(
    spec: DatasetSpec, sizes: list[int], cache: Path, args: argparse.Namespace, progress: Progress
) -> None:
    from benchmarks.data.cache import prepared

    dataset = _opened(spec, args, progress)
    progress.line(f"{dataset.name}: {_counts(dataset)} in {_root(spec, args.data)}, read as {spec.name}")
    for line in (*dataset.notes, *_classes(dataset)):
        progress.line(line)
    for size in sizes:
        ready = prepared.prepare(
            dataset,
            size,
            cache,
            workers=args.workers,
            skip_bad=spec.skip_bad,
            progress=progress.counter(f"prepare {dataset.name} at {size} px"),
            announce=progress.line,
        )
        remarks = [f"{size} px", f"digest {ready.digest[:16]}"]
        if ready.skipped:
            remarks.append(f"{len(ready.skipped)} unreadable images left out")
        for line in ready.notes:
            progress.line(line)
        if args.verify:
            ready.verify_sources(args.workers, progress.counter(f"verify the pictures of {dataset.name}"))
            ready.verify(progress.counter(f"verify {dataset.name} at {size} px"))
            remarks.append("verified")
        print(f"{dataset.name}: {_counts(ready.dataset)}, {', '.join(remarks)}, {ready.directory}")


def _opened(spec: DatasetSpec, args: argparse.Namespace, progress: Progress) -> Dataset:
    """The dataset; with --download, its archives are fetched first if it is absent or incomplete."""
    from benchmarks.data.archives import catalogue as archives
    from benchmarks.data.registry import open_dataset

    def read(spec: DatasetSpec) -> Dataset:
        show = progress.counter(f"render {spec.name}")
        return open_dataset(spec, args.data, progress=show, workers=args.workers)

    try:
        return read(spec)
    except UserError:
        if not args.download:
            raise
        if spec.name not in archives.ARCHIVES:
            progress.line(f"--download: {spec.name} has no public archives")
            raise
        # A copy that can be read, but has other counts or classes, is the user's: nothing is
        # unpacked over it.
        if _readable(dataclasses.replace(spec, classes=(), prompts=(), allow_counts=True), read):
            raise
    archives.download(spec.name, _root(spec, args.data), progress=progress.counter, announce=progress.line)
    return read(spec)


def _readable(spec: DatasetSpec, read: Callable[[DatasetSpec], Dataset]) -> bool:
    try:
        read(spec)
    except UserError:
        return False
    return True


def _root(spec: DatasetSpec, data: Path) -> Path:
    return Path(spec.root).expanduser() if spec.root else data / spec.name


def _counts(dataset: Dataset) -> str:
    images = len(dataset.train) + len(dataset.test)
    labels = int(dataset.train.labels.sum()) + int(dataset.test.labels.sum())
    return (
        f"{len(dataset.train)} training and {len(dataset.test)} test images, "
        f"{len(dataset.classes)} classes, {labels / images:.2f} labels an image"
    )


def _classes(dataset: Dataset) -> list[str]:
    """The classes with their numbers of training and test images, and those that have none."""
    counts = {"training": dataset.train.labels.sum(axis=0), "test": dataset.test.labels.sum(axis=0)}
    shown = [
        f"{name} {train}/{test}" for name, train, test in zip(dataset.classes, *counts.values(), strict=True)
    ]
    lines = [f"{dataset.name}: classes, with training/test images: {', '.join(shown)}"]
    for split, numbers in counts.items():
        without = [name for name, number in zip(dataset.classes, numbers, strict=True) if not number]
        if without:
            lines.append(f"{dataset.name}: no {split} image has {', '.join(without)}")
    return lines

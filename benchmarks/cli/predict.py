"""The verb `predict`: a trained model on a user's own images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.arguments import positive
from benchmarks.cli import kept, options
from benchmarks.progress import Progress
from benchmarks.provenance import cores
from methods.errors import UserError
from results.files import atomic_write_bytes
from results.text import one_line, utf8

if TYPE_CHECKING:
    from benchmarks.models.pictures import Pixels
    from benchmarks.models.predictions import Predictions
    from benchmarks.models.rebuild import Model

NAMED = 20
"""Unreadable images that are named one by one."""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    parser = options.verb(
        verbs,
        "predict",
        predict,
        help="score images with the model of a run that kept its weights",
        examples=[
            "predict csaa/glyphscenes/0.05/1 photos/ --out photos.csv",
            "predict 3f2a9c photos/a.jpg 'photos/b*.png' list.txt --out photos.json --strict",
        ],
        parents=[options.folders(), model_options()],
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="files, folders, patterns in quotes, or lists (.txt, a path a line)",
    )
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FILE", help="where to write (default: CSV, printed)"
    )
    parser.add_argument(
        "--format",
        choices=("csv", "json", "coco"),
        default=None,
        help="csv, json or coco results (default: by the ending of --out)",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        default=None,
        metavar="FILE",
        help="with --format coco: annotations that have the ids of images and categories",
    )
    parser.add_argument("--strict", action="store_true", help="write nothing if an image cannot be read")
    parser.add_argument(
        "--batch",
        type=positive,
        default=None,
        metavar="N",
        help="images of a forward pass (default: the run's, which gives its very scores)",
    )


def model_options() -> options.Parser:
    """The parent of verbs that load the model of a run."""
    parser = options.Parser(add_help=False)
    options.add_run(parser)
    parser.add_argument(
        "--weights",
        type=Path,
        default=None,
        metavar="FILE",
        help="pretrained weights of the backbone, where they are not where the run found them",
    )
    parser.add_argument(
        "--module",
        action="append",
        default=[],
        metavar="FILE",
        help="file with the method, if it is your own; it is executed",
    )
    return parser


def predict(args: argparse.Namespace) -> int:
    """Score images and write probability, decision and rank of each class.

    Returns:
        1 if an image cannot be read; it is named, and the others are written.

    Raises:
        UserError: no such run, image or format; the run kept no weights, or they cannot be used; with
            --strict an image that cannot be read.
    """
    form = _format(args)
    path, _ = kept.weights_of(options.workspace(args), args.run)
    from benchmarks.models.pictures import CHUNK, Pixels, find_images
    from benchmarks.models.predictions import text_of

    found, progress = find_images(args.images), Progress()
    for remark in found.remarks:
        progress.line(one_line(remark))
    from benchmarks.models.rebuild import load_model

    model = load_model(path, weights=args.weights, modules=args.module)
    workers = args.workers or cores()
    pixels = Pixels(found.paths, model.kept.size, workers if len(found.paths) > 4 * CHUNK else 1)
    predictions, stopped = _score(model, pixels, args.batch or model.batch, progress)
    for place, reason in pixels.unreadable[:NAMED]:
        print(one_line(f"cannot be read: {found.paths[place]}: {reason}"), file=sys.stderr)
    if len(pixels.unreadable) > NAMED:
        print(f"cannot be read: {len(pixels.unreadable) - NAMED} more", file=sys.stderr)
    if args.strict and pixels.unreadable:
        raise UserError(
            f"{len(pixels.unreadable)} of {len(found.paths)} images cannot be read; nothing is written"
        )
    if not len(predictions.images) and not stopped:
        raise UserError(f"none of {len(found.paths)} images can be read; nothing is written")
    if predictions.scale == "ranking":
        progress.line(
            f"scores of {model.record['spec']['method']} rank images and have no threshold: there are no "
            "probabilities and no decisions"
        )
    about = {
        "run_id": model.record["run_id"],
        "title": kept.title(model.record),
        "classes": list(predictions.classes),
    }
    text = text_of(predictions, form, about, args.annotations)
    if args.out is None:
        sys.stdout.write(text)
    else:
        atomic_write_bytes(args.out, utf8(text))
        print(f"{len(predictions.images)} images written to {args.out}")
    if stopped:
        raise KeyboardInterrupt
    return 1 if pixels.unreadable else 0


def _format(args: argparse.Namespace) -> str:
    """The form of the output, checked before any work.

    Raises:
        UserError: none that is known, or it cannot be written.
    """
    by_ending = {".csv": "csv", ".json": "json"}
    if args.out is not None and args.format is None and args.out.suffix.lower() not in by_ending:
        raise UserError(f"--out {args.out}: end it in .csv or .json, or say --format csv, json or coco")
    form = args.format or ("csv" if args.out is None else by_ending[args.out.suffix.lower()])
    if args.annotations is not None and form != "coco":
        raise UserError("--annotations goes with --format coco")
    if args.annotations is not None and not args.annotations.is_file():
        raise UserError(f"--annotations {args.annotations}: no such file")
    options.check_out(args.out)
    return form


def _score(model: Model, pixels: Pixels, batch: int, progress: Progress) -> tuple[Predictions, bool]:
    """The predictions of all readable images, and whether Ctrl-C ended it before."""
    import torch

    from benchmarks.models.predictions import Predictions

    done: list[tuple[list[int], torch.Tensor]] = []
    scored, total, stopped = 0, len(pixels.paths), False
    count = progress.counter("predict")
    count(0, total)
    try:
        for places, images in pixels.batches(batch):
            done.append((places, model.rows(torch.from_numpy(images))))
            scored += len(places)
            count(scored + len(pixels.unreadable), total)
    except KeyboardInterrupt:
        stopped = True
        scored = sum(len(places) for places, _ in done)
        progress.line(f"interrupted: {scored} of {total} images are scored")
    count(total, total)
    classes = model.record["classes"]
    scores = model.finish(torch.cat([rows for _, rows in done])) if done else torch.empty(0, len(classes))
    named = [pixels.paths[place] for places, _ in done for place in places]
    return Predictions(named, classes, scores.numpy(), model.record["score_scale"]), stopped

"""The verb `export`: a trained model as a file for other programs."""

from __future__ import annotations

import argparse
import os
import secrets
from pathlib import Path

from benchmarks.cli import kept, options
from benchmarks.cli.predict import model_options
from methods.errors import UserError
from results.weights import size_text

ENDINGS = {"torch-export": ".pt2", "onnx": ".onnx", "safetensors": ".safetensors"}


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    parser = options.verb(
        verbs,
        "export",
        export,
        help="write the model of a run that kept its weights for other programs",
        examples=[
            "export csaa/glyphscenes/0.05/1 --to torch-export --out model.pt2",
            "export 3f2a9c --to onnx --out model.onnx",
        ],
        parents=[options.folders(), model_options()],
    )
    parser.add_argument("--to", choices=tuple(ENDINGS), required=True, help="the form")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="where to write: .pt2, .onnx or .safetensors"
    )


def export(args: argparse.Namespace) -> int:
    """Export a model, load it again and compare its scores.

    Raises:
        UserError: no such run, it kept no weights, they cannot be used, or its method cannot be exported.
    """
    if args.out.suffix != ENDINGS[args.to]:
        raise UserError(f"--out {args.out}: a model exported to {args.to} ends in {ENDINGS[args.to]}")
    options.check_out(args.out)
    path, _ = kept.weights_of(options.workspace(args), args.run)
    from benchmarks.models import export as exporting

    exporting.require(args.to)
    from benchmarks.models.rebuild import load_model

    model = load_model(path, weights=args.weights, modules=args.module, precision="fp32")
    about = {"run_id": model.record["run_id"], "title": kept.title(model.record)}
    # Beside the file, so that it appears whole, and only once it is compared.
    part = args.out.with_name(f".{secrets.token_hex(4)}-{args.out.name}")
    try:
        worst = exporting.export(model, args.to, part, about)
        os.replace(part, args.out)
    finally:
        part.unlink(missing_ok=True)
    print(
        f"{args.out}: {size_text(args.out.stat().st_size)}, {about['title']}; loaded, it gives the same "
        f"scores (largest difference {worst:.2g})"
    )
    return 0

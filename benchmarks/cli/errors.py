"""The verb `errors`: the most confident mistakes of a run, as text and as a page with thumbnails."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.arguments import positive
from benchmarks.cli import kept, options
from methods.errors import UserError
from results.errors import StoreError
from results.files import atomic_write_bytes
from results.text import one_line, utf8


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    parser = options.verb(
        verbs,
        "errors",
        errors,
        help="list the most confident mistakes of a run, and write a page with thumbnails",
        examples=[
            "errors csaa/glyphscenes/0.05/1",
            "errors 3f2a9c --classes cat dog --count 20 --out mistakes.html",
        ],
        parents=[options.folders()],
    )
    options.add_run(parser)
    parser.add_argument(
        "--count", type=positive, default=5, metavar="N", help="mistakes of each class (default 5)"
    )
    parser.add_argument("--classes", nargs="+", default=[], metavar="CLASS", help="only these classes")
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="FILE",
        help="the page (default: in the folder errors beside the run store)",
    )


def errors(args: argparse.Namespace) -> int:
    """List mistakes, and show them on a page.

    Returns:
        1 if there is no page, because the cache of the images is not here; else 0.

    Raises:
        UserError: no such run, or no such class.
        StoreError: its predictions are missing, damaged, not those of the run, or hold no labels.
    """
    from results.mistakes import lines, mistakes, page
    from results.predictions import strange

    if args.out is not None and args.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {args.out}: the page is HTML; end it in .html")
    options.check_out(args.out)
    workspace = options.workspace(args)
    run, result = kept.find(workspace, args.run)
    arrays = workspace.store.predictions(run)
    problems = strange(arrays, result)
    if problems:
        raise StoreError(f"{run}: {problems[0]}")
    found = mistakes(result, arrays, args.count, args.classes)
    scale = result.get("score_scale", "ranking")
    name = kept.title({"spec": result["spec"], "run_id": result["run_id"]})
    print(f"the most confident mistakes of {name}")
    print("\n".join(lines(found, scale)))

    from benchmarks.data.cache.thumbnails import Thumbnails

    try:
        digest = str(dict(result["spec"]["dataset"]).get("digest", ""))
        pictures = Thumbnails.of(workspace.cache, digest, len(arrays["scores"]))
    except UserError as error:
        print(one_line(f"no page: {error}"), file=sys.stderr)
        return 1
    out = args.out
    if out is None:
        parts = run.relative_to(workspace.store.root).parts
        out = workspace.runs / "errors" / f"{'-'.join(parts)}.html"
        out.parent.mkdir(exist_ok=True)
    atomic_write_bytes(out, utf8(page(f"Mistakes of {name}", found, scale, pictures.jpeg)))
    print(f"written to {out}")
    return 0

"""The command line of SSMLL-Bench.

    python benchmarks/run.py --grid demo            run what is missing of a grid, print its table
    python benchmarks/run.py list [METHOD]          grids, methods, datasets; a method's card
    python benchmarks/run.py prepare DATASET        check, download and cache a dataset
    python benchmarks/run.py splits verify          are the labelled subsets what they should be?
    python benchmarks/run.py plan --grid NAME       what would run, and what it would cost
    python benchmarks/run.py status [--grid NAME]   where runs stand; --live, --json
    python benchmarks/run.py logs RUN               what a run printed; --follow
    python benchmarks/run.py retry --grid NAME      run again what failed
    python benchmarks/run.py cancel [GRID]          cancel SLURM jobs
    python benchmarks/run.py merge STORE            take over what is finished in another folder of runs
    python benchmarks/run.py clean                    what takes room; --delete
    python benchmarks/run.py doctor                 is the SLURM cluster ready?
    python benchmarks/run.py tables [--grid NAME]   write and print tables; --superseded
    python benchmarks/run.py published              numbers that papers print; --method, --dataset
    python benchmarks/run.py plots --grid NAME      write its figures
    python benchmarks/run.py why RUN                where a number comes from
    python benchmarks/run.py predict RUN IMAGES     a trained model on your images
    python benchmarks/run.py export RUN --to onnx   its model for other programs
    python benchmarks/run.py errors RUN             its most confident mistakes, with thumbnails
    python benchmarks/run.py test FILE              does a method of your own keep the contract?

`--launcher slurm` submits runs to a cluster instead. `torchrun`, `accelerate launch` and `srun` may
call the first form too: their processes then train each run together.

Exit codes: 0 everything done, 1 some runs failed (they are named), 2 bad usage, 75 asked to stop
(SIGTERM, SIGUSR2), 130 Ctrl-C. After the last two the same command goes on where it stopped. 1 too: the disk
is full, read-only or faulty, or a stored file is damaged (it is named, the other runs go on); 141: the reader
of the output (`| head`) has left.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # called as a file: the packages lie beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.path = [entry for entry in sys.path if entry != str(Path(__file__).resolve().parent)]

from benchmarks.cli import (
    clean,
    datasets,
    errors,
    export,
    listing,
    merge,
    options,
    output,
    predict,
    published,
    report,
    runs,
    slurm,
    splits,
    status,
    test,
    why,
)
from benchmarks.signals import Stopped
from methods.errors import UserError, nearest
from results.errors import StoreError
from slurm.protocol import EXIT_STOPPED

FILES = (
    runs,
    listing,
    datasets,
    splits,
    status,
    slurm,
    report,
    why,
    predict,
    export,
    errors,
    published,
    merge,
    clean,
    test,
)
"""The modules that add verbs, in the order of `--help`."""


def parser() -> tuple[options.Parser, list[str]]:
    """The command line's grammar, and the names of its verbs."""
    top = options.Parser(
        prog="run.py",
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=options.epilog(["--grid demo", "list csaa"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(dest="verb", required=True)
    for file in FILES:
        file.add(verbs)
    return top, list(verbs.choices)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return output.guarded(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        top, verbs = parser()
        if not argv:
            top.print_help()
            return 0
        if not argv[0].startswith("-") and argv[0] not in verbs:
            raise UserError(f"no command {argv[0]!r}{nearest(argv[0], verbs)}")
        if argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
            argv = ["run", *argv]  # `--grid NAME` is the main door
        args = top.parse_args(argv)
        return args.execute(args)
    except (UserError, StoreError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except Stopped:
        print("asked to stop: finished runs are kept; the same command goes on from here", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print("interrupted: finished runs are kept; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

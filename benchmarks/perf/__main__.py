"""Command line of the measurements: `python -m benchmarks.perf NAME [options]`."""

from __future__ import annotations

import argparse
import importlib
import sys

from methods.errors import UserError

MEASUREMENTS = {
    "input": "pairs of views per second, against per-image Pillow transforms in a DataLoader",
    "intervals": "seconds of the bootstrap of `tables --intervals` for a test set of COCO's size",
    "prompts": "text features of learnt prompts, against prompts of full length one by one",
    "scaling": "images trained on per second by two processes, against one",
    "status": "seconds that `run.py status` takes for thousands of runs",
    "store": "claims a second of many processes on one run store, and how `status` grows with it",
    "submit": "seconds from a grid's name to its jobs in a SLURM queue",
    "trainer": "a step of the training loop, against a bare loop with the same batches",
}
"""Module name to what it measures. Each module has `add_arguments(parser)` and `run(options) -> int`."""


def main(arguments: list[str] | None = None) -> int:
    """Run one measurement; return the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.perf", description=__doc__)
    names = parser.add_subparsers(dest="measurement", metavar="NAME", required=True)
    argv = sys.argv[1:] if arguments is None else arguments
    for name, what in MEASUREMENTS.items():
        one = names.add_parser(name, help=what, formatter_class=argparse.RawDescriptionHelpFormatter)
        if argv[:1] == [name]:
            # Import this module only: some import torch, which takes longer than others measure.
            module = importlib.import_module(f"benchmarks.perf.{name}")
            one.description = module.__doc__
            module.add_arguments(one)
            one.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

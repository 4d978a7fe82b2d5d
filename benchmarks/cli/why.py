"""The verb `why`: where a number comes from."""

from __future__ import annotations

import argparse

from benchmarks.cli import options
from results.text import one_line


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    parser = options.verb(
        verbs,
        "why",
        why,
        help="say where a number comes from",
        examples=["why csaa/glyphscenes/0.05/1", "why 62.43"],
        parents=[options.folders()],
    )
    parser.add_argument(
        "run",
        help="start of a run's identity, method/dataset/ratio/seed, or a number as a table prints it",
    )


def why(args: argparse.Namespace) -> int:
    """Print all that is stored about a run or a number, and whether a run's predictions give its metrics.

    Returns:
        1 if they give others, else 0.

    Raises:
        StoreError: nothing matches.
    """
    from benchmarks.cli.planning import planned_specs
    from benchmarks.cli.verify import of_run
    from benchmarks.plan.product_code import differing
    from results.why import is_number, matching
    from results.why import why as explain

    workspace = options.workspace(args)
    store = workspace.store
    print(explain(store, args.run, planned_specs(workspace), differing))
    found = [] if is_number(args.run) else matching(store, args.run.strip())
    lines, agrees = of_run(store, found[0]) if len(found) == 1 else ([], True)
    if lines:
        print("\n".join(map(one_line, lines)))
    return 0 if agrees else 1

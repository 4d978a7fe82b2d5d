"""What `why` and `tables --verify` say of results that are not what their stored predictions give."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cli import options
from methods.errors import UserError
from results.columns import seeds_name, subset_name
from results.text import one_line

if TYPE_CHECKING:
    from results.store import RunStore
    from results.verify import Verdict

Labels = Callable[[], Mapping[str, Any]]
"""Gets the labels of test images by the digest of a dataset."""


class Check:
    """Recomputes the runs of a table.

    Args:
        store: where they are.
        labels: asked once, if a run has no labels of its own.

    Attributes:
        agrees: whether no run was found that differs from its predictions.
    """

    def __init__(self, store: RunStore, labels: Labels = dict) -> None:
        self.store, self.labels = store, labels
        self.agrees = True

    def remarks(self, wanted: Iterable[Mapping[str, Any]]) -> list[str]:
        """Recompute runs, and name on stderr those that differ, or cannot be recomputed.

        Args:
            wanted: the runs, as `results.frames` wants them; those without a result are left out.

        Returns:
            Sentences for the table's footer.
        """
        runs = [(_title(item), self._directory(item)) for item in wanted]
        bad, unknown, count = [], [], 0
        for title, verdict in self._verdicts(runs):
            count += 1
            if verdict.problems:
                print(f"CONTRADICTED: {title}: {'; '.join(verdict.problems)}", file=sys.stderr)
                bad.append(title)
            elif not verdict.agreed:
                unknown.append(title)
                print(f"not recomputed: {title}: {verdict.unknown[0]}", file=sys.stderr)
        found = [f"Recomputed from the stored predictions: {count - len(bad) - len(unknown)} of {count}."]
        if unknown:
            found.append(f"Not recomputed, without labels: {len(unknown)}.")
        if bad:
            found.append(f"CONTRADICTED by their stored predictions, do not use: {'; '.join(bad)}.")
        self.agrees = self.agrees and not bad
        return found

    def _directory(self, item: Mapping[str, Any]) -> Path:
        return self.store.directory(item["run_id"], {**item, "dataset": {"alias": item["dataset"]}})

    def _verdicts(self, runs: Iterable[tuple[str, Path]]) -> list[tuple[str, Verdict]]:
        from results.verify import Verifier

        finished = [
            (title, run, result)
            for title, run in runs
            for result in [self.store.read(run)[1]]
            if result is not None
        ]
        verifier = Verifier(self.store)
        found = [(title, verifier.verdict(run, result)) for title, run, result in finished]
        if all(verdict.problems or verdict.agreed for _, verdict in found):
            return found
        labels = self.labels()
        if not labels:
            return found
        verifier = Verifier(self.store, labels)
        return [(title, verifier.verdict(run, result)) for title, run, result in finished]


def _title(item: Mapping[str, Any]) -> str:
    subset = subset_name(item["ratio"], item.get("budget", ""))
    seeds = seeds_name(item["seed"], item.get("split_seed"))
    return one_line(f"{item['label']} · {item['dataset']} {subset} {seeds} [{item['run_id'][:8]}]")


def of_grid(args: argparse.Namespace) -> Labels:
    """The labels of the prepared datasets of the grid that the command line names."""

    def labels() -> Mapping[str, Any]:
        from benchmarks.data.cache.prepared import find
        from benchmarks.data.registry import open_dataset, renders
        from benchmarks.progress import silent

        workspace = options.workspace(args)
        found: dict[str, Any] = {}
        for spec, sizes in options.load_grid(args).datasets.items():
            if renders(spec, workspace.data):
                continue
            try:
                dataset = open_dataset(spec, workspace.data, progress=silent("open"), make=False)
                ready = [find(dataset, size, workspace.cache, skip_bad=spec.skip_bad) for size in sizes]
            except UserError as error:
                print(f"remark: {error}", file=sys.stderr)
                continue
            found |= {each.digest: each.dataset.test.labels for each in ready if each is not None}
        return found

    return labels


def of_run(store: RunStore, run: Path) -> tuple[list[str], bool]:
    """What recomputing says of one run, for people; nothing without a result. And whether it agrees."""
    from results.verify import Verifier

    result = store.read(run)[1]
    if result is None:
        return [], True
    verdict = Verifier(store).verdict(run, result)
    return ["", "check of the metrics", *(f"  {line}" for line in verdict.lines())], not verdict.problems

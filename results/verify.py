"""Metrics of finished runs, recomputed from their stored predictions and compared with their records.

The computation here is another one than that of the training (`benchmarks.training.metrics`), on purpose: by
its definition, over the distinct scores of a class in falling order, AP = Σ_j (R_j − R_{j−1}) P_j, where all
images with one score are one step. Labels are those beside the scores; runs of earlier versions have none,
and take those of another run on the same images.

What can be recomputed are the rules ``last``, ``model`` and ``max``, whose scores are stored; ``val`` and
``oracle`` where they chose the last epoch. Of another epoch the mAP is compared with its row in epochs.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from results.errors import StoreError
from results.predictions import strange
from results.schema import CUTS, Result
from results.store import RunStore

Floats = npt.NDArray[np.float64]
Scores = npt.NDArray[Any]
Labels = npt.NDArray[np.bool_]
TOLERANCE = 1e-9
"""Percent by which two computations of one value from the same scores may differ."""
ROW_TOLERANCE = 1e-3
"""Percent by which the last epoch's row may differ: a continued run may have scored once more."""
GROUPS = ("head", "medium", "tail")


@dataclass(frozen=True)
class Verdict:
    """What recomputing says of one result.

    Attributes:
        problems: contradictions between the record and what is stored beside it, a line each.
        agreed: rules whose metrics were recomputed and are those of the record.
        unknown: what could not be recomputed, and why, a line each.
    """

    problems: tuple[str, ...]
    agreed: tuple[str, ...]
    unknown: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people."""
        found = [f"CONTRADICTED: {line}" for line in self.problems]
        if self.agreed:
            found.append(f"recomputed from predictions.npz, and equal: {', '.join(self.agreed)}")
        return found + [f"not recomputed: {line}" for line in self.unknown]


class Verifier:
    """Recomputes results; keeps the labels that it meets, for runs that have none of their own.

    Args:
        store: where the runs are.
        labels: (N, K) labels of the test images by a dataset's digest, where they are known already.
    """

    def __init__(self, store: RunStore, labels: Mapping[str, npt.NDArray[Any]] | None = None) -> None:
        self.store = store
        self._labels: dict[str, Labels] = {name: found.astype(bool) for name, found in (labels or {}).items()}
        self._owners: dict[str, str] = dict.fromkeys(self._labels, "the dataset")
        self._searched: set[Path] = set()

    def verdict(self, run: Path, result: Result) -> Verdict:
        """Compare a result with the predictions and epochs beside it.

        Args:
            run: its directory.
            result: what `RunStore.load` gives.
        """
        try:
            arrays = self.store.predictions(run)
            scores, raw = arrays["scores"], arrays.get("raw_scores")
        except StoreError as error:
            return Verdict((str(error),), (), ())
        except KeyError:
            return Verdict((f"{run}/predictions.npz holds no scores",), (), ())
        problems = [*_array_problems(result, scores, raw), *strange(arrays, result)]
        if problems:
            return Verdict(tuple(problems), (), ())
        labels, problem = self._labels_of(run, result, arrays, len(scores))
        if labels is None:
            return Verdict((problem,) if problem else (), (), () if problem else (_NO_LABELS,))
        problems += [problem] if problem else []
        rows, unknown = {}, []
        try:
            rows = {row["epoch"]: row for row in self.store.epochs(run)}
        except StoreError as error:
            unknown.append(str(error))
        check = _Check(result, labels, scores, raw, rows)
        check.all()
        return Verdict((*problems, *check.problems), tuple(check.agreed), (*unknown, *check.unknown))

    def _labels_of(
        self, run: Path, result: Result, arrays: Mapping[str, npt.NDArray[Any]], images: int
    ) -> tuple[Labels | None, str]:
        """The labels of a run's test images, None where nothing has them; and what is wrong with its own."""
        digest = str(_digest(result["spec"]) or run)
        own = arrays.get("labels")
        shape = (images, len(result["classes"]))
        if own is not None:
            if own.shape != shape or not np.isin(own, (0, 1)).all():
                return None, f"labels in predictions.npz are not {shape[0]} × {shape[1]} of 0 and 1"
            found = own.astype(bool)
            known = self._labels.setdefault(digest, found)
            owner = self._owners.setdefault(digest, run.name)
            if known.shape != found.shape or (known != found).any():
                return found, f"its labels of the test images are not those of {owner}, on the same images"
            return found, ""
        if digest not in self._labels:
            self._search(run.parent.parent)
        other = self._labels.get(digest)
        if other is not None and other.shape != shape:
            return None, f"{images} × {shape[1]} scores for {other.shape[0]} × {other.shape[1]} labels"
        return other, ""

    def _search(self, dataset: Path) -> None:
        """Take over the labels that the other runs of a dataset hold."""
        if dataset in self._searched:
            return
        self._searched.add(dataset)
        for other in self.store.scan():
            result = self.store.read(other)[1] if other.parent.parent == dataset else None
            digest = None if result is None else _digest(result["spec"])
            if digest is None or digest in self._labels:
                continue
            try:
                labels = self.store.predictions(other).get("labels")
            except StoreError:  # said when its own turn comes
                continue
            if labels is not None and labels.ndim == 2:
                self._labels[digest], self._owners[digest] = labels.astype(bool), other.name


_NO_LABELS = (
    "its predictions hold no labels (an earlier version made it), and no other run here has them; "
    "`tables --verify --grid NAME` takes those of the dataset"
)


class _Check:
    """One result against its arrays."""

    def __init__(
        self,
        result: Result,
        labels: Labels,
        scores: Scores,
        raw: Scores | None,
        rows: Mapping[int, Mapping[str, Any]],
    ) -> None:
        self.metrics: Mapping[str, Any] = result["metrics"]
        self.last = self.metrics["last"]
        self.scale = _scale(result, scores, labels)
        self.rows = rows
        self.problems: list[str] = []
        self.agreed: list[str] = []
        self.unknown: list[str] = []
        self.computed = {"ema": self._summary(scores, labels)}
        self.computed["model"] = self.computed["ema"] if raw is None else self._summary(raw, labels)

    def _summary(self, scores: Scores, labels: Labels) -> dict[str, Any]:
        return recomputed(scores, labels, self.last["train_counts"], self.scale)

    def all(self) -> None:
        """Compare every rule."""
        self._same("last", self.last, self.computed["ema"])
        if self.metrics.get("model") is not None:
            self._same("model", self.metrics["model"], self.computed["model"])
        best = self.metrics.get("max")
        if best is not None:
            weights = best.get("weights", "ema")
            self._same("max", best, self.computed[weights])
            higher = max(found["mAP"] for found in self.computed.values())
            if best["mAP"] < higher - TOLERANCE:
                self.problems.append(
                    f"max mAP is {best['mAP']:.4f}, and the better weights have {higher:.4f}"
                )
        final = max(self.rows, default=0)
        row = self.rows.get(final, {}).get("mAP_ema")
        if row is not None and abs(row - self.last["mAP"]) > ROW_TOLERANCE:
            self.problems.append(
                f"last mAP is {self.last['mAP']:.4f}, and epochs.jsonl says {row:.4f} of epoch {final}"
            )
        for rule in ("val", "oracle"):
            if self.metrics.get(rule) is not None:
                self._chosen(rule, self.metrics[rule], final)
        oracle = self.metrics.get("oracle")
        if oracle is not None and oracle["mAP"] < self.last["mAP"] - ROW_TOLERANCE:
            self.problems.append(f"oracle mAP {oracle['mAP']:.4f} is below that of the last epoch")

    def _chosen(self, rule: str, summary: Mapping[str, Any], final: int) -> None:
        """A rule that chooses an epoch."""
        epoch = summary.get("epoch")
        weights = summary.get("weights", "ema")
        if epoch is None:  # a method that is fitted once
            self._same(rule, summary, self.computed["ema"])
            return
        row = self.rows.get(epoch)
        if row is None:
            self.unknown.append(f"{rule}: of epoch {epoch}, whose scores are not stored")
            return
        # Raw weights without an average beside them are evaluated, and called, as both.
        values = [row[name] for name in ("mAP_ema", "mAP_model") if row.get(name) is not None]
        if weights == "ema":
            values = values[:1] if row.get("mAP_ema") is not None else []
        if values and all(abs(value - summary["mAP"]) > ROW_TOLERANCE for value in values):
            said = " and ".join(f"{value:.4f}" for value in values)
            self.problems.append(
                f"{rule} mAP is {summary['mAP']:.4f}, and epochs.jsonl says {said} of epoch {epoch}"
            )
        elif epoch == final:
            self._same(rule, summary, self.computed[weights], ROW_TOLERANCE)
        else:
            self.unknown.append(f"{rule}: of epoch {epoch}, whose scores are not stored; its row agrees")

    def _same(
        self, rule: str, said: Mapping[str, Any], found: Mapping[str, Any], tolerance: float = TOLERANCE
    ) -> None:
        differ = [
            f"{rule} {name} is {_shown(a)} in result.json and {_shown(b)} by predictions.npz"
            for name in found
            for a, b in [(said.get(name), found[name])]
            if not _equal(a, b, tolerance)
        ]
        if differ:
            more = f" (and {len(differ) - 1} more values differ)" if len(differ) > 1 else ""
            self.problems.append(differ[0] + more)
        else:
            self.agreed.append(rule)


def recomputed(scores: Scores, labels: Labels, train_counts: Iterable[int], scale: str) -> dict[str, Any]:
    """The measures of a result's summary, in percent.

    Args:
        scores: (N, K) real; higher = more present.
        labels: (N, K) bool.
        train_counts: K training images that have each class.
        scale: "logits", "probabilities" or "ranking", which has no F1.
    """
    ap = np.array([_ap(scores[:, k], labels[:, k]) for k in range(scores.shape[1])])
    groups = _groups(list(train_counts))
    found: dict[str, Any] = {
        "mAP": _mean(ap),
        "num_classes": int(np.isfinite(ap).sum()),
        "AP": [None if np.isnan(value) else 100.0 * float(value) for value in ap],
        "groups": groups,
    }
    for name in GROUPS:
        found[name] = _mean(ap[np.array([group == name for group in groups], dtype=bool)])
    if scale == "ranking":
        found |= {"OF1": None, "CF1": None}
    else:
        found |= _f1(scores > CUTS[scale], labels)
    return found


def _ap(scores: Scores, labels: Labels) -> float:
    """AP of a class; NaN without a positive."""
    total = int(labels.sum())
    if not total:
        return float("nan")
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # last of each score
    hits = np.cumsum(labels[order])[ends].astype(np.float64)
    recall, precision = hits / total, hits / (ends + 1)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def _f1(predicted: Labels, labels: Labels) -> dict[str, float | None]:
    """Micro F1, and the harmonic mean of macro precision and recall over the classes with a positive."""
    hits, guesses, truths = ((predicted & labels).sum(0), predicted.sum(0), labels.sum(0))
    micro = 2 * int(hits.sum()) / max(int(guesses.sum() + truths.sum()), 1)
    present = truths > 0
    precision = (hits[present] / np.maximum(guesses[present], 1)).mean()
    recall = (hits[present] / truths[present]).mean()
    macro = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"OF1": 100.0 * micro, "CF1": 100.0 * float(macro)}


def _groups(counts: list[int]) -> list[str]:
    """Thirds of the classes by falling training count, equal counts by position."""
    ranked = sorted(range(len(counts)), key=lambda k: (-counts[k], k))
    size, rest = divmod(len(counts), len(GROUPS))
    names = [name for i, name in enumerate(GROUPS) for _ in range(size + (i < rest))]
    found = [""] * len(counts)
    for k, name in zip(ranked, names, strict=True):
        found[k] = name
    return found


def _mean(values: Floats) -> float | None:
    counted = values[np.isfinite(values)]
    return 100.0 * float(counted.mean()) if len(counted) else None


def _array_problems(result: Result, scores: Scores, raw: Scores | None) -> Iterable[str]:
    """What is wrong with the arrays themselves."""
    classes = len(result["classes"])
    for name, array in (("scores", scores), ("raw_scores", raw)):
        if array is None:
            continue
        if array.ndim != 2 or array.shape[1] != classes or array.shape != scores.shape or not len(array):
            yield f"{name} in predictions.npz have shape {array.shape}, for {classes} classes"
        elif array.dtype.kind != "f" or not np.isfinite(array).all():
            yield f"{name} in predictions.npz are not all finite numbers"


def _scale(result: Result, scores: Scores, labels: Labels) -> str:
    """What a score is; earlier results do not say it, but whether F1 exists, and its values."""
    last = result["metrics"]["last"]
    said = result.get("score_scale")
    if said:
        return said
    if last["OF1"] is None:
        return "ranking"
    if scores.min() < 0 or scores.max() > 1:
        return "logits"
    fits = _equal(last["OF1"], _f1(scores > CUTS["logits"], labels)["OF1"], TOLERANCE)
    return "logits" if fits else "probabilities"


def _digest(spec: Mapping[str, Any]) -> str | None:
    return spec["dataset"].get("digest")


def _equal(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= tolerance
    return a == b


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "another list" if isinstance(value, list) else str(value)

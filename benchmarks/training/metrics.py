"""Evaluation measures: exact average precision, F1 and the quality of pseudo-labels.

Units: `average_precision` returns fractions in [0, 1], as scikit-learn does; everything that goes
into a stored result (`summary`, `f1`, `pseudo_label_quality`) is in percent, as the literature
prints it. A value that does not exist (a class without a positive, a precision without a
prediction) is NaN in arrays and None in the JSON-able dictionaries; it never counts as zero
unless the docstring says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Scale = Literal["logits", "probabilities", "ranking"]
GROUPS = ("head", "medium", "tail")


def average_precision(
    scores: Any, targets: Any, *, classes: Sequence[str] | None = None
) -> npt.NDArray[np.float64]:
    """Exact un-interpolated average precision of every class.

    AP = sum_j (R_j - R_{j-1}) P_j over the distinct scores j in falling order, which is the mean
    over the positives of the precision at their score. Equal scores form one threshold, so the
    value does not depend on the order of the images (half-precision scores tie often).

    Args:
        scores: (N, K) numpy array or torch tensor, any real dtype; higher = more present. Half
            precision is widened to float32, other dtypes are compared as they are.
        targets: (N, K) numpy array or torch tensor of 0 and 1 (any dtype).
        classes: K names, used in error messages only.

    Returns:
        (K,) float64 in [0, 1]; NaN for a class without a positive.

    Raises:
        ValueError: shapes differ, a target is neither 0 nor 1, or a score is NaN or infinite (the
            message names the class and the count).

    Example:
        The positives of the first class have ranks 1 and 3: (1/1 + 2/3) / 2. The second has none.

        >>> average_precision([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], [[1, 0], [0, 0], [1, 0]]).round(4)
        array([0.8333,    nan])
    """
    score, target = _checked(scores, targets, classes)
    # One contiguous row per class: sorting along samples is then sequential in memory.
    rows = np.ascontiguousarray(score.T)
    masks = np.ascontiguousarray(target.T)
    result = np.full(rows.shape[0], np.nan)
    for k, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        positive = np.sort(row[mask])
        if not positive.size:
            continue
        # Only the ranks of the positives matter, so sorting values (no arg-sort, no gather) is
        # enough, and nothing below the lowest positive can change a precision.
        reached = np.sort(row[row >= positive[0]])
        true = positive.size - np.searchsorted(positive, positive)
        predicted = reached.size - np.searchsorted(reached, positive)
        result[k] = np.mean(true / predicted)
    return result


def mean_average_precision(
    scores: Any, targets: Any, *, classes: Sequence[str] | None = None
) -> tuple[float, int]:
    """Macro mean of `average_precision` over the classes that have a positive.

    The published CAP code counts a class without a positive as 0; here it is left out and the
    number of classes that were counted is returned beside the mean.

    Args:
        scores: (N, K), see `average_precision`.
        targets: (N, K) of 0 and 1.
        classes: K names for error messages.

    Returns:
        (mAP in percent, number of classes counted).

    Raises:
        ValueError: as `average_precision`, or no class has a positive.

    Example:
        >>> mean_average_precision([[0.9, 0.1], [0.8, 0.2]], [[0, 0], [1, 0]])
        (50.0, 1)
    """
    return _macro(average_precision(scores, targets, classes=classes))


def f1(scores: Any, targets: Any, *, scale: Scale, classes: Sequence[str] | None = None) -> dict:
    """Micro and macro precision, recall and F1 of the labels with a probability above 0.5.

    OP, OR, OF1 pool all labels. CP and CR are means over the classes with a positive in `targets`
    (CP counts a class that is never predicted as 0, so silence is not rewarded) and CF1 is
    their harmonic mean, as in CNN-RNN (Wang et al., CVPR 2016) and ML-GCN (Chen et al., CVPR 2019);
    it is not the mean of the per-class F1.

    Args:
        scores: (N, K) numpy or torch.
        targets: (N, K) of 0 and 1.
        scale: what a score is. "logits": positive above 0. "probabilities": in [0, 1], positive
            above 0.5. "ranking": no threshold has a meaning (a cosine similarity, say), so every
            value is None.
        classes: K names for error messages.

    Returns:
        OP, OR, OF1, CP, CR, CF1 in percent or None, and "per_class", a list of K F1 values in
        percent, None for a class without a positive.

    Raises:
        ValueError: as `average_precision`; an unknown scale; probabilities outside [0, 1].

    Example:
        One true positive, one false positive, one miss in the second class.

        >>> found = f1([[2.0, 1.0], [-1.0, -1.0]], [[1, 0], [0, 1]], scale="logits")
        >>> found["OP"], found["OR"], found["CP"], found["per_class"]
        (50.0, 50.0, 50.0, [100.0, 0.0])
    """
    score, target = _checked(scores, targets, classes)
    if scale == "ranking":
        names = ("OP", "OR", "OF1", "CP", "CR", "CF1")
        return {**dict.fromkeys(names), "per_class": [None] * target.shape[1]}
    if scale == "probabilities":
        if score.size and (score.min() < 0 or score.max() > 1):
            raise ValueError(
                f"scores on the scale 'probabilities' must lie in [0, 1] but span "
                f"[{score.min():g}, {score.max():g}]; pass scale='logits' if they are logits"
            )
        predicted = score > 0.5
    elif scale == "logits":
        predicted = score > 0
    else:
        raise ValueError(f"unknown scale {scale!r} (valid: 'logits', 'probabilities', 'ranking')")
    tp = (predicted & target).sum(0).astype(np.float64)
    fp = (predicted & ~target).sum(0).astype(np.float64)
    fn = (~predicted & target).sum(0).astype(np.float64)
    present = (tp + fn) > 0
    precision = _ratio(tp, tp + fp, empty=0.0)
    recall = _ratio(tp, tp + fn)
    per_class = np.where(present, _ratio(2 * tp, 2 * tp + fp + fn), np.nan)
    op = float(_ratio(tp.sum(), tp.sum() + fp.sum(), empty=0.0))
    overall_recall = float(_ratio(tp.sum(), tp.sum() + fn.sum()))
    cp, cr = _nanmean(precision[present]), _nanmean(recall[present])
    return {
        "OP": _percent(op),
        "OR": _percent(overall_recall),
        "OF1": _percent(_harmonic(op, overall_recall)),
        "CP": _percent(cp),
        "CR": _percent(cr),
        "CF1": _percent(_harmonic(cp, cr)),
        "per_class": [_percent(v) for v in per_class],
    }


def frequency_groups(train_counts: Any) -> list[str]:
    """Assign every class to head, medium or tail: terciles of the classes by training count.

    Classes are sorted by falling count (equal counts: by class index) and cut into three runs of
    equal length; with K not a multiple of three the first runs are longer by one.

    Args:
        train_counts: (K,) number of training images that have each class.

    Returns:
        K strings, each "head", "medium" or "tail".

    Example:
        >>> frequency_groups([5, 100, 20, 1])
        ['medium', 'head', 'head', 'tail']
    """
    counts = _numpy(train_counts)
    if counts.ndim != 1:
        raise ValueError(f"train_counts must have shape (K,), not {counts.shape}")
    order = np.argsort(-counts.astype(np.float64), kind="stable")
    groups = [""] * counts.size
    for name, members in zip(GROUPS, np.array_split(order, len(GROUPS)), strict=True):
        for k in members:
            groups[k] = name
    return groups


def summary(
    scores: Any,
    targets: Any,
    train_counts: Any,
    *,
    scale: Scale,
    classes: Sequence[str] | None = None,
) -> dict:
    """Every measure that a result stores, as a JSON-able dictionary.

    Args:
        scores: (N, K) numpy or torch.
        targets: (N, K) of 0 and 1.
        train_counts: (K,) training images that have each class, for head / medium / tail.
        scale: what a score is, see `f1`.
        classes: K names for error messages.

    Returns:
        mAP (percent), num_classes (classes counted in it), AP (K values in percent, None for a
        class without a positive), OF1, CF1 (percent or None), head, medium, tail (mAP of each
        group in percent, None for a group without a class that has a positive), groups (K names)
        and train_counts (K integers).

    Raises:
        ValueError: as `mean_average_precision` and `f1`, or train_counts is not (K,).

    Example:
        >>> found = summary([[0.9, 0.6], [0.1, 0.8]], [[1, 1], [0, 0]], [7, 3], scale="probabilities")
        >>> found["mAP"], found["AP"], found["groups"]
        (75.0, [100.0, 50.0], ['head', 'medium'])
    """
    ap = average_precision(scores, targets, classes=classes)
    counts = _numpy(train_counts)
    if counts.shape != ap.shape:
        raise ValueError(f"train_counts must have shape {ap.shape}, not {counts.shape}")
    value, num_classes = _macro(ap)
    groups = frequency_groups(counts)
    by_group = {name: _percent(_nanmean(ap[[group == name for group in groups]])) for name in GROUPS}
    thresholded = f1(scores, targets, scale=scale, classes=classes)
    return {
        "mAP": value,
        "num_classes": num_classes,
        "AP": [_percent(v) for v in ap],
        "OF1": thresholded["OF1"],
        "CF1": thresholded["CF1"],
        **by_group,
        "groups": groups,
        "train_counts": [int(c) for c in counts],
    }


def pseudo_label_quality(counts: Mapping[str, Any]) -> dict:
    """Precision, recall and coverage of the pseudo-labels of an epoch.

    A *positive pseudo-label* is an entry that is used (mask 1) with target 1. OP and OR are micro
    precision and recall over all classes, CP and CR their macro means, as the CAP code logs them:
    CP is over the classes with a positive pseudo-label, CR over the classes with a hidden positive
    (the others have no value and are left out; `classes_CP` and `classes_CR` state how many were
    counted). A hidden positive that is not used at all is a miss. OF1 and CF1 are harmonic means.
    Coverage is the share of entries that are used.

    Args:
        counts: per-class (K,) integers, numpy or torch, that add up over batches and processes:
            tp (positive pseudo-label, truly present), fp (positive pseudo-label, absent), fn
            (present, no positive pseudo-label), tn (used as a negative, absent) and used (entries
            with mask 1); and total, the entries of a class in the pool: an integer or (K,).

    Returns:
        OP, OR, OF1, CP, CR, CF1, coverage in percent (None where undefined), classes_CP,
        classes_CR, and "per_class" with lists "precision", "recall", "coverage" of K values.

    Raises:
        ValueError: a count is missing, the shapes differ, or more entries are used than exist.

    Example:
        >>> counts = {"tp": [3], "fp": [1], "fn": [3], "tn": [4], "used": [8], "total": 16}
        >>> found = pseudo_label_quality(counts)
        >>> found["OP"], found["OR"], found["coverage"]
        (75.0, 50.0, 50.0)
    """
    names = ("tp", "fp", "fn", "tn", "used", "total")
    missing = [name for name in names if name not in counts]
    if missing:
        raise ValueError(f"pseudo-label counts lack {', '.join(missing)} (need {', '.join(names)})")
    arrays = {name: _numpy(counts[name]).astype(np.float64) for name in names}
    arrays["total"] = np.broadcast_to(
        arrays["total"], np.broadcast_shapes(arrays["total"].shape, arrays["tp"].shape)
    )
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"pseudo-label counts must all have one shape (K,), not {sorted(shapes)}")
    tp, fp, fn, tn, used, total = (arrays[name] for name in names)
    if (used > total).any() or (tp + fp + tn > used).any():
        k = int(np.flatnonzero((used > total) | (tp + fp + tn > used))[0])
        raise ValueError(
            f"pseudo-label counts of class {k} do not add up: tp {tp[k]:g} + fp {fp[k]:g} + "
            f"tn {tn[k]:g} must be at most used {used[k]:g}, and used at most total {total[k]:g}"
        )
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    op = float(_ratio(tp.sum(), tp.sum() + fp.sum()))
    overall_recall = float(_ratio(tp.sum(), tp.sum() + fn.sum()))
    cp, cr = _nanmean(precision), _nanmean(recall)
    return {
        "OP": _percent(op),
        "OR": _percent(overall_recall),
        "OF1": _percent(_harmonic(op, overall_recall)),
        "CP": _percent(cp),
        "CR": _percent(cr),
        "CF1": _percent(_harmonic(cp, cr)),
        "coverage": _percent(float(_ratio(used.sum(), total.sum()))),
        "classes_CP": int(np.isfinite(precision).sum()),
        "classes_CR": int(np.isfinite(recall).sum()),
        "per_class": {
            "precision": [_percent(v) for v in precision],
            "recall": [_percent(v) for v in recall],
            "coverage": [_percent(v) for v in _ratio(used, total)],
        },
    }


def _numpy(values: Any) -> npt.NDArray[Any]:
    """A numpy view or copy of an array, tensor or sequence; half precision becomes float32."""
    if hasattr(values, "detach"):  # a torch tensor, without importing torch here
        values = values.detach().cpu()
        # numpy has no bfloat16, so the widening has to happen on torch's side.
        values = values.float() if "float16" in str(values.dtype) else values
        return values.numpy()
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _checked(
    scores: Any, targets: Any, classes: Sequence[str] | None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Validated (scores as float, targets as bool), both (N, K)."""
    score, target = _numpy(scores), _numpy(targets)
    if score.ndim != 2 or score.shape != target.shape:
        raise ValueError(
            f"scores and targets must both have shape (N, K), not {score.shape} and {target.shape}"
        )
    if classes is not None and len(classes) != score.shape[1]:
        raise ValueError(f"{len(classes)} class names for scores with {score.shape[1]} classes")
    if score.dtype.kind != "f":
        score = score.astype(np.float64)
    finite = np.isfinite(score)
    if not finite.all():
        bad = (~finite).sum(0)
        found = np.flatnonzero(bad)
        k = int(found[0])
        name = f"class {k}" if classes is None else f"class {k} '{classes[k]}'"
        more = f", and in {found.size - 1} more classes" if found.size > 1 else ""
        raise ValueError(
            f"{int(bad[k])} of {score.shape[0]} scores of {name} are NaN or infinite{more}; "
            "the model has diverged or predict() is wrong"
        )
    truth = target.astype(bool)
    if not np.array_equal(truth, target):
        k = int(np.flatnonzero((truth != target).any(0))[0])
        value = target[:, k][truth[:, k] != target[:, k]][0]
        raise ValueError(f"targets must be 0 or 1; class {k} holds {value}")
    return score, truth


def _macro(ap: npt.NDArray[np.float64]) -> tuple[float, int]:
    counted = np.isfinite(ap)
    if not counted.any():
        raise ValueError(f"none of the {ap.size} classes has a positive, so mAP does not exist")
    return 100.0 * float(ap[counted].mean()), int(counted.sum())


def _ratio(numerator: Any, denominator: Any, empty: float = np.nan) -> npt.NDArray[np.float64]:
    """Quotient, `empty` where the denominator is 0."""
    numerator, denominator = np.asarray(numerator), np.asarray(denominator)
    result = np.full(denominator.shape, empty)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def _harmonic(precision: float, recall: float) -> float:
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def _nanmean(values: npt.NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _percent(fraction: float) -> float | None:
    """Fraction to percent; None for a value that does not exist (JSON has no NaN)."""
    return 100.0 * float(fraction) if np.isfinite(fraction) else None

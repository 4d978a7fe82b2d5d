"""Linear probe: one logistic regression per class on frozen features.

Source: the linear probe of CLIP (Radford et al., ICML 2021), L-BFGS with an L2 penalty chosen on
held-out data; the search over C is the binary search of CoOp's `lpclip/linear_probe.py` (Zhou et
al., IJCV 2022, github KaiyangZhou/CoOp).

What it does: holds out 20 % of the labelled images, picks the C that gives the best mean average
precision on them (one C for all classes), and refits on all labelled images. C starts from
{1e-6, 1e-4, …, 1e6}; an interval of a factor of ten each side of the best is then halved eight
times towards its better end.

What differs from the originals: multi-label, so one-vs-rest with average precision instead of
accuracy; the best C seen is kept rather than the last; a class without positives (or without
negatives) gets a constant score; the regressions of all classes are one L-BFGS problem (they share
nothing but the iterations), warm-started along the search. When no class can be scored on the
held-out part, C is the 0.316 of CLIP's own example.

Expected score: none known under this protocol. Cost: one pass of the frozen image tower over the
labelled and test images, then seconds (4,104 images × 512 features × 80 classes: about a minute).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from methods.backbones import Backbone
from methods.base import FitMethod, Task
from methods.errors import check_range
from methods.registry import register

STARTS = tuple(10.0**k for k in (-6, -4, -2, 0, 2, 4, 6))
HALVINGS = 8
CLIP_EXAMPLE_C = 0.316
CONSTANT = 30.0  # logit of a class whose labels are all alike
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class LinearProbeHyper:
    """Hyper-parameters of the linear probe.

    Attributes:
        preprocess: features are brought to unit length ("l2"), or centred and scaled per dimension
            by the labelled images' mean and deviation ("standardise"), or both in this order.
        class_weight: "balanced" weighs positives and negatives of a class equally.
        held_out: share of the labelled images that C is chosen on.
        max_iterations: of L-BFGS.
    """

    preprocess: Literal["l2", "standardise", "l2+standardise"] = "l2+standardise"
    class_weight: Literal["none", "balanced"] = "none"
    held_out: float = 0.2
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        check_range("linear_probe.held_out", self.held_out, 0.01, 0.99)
        check_range("linear_probe.max_iterations", self.max_iterations, 1)


@register
class LinearProbe(FitMethod):
    """One-vs-rest logistic regression with a shared C; see the module's docstring.

    Attributes:
        C: the chosen inverse strength of the penalty, after `fit`.
        searched: held-out mean average precision (in [0, 1]) by C, after `fit`.
    """

    name = "linear_probe"
    Hyper = LinearProbeHyper
    score_scale = "logits"

    def __init__(self, backbone: Backbone, task: Task, hyper: LinearProbeHyper) -> None:
        super().__init__(backbone, task, hyper)
        self.C = CLIP_EXAMPLE_C
        self.searched: dict[float, float] = {}

    def fit(self, features: Tensor, seed: int) -> None:
        """See `FitMethod.fit`; ``seed`` draws the held-out part."""
        self._set_preprocessing(features)
        x = self._preprocess(features)
        y = self.task.labels.double().numpy()
        self.C = self._choose(x, y, seed)
        weights = self._regress(x, y, self.C)
        self.weights = torch.from_numpy(weights)

    def predict(self, features: Tensor) -> Tensor:
        """Return (N, K) float32 logits."""
        x = torch.from_numpy(self._preprocess(features))
        return (x @ self.weights[:-1] + self.weights[-1]).float()

    def _set_preprocessing(self, features: Tensor) -> None:
        unit = self._unit(features)
        self.centre, self.spread = torch.zeros(unit.shape[1]), torch.ones(unit.shape[1])
        if "standardise" in self.hyper.preprocess:
            self.centre, self.spread = unit.mean(dim=0), unit.std(dim=0, correction=0)
            self.spread = torch.where(self.spread > 0, self.spread, torch.ones(()))

    def _unit(self, features: Tensor) -> Tensor:
        features = features.detach().double().cpu()
        return F.normalize(features, dim=-1) if "l2" in self.hyper.preprocess else features

    def _preprocess(self, features: Tensor) -> Matrix:
        return ((self._unit(features) - self.centre) / self.spread).numpy()

    def _regress(self, x: Matrix, y: Matrix, c: float, start: Matrix | None = None) -> Matrix:
        hyper = self.hyper
        return logistic_regression(
            x, y, c, hyper.class_weight == "balanced", hyper.max_iterations, start
        )

    def _choose(self, x: Matrix, y: Matrix, seed: int) -> float:
        """C by held-out mean average precision."""
        order = np.random.RandomState(seed).permutation(len(x))
        held = max(1, round(self.hyper.held_out * len(x)))
        out, kept = order[:held], order[held:]
        scored = np.flatnonzero(_varies(y[out]) & _varies(y[kept]))
        if len(scored) == 0:
            return CLIP_EXAMPLE_C
        start: Matrix | None = None
        self.searched = {}

        def score(c: float) -> float:
            nonlocal start
            if c not in self.searched:
                start = self._regress(x[kept], y[kept][:, scored], c, start)
                logits = x[out] @ start[:-1] + start[-1]
                precision = [
                    average_precision_score(y[out, k], logits[:, column])
                    for column, k in enumerate(scored)
                ]
                self.searched[c] = float(np.mean(precision))
            return self.searched[c]

        return binary_search(score, STARTS)


def binary_search(score: Callable[[float], float], starts: Sequence[float]) -> float:
    """The best of ``starts`` and of the halvings, towards the better end, around it.

    Args:
        score: function of a positive number, larger is better.
        starts: first candidates, ascending.

    Returns:
        The best number scored; of equals, the one closest to CLIP's example of 0.316.
    """
    seen = {c: score(c) for c in starts}

    def best() -> float:
        return max(seen, key=lambda c: (seen[c], -abs(np.log10(c / CLIP_EXAMPLE_C))))

    low, high = np.log10(best()) - 1, np.log10(best()) + 1
    for _ in range(HALVINGS):
        for end in (low, high):
            seen[float(10.0**end)] = score(float(10.0**end))
        middle = (low + high) / 2
        better_above = seen[float(10.0**low)] < seen[float(10.0**high)]
        low, high = (middle, high) if better_above else (low, middle)
    return best()


def _varies(y: Matrix) -> NDArray[np.bool_]:
    """(K,) whether a column of (n, K) holds both label values."""
    return (y.max(axis=0, initial=0) > 0) & (y.min(axis=0, initial=1) < 1)


def logistic_regression(
    x: Matrix,
    y: Matrix,
    c: float,
    balanced: bool = False,
    max_iterations: int = 1000,
    start: Matrix | None = None,
    tolerance: float = 1e-5,
) -> Matrix:
    """One-vs-rest logistic regression with an L2 penalty, all classes at once.

    Minimises, per class, C · Σ_i w_i log(1 + exp(-ŷ_i z_i)) + ‖W_k‖²/2 (scikit-learn's objective;
    the intercept is not penalised). A class with one label value only gets a zero weight and the
    constant logit ±30.

    Args:
        x: (n, d) float64.
        y: (n, K) in {0, 1}.
        c: inverse strength of the penalty.
        balanced: weigh the n₁ positives by n/(2 n₁) and the n₀ negatives by n/(2 n₀).
        max_iterations: of L-BFGS.
        start: (d + 1, K) first guess.
        tolerance: largest gradient entry of the mean loss at which to stop.

    Returns:
        (d + 1, K) float64; the last row is the intercept.
    """
    n, d = x.shape
    result = np.zeros((d + 1, y.shape[1]))
    varies = _varies(y)
    result[d] = np.where(y[:1].max(axis=0, initial=0) > 0, CONSTANT, -CONSTANT)
    if not varies.any():
        return result
    targets = y[:, varies]
    positives = targets.sum(axis=0)
    weight = np.full_like(targets, 1 / n)
    if balanced:
        weight = np.where(targets > 0, 0.5 / positives, 0.5 / (n - positives))
    # Two changes of variables that leave the solution as it is: centred features (the intercept is
    # free), and W = step · V, which keeps a strong penalty from dwarfing the loss.
    centre = x.mean(axis=0)
    x = x - centre
    step = min(1.0, (c * n) ** 0.5)
    shrink = step**2 / (c * n)

    def objective(flat: Matrix) -> tuple[float, Matrix]:
        v = flat.reshape(d + 1, -1)
        z = step * (x @ v[:d]) + v[d]
        loss = np.logaddexp(0, z) - targets * z  # log(1 + e^z) - y z, without overflow
        slope = weight * (expit(z) - targets)
        gradient = np.vstack([step * (x.T @ slope) + shrink * v[:d], slope.sum(axis=0)])
        return float((weight * loss).sum() + shrink * (v[:d] ** 2).sum() / 2), gradient.ravel()

    guess = np.zeros((d + 1, len(positives)))
    if start is None:
        share = 0.5 if balanced else positives / n
        guess[d] = np.log(share / (1 - share))
    else:
        guess[:d] = start[:d, varies] / step
        guess[d] = start[d, varies] + centre @ start[:d, varies]
    found = minimize(
        objective,
        guess.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iterations, "maxcor": 20, "ftol": 1e-14, "gtol": tolerance},
    )
    solution = found.x.reshape(d + 1, -1)
    result[:d, varies] = step * solution[:d]
    result[d, varies] = solution[d] - centre @ result[:d, varies]
    return result

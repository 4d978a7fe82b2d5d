"""Logistic regressions of all classes by one L-BFGS run, and the search for their penalty."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

STARTS = tuple(10.0**k for k in (-6, -4, -2, 0, 2, 4, 6))
HALVINGS = 8
CLIP_EXAMPLE_C = 0.316  # of CLIP's README
CONSTANT = 30.0  # logit of a class whose labels are all equal
Matrix = NDArray[np.float64]


def binary_search(score: Callable[[float], float], starts: Sequence[float] = STARTS) -> float:
    """Find the best of ``starts``, then halve the interval around it towards its better end.

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


def varies(y: Matrix) -> NDArray[np.bool_]:
    """Return (K,) bool: which columns of (n, K) hold both label values."""
    return (y.max(axis=0, initial=0) > 0) & (y.min(axis=0, initial=1) < 1)


class LogisticRegressions:
    """One-vs-rest logistic regressions with an L2 penalty on one set of features.

    Per class C · Σ_i w_i log(1 + exp(-ŷ_i z_i)) + ‖W_k‖²/2 is minimised (scikit-learn's objective;
    the intercept is not penalised). All classes are one L-BFGS problem in coordinates in which it
    is well conditioned: features are centred and rotated to their principal axes, and each
    coordinate is divided by the root of its curvature. The solution stays the same. With fewer
    images than dimensions the problem has only as many coordinates as images.

    Args:
        x: (n, d) float64.
    """

    def __init__(self, x: Matrix) -> None:
        self.centre = x.mean(axis=0)
        # torch, not NumPy: it respects the number of threads that the process has set.
        u, s, vt = torch.linalg.svd(torch.from_numpy(x - self.centre), full_matrices=False)
        kept = s > 1e-10 * s.max().clamp(min=1e-300)
        self.axes, self.spread = vt[kept].T.numpy(), s[kept]
        self.coordinates = u[:, kept] * self.spread

    def fit(
        self,
        y: Matrix,
        c: float,
        balanced: bool = False,
        max_iterations: int = 1000,
        start: Matrix | None = None,
        tolerance: float = 1e-4,
    ) -> Matrix:
        """Fit all classes.

        Args:
            y: (n, K) in {0, 1}. A class with one label value only gets a zero weight and the
                constant logit ±30.
            c: inverse strength C of the penalty.
            balanced: weigh the n₁ positives by n/(2 n₁) and the n₀ negatives by n/(2 n₀).
            max_iterations: of L-BFGS.
            start: (d + 1, K) first guess.
            tolerance: largest gradient entry, in units of the root of the mean loss's curvature.

        Returns:
            (d + 1, K) float64 weights; the last row is the intercept.
        """
        n, d = len(y), len(self.centre)
        result = np.zeros((d + 1, y.shape[1]))
        both = varies(y)
        result[d] = np.where(y[:1].max(axis=0, initial=0) > 0, CONSTANT, -CONSTANT)
        if not both.any():
            return result
        truth = torch.from_numpy(np.ascontiguousarray(y[:, both], dtype=np.float64))
        share = truth.mean(dim=0)
        weights = torch.full_like(truth, 1 / n)
        if balanced:
            weights = torch.where(truth > 0, 0.5 / share, 0.5 / (1 - share)) / n
            share = torch.full_like(share, 0.5)
        penalty = 1 / (c * n)
        curvature = self.spread[:, None] ** 2 / n * (share * (1 - share)) + penalty
        unit = torch.cat([curvature.rsqrt(), (share * (1 - share)).rsqrt()[None]])

        def objective(flat: Matrix) -> tuple[float, Matrix]:
            w = torch.from_numpy(flat).reshape(unit.shape) * unit
            z = self.coordinates @ w[:-1] + w[-1]
            loss = (weights * (F.softplus(z) - truth * z)).sum() + penalty * w[:-1].square().sum() / 2
            slope = weights * (torch.sigmoid(z) - truth)
            gradient = torch.cat(
                [self.coordinates.T @ slope + penalty * w[:-1], slope.sum(dim=0, keepdim=True)]
            )
            return float(loss), (gradient * unit).numpy().ravel()

        # Here: planning a grid imports the methods, and SciPy's optimisers take a third as long as torch.
        from scipy.optimize import minimize

        guess = torch.zeros(unit.shape, dtype=torch.float64)
        guess[-1] = torch.logit(share)
        if start is not None:
            guess[:-1] = torch.from_numpy(self.axes.T @ start[:d, both])
            guess[-1] = torch.from_numpy(start[d, both] + self.centre @ start[:d, both])
        found = minimize(
            objective,
            (guess / unit).numpy().ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": max_iterations, "ftol": 1e-14, "gtol": tolerance},
        )
        solution = found.x.reshape(unit.shape) * unit.numpy()
        result[:d, both] = self.axes @ solution[:-1]
        result[d, both] = solution[-1] - self.centre @ result[:d, both]
        return result

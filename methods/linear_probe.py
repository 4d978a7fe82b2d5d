"""Linear probe: one logistic regression per class on frozen features.

Source: the linear probe of CLIP (Radford et al., ICML 2021), L-BFGS with an L2 penalty chosen on
held-out data; the search over C is the binary search of CoOp's `lpclip/linear_probe.py` (Zhou et
al., IJCV 2022, github KaiyangZhou/CoOp).
Golden test: `tests/methods/test_linear_probe.py`, scikit-learn's LogisticRegression.

What it does: holds out 20 % of the labelled images, picks the C that gives the best mean average
precision on them (one C for all classes), and refits on all labelled images. C starts from
{1e-6, 1e-4, …, 1e6}; an interval of a factor of ten each side of the best is then halved eight
times towards its better end.

What differs from the originals: multi-label, so one-vs-rest with average precision instead of
accuracy; the best C seen is kept rather than the last; a class without positives (or without
negatives) gets a constant score; the regressions of all classes are one L-BFGS problem (they share
only the iterations), warm-started along the search. When no class can be scored on the
held-out part, C is the 0.316 of CLIP's own example.

Expected score: none known under this protocol. Cost: one pass of the frozen image tower over the
labelled and test images, then seconds for hundreds of labelled images (200 × 128 features × 40
classes: 6 s on one busy core) and a minute or two for thousands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.backbones.base import Backbone
from methods.base import FitMethod, Task
from methods.errors import check_range
from methods.parts.logistic import (
    CLIP_EXAMPLE_C,
    LogisticRegressions,
    Matrix,
    binary_search,
    varies,
)
from methods.registry import register


@dataclass(frozen=True)
class LinearProbeHyper:
    """Hyper-parameters of the linear probe.

    Attributes:
        preprocess: features are scaled to unit length ("l2"), or centred and scaled per dimension
            by the labelled images' mean and deviation ("standardise"), or both in this order.
        class_weight: "balanced" weighs positives and negatives of a class equally.
        held_out: share of the labelled images that C is chosen on.
        max_iterations: of L-BFGS.
    """

    preprocess: Literal["l2", "standardise", "l2+standardise"] = "l2+standardise"
    class_weight: Literal["none", "balanced"] = "none"
    held_out: float = field(default=0.2, metadata={"low": 0.1, "high": 0.5, "scale": "linear"})
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
        weights = self._regress(LogisticRegressions(x), y, self.C)
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

    def _regress(
        self, problem: LogisticRegressions, y: Matrix, c: float, start: Matrix | None = None
    ) -> Matrix:
        hyper = self.hyper
        balanced = hyper.class_weight == "balanced"
        return problem.fit(y, c, balanced, hyper.max_iterations, start)

    def _choose(self, x: Matrix, y: Matrix, seed: int) -> float:
        """C by held-out mean average precision."""
        # Imported here: it takes a second, which listing and planning runs should not wait for.
        from sklearn.metrics import average_precision_score

        order = np.random.RandomState(seed).permutation(len(x))
        held = max(1, round(self.hyper.held_out * len(x)))
        out, kept = order[:held], order[held:]
        scored = np.flatnonzero(varies(y[out]) & varies(y[kept]))
        if len(scored) == 0:
            return CLIP_EXAMPLE_C
        problem = LogisticRegressions(x[kept])
        start: Matrix | None = None
        self.searched = {}

        def score(c: float) -> float:
            nonlocal start
            if c not in self.searched:
                start = self._regress(problem, y[kept][:, scored], c, start)
                logits = x[out] @ start[:-1] + start[-1]
                precision = [
                    average_precision_score(y[out, k], logits[:, column]) for column, k in enumerate(scored)
                ]
                self.searched[c] = float(np.mean(precision))
            return self.searched[c]

        return binary_search(score)

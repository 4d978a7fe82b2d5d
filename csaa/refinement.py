r"""Refinement of class scores by those of other classes: one step over a graph of the labels.

With z_k the logit of class k and A a graph without loops,

.. math:: z'_k = z_k + γ \sum_{j ≠ k} A_{kj}\, σ(z_j)

where the sum has no gradient: a class is not trained through another one's score. Both the graph and the form
are our reading; a review of the paper has *graph convolution* among its key-words (README.md).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from methods.base import full_precision

Graph = Literal["none", "context", "conditional"]
TOLERANCE, STEPS = 1e-6, 2000
"""Of `Refinement.inverse`: largest error of a logit, and most steps."""


def context_graph(contexts: Tensor) -> Tensor:
    """Join the classes of a context.

    Args:
        contexts: (K,) int64 from `csaa.contexts.label_contexts`.

    Returns:
        (K, K) float32: 1 for two classes of one context, 0 elsewhere and on the diagonal.

    >>> context_graph(torch.tensor([0, 0, 1]))
    tensor([[0., 1., 0.],
            [1., 0., 0.],
            [0., 0., 0.]])
    """
    return (contexts[:, None] == contexts).float().fill_diagonal_(0)


def conditional_graph(labels: Tensor) -> Tensor:
    """Join class k to class j by P(k | j), the share of the labelled images with j that show k.

    Args:
        labels: (N, K) {0, 1} of the labelled images.

    Returns:
        (K, K) float32: n_kj / n_j in row k and column j; 0 on the diagonal, and for a class j without image.

    >>> conditional_graph(torch.tensor([[1, 1, 0], [1, 0, 0]]))
    tensor([[0.0000, 1.0000, 0.0000],
            [0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    matrix = labels.double()
    together = matrix.T @ matrix
    return (together / together.diagonal().clamp(min=1)).float().fill_diagonal_(0)


class Refinement(nn.Module):
    """Adds to each class's logit what the other classes' probabilities say; see the module.

    Args:
        graph: (K, K) float32 A, non-negative with a diagonal of 0.
        start: γ at the start, in [0, 1].
        learnt: whether γ is trained.

    Attributes:
        gamma: () parameter γ.
    """

    graph: Tensor

    def __init__(self, graph: Tensor, start: float, learnt: bool) -> None:
        super().__init__()
        self.register_buffer("graph", graph)
        self.gamma = nn.Parameter(torch.tensor(float(start)), requires_grad=learnt)

    def forward(self, logits: Tensor) -> Tensor:
        """Return (B, K) refined logits of logits (B, K), in their dtype."""
        with full_precision(logits):
            others = torch.sigmoid(logits.detach()) @ self.graph.T.to(logits)
            return logits + self.gamma * others

    @torch.no_grad()
    def inverse(self, refined: Tensor) -> Tensor:
        """Return the logits whose refined ones are given, for the present γ in [0, 1].

        They are found by damped fixed-point steps. No others have the same refined ones: for both graphs AD,
        with D a diagonal of slopes of σ, has real eigenvalues of at least −¼, so that I + γAD is regular.

        Args:
            refined: (B, K).

        Returns:
            (B, K) float64.

        Raises:
            ValueError: they were not found, as may be with a γ outside [0, 1].
        """
        refined, graph, gamma = refined.double(), self.graph.double(), self.gamma.double()
        damping = 1 / (1 + gamma * graph.sum(dim=1).amax() / 4)
        logits = refined
        for _ in range(STEPS):
            error = refined - logits - gamma * (torch.sigmoid(logits) @ graph.T)
            if float(error.abs().amax()) < TOLERANCE:
                return logits
            logits = logits + damping * error
        raise ValueError(f"no logits found whose refined ones are given, with γ = {float(gamma):.3g}")

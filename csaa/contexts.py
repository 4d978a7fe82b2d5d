"""Contexts: a partition of the label space by spectral clustering of label co-occurrence.

The paper defines contexts as such a partition (README.md). How the affinity is computed is our
reading: conditional co-occurrence, counted on the labelled images only and made symmetric.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.base import full_precision
from methods.errors import UserError, nearest

Affinity = Literal["conditional", "sqrt-conditional", "jaccard"]
AFFINITIES: tuple[str, ...] = get_args(Affinity)
# Keeps the graph connected for labels that never occur together.
FLOOR = 1e-6


def co_occurrence_affinity(
    labels: NDArray[np.generic] | Tensor, affinity: Affinity = "conditional"
) -> NDArray[np.float64]:
    """Compute a symmetric affinity of labels from the images that show them.

    With n_ab images that show both a and b, and n_a that show a:

    - "conditional": (S + Sᵀ)/2 with S_ab = n_ab / n_a;
    - "sqrt-conditional": (√S + √Sᵀ)/2, the τ = 2 root of ML-VPT (arXiv 2504.09990);
    - "jaccard": n_ab / (n_a + n_b − n_ab).

    Args:
        labels: (N, K) {0, 1}.
        affinity: one of the three above.

    Returns:
        (K, K) float64, zero on the diagonal.
    """
    if affinity not in AFFINITIES:
        raise UserError(f"affinity {affinity!r}{nearest(affinity, AFFINITIES)}")
    matrix = np.asarray(labels, dtype=np.float64)
    together = matrix.T @ matrix
    alone = together.diagonal().copy()
    np.fill_diagonal(together, 0.0)
    if affinity == "jaccard":
        union = alone[:, None] + alone[None, :] - together
        return np.divide(together, union, out=np.zeros_like(together), where=union > 0)
    conditional = np.divide(together, alone[:, None], out=np.zeros_like(together), where=alone[:, None] > 0)
    if affinity == "sqrt-conditional":
        conditional = np.sqrt(conditional)
    return (conditional + conditional.T) / 2


def check_num_contexts(num_contexts: int, num_labels: int) -> None:
    """Check the number of contexts M against the number of labels K.

    Raises:
        UserError: M is outside 2..K, or there is one label only.
    """
    if num_labels < 2:
        raise UserError(
            "num_contexts: contexts are clusters of labels, and there is one label only; set "
            "context_weight = 0, which trains without contexts"
        )
    if not 2 <= num_contexts <= num_labels:
        raise UserError(
            f"num_contexts is {num_contexts}; with {num_labels} labels it must lie between 2 and {num_labels}"
        )


def label_contexts(
    labels: NDArray[np.generic] | Tensor,
    num_contexts: int,
    seed: int,
    affinity: Affinity = "conditional",
) -> NDArray[np.int64]:
    """Partition the labels into contexts.

    Spectral clustering (normalised Laplacian, k-means on its eigenvectors) of the co-occurrence
    graph of the labelled images. Contexts are numbered by their first label, so the numbering does
    not depend on k-means.

    Args:
        labels: (N, K) {0, 1} of the labelled images.
        num_contexts: number of contexts M, between 2 and K.
        seed: seed of k-means.
        affinity: see `co_occurrence_affinity`.

    Returns:
        (K,) int64 context of each label, in 0..M−1.

    Raises:
        UserError: M is outside 2..K.
    """
    count = labels.shape[1]
    check_num_contexts(num_contexts, count)
    graph = co_occurrence_affinity(labels, affinity) + FLOOR
    if num_contexts == count:
        return np.arange(count)
    # Imported here: it takes a second, which listing and planning runs should not wait for.
    from sklearn.cluster import SpectralClustering

    found = SpectralClustering(
        n_clusters=num_contexts, affinity="precomputed", assign_labels="kmeans", random_state=seed
    ).fit_predict(graph)
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def context_targets(targets: Tensor, contexts: Tensor, num_contexts: int) -> Tensor:
    """Return the contexts of images: an image has every context of its labels (max rule).

    Args:
        targets: (B, K) {0, 1}.
        contexts: (K,) int64 from `label_contexts`.
        num_contexts: M.

    Returns:
        (B, M) of the targets' dtype, {0, 1}.
    """
    membership = torch.nn.functional.one_hot(contexts, num_contexts).to(targets.dtype)
    return ((targets @ membership) > 0).to(targets.dtype)


def noisy_or(logits: Tensor, contexts: Tensor, num_contexts: int) -> Tensor:
    """Read the scores of contexts from those of classes: a context is absent if all its classes are.

    With p the probabilities of the classes, a context has 1 − Π (1 − p_k) over its classes, and the logit
    log(e^S − 1) with S = Σ log(1 + e^{z_k}).

    Args:
        logits: (B, K) z, float32 or float64.
        contexts: (K,) int64 from `label_contexts`.
        num_contexts: M.

    Returns:
        (B, M) logits in the dtype of ``logits``.

    >>> noisy_or(torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([0, 0, 1]), 2)  # 1 - 1/4 has the logit log 3
    tensor([[1.0986, 2.0000]])
    """
    with full_precision(logits):
        membership = torch.nn.functional.one_hot(contexts, num_contexts).to(logits)
        total = torch.nn.functional.softplus(logits) @ membership
        total = total.clamp(min=torch.finfo(total.dtype).tiny)  # a class below -87 would give log 0
        return total + torch.log(-torch.expm1(-total))

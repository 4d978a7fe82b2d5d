"""Running means of a step's statistics, by an exponential moving average."""

from __future__ import annotations

import torch
from torch import Tensor


def running_mean(mean: Tensor, total: Tensor, count: Tensor, momentum: float) -> Tensor:
    """Move a running mean towards the mean of a step's samples: m ← μ·m + (1 − μ)·total/count.

    Args:
        mean: the running mean so far, of any shape.
        total: sum over the step's samples on all processes, of the shape of ``mean``.
        count: () number of these samples; with 0 the running mean stays as it is.
        momentum: μ in [0, 1].

    Returns:
        The new running mean, in the wider precision of ``mean`` and ``total``.

    Example:
        >>> running_mean(torch.tensor([0.5]), torch.tensor([3.0]), torch.tensor(4), 0.5)
        tensor([0.6250])
        >>> running_mean(torch.tensor([0.5]), torch.tensor([0.0]), torch.tensor(0), 0.5)
        tensor([0.5000])
    """
    new = momentum * mean + (1 - momentum) * total / count.clamp(min=1)
    return torch.where(count > 0, new, mean.to(new))

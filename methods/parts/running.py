"""Running means of a step's statistics, by an exponential moving average."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from methods.errors import check_range
from methods.parts.pseudo_labelling import PseudoLabelHyper


@dataclass(frozen=True)
class RunningHyper(PseudoLabelHyper):
    """As `PseudoLabelHyper`, with the momentum of running means.

    Attributes:
        momentum: μ of the running means (papers and code: .999, over 10⁵ steps and more). Their start weighs
            μ^t after t steps: a training of a few hundred steps needs a smaller one to forget it.
    """

    momentum: float = field(default=0.999, metadata={"low": 0.9, "high": 0.9999, "scale": "linear"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("momentum", self.momentum, 0, 1)


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

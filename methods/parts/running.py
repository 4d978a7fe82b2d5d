"""Running means of a step's statistics, by an exponential moving average."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from methods.errors import check_range
from methods.parts.pseudo_labelling import PseudoLabelHyper


@dataclass(frozen=True)
class RunningHyper(PseudoLabelHyper):
    """As `PseudoLabelHyper`, with the momentum of running means, and another default of the loss.

    Attributes:
        loss: "bce" by default, as in the official code: labels at .5 and confidences need probabilities that
            mean shares of images. The p of "asl" is .5 where 3.6 % of the images show the class.
        momentum: μ of the running means (papers and code: .999, over 10⁵ steps and more). Their start weighs
            μ^t after t steps: a training of a few hundred steps needs a smaller one to forget it.
    """

    loss: Literal["asl", "bce"] = "bce"
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

"""Binary distribution alignment: predictions of each class are moved so that its mean is a target.

Source: ReMixMatch (Berthelot et al., ICLR 2020) has the rule for a soft-max; the form for a binary problem
per class is that of github mxbh/spatiotemporal-ssl at 47e6299 (read), which SoftMatch and UDAL use there.

For a probability p of class k, with m the running mean of the model's predictions on unlabelled images and t
the mean that they should have,

    p̃ = p·r / (p·r + (1 − p)·s),   r = (t + ε)/(m + ε),   s = (1 − t + ε)/(1 − m + ε),   ε = 1e-6

A method holds a `DistributionAlignment` and hands it the sums of `prepare`:

    self.alignment = DistributionAlignment(self, momentum)        # in __init__
    self._weak = self.weak_probabilities(batch)                   # in prepare
    return self.alignment.sums(self._weak)
    self.alignment.update(statistics)                             # in observe
    aligned = self.alignment(self._weak)                          # in pseudo_labels

The statistics are updated with a step's images before its predictions are aligned, as in the code above.

What differs from it: the target is the labelled frequency smoothed by one image each way,
(n_k + 1)/(n_l + 2), so that a class without a labelled image is not forced to 0 (the code takes the plain
frequency of its data set); targets that follow the labelled predictions start there too, and not at ½, which
would declare half of the images positive for each class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import StepMethod, Task
from methods.parts.running import running_mean

EPSILON = 1e-6
"""Added to each part of the ratios."""
UNLABELLED_IMAGES, LABELLED_IMAGES = "alignment_images", "alignment_labelled_images"
"""Names under which `DistributionAlignment.sums` counts the images, for a method that needs the count too."""


def smoothed_frequencies(task: Task) -> Tensor:
    """(K,) float64 (n_k + 1)/(n_l + 2), strictly inside (0, 1), of n_k labelled images with class k."""
    return (task.labels.double().sum(dim=0) + 1) / (len(task.labels) + 2)


def align(probabilities: Tensor, mean: Tensor, target: Tensor) -> Tensor:
    """Align binary predictions; see the module for the formula.

    Args:
        probabilities: (B, K) in [0, 1].
        mean: (K,) in [0, 1], the running mean of the predictions.
        target: (K,) in [0, 1], what it should be.

    Returns:
        (B, K) in [0, 1], dtype of ``probabilities``; never NaN.

    Example:
        A model that says .5 for a class on average, where one image in ten shows it:

        >>> align(torch.tensor([[0.5], [0.9]]), torch.tensor([0.5]), torch.tensor([0.1]))
        tensor([[0.1000],
                [0.5000]])
    """
    p, mean, target = probabilities.double(), mean.double(), target.double()
    present = p * ((target + EPSILON) / (mean + EPSILON))
    absent = (1 - p) * ((1 - target + EPSILON) / (1 - mean + EPSILON))
    return (present / (present + absent)).to(probabilities)


class DistributionAlignment:
    """Distribution alignment as a part of a method, which keeps its state.

    The method gets the state ``alignment_mean``, ``alignment_target`` and ``alignment_steps``: the running
    mean m (at first the mean of the first step that has unlabelled images; until then the target, so that
    nothing is moved), the target t, and how many steps have moved m.

    Args:
        method: the method; its task has the labelled images.
        momentum: μ of the running means, in [0, 1].
        follow_labelled: whether the target is a running mean of the predictions on labelled images
            (AdaMatch); else it stays at the smoothed labelled frequencies.
    """

    def __init__(self, method: StepMethod, momentum: float, follow_labelled: bool = False) -> None:
        self.method, self.momentum, self.follow_labelled = method, momentum, follow_labelled
        target = smoothed_frequencies(method.task)
        method.register_state("alignment_mean", target.clone())
        method.register_state("alignment_target", target)
        method.register_state("alignment_steps", torch.zeros((), dtype=torch.int64))

    def sums(self, unlabelled: Tensor, labelled: Tensor | None = None) -> dict[str, Tensor]:
        """Return the sums of a step for `update`, as a part of what `StepMethod.prepare` returns.

        Args:
            unlabelled: (B_u, K) probabilities of this process's unlabelled images, B_u >= 0.
            labelled: (B_l, K) those of its labelled images, if the target follows them.

        Raises:
            ValueError: the target follows the labelled images and they are not given, or the reverse.
        """
        if (labelled is not None) != self.follow_labelled:
            raise ValueError(
                "labelled probabilities belong to an alignment with follow_labelled, and to no other"
            )
        found = _sums("unlabelled", unlabelled)
        return found if labelled is None else found | _sums("labelled", labelled)

    def mean_after(self, statistics: dict[str, Tensor]) -> Tensor:
        """(K,) the running mean that `update` will set; for statistics that need aligned predictions."""
        total, count = statistics[_SUM["unlabelled"]], statistics[_COUNT["unlabelled"]]
        # The first images replace the start instead of being averaged with it.
        start = (self._state("steps") == 0) & (count > 0)
        mean = torch.where(start, total / count.clamp(min=1), self._state("mean"))
        return running_mean(mean, total, count, self.momentum)

    def update(self, statistics: dict[str, Tensor]) -> None:
        """Take the sums of a step over all processes; `StepMethod.observe` calls it.

        Args:
            statistics: those of `sums`, and others, which are left alone.
        """
        seen = statistics[_COUNT["unlabelled"]] > 0
        self.method.alignment_mean = self.mean_after(statistics)
        self.method.alignment_steps = self._state("steps") + seen.long()
        if self.follow_labelled:
            total, images = statistics[_SUM["labelled"]], statistics[_COUNT["labelled"]]
            target = running_mean(self._state("target"), total, images, self.momentum)
            self.method.alignment_target = target

    def __call__(self, probabilities: Tensor, mean: Tensor | None = None) -> Tensor:
        """Return aligned probabilities (B, K) in the dtype of the given ones.

        Args:
            probabilities: (B, K) in [0, 1].
            mean: (K,) the running mean, if not the present one.
        """
        mean = self._state("mean") if mean is None else mean
        return align(probabilities, mean, self._state("target"))

    def _state(self, name: str) -> Tensor:
        return self.method.get_buffer(f"alignment_{name}")


_SUM = {"unlabelled": "alignment_unlabelled", "labelled": "alignment_labelled"}
_COUNT = {"unlabelled": UNLABELLED_IMAGES, "labelled": LABELLED_IMAGES}


def _sums(kind: str, probabilities: Tensor) -> dict[str, Tensor]:
    count = torch.tensor(len(probabilities), device=probabilities.device)
    return {_SUM[kind]: probabilities.double().sum(dim=0), _COUNT[kind]: count}

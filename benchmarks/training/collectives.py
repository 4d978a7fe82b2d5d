"""What a method may learn of the other processes: sums and rows of the whole step.

`DistributedProcesses` stands behind `Batch.total` and `Batch.gather`. `StepStatistics` adds up what
a method returns before and after a step. Both cost nothing in one process, and nothing for methods
that do not use them.

Gradients: the objective of a step is the sum of the losses of all processes. A value that was added
up over processes enters the loss of each of them, so its gradient is the sum of their gradients;
the gradient of a gathered row is the sum of what all processes found for it. The trainer multiplies
losses by the number of processes because DistributedDataParallel averages; the factor is the same
on both sides of a collective, so nothing else is needed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.training.group import Group
from methods.base import ALONE, Batch, Processes, StepMethod, StepOutput, at_least_fp32


def processes_of(group: Group) -> Processes:
    """What the batches of a group's process are given."""
    return ALONE if group.world == 1 else DistributedProcesses(group)


class DistributedProcesses:
    """`methods.base.Processes` over torch.distributed; see `Batch.total` and `Batch.gather`.

    Args:
        group: the processes that train together.
    """

    def __init__(self, group: Group) -> None:
        self.group = group

    def total(self, value: Tensor) -> Tensor:
        """Sum over the processes, differentiable; half precision is added in float32.

        Raises:
            TypeError: the value is bool, whose sum would be "any".
        """
        if value.dtype == torch.bool:
            raise TypeError("batch.total of a bool tensor: convert it to a number first")
        return _Total.apply(value)

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes in the order of the global batch, differentiable.

        Raises:
            ValueError: the numbers of rows are not those of a batch shared among the processes.
        """
        rank, world = self.group.rank, self.group.world
        counts = self.group.all_gather_int(len(rows))
        whole = sum(counts)
        # As the sampler shares a batch: sample i goes to process i modulo their number.
        shares = [len(range(k, whole, world)) for k in range(world)]
        if counts != shares:
            raise ValueError(
                f"batch.gather: rank {rank} has {len(rows)} rows; the ranks' {counts} rows are no batch "
                f"(its shares would be {shares}): give one row for each image, and select afterwards"
            )
        return _Gather.apply(rows, rank, world, whole)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        summed = at_least_fp32(value) if value.is_floating_point() else value
        summed = summed.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed.to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Total.apply(gradients[0])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, world: int, whole: int) -> Tensor:
        ctx.rank, ctx.world = rank, world
        longest = -(-whole // world)
        # Not every back-end gathers bool.
        plain = rows.detach().view(torch.uint8) if rows.dtype == torch.bool else rows.detach()
        padded = plain.new_zeros((longest, *plain.shape[1:]))
        padded[: len(plain)] = plain
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        # Row j of process k is sample j·world + k; what was padded comes last.
        found = torch.stack(parts, dim=1).flatten(0, 1)[:whole]
        return found.view(torch.bool) if rows.dtype == torch.bool else found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Total.apply(gradients[0])[ctx.rank :: ctx.world], None, None, None


class StepStatistics:
    """The sums over processes that a method asks for before and after each step.

    Args:
        method: the method.
        group: the processes that train together.
    """

    def __init__(self, method: StepMethod, group: Group) -> None:
        self.method, self.group = method, group
        kind = type(method)
        self._before = kind.prepare is not StepMethod.prepare
        self._after = kind.observe_step is not StepMethod.observe_step
        self._layouts: dict[str, list[list[Any]]] = {}

    def before_step(self, batch: Batch, autocast: AbstractContextManager[Any]) -> None:
        """Call `prepare` and hand its sums to `observe`.

        Raises:
            ValueError: the processes' statistics do not match; says which, and whose.
        """
        if not self._before:
            return
        self.group.watch.mark("statistics before the step")
        with torch.no_grad():
            with autocast:
                own = self.method.prepare(batch)
            if own:
                self.method.observe(self._summed("prepare", own))
            else:  # a method whose hyper-parameters need no statistics; so in every step and process
                self._check("prepare", own)

    def after_step(self, output: StepOutput) -> None:
        """Hand the sums of a step's statistics to `observe_step`.

        Raises:
            ValueError: as for `before_step`; or statistics that nothing takes, or that are missing.
        """
        own = output.statistics
        if self._after and own is not None:
            self.group.watch.mark("statistics after the step")
            with torch.no_grad():
                self.method.observe_step(self._summed("StepOutput", own))
        elif self._after != (own is not None):
            fault = "returned no statistics" if self._after else "returned statistics"
            has = "has an" if self._after else "has no"
            raise ValueError(f"method {self.method.name!r} {fault} in a step but {has} observe_step")

    def _summed(self, moment: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._check(moment, own)
        if self.group.world == 1:
            return {name: value.detach() for name, value in own.items()}
        packed = torch.cat([value.detach().flatten().double() for value in own.values()])
        dist.all_reduce(packed)
        parts = packed.split([value.numel() for value in own.values()])
        return {
            name: part.view(value.shape).to(value.dtype)
            for (name, value), part in zip(own.items(), parts, strict=True)
        }

    def _check(self, moment: str, own: Mapping[str, Tensor]) -> None:
        """Compare with the layout that all processes agreed on at the first step.

        Later steps compare with their own copy of it, so that no message is needed.
        """
        where = f"method {self.method.name!r}, {moment}, rank {self.group.rank}"
        for name, value in own.items():
            if not isinstance(value, Tensor) or value.dtype == torch.bool or value.is_complex():
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{where}: statistic {name!r} is {kind}; it must be a tensor of numbers")
        layout = [[name, list(value.shape), str(value.dtype)] for name, value in own.items()]
        if moment in self._layouts:
            if layout != self._layouts[moment]:
                difference = _difference(layout, self._layouts[moment])
                raise ValueError(f"{where}: {difference} in its first step; statistics must not change")
            return
        if not layout and moment != "prepare":
            raise ValueError(f"{where}: no statistic; every step needs them, zeros if there is no image")
        for rank, other in enumerate(self.group.all_gather_object(layout)):
            if other != layout:
                raise ValueError(f"{where}: {_difference(layout, other)} on rank {rank}")
        self._layouts[moment] = layout


def _difference(mine: list[list[Any]], theirs: list[list[Any]]) -> str:
    """The first entry in which two layouts differ, in words; the sentence goes on with whose."""
    for one, two in zip(mine, theirs, strict=False):
        if one[0] != two[0]:
            break
        if one != two:
            return f"statistic {one[0]!r} is {one[1]} {one[2]} but {two[1]} {two[2]}"
    here, there = [entry[0] for entry in mine], [entry[0] for entry in theirs]
    return f"statistics are {here} but {there}"

"""What a method learns of the other processes: totals, rows and statistics, on two gloo processes."""

import dataclasses
import os
import re
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.training.collectives import DistributedProcesses, StepStatistics, processes_of
from benchmarks.training.group import Group
from methods.base import ALONE, Batch, StepMethod, StepOutput

WORLD = 2


def be_rank(rank: int, folder: str) -> Group:
    """Join the group of a test; see `Group.join`."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ["SSMLL_RENDEZVOUS"] = f"{folder}/meet"
    torch.set_num_threads(1)
    return Group.join()


def batch_of(labelled: int, unlabelled: int) -> Batch:
    generator = torch.Generator().manual_seed(labelled + 10 * unlabelled)
    one, two = (torch.rand(n, 3, generator=generator, dtype=torch.float64) for n in (labelled, unlabelled))
    targets = (torch.rand(labelled, 2, generator=generator) < 0.5).double()
    return Batch(
        0,
        0,
        torch.arange(labelled),
        one,
        one,
        targets,
        torch.arange(unlabelled),
        two,
        two,
        labelled,
        unlabelled,
    )


def share(batch: Batch, rank: int, processes) -> Batch:
    rows = {f.name: getattr(batch, f.name) for f in dataclasses.fields(Batch)}
    mine = {name: value[rank::WORLD] for name, value in rows.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(batch, **mine, processes=processes)


class Model(nn.Module):
    """Losses of every kind: sums of samples, a masked mean, a term of the step, contrasts of rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.head = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        labelled, unlabelled = self.head(batch.weak_labelled), self.head(batch.weak_unlabelled)
        p = torch.sigmoid(unlabelled)
        mask = (p.detach() > 0.45).double()
        mean = batch.total(p.sum(dim=0)) / max(1, batch.global_unlabelled)
        everyone, indices = batch.gather(unlabelled), batch.gather(batch.unlabelled)
        assert torch.equal(indices, torch.arange(batch.global_unlabelled))
        assert torch.equal(batch.gather(unlabelled > 0), everyone > 0)
        assert batch.total(torch.tensor(len(p))) == batch.global_unlabelled
        contrast = torch.logsumexp(torch.cat([everyone, everyone.new_zeros(1, 2)]).sum(dim=1), dim=0)
        return {
            "labelled": (labelled - batch.targets).square().sum() / batch.global_labelled,
            "unlabelled": (mask * p).sum() / batch.total(mask.sum()).clamp(min=1),
            "fairness": batch.share * (mean * mean.log()).sum() if batch.global_unlabelled else p.sum(),
            "rows": (unlabelled @ everyone.T).square().sum(),
            "contrast": batch.share * contrast,
        }


CASES = [(4, 6), (5, 7), (3, 1), (1, 4), (2, 0)]


def expected(case: tuple[int, int]):
    model = Model()
    losses = model(batch_of(*case))
    gradients = torch.autograd.grad(torch.stack(list(losses.values())).sum(), list(model.parameters()))
    return losses, gradients


def compare(rank: int, folder: str) -> None:
    group = be_rank(rank, folder)
    processes = processes_of(group)
    for case in CASES:
        losses, gradients = expected(case)
        model = DistributedDataParallel(Model(), static_graph=True, gradient_as_bucket_view=True)
        for _ in range(2):  # torch treats the first step of a static graph in a way of its own
            model.zero_grad()
            own = model(share(batch_of(*case), rank, processes))
            for name, loss in own.items():
                summed = loss.detach().clone()
                torch.distributed.all_reduce(summed)
                torch.testing.assert_close(summed, losses[name].detach(), rtol=1e-12, atol=1e-14)
            (torch.stack(list(own.values())).sum() * group.world).backward()  # as the trainer does
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-11, atol=1e-13)
    half = torch.full((3,), 1000.0, dtype=torch.float16)
    assert processes.total(half).tolist() == [2000.0] * 3
    assert half.tolist() == [1000.0] * 3  # the method's own tensor is left as it was
    with pytest.raises(TypeError, match=r"batch\.total of a bool tensor"):
        processes.total(half > 0)
    with pytest.raises(ValueError, match=rf"rank {rank} has {2 * rank} rows; the ranks' \[0, 2\] rows"):
        processes.gather(torch.zeros(2 * rank, 3))
    group.leave()


def test_losses_and_gradients_of_two_processes_are_those_of_one(tmp_path):
    mp.spawn(compare, args=(str(tmp_path),), nprocs=WORLD)


def test_one_process_is_alone():
    processes = processes_of(Group())
    assert processes is ALONE
    value = torch.rand(3, requires_grad=True)
    assert processes.total(value) is value
    assert processes.gather(value) is value
    assert isinstance(processes_of(Group(0, 2)), DistributedProcesses)


class Keeps(StepMethod):
    """Keeps the statistics that it is given."""

    name = "keeps"

    def __init__(self, prepared=None):
        super().__init__(None, None, SimpleNamespace(optimizer="adam", schedule="constant"))
        self.prepared, self.seen = prepared, []

    def prepare(self, batch):
        return self.prepared

    def observe(self, statistics):
        assert not torch.is_grad_enabled()
        self.seen.append(statistics)

    def observe_step(self, statistics):
        assert not torch.is_grad_enabled()
        self.seen.append(statistics)


def sums(rank: int, folder: str) -> None:
    group = be_rank(rank, folder)
    large, tiny = 2**52 + 1, 2.0**-40
    kinds = {
        "a": torch.tensor([large - rank * large, 3]),
        "b": torch.tensor([[1.0, tiny][rank]], dtype=torch.float64),
        "c": torch.tensor(rank + 0.5, requires_grad=True),
        "d": torch.zeros(0, 4),
        "e": torch.full((2, 2), 7 * rank, dtype=torch.int32),
    }
    method = Keeps(kinds)
    statistics = StepStatistics(method, group)
    for _ in range(2):
        statistics.before_step(batch_of(1, 1), torch.autocast("cpu", enabled=False))
        statistics.after_step(StepOutput({}, None, {"z": torch.tensor([rank, 1])}))
    assert len(method.seen) == 4
    before, after = method.seen[2:]
    assert [value.dtype for value in before.values()] == [value.dtype for value in kinds.values()]
    assert before["a"].tolist() == [large, 6]
    assert before["b"].tolist() == [1.0 + tiny]
    assert before["c"].item() == 2.0
    assert not before["c"].requires_grad
    assert before["d"].shape == (0, 4)
    assert before["e"].tolist() == [[7, 7], [7, 7]]
    assert after["z"].tolist() == [1, 2]
    # A process that leaves one out in its first step, or gives another shape: all are told.
    for other, messages in (
        (
            {"a": torch.zeros(3)},
            (
                "statistics are ['a', 'b'] but ['a'] on rank 1",
                "statistics are ['a'] but ['a', 'b'] on rank 0",
            ),
        ),
        (
            {"a": torch.zeros(2), "b": torch.zeros(1)},
            (
                "statistic 'a' is [3] torch.float32 but [2] torch.float32 on rank 1",
                "statistic 'a' is [2] torch.float32 but [3] torch.float32 on rank 0",
            ),
        ),
    ):
        mine = {"a": torch.zeros(3), "b": torch.zeros(1)} if rank == 0 else other
        faulty = StepStatistics(Keeps(mine), group)
        expected = f"method 'keeps', prepare, rank {rank}: {messages[rank]}"
        with pytest.raises(ValueError, match=re.escape(expected)):
            faulty.before_step(batch_of(1, 1), torch.autocast("cpu", enabled=False))
    group.leave()


def test_statistics_are_summed_exactly_and_compared(tmp_path):
    mp.spawn(sums, args=(str(tmp_path),), nprocs=WORLD)


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, r"statistic 'a' is \[3\] torch.float32 but \[2\]"),
        ({"a": torch.zeros(2)}, {}, r"statistics are \[\] but \['a'\] in its first step"),
        ({"a": torch.zeros(2)}, {"b": torch.zeros(2)}, r"statistics are \['b'\] but \['a'\]"),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(2).bool()}, "statistic 'a' is torch.bool"),
        ({"a": torch.zeros(2)}, {"a": 3.0}, "statistic 'a' is float"),
        ({}, {"a": torch.zeros(2)}, r"statistics are \['a'\] but \[\] in its first step"),
    ],
)
def test_statistics_that_change_are_refused_by_name_on_one_process_too(first, then, message):
    method = Keeps(first)
    statistics = StepStatistics(method, Group())
    with pytest.raises(ValueError, match=f"method 'keeps', prepare, rank 0: {message}"):  # noqa: PT012
        for values in (first, then):
            method.prepared = values
            statistics.before_step(batch_of(1, 1), torch.autocast("cpu", enabled=False))


def test_a_method_that_needs_no_sums_with_its_hyper_parameters_has_none():
    method = Keeps({})
    statistics = StepStatistics(method, Group())
    for _ in range(2):
        statistics.before_step(batch_of(1, 1), torch.autocast("cpu", enabled=False))
    assert method.seen == []
    with pytest.raises(ValueError, match="'keeps', StepOutput, rank 0: no statistic; every step needs them"):
        statistics.after_step(StepOutput({}, None, {}))


def test_statistics_need_someone_who_takes_them_and_cost_nothing_otherwise():
    class Plain(StepMethod):
        name = "plain"

        def __init__(self):
            super().__init__(None, None, SimpleNamespace(optimizer="adam", schedule="constant"))

    class Silent:
        """A group that must not be asked."""

    statistics = StepStatistics(Plain(), Silent())
    statistics.before_step(None, None)
    statistics.after_step(StepOutput({}))
    with pytest.raises(ValueError, match="'plain' returned statistics in a step but has no observe_step"):
        statistics.after_step(StepOutput({}, None, {"a": torch.zeros(1)}))
    with pytest.raises(ValueError, match="'keeps' returned no statistics in a step but has an observe_step"):
        StepStatistics(Keeps(), Group()).after_step(StepOutput({}))

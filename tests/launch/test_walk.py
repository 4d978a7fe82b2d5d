"""The order in which a worker tries the tasks of its list."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.launch.tasks import Options
from benchmarks.launch.worker import Worker
from benchmarks.training.group import Group
from benchmarks.workspace import Workspace


class Recorder:
    """Stands in for the execution: runs are held, or done at once."""

    def __init__(self, held) -> None:
        self.group, self.options = Group(), Options(launch="x")
        self.held, self.looks = set(held), []

    def run(self, job, number: int) -> str:
        self.looks.append(number)
        return "busy" if number in self.held else "done"


@pytest.fixture
def worker(tmp_path):
    def worker(kinds, held=()):
        jobs = [
            SimpleNamespace(
                spec=SimpleNamespace(title=str(k)),
                stages=(),
                cell=SimpleNamespace(kind=kind),
                directory=lambda workspace, k=k: tmp_path / str(k),
            )
            for k, kind in enumerate(kinds)
        ]
        made = Worker([(None, job) for job in jobs], Workspace(tmp_path, tmp_path), Recorder(held), 0.0)
        made._random.seed(3)
        return made

    return worker


def test_a_worker_alone_keeps_the_order_of_its_list(worker):
    alone = worker(["semi"] * 20 + ["fit"] * 20)
    alone.work()
    assert alone.execution.looks == list(range(40))


def test_what_others_hold_is_met_once_and_all_else_is_done(worker, capsys):
    held = {0, 1, 2, 7, 39}
    busy = worker(["semi"] * 20 + ["fit"] * 20, held)
    busy.work()
    first = busy.execution.looks[:40]
    assert sorted(first) == list(range(40)), "a pass looks at each run once"
    assert set(busy.execution.looks[40:]) <= held
    # Behind a held run it goes on among those of the same kind, the longest first.
    assert first[1] < 20


def test_one_of_many_does_not_look_at_all_that_others_hold_before_it_finds_a_free_run(worker):
    before = []
    for seed in range(20):
        busy = worker(["semi"] * 400, range(40))
        busy._random.seed(seed)
        busy.work()
        before.append(next(k for k, number in enumerate(busy.execution.looks) if number >= 40))
    assert max(before) <= 6, "in the order of the list it would be 40"

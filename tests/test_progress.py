from __future__ import annotations

import pytest

from benchmarks import progress
from benchmarks.progress import Progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)

    def __call__(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_lines_hold_rate_and_time_left(clock, capsys):
    show = Progress(interactive=False).counter("prepare")
    show(0, 1000)
    clock(5)
    show(50, 1000)  # too soon for a line
    clock(10)
    show(300, 1000)
    clock(30)
    show(1000, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "prepare: 300/1000 (20/s, 35 s left)",
        "prepare: 1000/1000 (22/s)",
    ]


def test_a_resumed_count_takes_its_rate_from_this_call_only(clock, capsys):
    show = Progress(interactive=False).counter("prepare")
    show(900, 1000)
    clock(20)
    show(910, 1000)
    # 10 in 20 seconds; counting the 900 found there would give 46/s and 2 s left
    assert capsys.readouterr().err == "prepare: 910/1000 (0.5/s, 3 min left)\n"


def test_what_was_all_there_says_nothing(clock, capsys):
    show = Progress(interactive=False).counter("prepare")
    show(7, 7)
    show(7, 7)
    assert capsys.readouterr().err == ""


def test_the_end_is_said_once_and_a_new_count_may_follow(clock, capsys):
    show = Progress(interactive=False).counter("prepare")
    show(0, 10)
    clock(1)
    show(10, 10)
    show(10, 10)
    clock(100)
    show(2, 9)  # another piece of work under the same title
    clock(1)
    show(9, 9)
    assert capsys.readouterr().err.splitlines() == [
        "prepare: 10/10 (10/s)",
        "prepare: 9/9 (7.0/s)",
    ]


def test_nothing_done_yet_has_no_time_left(clock, capsys):
    show = Progress(interactive=False).counter("x")
    show(5, 10)
    clock(60)
    show(5, 10)
    assert capsys.readouterr().err == ""
    show(6, 10)
    clock(3600)
    show(7, 10)
    assert capsys.readouterr().err.splitlines()[-1] == "x: 7/10 (0.0/s, 1 h 32 min left)"


def test_a_bar_starts_where_the_work_was_found(monkeypatch):
    made = []

    class Bar:
        def __init__(self, total, initial, **options):
            self.n, self.total, self.initial, self.closed = initial, total, initial, False
            made.append(self)

        def update(self, step):
            self.n += step

        def close(self):
            self.closed = True

    monkeypatch.setattr(progress, "tqdm", Bar)
    show = Progress(interactive=True).counter("prepare")
    show(40, 100)
    show(60, 100)
    assert (made[0].initial, made[0].n, made[0].closed) == (40, 60, False)
    show(100, 100)
    assert made[0].closed
    show(0, 90)
    assert len(made) == 2
    show(90, 90)
    assert (made[1].n, made[1].closed) == (90, True)


def test_a_real_bar_counts_this_call_only():
    from io import StringIO

    from tqdm import tqdm

    bar = tqdm(total=1000, initial=900, file=StringIO())
    bar.start_t -= 10
    bar.update(50)
    assert bar.format_dict["initial"] == 900
    bar.last_print_t = bar.start_t + 10
    assert "5.00it/s" in bar.format_meter(**{**bar.format_dict, "elapsed": 10, "rate": None})
    bar.close()

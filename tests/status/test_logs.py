"""Logs of runs: where they are found, their last lines, and following them."""

from __future__ import annotations

import shutil
import threading

import pytest

from benchmarks.run import main
from benchmarks.status import logs
from benchmarks.status.overview import overview
from methods.errors import UserError


def test_logs_of_a_run(folder, capsys):
    place = ["--runs", str(folder.runs)]
    run_id = folder.add(1, "failed")
    folder.store.append_epoch(
        folder.place(run_id), {"epoch": 1, "mAP_ema": 41.5, "losses": {"labelled": 0.25}}
    )
    assert main(["logs", run_id[:6], *place]) == 0
    out = capsys.readouterr().out
    assert "no log of its own" in out
    assert "ValueError: bad" in out
    assert "epoch 1  mAP 41.50  labelled 0.25" in out
    assert main(["logs", run_id[:6], "--follow", *place]) == 2
    assert "no log to follow" in capsys.readouterr().err

    launch = folder.launch([run_id])
    launch.log("7_0").parent.mkdir()
    launch.log("7_0").write_text("".join(f"line {k}\n" for k in range(100)))
    assert main(["logs", "csaa/toy/0.05/1", "--lines", "3", "--follow", *place]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == ["line 97", "line 98", "line 99"]

    folder.add(2, "failed")
    assert main(["logs", "toy p=0.05", *place]) == 0  # the first has the title that its launch says
    folder.add(3, "failed")
    assert main(["logs", "toy p=0.05", *place]) == 2
    assert "2 runs match 'toy p=0.05', name one" in capsys.readouterr().err
    assert main(["logs", "nothing", *place]) == 2
    assert "no run matches 'nothing'" in capsys.readouterr().err
    assert main(["logs", "cssa/toy", *place]) == 2
    assert "did you mean 'csaa'?" in capsys.readouterr().err


def test_following_prints_what_is_added_until_the_end(tmp_path, capsys, monkeypatch):
    log = tmp_path / "log"
    log.write_text("before\n")
    over = threading.Event()

    def work(seconds):
        """What another process does while `follow` waits."""
        with open(log, "a") as file:
            file.write("during\n")
        over.set()

    monkeypatch.setattr(logs.time, "sleep", work)
    logs.follow(log, over.is_set)
    assert capsys.readouterr().out == "during\n"


def test_a_tail_reads_the_end_of_a_large_file(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 1_000_000 + b"\n" + b"".join(b"%d\n" % k for k in range(30_000)))
    assert logs.tail(log, 2) == ["29998", "29999"]
    assert len(logs.tail(log, 29_000)) == 29_000
    assert logs.tail(log, 1, until="no such line") == ["29999"]
    log.write_text("")
    assert logs.tail(log, 3) == []
    with pytest.raises(OSError, match="absent"):
        logs.tail(tmp_path / "absent", 1)


def test_a_log_is_looked_up_below_the_folder_of_runs_first(tmp_path):
    there = tmp_path / "a" / "slurm" / "launches" / "x" / "jobs" / "1_0_log.out"
    there.parent.mkdir(parents=True)
    there.write_text("")
    assert logs.relocated(there, tmp_path / "b") == there
    here = tmp_path / "b" / "slurm" / "launches" / "x" / "jobs" / "1_0_log.out"
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert logs.relocated(there, tmp_path / "b") == here
    assert logs.relocated(tmp_path / "absent", tmp_path / "b") is None


def test_a_run_is_not_resolved_from_an_empty_store(tmp_path):
    with pytest.raises(UserError, match="no run matches"):
        logs.resolve(overview(tmp_path), "abcd")

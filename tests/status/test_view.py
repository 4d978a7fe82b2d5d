"""A status as text, as JSON and redrawn on a terminal."""

from __future__ import annotations

import io
import json
import shutil

from benchmarks.run import main
from benchmarks.status import view as status_view
from benchmarks.status.overview import overview
from benchmarks.status.view import as_json, live, plain, screen
from tests.status.conftest import section


def test_failures_are_grouped_and_show_the_log_of_a_moved_folder(folder, tmp_path):
    ids = [folder.add(k, "not started") for k in range(4)]
    launch = folder.launch(ids)
    log = launch.log("7_0")
    for k in range(3):
        folder.add(k, "failed", log=str(log))
    folder.add(3, "failed", type="OSError", message="disk /a/b/c full", traceback="")
    log.parent.mkdir(parents=True)
    lines = [f"line {k}" for k in range(9)]
    lines += [f"10 %\r99 %\rfailed: title of {ids[0][:8]}: ValueError: bad 0", "another run"]
    log.write_text("\n".join(lines) + "\n")
    moved = tmp_path / "elsewhere"
    shutil.move(folder.runs, moved)
    view = overview(moved)
    text = plain(view)
    failed = section(text, "failed (4) for 2 reasons")
    assert failed.index("3 x ValueError: bad #") < failed.index("1 x OSError: disk <path> full")
    assert "at    /home/me/benchmarks/trainer.py:12 in step" in failed
    assert f"log   {moved}/slurm/launches/{launch.folder.name}/jobs/7_0_0_log.out" in failed
    first = next(run for run in view.runs if run.run_id == ids[0][:16])
    assert status_view.last_lines(first, moved) == [
        "line 5",
        "line 6",
        "line 7",
        "line 8",
        f"failed: title of {ids[0][:8]}: ValueError: bad 0",
    ]
    record = as_json(view)
    assert json.loads(json.dumps(record)) == record
    assert record["counts"] == {"failed": 4}
    assert [(group["signature"], group["count"]) for group in record["failures"]] == [
        ("ValueError: bad #", 3),
        ("OSError: disk <path> full", 1),
    ]
    log = moved / "slurm" / "launches" / launch.folder.name / "jobs" / "7_0_0_log.out"
    log.unlink()
    text = plain(overview(moved))
    assert "| ValueError: bad" in text
    assert "not readable here" in text


def test_long_lists_are_cut_unless_all_is_asked_for(folder):
    for k in range(25):
        folder.add(k, "dead")
    view = overview(folder.runs)
    assert "  ... and 5 more (--all)" in plain(view)
    assert plain(view).count("\n  CSAA") == 20
    assert plain(view, everything=True).count("\n  CSAA") == 25


def test_the_live_view_ends_when_all_is_done(folder):
    run_id = folder.add(1, "running")
    lease = folder.held.pop()
    looks = []

    def look():
        if len(looks) == 2:  # the run ends between two looks
            lease.release()
            folder.add(1, "done")
        looks.append(overview(folder.runs))
        return looks[-1]

    out = io.StringIO()
    view = live(look, 0.0, out)
    assert len(looks) == 3
    assert view is not None
    assert view.settled
    texts = out.getvalue().splitlines()
    assert any("1 running" in line for line in texts)
    assert texts[-1].endswith("1 run (1 done)")
    assert run_id[:8] in out.getvalue()


def test_the_live_view_ends_quietly_at_ctrl_c(folder, monkeypatch, capsys):
    folder.add(1, "dead")

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(status_view.time, "sleep", interrupted)
    assert main(["status", "--live", "--runs", str(folder.runs)]) == 0
    assert "1 dead" in capsys.readouterr().out


def test_a_screen_is_cut_to_the_window(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "5")
    drawn = screen("\n".join(f"{k} " + "x" * 30 for k in range(9)), "footer")
    lines = drawn.replace("\x1b[H", "").replace("\x1b[J", "").replace("\x1b[K", "").splitlines()
    assert lines == ["0 " + "x" * 16 + "…", "1 " + "x" * 16 + "…", "... 7 more lines", "footer"]

"""Where runs stand, and their logs: from the store, launches and commands of a made-up SLURM."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.perf import status as perf
from benchmarks.run import main
from benchmarks.status import logs
from benchmarks.status import progress_file as progressfile
from benchmarks.status import view as status_view
from benchmarks.status.overview import QueueCache, overview
from benchmarks.status.progress_file import ProgressFile
from benchmarks.status.view import as_json, live, plain, screen
from methods.errors import UserError
from results.store import RunStore
from slurm import protocol
from slurm.launches import Launches
from tests.conftest import ROOT, grid_text
from tests.results.records import make_result

TRACE = """Traceback (most recent call last):
  File "/home/me/benchmarks/trainer.py", line 12, in step
    loss()
  File "/usr/lib/python3.11/site-packages/torch/nn.py", line 7, in forward
    raise
ValueError: bad
"""


class Folder:
    """A folder of runs, filled by hand, and a PATH with nothing but made-up commands."""

    def __init__(self, root: Path, monkeypatch) -> None:
        self.runs, self.bin = root / "runs", root / "bin"
        self.store = RunStore(self.runs / "store")
        self.bin.mkdir()
        monkeypatch.setenv("PATH", str(self.bin))
        self.held: list = []

    def add(self, seed: int, state: str, **error: str) -> str:
        """A run in a state of the store; returns its identity."""
        run_id = hashlib.sha256(str(seed).encode()).hexdigest()
        spec = {"dataset": {"alias": "toy"}, "method": "csaa", "label": "CSAA", "ratio": 0.05, "seed": seed}
        if state == "not started":
            return run_id
        directory = self.store.directory(run_id, spec)
        lease = self.store.claim(directory, spec)
        assert lease is not None
        if state == "running":
            self.held.append(lease)
            return run_id
        if state == "failed":
            record = {"type": "ValueError", "message": f"bad {seed}", "traceback": TRACE, **error}
            self.store.write_failure(directory, lease, record)
        elif state == "done":
            result = make_result(run_id, spec=spec)
            self.store.write_result(directory, lease, result, {"scores": np.zeros((1, 1))})
        lease.release()
        return run_id

    def place(self, run_id: str) -> Path:
        (found,) = self.store.find(run_id[:16])
        return found

    def launch(self, *bundles: list[str], first: int = 7):
        """Submit bundles as the elements of one array."""
        titles = {run: f"title of {run[:8]}" for bundle in bundles for run in bundle}
        plan = {"job_name": "ssmll-x", "bundles": [{"run_ids": b} for b in bundles]}
        made = Launches(self.runs).create("toy", {**plan, "titles": titles})
        made.record({k: f"{first}_{k}" for k in range(len(bundles))})
        return made

    def answers(self, **commands: str) -> None:
        """Let commands print something; "!text" lets one fail with the text."""
        for name, text in {"sbatch": "", **commands}.items():
            (self.bin / f"{name}.txt").write_text(text.removeprefix("!"))
            out = " >&2; exit 1" if text.startswith("!") else ""
            (self.bin / name).write_text(f"#!/bin/sh\n/bin/cat '{self.bin / name}.txt'{out}\n")
            (self.bin / name).chmod(0o755)

    def kinds(self) -> dict[str, str]:
        return {run.run_id[:16]: run.kind for run in overview(self.runs).runs}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    made = Folder(tmp_path, monkeypatch)
    yield made
    for lease in made.held:
        lease.release()


def section(text: str, title: str) -> str:
    """A section of the plain output."""
    (found,) = [part for part in text.split("\n\n") if part.startswith(title)]
    return found


def test_every_state(folder):
    ids = {
        "done": folder.add(1, "done"),
        "running": folder.add(2, "running"),
        "preempted": folder.add(3, "dead"),
        "queued": folder.add(4, "not started"),
        "dead": folder.add(5, "dead"),
        "failed": folder.add(6, "failed"),
        "not started": folder.add(7, "not started"),
    }
    bundles = [
        [ids[kind]] for kind in ("done", "running", "preempted", "queued", "dead", "failed", "not started")
    ]
    folder.launch(*bundles)
    folder.answers(
        squeue="7_1|RUNNING||1:00|n1\n7_2|PENDING|BeginTime|0:00|\n7_3|PENDING|Resources|0:00|\n",
        sacct="7_4|NODE_FAIL\n7_6|CANCELLED by 12\n",
    )
    assert folder.kinds() == {run_id[:16]: kind for kind, run_id in ids.items()}
    text = plain(overview(folder.runs))
    first = text.splitlines()[0]
    assert first == (
        f"{folder.runs}: 7 runs (1 done, 1 running, 1 preempted, 1 queued, 1 dead, 1 failed, 1 not started)"
    )
    assert f"process {os.getpid()} on {socket.gethostname()}" in section(text, "running (1)")
    assert "heartbeat 0 s ago" in section(text, "running (1)")
    assert "begun 1 time; job 7_2: BeginTime" in section(text, "preempted (1)")
    assert section(text, "queued (1)") == "queued (1) in 1 job: Resources 1"
    assert "job 7_4 ended: NODE_FAIL" in section(text, "dead (1)")
    assert "1 x ValueError: bad #" in section(text, "failed (1)")
    assert "before they began (1): CANCELLED 1" in section(text, "submitted, but")


def test_without_accounting_a_dead_run_says_what_is_known(folder):
    folder.launch([folder.add(1, "dead")])
    folder.answers(squeue="")
    text = plain(overview(folder.runs))
    assert "stopped before its end; the next attempt continues it" in text
    assert "job 7_0 is no longer queued" in text


def test_a_local_store_needs_no_slurm(folder):
    folder.add(1, "dead")
    folder.add(2, "done")
    view = overview(folder.runs)
    assert (view.counts(), view.remarks) == ({"done": 1, "dead": 1}, [])
    title = next(run.title for run in view.runs if run.kind == "dead")
    assert title == f"CSAA · toy p=0.05 seed=1 [{hashlib.sha256(b'1').hexdigest()[:8]}]"
    assert overview(folder.runs / "absent").counts() == {}


def test_a_copied_folder_says_that_the_queue_is_unknown(folder):
    launch = folder.launch(
        [folder.add(1, "dead"), folder.add(2, "not started")],
        [folder.add(3, "done"), folder.add(4, "failed")],
    )
    old = launch.folder.with_name("20200101-000000-toy-abcd")
    launch.folder.rename(old)
    view = overview(folder.runs)
    assert view.counts() == {"done": 1, "submitted": 2, "failed": 1}
    assert view.remarks == ["no squeue here: which submitted runs still wait is not known"]
    told = section(plain(view), "submitted and not done (2)")
    assert "2 by launch 20200101-000000-toy-abcd, " in told
    assert told.endswith("ago; 1 begun")


def test_a_queue_that_does_not_answer_is_a_remark(folder):
    folder.launch([folder.add(1, "not started")])
    folder.answers(squeue="!slurm_load_jobs error: Unable to contact slurm controller")
    view = overview(folder.runs)
    assert view.counts() == {"submitted": 1}
    (remark,) = view.remarks
    assert remark.startswith("the queue is not known: squeue failed: slurm_load_jobs")


def test_the_newest_launch_counts_and_a_damaged_one_is_named(folder):
    run_id = folder.add(1, "dead")
    first = folder.launch([run_id], first=7)
    first.folder.rename(first.folder.with_name("20200101-000000-toy-0000"))
    folder.launch([run_id], first=8)
    damaged = folder.launch(["0" * 64], first=9)
    (damaged.folder / "plan.json").write_text("{")
    folder.answers(squeue="7_0|PENDING|Held|0:00|\n", sacct="8_0|TIMEOUT\n")
    view = overview(folder.runs)
    assert [(run.kind, run.job) for run in view.runs] == [("preempted", "7_0")]
    assert "is damaged" in view.remarks[0]
    folder.answers(squeue="", sacct="8_0|TIMEOUT\n")
    assert [(run.kind, run.job, run.why) for run in overview(folder.runs).runs] == [
        ("dead", "8_0", "TIMEOUT")
    ]


def test_the_queue_is_asked_once_in_a_while(folder, monkeypatch):
    folder.launch([folder.add(1, "not started")])
    folder.answers(squeue="7_0|PENDING|Held|0:00|\n")
    cluster = QueueCache()
    assert overview(folder.runs, cluster=cluster).counts() == {"queued": 1}
    folder.answers(squeue="!down")
    assert overview(folder.runs, cluster=cluster).counts() == {"queued": 1}
    monkeypatch.setattr("benchmarks.status.overview.QUEUE_SECONDS", 0.0)
    assert overview(folder.runs, cluster=cluster).counts() == {"submitted": 1}


def test_progress_of_the_process_that_works_is_shown(folder):
    run_id = folder.add(1, "running")
    file = ProgressFile(folder.place(run_id), "x", epochs=3)
    for step in range(3):
        file(1, step, 10, 4.0)
    file._write({"epoch": 1, "step": 2, "steps": 10, "seconds": 4.0, "left": 100.0, "time": time.time() - 40})
    view = overview(folder.runs)
    assert view.runs[0].left(view.taken) == pytest.approx(60, abs=1)
    assert "epoch 2/3 step 2/10, 60 s left" in plain(view)
    # What an earlier attempt left says nothing about this one.
    path = folder.place(run_id) / progressfile.NAME
    path.write_text(path.read_text().replace(str(os.getpid()), "1"))
    text = plain(overview(folder.runs))
    assert "left" not in text
    assert "step" not in text
    path.write_text('{"epoch": "first", "time": 3}')
    assert plain(overview(folder.runs)).count("\n") == text.count("\n")


def test_a_stage_that_is_computed_is_shown(folder):
    stages = RunStore(folder.runs / "stages")
    place = folder.runs / "stages" / "warmup-0123456789abcdef"
    lease = stages.claim(place, {"stage": "warmup"})
    assert lease is not None
    with lease:
        ProgressFile(place, "warmup for toy", epochs=2)(0, 0, 5, 0.0)
        view = overview(folder.runs)
        assert "warmup for toy  epoch 1/2 step 0/5" in section(plain(view), "stages")
        (place / "stage.json").write_text("{}")
        assert overview(folder.runs).stages == []


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
    assert status_view._last_lines(first, moved) == [
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


def test_a_damaged_failure_hides_no_other_run(folder):
    directory = folder.place(folder.add(1, "failed"))
    folder.add(2, "done")
    (directory / "failure.json").write_text("{")
    view = overview(folder.runs)
    assert view.counts() == {"done": 1, "failed": 1}
    assert "StoreError" in plain(view)


def test_the_live_view_ends_when_all_is_done(folder):
    run_id = folder.add(1, "running")
    lease = folder.held.pop()
    other = threading.Timer(0.3, lambda: (lease.release(), folder.add(1, "done")))
    other.start()
    out = io.StringIO()
    view = live(lambda: overview(folder.runs), 0.05, out)
    other.join()
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


def test_status_on_the_command_line(folder, capsys):
    folder.add(1, "done")
    place = ["--runs", str(folder.runs)]
    assert main(["status", *place]) == 0
    assert "1 run (1 done)" in capsys.readouterr().out
    folder.add(2, "failed")
    assert main(["status", "--json", *place]) == 1
    assert json.loads(capsys.readouterr().out)["counts"] == {"done": 1, "failed": 1}
    assert main(["status", "--methods", "csaa", "--seeds", "1", *place]) == 2
    assert "--seeds, --methods: these choose runs of a grid" in capsys.readouterr().err


def test_status_and_logs_import_nothing_heavy(folder):
    folder.add(1, "dead")
    for words in (["status"], ["logs", "CSAA"]):
        done = subprocess.run(
            [
                sys.executable,
                "-X",
                "importtime",
                str(ROOT / "benchmarks" / "run.py"),
                *words,
                "--runs",
                str(folder.runs),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "benchmarks.status.overview" in modules
        assert not modules & {"torch", "numpy", "pandas", "PIL", "submitit", "matplotlib"}


def test_a_reader_may_stop_reading(folder):
    for k in range(3):
        folder.add(k, "dead")
    words = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "status", "--runs"]
    process = subprocess.Popen(
        [*words, str(folder.runs)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 0


def test_logs_of_a_run(folder, capsys):
    place = ["--runs", str(folder.runs)]
    run_id = folder.add(1, "failed")
    folder.store.append_epoch(
        folder.place(run_id), {"epoch": 0, "mAP_ema": 41.5, "losses": {"labelled": 0.25}}
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


def test_following_prints_what_is_added_until_the_end(tmp_path, capsys):
    log = tmp_path / "log"
    log.write_text("before\n")
    over = threading.Event()

    def work():
        time.sleep(0.1)
        with open(log, "a") as file:
            file.write("during\n")
        over.set()

    thread = threading.Thread(target=work)
    thread.start()
    logs.follow(log, over.is_set)
    thread.join()
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


def test_time_left_counts_steps_and_what_is_between_epochs(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(progressfile.time, "monotonic", lambda: clock[0])
    file = ProgressFile(tmp_path, "x", epochs=3, every=0.0)

    def left(epoch: int, step: int, took: float) -> float | None:
        clock[0] += took
        file(epoch, step, 10, 0.0)
        found = progressfile.read(tmp_path)
        assert found is not None
        assert (found["epoch"], found["step"], found["epochs"]) == (epoch, step, 3)
        return found["left"]

    assert left(0, 0, 0.0) is None
    assert left(0, 1, 9.0) is None  # the first step is slow
    for step in range(2, 10):
        left(0, step, 2.0)
    # 20 steps, and three times what the first step took longer: nothing else is known yet
    assert left(0, 10, 2.0) == pytest.approx(2 * 20 + 3 * 7)
    left(1, 0, 30.0)  # an epoch's end takes 30 s
    assert left(1, 1, 2.0) == pytest.approx(2 * 19 + 2 * 30)
    left(2, 0, 0.0)
    assert left(3, 0, 0.0) == 0.0


def test_progress_is_written_seldom_and_harms_nothing(tmp_path, monkeypatch):
    clock, written = [1000.0], []
    monkeypatch.setattr(progressfile.time, "monotonic", lambda: clock[0])
    file = ProgressFile(tmp_path / "absent", "x", epochs=1)  # every write fails
    assert progressfile.read(tmp_path / "absent") is None
    file(0, 0, 50, 0.0)
    monkeypatch.setattr(file, "_write", lambda values: written.append(values["step"]))
    for step in range(1, 26):
        clock[0] += 1.0
        file(0, step, 50, 0.0)
    assert written == [10, 20]
    file.clear()


def test_progress_names_the_job_and_the_log(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.setenv("SSMLL_LOG", "/logs/a")
    ProgressFile(tmp_path, "x", 1)(0, 0, 1, 0.0)
    found = progressfile.read(tmp_path)
    assert found is not None
    assert (found["job"], found["log"], found["title"]) == ("99", "/logs/a", "x")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "98")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert protocol.job_number() == "98_3"
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_a_training_leaves_its_progress_while_it_runs(command, tmp_path, voc_root, monkeypatch):
    rates = "hyper = { lr_backbone = 1e30, lr_head = 1e30 }"
    methods = f'["fixmatch", {{ name = "supervised", label = "diverges", {rates} }}]'
    grid = tmp_path / "grid.toml"
    grid.write_text(grid_text(voc_root, methods, epochs=6))
    log = tmp_path / "log.txt"
    log.write_text("what the process printed\n")
    monkeypatch.setenv("SSMLL_LOG", str(log))
    process = command.start("--grid", str(grid), "--no-plots", "--workers", "1")
    seen: dict[str, dict] = {}
    while process.poll() is None:
        for path in command.runs.glob("sto*/*/*/*/progress.json"):
            found = progressfile.read(path.parent)
            if found and found["left"]:
                seen[found["title"].split(" ")[0]] = found
        for path in command.runs.glob("stages/*/progress.json"):
            found = progressfile.read(path.parent) or {"title": "x"}
            seen[found["title"].split(" ")[0]] = found
        time.sleep(0.02)
    out, err = process.communicate()
    assert process.returncode == 1, f"{out}\n{err}"
    assert seen["fixmatch"]["epochs"] == 6
    assert 0 < seen["fixmatch"]["left"] < 60
    assert seen["fixmatch"]["log"] == str(log)
    assert seen["fixmatch"]["seconds"] > 0
    assert seen["warmup"]["epochs"] == 1
    (done,) = (command.runs / "store").glob("*/fixmatch/*")
    assert not (done / "progress.json").exists()
    assert not list(command.runs.glob("stages/*/progress.json"))
    (failure,) = (command.runs / "store").glob("*/supervised/*/failure.json")
    assert json.loads(failure.read_text())["log"] == str(log)
    out, _ = command("status", code=1)
    assert "2 runs (1 done, 1 failed)" in out
    assert "| what the process printed" in out
    assert "what the process printed" in command("logs", "diverges")[0]


def test_the_measured_store_is_counted_as_it_was_built(tmp_path, monkeypatch):
    counts = perf.build(tmp_path / "runs", tmp_path / "bin", 1000)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    view = overview(tmp_path / "runs")
    assert view.counts() == counts
    assert sum(counts.values()) == 1000
    found = {
        "queue": 0.5,
        "copy": 0.25,
        "all": {"queue": [0.4, 0.6], "copy": [0.25]},
        "runs": 1000,
        "rounds": 2,
        "counts": counts,
        "machine": {"cpu": "a processor", "cores": 2},
        "load": 0.5,
        "python": "3.11.0",
    }
    text = perf.table(found)
    assert "queue    0.50 s  (0.40 to 0.60)" in text
    assert "a processor, 2 cores, load 0.5 before; python 3.11.0" in text

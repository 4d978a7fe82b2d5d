"""How far a training is: the file beside its checkpoints."""

from __future__ import annotations

import json
import os
import time

import pytest

from benchmarks.status import progress_file as progressfile
from benchmarks.status.overview import overview
from benchmarks.status.progress_file import ProgressFile
from benchmarks.status.view import plain
from results.files import filesystem_now
from slurm import protocol
from tests.conftest import grid_text


def test_progress_of_the_process_that_works_is_shown(folder):
    run_id = folder.add(1, "running")
    file = ProgressFile(folder.place(run_id), "x", epochs=3)
    for step in range(3):
        file(1, step, 10, 4.0)
    path = folder.place(run_id) / progressfile.NAME
    written = json.loads(path.read_text())
    # The clock of the machine that trains is a day wrong; the time of the file counts.
    path.write_text(json.dumps({**written, "step": 2, "left": 100.4, "time": time.time() + 86400}))
    then = filesystem_now(folder.runs) - 40
    os.utime(path, (then, then))
    view = overview(folder.runs)
    assert view.runs[0].left() == pytest.approx(60.4, abs=0.5)
    assert "epoch 2/3 step 2/10, 60 s left" in plain(view)
    # What an earlier attempt left says nothing about this one.
    path.write_text(path.read_text().replace(str(os.getpid()), "1"))
    text = plain(overview(folder.runs))
    assert "left" not in text
    assert "step" not in text
    path.write_text('{"epoch": "first", "time": 3}')
    assert plain(overview(folder.runs)).count("\n") == text.count("\n")


def test_time_left_counts_steps_and_what_is_between_epochs(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(progressfile.time, "monotonic", lambda: clock[0])
    file = ProgressFile(tmp_path, "x", epochs=3, every=0.0)

    def left(epoch: int, step: int, took: float) -> float | None:
        clock[0] += took
        file(epoch, step, 10, 0.0)
        found = progressfile.read(tmp_path)
        assert found is not None
        shown = (epoch + 1, step) if epoch < 3 else (3, 10)  # the file counts from 1
        assert (found["epoch"], found["step"], found["epochs"]) == (*shown, 3)
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


@pytest.mark.parametrize(
    ("epoch", "step", "text"),
    [(0, 3, "epoch 1/4 step 3/9"), (3, 8, "epoch 4/4 step 8/9"), (4, 0, "4/4 ended")],
)
def test_the_place_is_the_same_in_files_of_an_earlier_version(folder, epoch, step, text):
    place = folder.place(folder.add(1, "running"))
    file = ProgressFile(place, "x", epochs=4)
    file(epoch, step, 9, 1.0)
    assert text in plain(overview(folder.runs))
    written = json.loads((place / progressfile.NAME).read_text())
    del written["format"]
    (place / progressfile.NAME).write_text(json.dumps({**written, "epoch": epoch, "step": step}))
    assert text in plain(overview(folder.runs))


def test_progress_is_written_seldom_and_harms_nothing(tmp_path, monkeypatch):
    clock, written = [1000.0], []
    monkeypatch.setattr(progressfile.time, "monotonic", lambda: clock[0])
    nowhere = ProgressFile(tmp_path / "absent", "x", epochs=1)  # every write fails
    nowhere(0, 0, 50, 0.0)
    assert progressfile.read(tmp_path / "absent") is None
    nowhere.clear()
    file = ProgressFile(tmp_path, "x", epochs=1)
    for step in range(26):
        clock[0] += 1.0
        file(0, step, 50, 0.0)
        found = progressfile.read(tmp_path)
        assert found is not None
        written += [found["step"]] if found["step"] not in written else []
    assert written == [0, 10, 20]
    file.clear()
    assert progressfile.read(tmp_path) is None


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
    assert 0 < seen["fixmatch"]["left"] < 3600  # a wide limit: the machine may be busy
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

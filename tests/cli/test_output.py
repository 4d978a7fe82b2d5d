"""Output that nobody reads, that the disk has no room for, and that a terminal cannot show."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cli import output, report

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pipe():
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    yield stream
    stream.close()  # no traceback: what it holds goes nowhere


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_reader_that_has_left_ends_the_command_quietly(pipe, monkeypatch, capfd, size):
    monkeypatch.setattr(sys, "stdout", pipe)
    assert output.guarded(lambda: print("x" * size) or 0) == output.READER_GONE
    assert capfd.readouterr().err == ""


def test_the_pipe_to_a_process_of_ours_is_no_reader(capsys):
    def work():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert output.guarded(work) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Broken pipe (in ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("size", [1, 100_000])
def test_no_room_for_the_output_is_said_in_one_line(monkeypatch, capsys, size):
    with open("/dev/full", "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert output.guarded(lambda: print("x" * size) or 0) == 1
    assert capsys.readouterr().err == "error: standard output: No space left on device\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_for_a_file_is_said_in_one_line(capsys, number):
    def work():
        raise OSError(number, os.strerror(number), "runs/tables/demo")

    assert output.guarded(work) == 1
    assert capsys.readouterr().err == f"error: runs/tables/demo: {os.strerror(number)}\n"


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"1 +- 2 ? ?"), ("latin-1", b"1 \xb1 2 ? ?")])
def test_a_terminal_of_another_encoding_gets_other_signs(monkeypatch, encoding, shown):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert output.guarded(lambda: print("1 ± 2 猫 \udce9", end="") or 0) == 0
    assert raw.getvalue() == shown


def test_a_handler_that_was_asked_for_stays(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="xmlcharrefreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    assert output.guarded(lambda: 0) == 0
    assert stream.errors == "xmlcharrefreplace"


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """A plan of one run without a result, with names that no format takes as they are."""
    from benchmarks.plan.summary import PlannedRun, PlanSummary
    from benchmarks.workspace import Workspace

    run = PlannedRun(
        run_id="a" * 64,
        title="",
        path="",
        dataset="R&B $a$",
        ratio=0.05,
        seed=1,
        method="m",
        label="two\nlines ≥ <b>",
    )
    return PlanSummary("mine", (run,), (), ()), Workspace(tmp_path / "data", tmp_path / "runs")


def test_figures_that_cannot_be_drawn_do_not_hide_the_table(grid, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise ImportError("no module named 'matplotlib'\nnor seaborn")

    monkeypatch.setattr("results.plots.write_plots", broken)
    report.write(*grid, "last", None, plots=True)
    printed = capsys.readouterr()
    assert "two lines ≥ <b>" in printed.out
    assert "mAP-last.md" in printed.out
    assert printed.err == "figure files are left out: ImportError: no module named 'matplotlib' nor seaborn\n"


def test_a_full_disk_does_not_hide_the_table(grid, monkeypatch, capsys, tmp_path):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("results.writers.atomic_write_bytes", full)
    assert output.guarded(lambda: report.write(*grid, "last", None, plots=True) or 0) == 1
    printed = capsys.readouterr()
    assert "two lines ≥ <b>" in printed.out
    assert printed.err == f"error: {tmp_path / 'runs' / 'tables' / 'mine'}: No space left on device\n"


def test_a_folder_that_is_a_file_is_said_in_one_line(grid, capsys, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(report.UserError, match="out: cannot be written: File exists"):
        report.write(*grid, "last", tmp_path / "out", plots=False)
    assert "two lines ≥ <b>" in capsys.readouterr().out


def test_no_traceback_at_the_end_of_the_interpreter():
    code = "import sys; from benchmarks.cli.output import guarded; sys.exit(guarded(lambda: print(1) or 0))"
    command = f"sleep .1; {sys.executable} -c '{code}'"
    for line, expected, err in (
        (f"({command}) | true; exit ${{PIPESTATUS[0]}}", output.READER_GONE, ""),
        (f"{command} > /dev/full", 1, "error: standard output: No space left on device\n"),
    ):
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (expected, err)

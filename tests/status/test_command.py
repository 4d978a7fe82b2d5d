"""The verb `status` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.perf import status as perf
from benchmarks.run import main
from benchmarks.status.overview import overview
from tests.conftest import ROOT


def test_status_on_the_command_line(folder, capsys):
    folder.add(1, "done")
    place = ["--runs", str(folder.runs)]
    assert main(["status", *place]) == 0
    assert "1 run (1 done)" in capsys.readouterr().out
    folder.add(2, "failed")
    assert main(["status", "--json", *place]) == 1
    assert json.loads(capsys.readouterr().out)["counts"] == {"done": 1, "failed": 1}
    assert main(["status", "--methods", "csaa", "--seeds", "1", "--split-seeds", "2", *place]) == 2
    assert "--seeds, --split-seeds, --methods: these choose runs of a grid" in capsys.readouterr().err


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

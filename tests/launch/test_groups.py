"""Runs that several processes train together, called as a user does: what ends them, and how."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.run import main
from benchmarks.training.group import Group
from benchmarks.training.strategy import make
from benchmarks.training.watch import Beat, diagnosis
from methods.errors import UserError
from tests.conftest import ROOT, CommandLine, grid_text
from tests.launch.conftest import assert_one_process
from tests.test_end_to_end import result_of, wait_for

HANG_SECONDS = 15
"""After which a group counts as hung: longer than anything takes on a busy machine."""

TROUBLE = '''"""Methods that get into trouble at their fourth step, in one process only."""
import os
import time
from dataclasses import dataclass

import torch

from methods import register
from methods.supervised import Supervised


class Troubled(Supervised):
    Hyper = Supervised.Hyper
    steps = 0

    def training_step(self, batch):
        self.steps += 1
        if self.steps == 4 and os.environ.get("RANK", "1") == "1":
            self.trouble()
        return super().training_step(batch)


@register
class Raises(Troubled):
    name = "raises"

    def trouble(self):
        raise ValueError("a number that is none")


@register
class Hangs(Troubled):
    name = "hangs"

    def trouble(self):
        time.sleep(3600)


@register
class Stopped(Troubled):
    name = "stopped"

    def trouble(self):
        os.kill(os.getpid(), 19)  # SIGSTOP: not even its watching thread goes on


@register
class Fills(Troubled):
    name = "fills"

    def trouble(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
'''


@pytest.fixture(scope="module")
def trouble(tmp_path_factory):
    """The file with the methods that get into trouble."""
    path = tmp_path_factory.mktemp("methods") / "trouble.py"
    path.write_text(TROUBLE)
    return path


@pytest.fixture(scope="module")
def troubled(tmp_path_factory, trouble, voc_root):
    """What a launcher said of a grid in which rank 1 gets into every kind of trouble."""
    command = CommandLine(tmp_path_factory.mktemp("trouble"))
    methods = '["raises", "hangs", "stopped", "fills", "supervised"]'
    grid = command.folder / "grid.toml"
    grid.write_text(f'modules = ["{trouble}"]\n' + grid_text(voc_root, methods))
    out, err = command(
        *("--grid", str(grid), "--processes", "2", "--workers", "1", "--no-plots"),
        *("--hang-seconds", str(HANG_SECONDS)),
        code=1,
    )
    return command, out, err


@pytest.mark.slow
def test_trouble_in_one_process_fails_that_run_and_no_other(troubled):
    command, out, err = troubled
    assert "1 failed" in out
    assert result_of(command.runs, "supervised")
    assert "Traceback" not in err
    assert sum(line.startswith("failed: ") for line in err.splitlines()) == 2 * 4


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("raises", r"rank 1: ValueError: a number that is none$"),
        (
            "hangs",
            r"Hung: rank 1 \(.*process \d+\) hangs at epoch 1 step 4, forward pass",
        ),
        (
            "stopped",
            r"Hung: rank 1 \(.*last seen at .*\) gave no sign of life",
        ),
        ("fills", r"rank 1: OutOfMemory: out of memory with recipe.batch_warmup = 12 over 2 proce"),
    ],
)
@pytest.mark.slow
def test_the_cause_is_told_with_its_rank(troubled, method, message):
    lines = [line for line in troubled[2].splitlines() if line.startswith(f"failed: {method} ")]
    assert re.search(message, lines[0])
    assert len(lines) == 2  # when it came, and at the end


@pytest.mark.slow
def test_a_process_that_hangs_alone_fails_its_run_and_the_next_is_done(command, trouble, voc_root):
    grid = command.folder / "grid.toml"
    text = grid_text(voc_root, '["hangs", "supervised"]')
    grid.write_text(f'modules = ["{trouble}"]\n{text}')
    words = ("--workers", "1", "--no-plots", "--hang-seconds", str(HANG_SECONDS))
    _, err = command("--grid", str(grid), *words, code=1)
    (line,) = {line for line in err.splitlines() if line.startswith("failed: hangs ")}
    assert re.search(rf"Hung: .*process \d+ hangs at epoch 1 step 4, forward pass for {HANG_SECONDS} s", line)
    assert result_of(command.runs, "supervised")


WATCHED = """
import sys, time
from pathlib import Path
from benchmarks.training.watch import Watch

with Watch().watching(Path(sys.argv[1]), 1, 6.0, lambda line: print(line, flush=True)):
    print("watched", flush=True)
    input()
print("ended")
"""


def test_a_process_that_was_stopped_did_not_hang(tmp_path):
    hanging, stopped = (
        subprocess.Popen(
            [sys.executable, "-c", WATCHED, str(tmp_path)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    )
    for process in (hanging, stopped):
        assert process.stdout.readline() == "watched\n"
    stopped.send_signal(signal.SIGSTOP)  # as by Ctrl-Z, or where Slurm suspends jobs
    assert hanging.stdout.readline().endswith("hangs at start for 6 s\n")
    stopped.send_signal(signal.SIGCONT)
    time.sleep(1.5)  # two looks of its watch: one that counted the time of the stop would be printed
    for process in (hanging, stopped):
        assert process.communicate("\n", timeout=60)[0] == "ended\n"


def ranks_of(runs: Path) -> list[int]:
    """Process ids of the group that works on a run, from the files that its ranks keep."""
    found = []
    for beat in (runs / "store").glob("*/*/*/beat.*"):
        try:
            found.append(int(json.loads(beat.read_text())["who"].rsplit(" ", 1)[1]))
        except (ValueError, KeyError, FileNotFoundError):
            continue
    return found


@pytest.fixture(scope="module")
def calm(tmp_path_factory, voc_root):
    """A run by two processes that nobody disturbs."""
    command = CommandLine(tmp_path_factory.mktemp("calm"))
    grid = command.folder / "grid.toml"
    grid.write_text(grid_text(voc_root, '["csaa"]', epochs=6))
    words = ["--grid", str(grid), "--checkpoint-seconds", "0", "--no-plots", "--hang-seconds", "60"]
    command(*words, "--processes", "2", "--workers", "1")
    return command, words


def in_the_middle(runs: Path):
    """The run has saved a step inside its second epoch."""
    return lambda: (
        list((runs / "store").glob("*/csaa/*/checkpoints/00001-*[1-9].*")) and len(ranks_of(runs)) == 2
    )


def assert_same_bytes(one: CommandLine, two: CommandLine):
    first, second = (result_of(command.runs, "csaa") for command in (one, two))
    assert (first[0] / "predictions.npz").read_bytes() == (second[0] / "predictions.npz").read_bytes()
    assert first[1]["metrics"] == second[1]["metrics"]
    assert second[1]["provenance"]["processes"] == 2


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_is_replaced_and_the_bytes_are_the_same(tmp_path, calm, rank):
    one, words = calm
    rough = CommandLine(tmp_path)
    process = rough.start(*words, "--processes", "2", "--workers", "1")
    wait_for(in_the_middle(rough.runs), process)
    store = rough.runs / "store"
    beats = {int(path.name[-1]): path for path in store.glob("*/*/*/beat.*")}
    victim = int(json.loads(beats[rank].read_text())["who"].rsplit(" ", 1)[1])
    os.kill(victim, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "starting it again" in err
    assert_same_bytes(one, rough)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_launcher_that_is_asked_to_stop_saves_and_goes_on_later(tmp_path, calm, number):
    one, words = calm
    rough = CommandLine(tmp_path)
    hourly = ("--checkpoint-seconds", "3600")
    process = rough.start(*words, "--processes", "2", "--workers", "1", *hourly)
    wait_for(lambda: list((rough.runs / "store").glob("*/csaa/*/epochs.jsonl")), process)
    moment = time.time()
    process.send_signal(number)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 75, err
    assert "the same command goes on from here" in err
    # None was due by the clock: the newest was made because of the signal.
    saved = (rough.runs / "store").glob("*/csaa/*/checkpoints/*/COMPLETE.json")
    assert max(path.stat().st_mtime for path in saved) > moment
    rough(*words, "--processes", "2", "--workers", "1")
    assert_same_bytes(one, rough)


@pytest.mark.slow
def test_one_rank_that_is_told_to_stop_stops_them_all(tmp_path, calm):
    one, words = calm
    rough = CommandLine(tmp_path)
    process = rough.start(*words, "--processes", "2", "--workers", "1")
    wait_for(in_the_middle(rough.runs), process)
    os.kill(ranks_of(rough.runs)[0], signal.SIGUSR2)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "1 dead" in out or "dead" in rough("status", *words[:2])[0]
    rough(*words, "--processes", "2", "--workers", "1")
    assert_same_bytes(one, rough)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(
            ["torch.distributed.run", "--nproc-per-node", "2", "--standalone"], marks=pytest.mark.slow
        ),
        # accelerate's --cpu starts one process, whatever number it is given.
        pytest.param(
            [
                "accelerate.commands.launch",
                "--multi_gpu",
                "--num_processes",
                "2",
                "--num_machines",
                "1",
                "--main_process_port",
                "0",
                "--mixed_precision",
                "no",
                "--dynamo_backend",
                "no",
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["torchrun", "accelerate"],
)
def test_the_command_works_under_other_launchers(tmp_path, calm, launcher):
    one, words = calm
    command = CommandLine(tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            *launcher,
            str(ROOT / "benchmarks" / "run.py"),
            *words,
            "--data",
            str(command.data),
            "--runs",
            str(command.runs),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("csaa") == 1  # one table, of one process
    # Each launcher has its own number of threads, which adds up in another order.
    mine, theirs = (result_of(which.runs, "csaa") for which in (one, command))
    scores = [np.load(place / "predictions.npz")["scores"] for place, _ in (mine, theirs)]
    np.testing.assert_allclose(*scores, rtol=1e-3, atol=1e-3)
    assert theirs[1]["run_id"] == mine[1]["run_id"]
    assert theirs[1]["provenance"]["processes"] == 2


def test_the_number_of_processes_is_no_part_of_the_identity(calm):
    one, _ = calm
    place, result = result_of(one.runs, "csaa")
    scores = np.load(place / "predictions.npz")["scores"]
    assert scores.shape == (40, 3)
    assert "strategy" not in result["spec"]["recipe"]
    assert result["provenance"]["strategy"] == "ddp"
    assert result["provenance"]["environment"]["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "zero3"], "'zero3' is not supported: stage 3 spreads the weights"),
        (["--strategy", "fsdp"], "'fsdp' is not supported"),
        (["--strategy", "zero"], "no strategy 'zero'; did you mean 'zero"),
        (["--processes", "0"], "0 is not a positive number"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path, capsys, voc_root, words, message):
    grid = tmp_path / "grid.toml"
    grid.write_text(grid_text(voc_root, '["csaa"]'))
    places = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    assert main(["--grid", str(grid), *words, *places]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp16", "fp64"])
def test_zero_does_not_go_with_every_precision(tmp_path, capsys, voc_root, precision):
    grid = tmp_path / "grid.toml"
    text = grid_text(voc_root, '["csaa"]', precision=f'"{precision}"', strategy='"zero1"')
    grid.write_text(text)
    assert main(["plan", "--grid", str(grid), "--data", str(tmp_path)]) == 2
    assert f"'zero1' does not go with precision {precision!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "--strategy zero2"),
        ("ACCELERATE_USE_FSDP", "true", "ACCELERATE_USE_FSDP is set"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "would divide every loss"),
    ],
)
def test_variables_that_would_change_the_training_are_refused(monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message):
        make("ddp", "fp32", Group())


def test_a_worker_that_refuses_its_environment_says_so(command, voc_root, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    grid = command.folder / "grid.toml"
    grid.write_text(grid_text(voc_root, '["supervised"]'))
    _, err = command("--grid", str(grid), "--workers", "1", "--no-plots", code=1)
    assert "ACCELERATE_USE_DEEPSPEED is set" in err
    assert "Traceback" not in err


def test_a_rank_that_is_left_in_the_environment_makes_no_group():
    """As under `srun` or in a shell of a launcher: accelerate would look for others at MASTER_ADDR."""
    assert_one_process(["MASTER_ADDR"], {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})


def beat(position, age=0.0):
    return Beat(position, f"place {position}", 70.0, age, f"host, process {position}")


@pytest.mark.parametrize(
    ("beats", "message"),
    [
        ([beat(5), beat(4)], "rank 1 (host, process 4) hangs at place 4 for 60 s; the other"),
        ([beat(4), beat(5), beat(4)], "rank 0 (host, process 4), rank 2 (host, process 4) hangs"),
        ([beat(5), beat(5)], "all ranks stand at place 5 for 60 s: rank 0"),
        ([beat(5), beat(5, age=65.0)], "rank 1 (host, process 5; last seen at place 5) gave no"),
        ([beat(5), None], "rank 1 gave no sign of life for 60 s"),
    ],
)
def test_the_diagnosis_of_a_group_that_does_not_move(beats, message):
    assert diagnosis(beats, 60.0).startswith(message)

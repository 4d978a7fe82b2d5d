"""Grids on a real Slurm: the same table as here, whatever happens to jobs and nodes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, CommandLine, grid_text

pytestmark = pytest.mark.slurm
METHODS = '["zero_shot", "linear_probe", "supervised", "fixmatch", "csaa"]'
PROFILE = """
gpus = 1
cpus = 1
minutes = 30
signal_seconds = 20
bundle_minutes = {minutes}
partition = "low"
"""


class OnCluster(CommandLine):
    """The command line on the login node of a cluster, with a profile of its own."""

    def __init__(self, folder: Path, slurm, grid: Path, minutes: int = 1, more: str = "") -> None:
        super().__init__(folder)
        self.slurm, self.grid = slurm, grid
        self.profile = folder / "profile.toml"
        self.profile.write_text(PROFILE.format(minutes=minutes) + more)

    def launch(self, *words: str, code: int = 0, verb: str = "run") -> tuple[str, str]:
        """Call a verb that launches; its output."""
        return self.call(
            verb,
            "--grid",
            str(self.grid),
            "--launcher",
            "slurm",
            "--profile",
            str(self.profile),
            *words,
            code=code,
        )

    def call(self, *words: str, code: int = 0) -> tuple[str, str]:
        done = subprocess.run(
            self.arguments(*words),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.slurm.env, "OMP_NUM_THREADS": "1"},
            timeout=500,
            check=False,
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout, done.stderr

    def queue(self) -> list[list[str]]:
        out = self.slurm.run("squeue", "-h", "-r", "-o", "%i %T %N %j")
        return [line.split() for line in out.splitlines() if "ssmll" in line]

    def predictions(self) -> dict[str, bytes]:
        return predictions(self.runs)


def predictions(runs: Path) -> dict[str, bytes]:
    """Scores of every finished run, by its directory's name."""
    return {
        f"{path.parent.parent.name}/{path.parent.name}": np.load(path)["scores"].tobytes()
        for path in (runs / "store").glob("*/*/*/predictions.npz")
        if (path.parent / "result.json").exists()
    }


def table_of(runs: Path, grid: Path) -> str:
    """All of the table but the hash of the result files, which hold times."""
    folder = runs / "tables" / grid.stem
    text = "".join((folder / f"mAP-last.{kind}").read_text() for kind in ("md", "tex", "csv"))
    return re.sub(r"sha256:[0-9a-f]+", "sha256", text)


def results(runs: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in (runs / "store").glob("*/*/*/result.json")]


def attempts(runs: Path) -> dict[str, int]:
    """How often each run was begun."""
    return {place.name: len(list(place.glob("lease.*"))) for place in (runs / "store").glob("*/*/*")}


@pytest.fixture(scope="session")
def small(tmp_path_factory, voc_root) -> Path:
    folder = tmp_path_factory.mktemp("grids")
    path = folder / "small.toml"
    path.write_text(grid_text(voc_root, METHODS).replace("seeds = [1]", "seeds = [1, 2]"))
    return path


@pytest.fixture(scope="session")
def long(tmp_path_factory, voc_root) -> Path:
    """Two runs that last long enough to be interrupted."""
    path = tmp_path_factory.mktemp("grids") / "long.toml"
    text = grid_text(voc_root, '["csaa"]', epochs=30, eval_every=30)
    path.write_text(text.replace("seeds = [1]", "seeds = [1, 2]"))
    return path


def calm_run(folder: Path, grid: Path) -> Path:
    """The folder of runs of an undisturbed execution without a cluster."""
    command = CommandLine(folder)
    command("--grid", str(grid), "--workers", "1", "--no-plots")
    return command.runs


@pytest.fixture(scope="session")
def calm(tmp_path_factory, small) -> Path:
    return calm_run(tmp_path_factory.mktemp("calm"), small)


@pytest.fixture(scope="session")
def calm_long(tmp_path_factory, long) -> Path:
    return calm_run(tmp_path_factory.mktemp("calm-long"), long)


def test_a_grid_fans_out_and_its_table_is_that_of_this_machine(slurm, tmp_path):
    smoke = Path("smoke")
    here = CommandLine(tmp_path / "here")
    here.folder.mkdir()
    here("--grid", "smoke", "--no-plots")
    command = OnCluster(tmp_path, slurm, smoke)
    # Both GPUs of a node: no two jobs share one.
    command.profile.write_text(command.profile.read_text().replace("gpus = 1", "gpus = 2"))
    shutil.copytree(here.data / "glyphscenes", command.data / "glyphscenes")  # rendered, not cached
    _, told = command.launch("--yes", "--wait", "--no-plots")
    assert "a job does it" in told  # the images were cached by a node
    assert table_of(command.runs, smoke) == table_of(here.runs, smoke)
    assert command.predictions() == predictions(here.runs)
    found = results(command.runs)
    places = {result["provenance"]["environment"]["SLURMD_NODENAME"] for result in found}
    assert len(places) >= 3
    assert set(attempts(command.runs).values()) == {1}
    # They ran a copy of the code as it was, changes included.
    code = subprocess.run(
        [sys.executable, "-c", "from benchmarks.provenance import code_state as c; print(c())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert {str({k: r["provenance"][k] for k in ("commit", "dirty")}) for r in found} == {code.strip()}
    # Once more: nothing to do, and the estimates are measured now.
    out, told = command.launch("--yes", "--wait", "--no-plots")
    assert "nothing to submit" in told
    assert "csaa" in out
    assert not command.queue()


def test_preempted_array_elements_are_requeued_and_go_on(slurm, tmp_path, long, calm_long):
    command = OnCluster(tmp_path, slurm, long)
    command.launch("--yes", "--checkpoint-seconds", "3600")
    runs = wait_for_training(slurm, command, 2)
    assert all("_" in job for job, *_ in command.queue())
    nodes = slurm.run("sinfo", "-h", "-p", "high", "-o", "%D").strip()
    slurm.run(
        "sbatch", "-p", "high", "--exclusive", f"--nodes={nodes}", "--wrap", "sleep 10", "-o", "/dev/null"
    )
    slurm.wait(lambda: [entry[1] for entry in command.queue()] == ["PENDING"] * 2, "requeues", 90)
    # Checkpoints are an hour apart: these were made because of the signal.
    assert all(list((run / "checkpoints").glob("*/COMPLETE.json")) for run in runs)
    out, _ = command.call("status", "--grid", str(long))
    assert "2 preempted" in out
    slurm.wait(lambda: not command.queue(), "the end of the runs", 240)
    assert command.predictions() == predictions(calm_long)
    assert list(attempts(command.runs).values()) == [2, 2]
    for run in runs:
        rows = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == list(range(30))


def wait_for_training(slurm, command: OnCluster, count: int) -> list[Path]:
    """Until some runs have finished an epoch; the directories of such runs."""

    def begun() -> list[Path]:
        return [path.parent for path in (command.runs / "store").glob("*/*/*/epochs.jsonl")]

    slurm.wait(lambda: len(begun()) >= count, "runs in training", 180)
    return begun()


def test_lost_jobs_and_nodes_end_in_a_complete_table(slurm, tmp_path, small, calm):
    command = OnCluster(tmp_path, slurm, small)
    command.launch("--yes")

    def working() -> dict[str, str]:
        return {
            job: node
            for job, state, *node, name in command.queue()
            if state == "RUNNING" and node
            for node in node
        }

    slurm.wait(lambda: len(set(working().values())) >= 3, "jobs on three nodes", 180)
    (job, first), *others = working().items()
    slurm.run("scancel", job)
    second, third = list(dict.fromkeys(node for _, node in others if node != first))[:2]
    slurm.run("scontrol", "update", f"node={second}", "state=down", "reason=test")
    slurm.node("kill", third)
    slurm.wait(lambda: second not in working().values(), "the end of a node's jobs")
    slurm.attempt("scontrol", "update", f"node={second}", "state=resume")  # it may be back already
    slurm.node("start", third)
    slurm.wait(lambda: not command.queue(), "the end of the jobs", 400)
    command.launch("--yes", "--wait", "--no-plots")
    assert table_of(command.runs, small) == table_of(calm, small)
    assert command.predictions() == predictions(calm)


def test_two_nodes_train_one_run_together(slurm, tmp_path, small, calm):
    # In float32 rounding may part one process from two (docs/processes.md), in float64 it cannot.
    grid = tmp_path / "double.toml"
    grid.write_text(small.read_text().replace("[override]", '[override]\nprecision = "fp64"'))
    (tmp_path / "alone").mkdir()
    alone = CommandLine(tmp_path / "alone")
    chosen = ("--methods", "csaa", "--seeds", "1", "--no-plots")
    alone("--grid", str(grid), *chosen, "--workers", "1")
    command = OnCluster(tmp_path, slurm, grid)
    shutil.copytree(calm.parent / "data", command.data)
    command.launch("--yes", "--wait", "--processes", "2", "--nodes", "2", *chosen)
    (result,) = results(command.runs)
    assert result["provenance"]["processes"] == 2
    log = next((command.runs / "slurm" / "launches").glob("*/jobs/*_1_log.out"))
    assert log.exists()  # the second node's task
    theirs, ours = predictions(alone.runs), command.predictions()
    assert len(ours) == 1
    for name, scores in ours.items():
        one, two = (np.frombuffer(values, np.float32) for values in (theirs[name], scores))
        np.testing.assert_allclose(two, one, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("script", ["grid", "array"])
def test_the_sbatch_scripts_complete_a_grid(slurm, tmp_path, small, calm, script):
    command = OnCluster(tmp_path, slurm, small, minutes=40)
    shutil.copytree(calm.parent / "data", command.data)
    places = ("--data", str(command.data), "--runs", str(command.runs))
    submit = ["sbatch", "--parsable", "-p", "low", "--chdir", str(ROOT), "-o", str(tmp_path / "log-%j")]
    slurm.env["PYTHON"] = sys.executable
    if script == "grid":
        words = [ROOT / "slurm" / "grid.sbatch", small, "--profile", command.profile, "--no-plots"]
    else:
        plan = tmp_path / "plan.json"
        out, _ = command.launch("--save", str(plan), verb="plan")
        assert "slurm/array.sbatch" in out
        submit += ["--array=0-1", "--gpus-per-node=1"]
        words, places = [ROOT / "slurm" / "array.sbatch", plan], ()
    slurm.run(*submit, *words, *places)
    slurm.wait(lambda: not slurm.run("squeue", "-h"), "the end of the jobs", 400)
    logs = "\n".join(path.read_text() for path in tmp_path.glob("log-*"))
    assert command.predictions() == predictions(calm), logs
    assert set(attempts(command.runs).values()) == {1}


def test_a_plan_says_what_it_costs_and_where_from(slurm, tmp_path, small, calm):
    command = OnCluster(tmp_path, slurm, small)
    shutil.copytree(calm.parent, tmp_path, dirs_exist_ok=True)
    for path in (command.runs / "store").glob("*/*/*-s2-*/result.json"):
        path.unlink()
    out, _ = command.launch(verb="plan")
    row = next(line for line in out.splitlines() if " csaa " in line)
    assert re.search(r"2 +1 +0 +1 +(<0.01|0\.\d\d) .*run", row), row
    assert re.search(r"estimated GPU-hours: 0\.\d\d", out)
    _, error = command.launch("--yes", "--max-gpu-hours", "0.000001", code=2)
    assert "are more than the 1e-06 allowed" in error
    _, error = command.launch("--dry-run")
    assert "to submit" in error
    _, error = command.launch(code=2)  # no terminal, nobody to ask
    assert "--yes" in error
    assert not command.queue()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('partition = "nosuch"', "partition"),
        ('constraint = "h100"', "constraint"),
        ("gpus = 64", "gpus"),
        ('account = "nosuch"', "account"),
    ],
)
def test_what_slurm_refuses_is_one_line(slurm, tmp_path, small, calm, more, message):
    if "account" in more and not slurm.accounting:
        pytest.skip("accounts are not checked without accounting: unset SSMLL_SLURM_ACCOUNTING")
    command = OnCluster(tmp_path, slurm, small)
    name = more.split(" ")[0]
    kept = [line for line in PROFILE.format(minutes=1).splitlines() if not line.startswith(name)]
    command.profile.write_text("\n".join([*kept, more]))
    shutil.copytree(calm.parent / "data", command.data)
    _, error = command.launch("--yes", code=2)
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    assert "sbatch refused" in line
    assert f"(profile: {message}" in line
    assert not command.queue()


def test_two_launches_at_once_submit_each_run_once(slurm, tmp_path, small, calm):
    # In arrays of two elements at most, as on a cluster whose MaxArraySize is small.
    command = OnCluster(tmp_path, slurm, small, minutes=20, more="array_size = 2")
    shutil.copytree(calm.parent / "data", command.data)
    words = command.arguments(
        "run",
        "--grid",
        str(small),
        "--launcher",
        "slurm",
        "--profile",
        str(command.profile),
        "--yes",
        "--wait",
        "--no-plots",
    )
    both = [
        subprocess.Popen(
            words,
            env={**slurm.env, "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outs = [process.communicate(timeout=500) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert command.predictions() == predictions(calm)
    assert set(attempts(command.runs).values()) == {1}
    launches = list((command.runs / "slurm" / "launches").iterdir())
    submitted = [
        run
        for launch in launches
        for bundle in json.loads((launch / "plan.json").read_text())["bundles"]
        for run in bundle["run_ids"]
    ]
    assert len(submitted) == len(set(submitted)) == 10
    scripts = [
        path.read_text() for path in (command.runs / "slurm" / "launches").glob("*/jobs/*_submission.sh")
    ]
    assert len(scripts) > 3
    assert all("--array" not in script or "--array=0-1%" in script for script in scripts)


def test_cancel_ends_a_grid_and_the_next_call_goes_on(slurm, tmp_path, long, calm_long):
    command = OnCluster(tmp_path, slurm, long)
    command.launch("--yes", "--checkpoint-seconds", "3600", "--seeds", "1")
    (run,) = wait_for_training(slurm, command, 1)
    out, _ = command.call("cancel", "--yes")
    assert "cancelled 1 jobs" in out
    slurm.wait(lambda: not command.queue(), "the end of the job")
    assert not (run / "result.json").exists()
    out, _ = command.call("status", "--grid", str(long), "--seeds", "1")
    assert "1 dead" in out
    command.launch("--yes", "--wait", "--no-plots", "--seeds", "1")
    expected = predictions(calm_long)
    ((name, scores),) = command.predictions().items()
    assert expected[name] == scores
    assert attempts(command.runs) == {run.name: 2}


BOOM = """
from dataclasses import dataclass
from pathlib import Path
import torch
from methods import register
from methods.base import FitMethod

@dataclass(frozen=True)
class Hyper:
    pass

@register
class Boom(FitMethod):
    name = "boom"
    version = 1
    Hyper = Hyper

    def fit(self, features, seed):
        if not Path({flag!r}).exists():
            raise ValueError("the fuse is lit")

    def predict(self, features):
        return features[:, :3].float()
"""


def test_failures_are_grouped_with_their_log_and_retried(slurm, tmp_path, voc_root, calm):
    (tmp_path / "boom.py").write_text(BOOM.format(flag=str(tmp_path / "fixed")))
    grid = tmp_path / "boom.toml"
    text = grid_text(voc_root, '["zero_shot", "boom"]').replace("seeds = [1]", "seeds = [1, 2]")
    grid.write_text('modules = ["boom.py"]\n' + text)
    command = OnCluster(tmp_path, slurm, grid, minutes=60)
    shutil.copytree(calm.parent / "data", command.data)
    _, error = command.launch("--yes", "--wait", "--no-plots", code=1)
    assert error.count("failed: boom") >= 2
    out, _ = command.call("status", code=1)
    assert "2 done" in out
    assert "2 failed" in out
    assert out.count("the fuse is lit") < 4  # grouped
    assert "_log.out" in out
    assert "failed: boom" in command.call("logs", "boom/tiny/0.5/1")[0]
    before = attempts(command.runs)
    (tmp_path / "fixed").write_text("")
    command.launch("--failed", "--yes", "--wait", "--no-plots", verb="retry")
    after = attempts(command.runs)
    assert len(results(command.runs)) == 4
    assert sorted(after[name] - before[name] for name in after) == [0, 0, 1, 1]


def test_without_slurm_the_launcher_says_what_is_missing(tmp_path, small):
    command = CommandLine(tmp_path)
    process = subprocess.run(
        command.arguments("run", "--grid", str(small), "--launcher", "slurm", "--yes"),
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr.startswith("error: SLURM's commands are not on the PATH")
    assert len(process.stderr.splitlines()) == 1

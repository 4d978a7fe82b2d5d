"""Grids on a real Slurm: the same table as here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, CommandLine, grid_text
from tests.slurm.on_cluster import (
    PROFILE,
    OnCluster,
    attempts,
    predictions,
    results,
    table_of,
)

pytestmark = pytest.mark.slurm


def test_a_grid_fans_out_and_its_table_is_that_of_this_machine(slurm, tmp_path):
    # The grid `smoke` with a method of each kind: this is about the cluster, and not about methods.
    text = (ROOT / "benchmarks" / "grids" / "smoke.toml").read_text()
    few = json.dumps(["zero_shot", "linear_probe", "supervised", "fixmatch", "dualcoop", "csaa"])
    smoke = tmp_path / "few.toml"
    smoke.write_text(re.sub(r"methods = \[.*?\]", f"methods = {few}", text, flags=re.DOTALL))
    here = CommandLine(tmp_path / "here")
    here.folder.mkdir()
    here("--grid", str(smoke), "--no-plots")
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
    out, _ = command.launch("--dry-run")
    assert "to submit" in out
    assert re.search(r"^csaa .*1 done, 1 dead", out, re.MULTILINE)  # the matrix of a local plan
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

"""Every registered method, third-party ones included, through the contract suite."""

import subprocess
import sys

import pytest
import torch

pytest.register_assert_rewrite("benchmarks.checks.contract_suite")

from benchmarks.checks import contract  # noqa: E402 - after the line above
from benchmarks.checks.contract_suite import *  # noqa: E402,F403 - its tests, fixtures and hook
from methods.errors import UserError  # noqa: E402
from tests.conftest import ROOT  # noqa: E402

RUN = """
import sys
from pathlib import Path
from benchmarks.checks import contract
from benchmarks.plan.user_code import import_methods
import_methods(sys.argv[1], Path.cwd(), "test")
sys.exit(contract.run(sys.argv[2:]))
"""
# Methods as a user writes them, each with a fault that one process alone does not show.
FAULTY = '''
import torch
from methods.fixmatch import FixMatch
from methods.base import StepOutput
from methods.registry import register


@register
class LocalMean(FixMatch):
    """Its running mean is of the images of one process."""

    name = "local_mean"

    def __init__(self, backbone, task, hyper):
        super().__init__(backbone, task, hyper)
        self.register_state("mean", torch.zeros(task.num_classes))

    def training_step(self, batch):
        output = super().training_step(batch)
        self.mean = 0.9 * self.mean + 0.1 * output.pseudo_labels.mask.mean(dim=0)
        return output


@register
class CountedTwice(FixMatch):
    """Every process adds the same term of the whole step."""

    name = "counted_twice"

    def training_step(self, batch):
        output = super().training_step(batch)
        logits = self.predict(batch.strong_labelled)
        term = batch.total(torch.sigmoid(logits).sum(dim=0)).square().sum()
        return StepOutput({**output.losses, "term": term}, output.pseudo_labels)
'''


def suite(*words: str) -> subprocess.CompletedProcess[str]:
    """The suite on methods of a file, in a process of its own: they are registered for good."""
    command = [sys.executable, "-c", RUN, *words]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=500, check=False)


def test_methods_with_statistics_state_and_a_teacher_pass():
    names = ("freematch_style", "flexmatch_style", "meanteacher_style")
    done = suite("benchmarks/checks/sample_methods.py", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " failed" not in done.stdout


def test_faults_that_only_several_processes_show_are_found(tmp_path):
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY)
    done = suite(str(file), "local_mean", "counted_twice")
    assert done.returncode == 1, done.stdout + done.stderr
    failed = {
        line.split()[1].split("::")[1] for line in done.stdout.splitlines() if line.startswith("FAILED")
    }
    assert {name.split("[")[0] for name in failed} == {"test_two_processes_do_what_one_does"}
    assert "mean differs between processes" in done.stdout
    assert {name.split("[")[1].split("-")[0] for name in failed} == {"local_mean", "counted_twice"}


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match="no method 'fixmtach'; did you mean 'fixmatch'"):
        contract.run(["fixmtach"])


def test_simulated_processes_that_do_different_things_are_told_apart():
    simulated = contract.Simulated(2)
    with pytest.raises(RuntimeError, match=r"process \d is at batch.(total|gather)"):
        simulated.run(lambda rank, p: (p.total if rank else p.gather)(torch.zeros(3)))
    with pytest.raises(ZeroDivisionError):
        contract.Simulated(2).run(lambda rank, p: 1 / rank)
    rows = torch.arange(5)
    whole = contract.Simulated(2).run(lambda rank, p: p.gather(rows[rank::2]))
    assert all(torch.equal(found, rows) for found in whole)

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
sys.exit(contract.run(sys.argv[3:], arguments=["-k", sys.argv[2]]))
"""
# Methods as a user writes them, each with a fault that one process alone does not show.
FAULTY = '''
import gc

import torch
from methods.fixmatch import FixMatch
from methods.base import PseudoLabels, StepOutput
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


@register
class Peeks(FixMatch):
    """It looks for the hidden labels where the harness keeps them."""

    name = "peeks"

    def pseudo_labels(self, batch):
        pseudo = super().pseudo_labels(batch)
        for thing in gc.get_objects():
            if type(thing).__name__ == "HiddenLabels":
                targets = thing.hidden[batch.unlabelled].to(pseudo.targets)
                return PseudoLabels(targets, torch.ones_like(targets))
        return pseudo


@register
class Forgets(FixMatch):
    """It counts images in an attribute that is no state."""

    name = "forgets"
    seen = 0

    def prepare(self, batch):
        return {"images": torch.tensor(len(batch.unlabelled))}

    def observe(self, statistics):
        self.seen = self.seen + int(statistics["images"])

    def training_step(self, batch):
        output = super().training_step(batch)
        losses = {**output.losses, "labelled": output.losses["labelled"] * (1 + self.seen)}
        return StepOutput(losses, output.pseudo_labels)
'''
FAULTS = {
    "local_mean": "test_two_processes_do_what_one_does",
    "counted_twice": "test_two_processes_do_what_one_does",
    "peeks": "test_hidden_labels_change_nothing",
    "forgets": "test_a_continued_training_ends_with_the_same_bytes",
}


def suite(file: str, *names: str, tests: str = "test") -> subprocess.CompletedProcess[str]:
    """The suite on methods of a file, in a process of its own: they are registered for good."""
    command = [sys.executable, "-c", RUN, file, tests, *names]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=500, check=False)


def test_a_method_with_a_teacher_and_all_scores_of_the_pool_passes():
    done = suite("benchmarks/checks/sample_methods.py", "agreeing_teacher")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " failed" not in done.stdout


def test_faults_are_found_by_the_test_that_is_for_them(tmp_path):
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY)
    theirs = (
        "two_processes and (local_mean or counted_twice) or (hidden or same_bytes) and (peeks or forgets)"
    )
    done = suite(str(file), *FAULTS, tests=theirs)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = {
        line.split()[1].split("::")[1] for line in done.stdout.splitlines() if line.startswith("FAILED")
    }
    found = {name.rstrip("]").partition("[")[::2] for name in failed}
    assert {(name.split("-")[0], test) for test, name in found} == set(FAULTS.items())
    for words in ("mean differs between processes", "the pseudo-labels of step 1 differ in their targets"):
        assert words in done.stdout


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

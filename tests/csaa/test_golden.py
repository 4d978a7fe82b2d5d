"""CSAA's numbers are what they were before its classifier moved to `methods.parts` (commit cb22c0d).

`golden.json` has, of that commit, the names of the training state, by which checkpoints and stages are read,
and losses and scores of two steps of gradient descent.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from benchmarks.checks import contract

torch.set_num_threads(1)
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


def numbers(hyper):
    """Losses of two steps, scores after them, and the names of the training state."""
    method = contract.started(contract.create("csaa", {"num_contexts": 2, "context_length": 4, **hyper}))
    with torch.no_grad():
        images = contract.tiny_images(8, method, torch.Generator().manual_seed(1))
        method.calibrate(method.eval().predict(images))
    method.train()
    optimizer = torch.optim.SGD(method.param_groups())
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    losses = []
    for step in range(2):
        output = contract.forward(method, contract.tiny_batch(step=step, method=method))
        optimizer.zero_grad()
        sum(output.losses.values()).backward()
        optimizer.step()
        losses.append({name: loss.item() for name, loss in output.losses.items()})
    with torch.no_grad():
        scores = method.eval().score_pool(images[:2])
    state = list(method.training_state())
    return {
        "losses": losses,
        "scores": scores.tolist(),
        "state": [name for name in state if not name.startswith("classifier.vlm.visual")],
        "state_sha256": hashlib.sha256(" ".join(state).encode()).hexdigest(),
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_steps_scores_and_names_are_those_of_earlier_results(name):
    expected = GOLDEN[name]["numbers"]
    found = numbers(GOLDEN[name]["hyper"])
    assert found["state"] == expected["state"]
    assert found["state_sha256"] == expected["state_sha256"]
    for ours, theirs in zip(found["losses"], expected["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    torch.testing.assert_close(
        torch.tensor(found["scores"]), torch.tensor(expected["scores"]), rtol=1e-4, atol=1e-4
    )

"""A table of logits in place of a network: what a method computes of given logits, without images.

Gradients of a step are then those of its losses with respect to the logits, to be compared with numbers of
official code or with a calculation by hand. Float64 throughout.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

import methods
from methods.backbones.base import Backbone
from methods.base import Batch, Task

VIEWS = ("weak_labelled", "strong_labelled", "weak_unlabelled", "strong_unlabelled")
GOLDEN = json.loads((Path(__file__).parent / "golden" / "fixmatch_family.json").read_text())
"""Numbers that official code gave; an entry names the repository and the commit."""


class PixelBackbone(Backbone):
    """A linear layer on the pixels of 2 x 2 images: the smallest network that can be trained."""

    def __init__(self, dim=6):
        super().__init__(
            dim=dim, resolution=2, mean=(0.5,) * 3, std=(0.5,) * 3, description="the tests' linear layer"
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(12, dim)

    def _features(self, images):
        return self.layer(self.normalise(images).flatten(1))


class Table(nn.Module):
    """Answers an image with the row of the table that its pixels name."""

    calibrated = False

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, images):
        return self.rows[images[:, 0, 0, 0].long()]


class Text(nn.Module):
    """Text features in place of a prompt and its tower."""

    def __init__(self, features):
        super().__init__()
        self.features = nn.Parameter(features.clone())

    def forward(self):
        return self.features


def task(labels, unlabelled=10):
    """The task of (n, K) labels."""
    labels = torch.as_tensor(labels).float()
    names = tuple(f"class {k}" for k in range(labels.shape[1]))
    return Task(names, names, labels, num_unlabelled=unlabelled, seed=0)


def step_of(name, inputs, *, step=0, total=1, dtype=torch.float64, labels=None, **hyper):
    """A method whose answers are ``inputs``, and the batch that asks for them.

    Args:
        name: the method's.
        inputs: logits by view, (B, K) each, and "targets" (B_l, K).
        step: global step of the batch.
        total: steps of the training.
        dtype: of all numbers.
        labels: of the task; the batch's targets by default.
        **hyper: hyper-parameters.
    """
    logits = {view: torch.tensor(inputs[view], dtype=dtype) for view in VIEWS}
    targets = torch.tensor(inputs["targets"], dtype=dtype)
    method = methods.create(
        name, backbone=PixelBackbone(), task=task(targets if labels is None else labels), **hyper
    )
    method.classifier = Table(torch.cat(list(logits.values())))
    method.to(dtype)
    images, first = {}, 0
    for view, rows in logits.items():
        indices = torch.arange(first, first + len(rows), dtype=dtype)
        images[view] = indices.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        first += len(rows)
    batch = Batch(
        epoch=0,
        step=step,
        labelled=torch.arange(len(targets)),
        targets=targets,
        unlabelled=torch.arange(len(logits["weak_unlabelled"])),
        global_labelled=len(targets),
        global_unlabelled=len(logits["weak_unlabelled"]),
        global_step=step,
        total_steps=total,
        **images,
    )
    return method, batch


def gradients_of(method, batch, output, names=None):
    """Gradients of a step's losses with respect to the logits, by view.

    Args:
        method: from `step_of`.
        batch: from `step_of`.
        output: what the method returned for it.
        names: losses that count; all by default.
    """
    loss = sum(output.losses[name] for name in names or output.losses)
    (found,) = torch.autograd.grad(loss, method.classifier.rows, retain_graph=True)
    sizes = [len(getattr(batch, view)) for view in VIEWS]
    return dict(zip(VIEWS, found.split(sizes), strict=True))


def numbers(values):
    """A float64 tensor of nested lists."""
    return torch.tensor(values, dtype=torch.float64)


def same(found, expected, tolerance=1e-9):
    """Compare with golden numbers, which have twelve digits."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.detach().double(), expected, rtol=tolerance, atol=tolerance)

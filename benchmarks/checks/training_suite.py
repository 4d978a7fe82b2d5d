"""Whole small trainings of every registered method, as tests for pytest; see `benchmarks.checks.contract`.

No method knows the hidden labels of the unlabelled images, nor those of the test images: with others in their
place it ends with the same bytes. And a training that was stopped and continued ends with those of an
undisturbed one. Public code of this field has failed in both.
"""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.checks import contract
from benchmarks.checks.contract_suite import pytest_generate_tests  # noqa: F401 - a hook of pytest
from benchmarks.checks.small_trainings import LABELLED, SmallTrainings, Trained

STOP = 3
"""Steps after which a training is stopped: inside the second epoch."""


@pytest.fixture(scope="module")
def trainings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallTrainings:
    """The trainings of all methods that the tests are for."""
    selection = contract.selection_of(request.config)
    return SmallTrainings(tmp_path_factory.mktemp("trainings"), selection.names, selection.overrides)


# One training with other labels that is stopped and continued shows both faults; only where it ends otherwise
# is there a training for each of them, which tells what it was.


def test_hidden_labels_change_nothing(step_name: str, trainings: SmallTrainings) -> None:
    """Weights, pseudo-labels and test scores keep their bytes when the hidden labels are others."""
    if _difference(trainings.trained(step_name), trainings.trained(step_name, other=True, stop=STOP)):
        assert not _difference(trainings.trained(step_name), trainings.trained(step_name, other=True))


def test_a_continued_training_ends_with_the_same_bytes(step_name: str, trainings: SmallTrainings) -> None:
    """Stopped in its second epoch, saved, and continued by a method that was built anew."""
    if _difference(trainings.trained(step_name), trainings.trained(step_name, other=True, stop=STOP)):
        assert not _difference(trainings.trained(step_name), trainings.trained(step_name, stop=STOP))


def test_hidden_labels_change_no_fit(fit_name: str, trainings: SmallTrainings) -> None:
    """Test scores keep their bytes when the hidden labels are others."""
    assert _same(trainings.fitted(fit_name), trainings.fitted(fit_name, other=True))


def test_the_hidden_labels_are_others(trainings: SmallTrainings) -> None:
    """What the tests above rest on: image by image and in frequency, and labelled images keep theirs."""
    first, second = (next(iter(jobs.values())) for jobs in trainings.jobs)
    datasets = [job.prepared.dataset for job in (first, second)]
    pool, known = first.split.unlabelled, first.split.labelled
    assert len(known) == LABELLED
    train, other = (dataset.train.labels for dataset in datasets)
    assert np.array_equal(train[known], other[known])
    for before, after in ((train[pool], other[pool]), (datasets[0].test.labels, datasets[1].test.labels)):
        assert (before != after).any(axis=1).mean() > 0.5
        assert (before.mean(axis=0) != after.mean(axis=0)).all()
    for split in ("train", "test"):
        images = [getattr(job.prepared, split) for job in (first, second)]
        assert np.array_equal(*images)


def _difference(one: Trained, two: Trained) -> str:
    """What is not the same in two trainings, byte by byte, in the order it comes about; "" for nothing."""
    for step, (first, second) in enumerate(zip_longest(one.pseudo_labels, two.pseudo_labels), start=1):
        if first is None or second is None:
            return f"only one has pseudo-labels in its step {step}"
        if not _same(first[0], second[0]):
            return f"the unlabelled images of step {step} are others"
        for name in ("targets", "mask", "weighted_mask"):
            if not _same(*(getattr(pseudo, name) for pseudo in (first[1], second[1]))):
                return f"the pseudo-labels of step {step} differ in their {name}"
    if one.weights.keys() != two.weights.keys():
        return f"only one has {', '.join(sorted(one.weights.keys() ^ two.weights.keys()))}"
    for name, value in one.weights.items():
        if not _same(value, two.weights[name]):
            return f"{name} differs at the end"
    for title, before, after in zip(("average", "raw weights"), one.scores, two.scores, strict=True):
        if not _same(before, after):
            return f"the test scores of the {title} differ"
    return ""


def _same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors have the same bytes: a NaN equals itself, and 0 is not -0."""
    same = one.dtype == two.dtype and one.shape == two.shape
    return same and torch.equal(_bytes(one), _bytes(two))


def _bytes(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8)

"""Labelled sets, pools and answers at the edge of what a pseudo-labelling method may be given."""

import dataclasses

import pytest
import torch

import methods
from methods.base import Batch, Pool
from tests.methods.table import PixelBackbone, step_of, task

FAMILY = {
    "fixmatch": {},
    "fixmatch, aligned": {"alignment": True},
    "pseudo_label": {"confidence": 0.6},
    "uda": {"tsa": "linear"},
    "defixmatch": {"confidence": 0.6},
    "mean_teacher": {},
    "adsh": {},
}
LABELS = {
    "a class on no image": [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]],
    "a class on every image": [[1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]],
    "five images": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]],
    "one class": [[1], [0], [0], [1]],
    "one class on no image": [[0], [0]],
    "one image": [[1, 0]],
}


def batch_of(labels, pool, step=0, own=None):
    """A step with all images of a task, or with this process's own part of none."""
    generator = torch.Generator().manual_seed(step)

    def images(count):
        return torch.rand(count, 3, 2, 2, generator=generator)

    labelled, unlabelled = (len(labels), pool) if own is None else own
    return Batch(
        0,
        step,
        torch.arange(labelled),
        images(labelled),
        images(labelled),
        torch.tensor(labels).float()[:labelled],
        torch.arange(unlabelled),
        images(unlabelled),
        images(unlabelled),
        len(labels),
        pool,
        global_step=step,
        total_steps=3,
    )


def started(name, labels, pool):
    """A method as at its first step, with a teacher and scores of the pool."""
    registered = name.split(",")[0]
    method = methods.create(registered, backbone=PixelBackbone(), task=task(labels, pool), **FAMILY[name])
    if method.wants_teacher:
        teacher = methods.create(
            registered, backbone=PixelBackbone(), task=task(labels, pool), **FAMILY[name]
        )
        method.set_teacher(teacher.eval().requires_grad_(False))
    if method.wants_pool(0):
        with torch.no_grad():
            scores = method.predict(torch.rand(pool, 3, 2, 2))
        method.refresh(Pool(0, scores, scores[:, :0]))
    return method.train()


def run(method, batch):
    """A step's output, with statistics as the trainer handles them, and its gradients."""
    with torch.no_grad():
        own = method.prepare(batch)
        if own:
            method.observe(own)
    output = method(batch)
    parameters = [p for group in method.param_groups() for p in group["params"]]
    return output, parameters, torch.autograd.grad(sum(output.losses.values()), parameters)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("pool", [7, 1])
def test_a_few_steps_stay_finite_and_make_no_absent_class_all_positive(name, labels, pool):
    method = started(name, labels, pool)
    absent = ~torch.tensor(labels).bool().any(dim=0)
    for step in range(3):
        output, parameters, gradients = run(method, batch_of(labels, pool, step))
        assert all(torch.isfinite(loss) for loss in output.losses.values())
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        pseudo = output.pseudo_labels
        assert torch.isfinite(pseudo.targets).all()
        positive = (pseudo.targets >= 0.5) & pseudo.mask.bool()
        assert not positive[:, absent].all(dim=0).any()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.01 * gradient
    assert all(
        torch.isfinite(value).all() or "thresholds" in key for key, value in method.state_dict().items()
    )


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("own", [(0, 0), (2, 0), (0, 3)])
def test_a_process_without_images_of_a_kind_adds_nothing_for_it(name, own):
    labels = LABELS["five images"]
    output, _, gradients = run(started(name, labels, 7), batch_of(labels, 7, own=own))
    for key, loss in output.losses.items():
        assert torch.isfinite(loss)
        if not own[key == "unlabelled"]:
            assert loss == 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert own != (0, 0) or not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("loss", ["asl", "bce"])
@pytest.mark.parametrize("size", [50.0, 1e4])
def test_answers_without_any_doubt_give_finite_losses(name, loss, size):
    sides = [[size, -size], [-size, size]]
    inputs = dict.fromkeys(("weak_labelled", "weak_unlabelled"), sides)
    inputs |= dict.fromkeys(("strong_labelled", "strong_unlabelled"), sides[::-1])
    registered, choice = name.split(",")[0], {**FAMILY[name], "loss": loss}
    method, batch = step_of(
        registered, inputs | {"targets": [[1.0, 0.0], [0.0, 1.0]]}, dtype=torch.float32, **choice
    )
    if method.wants_teacher:
        method.set_teacher(
            step_of(registered, inputs | {"targets": [[1.0, 0.0]]}, dtype=torch.float32)[0].eval()
        )
    with torch.no_grad():
        if own := method.prepare(batch):
            method.observe(own)
    total = sum(method(batch).losses.values())
    assert torch.isfinite(total)
    (gradient,) = torch.autograd.grad(total, method.classifier.rows)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", methods.available())
def test_a_number_says_where_a_search_is_sensible_and_that_is_accepted(name):
    cls = methods.get(name).Hyper
    for field in dataclasses.fields(cls):
        kinds = str(field.type)
        if "float" not in kinds and "int" not in kinds.replace("Literal", ""):
            continue
        if field.name in ("num_contexts", "max_iterations"):  # 0 means automatic; a limit, and no choice
            continue
        low, high = field.metadata["low"], field.metadata["high"]
        assert low < high, field.name
        assert field.metadata["scale"] in ("linear", "log"), field.name
        assert low > 0 or field.metadata["scale"] == "linear", field.name
        assert field.default is None or low <= field.default <= high, field.name
        others = field.metadata.get("with", {})  # the setting that the field belongs to
        for value in (low, high):
            assert getattr(methods.hyper(name, **{field.name: value}, **others), field.name) == value

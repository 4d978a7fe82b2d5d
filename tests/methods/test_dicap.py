"""DiCaP against numbers of its official code, its phases, and two processes that see half a step each."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import methods
from benchmarks.checks import contract
from methods.base import Batch, Pool, Task
from methods.errors import UserError
from methods.parts import class_features
from methods.phases import Phase
from tests.methods.table import VIEWS, PixelBackbone, numbers, same

GOLDEN = json.loads((Path(__file__).parent / "golden" / "dicap.json").read_text())


class MapBackbone(PixelBackbone):
    """A linear layer on each pixel gives local features; that of all pixels, the pooling, is not read."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.local = nn.Linear(3, 5)
            self.norm = nn.BatchNorm1d(5)

    def _feature_map(self, images):
        return self.norm(self.local(self.normalise(images).flatten(2).mT).mT).mT


class Tables(nn.Module):
    """Answers an image with the logits and the features of the row that its pixels name."""

    def __init__(self, logits, features):
        super().__init__()
        self.logits, self.features = nn.Parameter(logits), nn.Parameter(features)

    def described(self, images):
        rows = images[:, 0, 0, 0].long()
        return self.logits[rows], self.features[rows]


def task_of(labels, estimation, unlabelled=10):
    labels, estimation = (torch.as_tensor(each).float() for each in (labels, estimation))
    names = tuple(f"class {k}" for k in range(labels.shape[1]))
    return Task(names, names, labels, num_unlabelled=unlabelled, seed=0, estimation=estimation)


def method_of(labels=((1, 0, 1), (0, 1, 0)), estimation=((1, 1, 0),), **hyper):
    return methods.create(
        "dicap", backbone=MapBackbone(), task=task_of(labels, estimation), **{"width": 16, **hyper}
    )


def with_teacher(method, phase="main"):
    contract.add_teacher(method)
    method.begin_phase(phase)
    return method.train()


def batch_of(labelled=3, unlabelled=4, phase="main", dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = [
        torch.rand(count, 3, 2, 2, generator=generator, dtype=torch.float64).to(dtype)
        for count in (labelled, labelled, unlabelled, unlabelled)
    ]
    return Batch(
        epoch=0,
        step=0,
        labelled=torch.arange(labelled),
        targets=(torch.rand(labelled, 3, generator=generator) < 0.5).to(dtype),
        unlabelled=torch.arange(unlabelled),
        global_labelled=labelled,
        global_unlabelled=unlabelled,
        phase=phase,
        **dict(zip(VIEWS, images, strict=True)),
    )


# -- the official code -------------------------------------------------------------------------------


def official(phase):
    """A method with the golden inputs, and its batch."""
    method = method_of(GOLDEN["labels"], GOLDEN["estimation_labels"])
    logits = {"weak_labelled": torch.zeros(3, 3).tolist(), **GOLDEN["logits"]}
    method.classifier = Tables(
        *(torch.cat([numbers(v[view]) for view in VIEWS]) for v in (logits, GOLDEN["features"]))
    )
    contract.add_teacher(method.double())
    batch, first = batch_of(3, 5, phase), 0
    batch.targets = numbers(GOLDEN["targets"])
    for view in VIEWS:
        count = len(getattr(batch, view))
        rows = torch.arange(first, first + count, dtype=torch.float64)
        setattr(batch, view, rows.view(-1, 1, 1, 1).expand(-1, 3, 2, 2))
        first += count
    return method, batch


def strong_gradients(output, table):
    (found,) = torch.autograd.grad(sum(output.losses.values()), table, retain_graph=True)
    return torch.cat([found[3:6], found[11:]])  # of the labelled and the pool's strong views


@pytest.mark.parametrize("run", GOLDEN["runs"], ids=lambda run: run["epoch"])
def test_a_step_of_the_main_phase_is_that_of_the_official_code(run):
    method, batch = official("main")
    scores = numbers(GOLDEN["estimation_scores"])
    pool = torch.cat([torch.randn(9, 3, dtype=torch.float64), scores])
    method.refresh(Pool(int(run["epoch"] == "later"), pool, pool[:, :0], labelled=numbers(GOLDEN["scores"])))
    if run["epoch"] == "later":
        same(method.present, GOLDEN["present"])
        same(method.absent, GOLDEN["absent"])
    method.reliability = numbers(GOLDEN["reliability"])
    output = method(batch)
    labels, pseudo = torch.tensor(run["labels"]), output.pseudo_labels
    assert torch.equal(pseudo.mask, (labels != 0).double())
    assert torch.equal(pseudo.targets, (labels == 1).double())
    same(pseudo.weighted_mask, run["weights"])
    for name in ("labelled", "unlabelled", "contrastive"):
        same(output.losses[name], run[name])
    same(strong_gradients(output, method.classifier.logits), run["logit_gradient"])
    same(strong_gradients(output, method.classifier.features), run["feature_gradient"])


def test_the_contrastive_part_of_the_warm_up_is_that_of_the_official_code():
    method, batch = official("warmup")
    output = method(batch)
    assert output.pseudo_labels is None
    same(output.losses["contrastive"], GOLDEN["warmup"]["contrastive"])
    same(strong_gradients(output, method.classifier.features), GOLDEN["warmup"]["feature_gradient"])


# -- pseudo-labels -----------------------------------------------------------------------------------


def test_bins_are_measured_on_the_estimation_images_alone():
    method = method_of(estimation=[[1, 0, 0], [1, 1, 0]], bins=4, repair="none")
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.6, 0.7]])
    pool = torch.cat([torch.full((8, 3), 5.0), torch.logit(scores)])
    method.refresh(Pool(0, pool, pool[:, :0], labelled=torch.full((2, 3), -5.0)))
    # Bins [0, ¼), [¼, ½), [½, ¾), [¾, 1]: .1 and .2; none; .6 and .7; .9 and .8.
    assert method.reliability.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert method.present.tolist() == method.absent.tolist() == [0.5] * 3
    found = method.pseudo_labels(torch.logit(torch.tensor([[0.6, 0.1, 0.8]])))
    assert found.targets.tolist() == [[1, 0, 1]]
    assert found.mask.tolist() == [[1, 1, 1]]
    assert found.weight.tolist() == [[0.5, 1.0, 1.0]]


@pytest.mark.parametrize(("weighting", "expected"), [("uniform", [1, 1, 1]), ("confidence", [0.6, 0.9, 0.8])])
def test_other_weights(weighting, expected):
    method = method_of(weighting=weighting)
    found = method.pseudo_labels(torch.logit(torch.tensor([[0.6, 0.1, 0.8]])))
    assert torch.allclose(found.weight, torch.tensor([expected], dtype=torch.float32))


def test_thresholds_are_of_labelled_and_estimation_images_and_stay_half_where_a_class_has_none():
    # Class 0 has a positive among the estimation images only, class 1 none, class 2 no negative.
    method = method_of(labels=[[0, 0, 1], [0, 0, 1]], estimation=[[1, 0, 1], [1, 0, 1], [0, 0, 1]])
    labelled = torch.tensor([[0.2, 0.3, 0.9], [0.4, 0.1, 0.6]])
    estimation = torch.tensor([[0.7, 0.2, 0.8], [0.9, 0.2, 0.8], [0.1, 0.2, 0.7]])
    pool = torch.logit(torch.cat([torch.rand(7, 3), estimation]))
    method.refresh(Pool(3, pool, pool[:, :0], labelled=torch.logit(labelled)))
    assert torch.allclose(method.present, torch.tensor([0.8, 0.5, 0.75]))
    assert torch.allclose(method.absent, torch.tensor([0.25, 0.2, 0.5]))
    rows = torch.logit(torch.tensor([[0.75, 0.6, 0.5], [0.85, 0.3, 0.7], [0.2, 0.1, 0.8]]))
    found = method.pseudo_labels(rows)
    assert found.mask.tolist() == [[0, 1, 1], [1, 0, 0], [1, 1, 1]]
    assert found.targets.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_an_entry_at_one_half_is_negative_before_thresholds_are_known():
    found = method_of().pseudo_labels(torch.zeros(1, 3))
    assert (found.mask.tolist(), found.targets.tolist()) == ([[1, 1, 1]], [[0, 0, 0]])


def test_scores_of_0_and_1_are_labelled_and_weighed():
    method = method_of(bins=4, repair="none")
    pool = torch.full((10, 3), 200.0)
    pool[:, 1] = -200.0
    method.refresh(Pool(1, pool, pool[:, :0], labelled=pool[:2]))
    found = method.pseudo_labels(torch.tensor([[300.0, -300.0, 300.0]]))
    assert found.weighted_mask.tolist() == [[0.5, 0.0, 0.5]]  # estimation labels 1, 1, 0


# -- phases ------------------------------------------------------------------------------------------


def phases_of(**hyper):
    return methods.get("dicap").phases(methods.registry.hyper("dicap", **hyper))


def test_the_phases_of_the_official_code():
    warmup, main, last = phases_of()
    assert warmup == Phase("warmup", recipe="warmup", batch_unlabelled=112, epoch_over="labelled")
    assert main == Phase("main")
    assert last == Phase(
        "finetune", labelled="estimation", pool=False, epochs=20, batch_labelled=64, start="ema"
    )
    assert type(method_of()).estimation_share(method_of(estimation_share=0.3).hyper) == 0.3


def test_each_part_can_be_left_out():
    assert [phase.name for phase in phases_of(finetune_epochs=0)] == ["warmup", "main"]
    warmup = phases_of(warmup_contrastive=0)[0]
    assert (warmup.pool, warmup.batch_unlabelled, warmup.recipe) == (False, None, "warmup")
    for hyper in ({"contrastive_weight": 0.0}, {"dual_thresholds": False}):
        output = with_teacher(method_of(**hyper))(batch_of(dtype=torch.float32))
        assert set(output.losses) == {"labelled", "unlabelled"}
    output = with_teacher(method_of(warmup_contrastive=0.0), "warmup")(
        batch_of(unlabelled=0, phase="warmup", dtype=torch.float32)
    )
    assert set(output.losses) == {"labelled"}
    method = method_of(dual_thresholds=False)
    pool = torch.randn(10, 3)
    method.refresh(Pool(4, pool, pool[:, :0], labelled=pool[:2]))
    assert method.present.tolist() == method.absent.tolist() == [0.5] * 3
    assert method.pseudo_labels(pool).mask.all()


@pytest.mark.parametrize("order", [("warmup", "main", "finetune"), ("finetune", "warmup"), ("main",)])
@pytest.mark.parametrize("lr_backbone", [1e-4, 0.0])
def test_who_is_trained_in_which_phase(order, lr_backbone):
    method = method_of(lr_backbone=lr_backbone, freeze_bn=False)
    contract.add_teacher(method)
    backbone = {
        f"classifier.backbone.{name}" for name in ("local.weight", "local.bias", "norm.weight", "norm.bias")
    }
    head = {
        name
        for name, _ in method.named_parameters()
        if name.startswith(("classifier.decoder", "classifier.bias")) and not name.endswith("queries")
    }
    pooling = {f"classifier.backbone.layer.{name}" for name in ("weight", "bias")}
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    assert pooling < method.frozen_names
    for phase in order:
        method.begin_phase(phase)
        method.train()
        learns = phase != "finetune" and lr_backbone > 0
        groups = {
            frozenset(names[id(p)] for p in group["params"]): group["lr"] for group in method.param_groups()
        }
        expected = {frozenset(backbone): lr_backbone} if learns else {}
        assert groups == {**expected, frozenset(head): 1e-4}
        assert method.wants_pool(0) == (phase == "main")
        # Statistics of batches move with the weights that are trained on them.
        assert method.classifier.backbone.norm.training == learns
        unlabelled = 0 if phase == "finetune" else 4
        method.zero_grad()
        sum(method(batch_of(3, unlabelled, phase, torch.float32)).losses.values()).backward()
        trained = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
        assert trained == (head | backbone if learns else head)


def test_fine_tuning_is_the_loss_of_the_estimation_images():
    method = with_teacher(method_of(), "finetune")
    batch = batch_of(3, 0, "finetune", torch.float32)
    output = method(batch)
    assert set(output.losses) == {"labelled"}
    expected = methods.losses.asymmetric_loss(method.predict(batch.strong_labelled), batch.targets).sum()
    assert torch.equal(output.losses["labelled"], expected)


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit"])
def test_a_vision_language_backbone_gives_its_map_and_loses_its_text(name, load, make_batch, task):
    task = dataclasses.replace(task, estimation=task.labels[:3])
    method = with_teacher(methods.create("dicap", backbone=load(name), task=task, width=16))
    assert not any("text" in key or "token_embedding" in key for key, _ in method.named_parameters())
    method.present, method.absent = torch.ones(4), torch.zeros(4)  # all entries are ambiguous
    sum(method(make_batch(labelled=2, unlabelled=2)).losses.values()).backward()
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


# -- processes and devices ---------------------------------------------------------------------------


@pytest.mark.parametrize(("labelled", "unlabelled"), [(3, 4), (2, 5), (3, 1), (1, 2)])
@pytest.mark.parametrize("phase", ["warmup", "main"])
def test_two_processes_contrast_with_the_entries_of_both(phase, labelled, unlabelled):
    method = with_teacher(method_of().double(), phase)
    method.present, method.absent = (torch.full((3,), value).double() for value in (0.62, 0.44))
    batch = batch_of(labelled, unlabelled, phase)
    output = method(batch)
    trained = [parameter for group in method.param_groups() for parameter in group["params"]]
    if phase == "main" and unlabelled > 1:
        assert 0 < output.pseudo_labels.mask.sum() < output.pseudo_labels.mask.numel()
    expected = torch.autograd.grad(sum(output.losses.values()), trained)
    parts = contract.Simulated(2).run(lambda rank, p: method(contract.share(batch, rank, 2, p)))
    for name, loss in output.losses.items():
        torch.testing.assert_close(sum(part.losses[name] for part in parts), loss, rtol=1e-10, atol=0)
    found = torch.autograd.grad(sum(sum(part.losses.values()) for part in parts), trained)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    if unlabelled > 1:  # halves that know nothing of each other give something else
        alone = [method(contract.share(batch, rank, 2)).losses["contrastive"] for rank in range(2)]
        assert (sum(alone) - output.losses["contrastive"]).abs().item() > 1e-3


class NothingRead(TorchDispatchMode):
    """Refuses what waits for the device: reading a number, and shapes that depend on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        assert not any(word in name for word in ("local_scalar", "nonzero", "masked_select", "::equal")), name
        if "index" in name:  # by a mask: it looks for the places itself
            found = torch.utils._pytree.tree_leaves(args[1:])
            assert not any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in found), (
                name
            )
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("phase", ["warmup", "main", "finetune"])
def test_a_step_reads_nothing_from_the_device(phase, monkeypatch):
    monkeypatch.setattr(class_features, "_reading_is_free", lambda tensor: False)  # as on a device
    method = with_teacher(method_of(), phase)
    batch = batch_of(3, 0 if phase == "finetune" else 4, phase, torch.float32)
    with NothingRead():
        sum(method(batch).losses.values()).backward()


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        *(
            ({"estimation_share": share}, r"estimation_share: .* must lie in \(0, 1\)")
            for share in (0, 1, -0.1, 1.5)
        ),
        ({"width": 12}, "width: 12 .* multiple of 8"),
        ({"width": 0}, "width: 0 .* multiple of 8"),
        ({"temperature": 0.0}, "temperature: 0 is not allowed"),
        ({"bins": 0}, "bins: 0 is not allowed"),
        ({"warmup_unlabelled": 0}, "warmup_unlabelled: 0 is not allowed"),
        ({"finetune_batch": 0}, "finetune_batch: 0 is not allowed"),
        ({"finetune_epochs": -1}, "finetune_epochs: -1 is not allowed"),
        ({"warmup_contrastive": -0.1}, "warmup_contrastive: -0.1 is not allowed"),
        ({"repair": "cubik"}, "repair: .*did you mean 'cubic'"),
        ({"weighting": "calibrate"}, "weighting: .*did you mean 'calibrated'"),
    ],
)
def test_hyper_parameters_that_cannot_work(hyper, words):
    with pytest.raises(UserError, match=words) as found:
        method_of(**hyper)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("estimation", [None, torch.zeros(0, 3)])
def test_a_share_that_takes_no_image(estimation):
    task = dataclasses.replace(task_of([[1, 0, 0]], [[1, 1, 1]]), estimation=estimation)
    with pytest.raises(UserError, match=r"estimation_share: 0\.2 takes no image out of 1 labelled"):
        methods.create("dicap", backbone=MapBackbone(), task=task)


def test_a_copy_has_its_own_tables_and_phases_are_no_state():
    method = method_of()
    assert method.state_names == {"reliability", "present", "absent"}
    other = copy.deepcopy(method)
    other.begin_phase("finetune")
    assert method.wants_pool(0)
    assert set(other.training_state()) == set(method.training_state())

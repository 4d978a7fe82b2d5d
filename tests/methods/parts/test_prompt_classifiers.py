"""Classifiers with learnt prompts under any pseudo-labelling method."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import methods
from methods.backbones import BackboneSpec, load_backbone
from methods.base import Pool
from methods.errors import UserError
from methods.fields import identified
from methods.parts.linear import LinearMethod, rate_groups
from tests.methods.test_dualcoop import literal_logits

PROMPTED = ("aligned", "dualcoop")
NAMES = [name for name in methods.available() if issubclass(methods.get(name), LinearMethod)]


def both(load, task, **hyper):
    """CAP with CSAA's classifier and CSAA without contexts, with the same weights and pool scores."""
    shared = {"context_length": 4, "lr_backbone": 1e-3, "eta_pos": 0.7, "weight_decay": 0.1, **hyper}
    own = {"context_weight": 0.0, "temperature": 5.0, "freeze_visual": not shared["lr_backbone"]}
    csaa = methods.create("csaa", backbone=load(), task=task, **own, **shared)
    with torch.no_grad():
        for parameter in csaa.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    cap = methods.create(
        "cap", backbone=load(), task=task, classifier="aligned", spatial_temperature=5.0, **shared
    )
    state = {name: value for name, value in csaa.state_dict().items() if name.startswith("classifier.")}
    assert set(state) == {name for name in cap.state_dict() if name.startswith("classifier.")}
    cap.load_state_dict(state, strict=False)
    scores = torch.randn(task.num_unlabelled, task.num_classes)
    for method in (cap, csaa):
        method.refresh(Pool(0, scores, scores[:, :0]))
        method.train()
    return cap, csaa


@pytest.mark.parametrize("hyper", [{}, {"features": "global"}, {"class_specific": True, "lr_backbone": 0}])
def test_cap_with_the_aligned_classifier_is_csaa_without_contexts(hyper, load, task, make_batch):
    torch.manual_seed(0)
    cap, csaa = both(load, task, **hyper)
    before = copy.deepcopy(dict(cap.named_parameters()))
    batch = make_batch()
    with torch.no_grad():
        assert torch.equal(cap.predict(batch.weak_labelled), csaa.predict(batch.weak_labelled))
        for method in (cap, csaa):
            method.calibrate(method.predict(batch.weak_labelled))
    for method in (cap, csaa):
        optimizer = torch.optim.AdamW(method.param_groups())
        for group in optimizer.param_groups:
            group["lr"] *= 10
        for _ in range(2):
            output = method(batch)
            assert set(output.losses) == {"labelled", "unlabelled"}
            optimizer.zero_grad()
            sum(output.losses.values()).backward()
            optimizer.step()
    ours, theirs = dict(cap.named_parameters()), dict(csaa.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    before = dict(both(load, task, **hyper)[0].named_parameters())
    assert not torch.equal(
        ours["classifier.prompts.class.context"], before["classifier.prompts.class.context"]
    )


def test_the_pair_is_that_of_dualcoop(load, task, make_batch):
    method = methods.create(
        "supervised", backbone=load(), task=task, classifier="dualcoop", context_length=4, lr_backbone=0
    )
    published = methods.create(
        "dualcoop", backbone=load(), task=task, locations="plain", context_length=4, clip=0.05
    )
    images = make_batch().weak_labelled
    with torch.no_grad():
        logits = method.predict(images)
        assert torch.equal(logits, published.predict(images))  # the same start, too
        _, local = method.classifier.vlm.dense_features(images)
        texts = [method.classifier.prompt(role)().detach() for role in ("positive", "negative")]
        plus, minus = literal_logits(local, *texts)
    assert torch.allclose(logits, plus - minus, atol=1e-3)
    pair = torch.stack([plus, minus]).softmax(dim=0)[0]
    assert torch.allclose(logits.sigmoid(), pair, atol=1e-4)  # presence is the soft-max of the pair
    assert not method.classifier.calibrated
    before = copy.deepcopy(method.state_dict())
    method.calibrate(logits)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_the_texts_start_from_words(load, task):
    vlm = load()
    classifier = methods.create(
        "fixmatch",
        backbone=vlm,
        task=task,
        classifier="dualcoop",
        context_words="a photo of a",
        negative_words="a photo without a",
    ).classifier
    for role, words in (("positive", "a photo of a"), ("negative", "a photo without a")):
        whole = vlm.encode_text([f"{words} {name}." for name in task.classes])
        assert torch.allclose(classifier.prompt(role)(), whole, atol=1e-4)


@pytest.mark.parametrize("classifier", PROMPTED)
def test_a_frozen_tower_leaves_the_prompts_to_train(classifier, load, task, make_batch):
    method = methods.create(
        "cap", backbone=load(), task=task, classifier=classifier, lr_backbone=0, lr_head=3e-3
    ).train()
    groups = method.param_groups()
    assert {group["lr"] for group in groups} == {3e-3}
    names = {id(p): name for name, p in method.named_parameters()}
    trained = {names[id(p)] for group in groups for p in group["params"]}
    assert not any("vlm" in name for name in trained)
    assert sum("context" in name for name in trained) == 2
    assert not method.classifier.vlm.visual.training
    towers = {name for name, _ in method.named_parameters() if "vlm" in name}
    assert towers
    assert not towers & set(method.training_state())


def test_matrices_decay_and_vectors_do_not(load, task):
    method = methods.create(
        "cap", backbone=load(), task=task, classifier="aligned", weight_decay=0.5, lr_backbone=1e-3
    )
    seen = set()
    for group in method.param_groups():
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.5 if parameter.ndim > 1 else 0.0)
            seen.add(id(parameter))
    assert seen == {id(p) for p in method.parameters() if p.requires_grad}
    assert math.prod(len(group["params"]) for group in method.param_groups()) > 0
    linear = methods.create("cap", backbone=load(), task=task, weight_decay=0.5)
    assert {group["weight_decay"] for group in linear.param_groups()} == {0.5}  # as in all earlier results
    assert rate_groups(0.5, ([], 1.0)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "ml_decoder"}, "head = 'ml_decoder' belongs to the classifier 'linear'; leave it out with"),
        (
            {"init": "text"},
            "init = 'text' belongs to the classifier 'linear'; leave it out with classifier =",
        ),
        ({"scale": 10.0}, "scale = 10.0 belongs to the classifier 'linear'; leave it out with classifier ="),
    ],
)
@pytest.mark.parametrize("classifier", PROMPTED)
def test_options_of_a_head_are_refused_by_name(classifier, options, message):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        methods.hyper("fixmatch", classifier=classifier, **options)
    assert str(caught.value).endswith(f"classifier = '{classifier}'")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("classifier", "options", "message"),
    [
        (
            "linear",
            {"context_words": "a photo of a"},
            "belongs to the classifiers 'aligned' and 'dualcoop'; ",
        ),
        ("linear", {"spatial_temperature": 5}, "belongs to the classifier 'aligned'; "),
        ("linear", {"negative_words": "no"}, "belongs to the classifier 'dualcoop'; "),
        ("aligned", {"negative_words": "no"}, "belongs to the classifier 'dualcoop'; "),
        ("dualcoop", {"features": "global"}, "belongs to the classifier 'aligned'; "),
        ("dualcoop", {"context_words": "no", "negative_words": "no"}, "both contexts start from 'no'"),
        ("aligned", {"context_length": 0}, "context_length"),
        ("aligned", {"spatial_temperature": -1.0}, "spatial_temperature"),
    ],
)
def test_options_of_another_classifier_are_refused_by_name(classifier, options, message):
    with pytest.raises(UserError, match=message):
        methods.hyper("cap", classifier=classifier, **options)


def test_what_has_no_texts_is_refused_while_planning_and_when_built(task):
    hyper = methods.hyper("d2l", classifier="aligned")
    message = "classifier = 'aligned' needs a vision-language backbone, .* has no text tower; use 'linear'"
    with pytest.raises(UserError, match=message):
        methods.get("d2l").check_task(hyper, 4, BackboneSpec("torchvision/squeezenet1_1"))
    plain = load_backbone(BackboneSpec("torchvision/squeezenet1_1"), 64)
    with pytest.raises(UserError, match=message):
        methods.create("d2l", backbone=plain, task=task, classifier="aligned")
    with pytest.raises(UserError, match="did you mean 'aligned'"):
        methods.hyper("cap", classifier="align")


@pytest.mark.parametrize("name", NAMES)
def test_identities_of_earlier_results_have_no_such_fields(name):
    plain = identified(methods.hyper(name))
    assert not {"classifier", "features", "context_length", "negative_words"} & set(plain)
    assert identified(methods.hyper(name, classifier="linear", context_length=16)) == plain
    chosen = methods.hyper(name, classifier="aligned", context_words="a photo of a")
    assert identified(chosen) == plain | {"classifier": "aligned", "context_words": "a photo of a"}


@pytest.mark.parametrize("classifier", PROMPTED)
def test_methods_with_the_same_classifier_share_a_warm_up(classifier):
    def warmup(name, **hyper):
        found = methods.get(name).warmup_hyper(methods.hyper(name, **hyper))
        return methods.get(name).warmup_name, identified(found)

    first = warmup("cap", classifier=classifier, eta_pos=0.8)
    assert first == warmup("fixmatch", classifier=classifier, positive=0.9)
    assert first == warmup("pseudo_label", classifier=classifier)
    assert first != warmup("cap")
    assert first != warmup("cap", classifier=classifier, context_words="a photo of a")


def test_the_heads_of_d2l_are_prompts_of_their_own(load, task):
    method = methods.create("d2l", backbone=load(), task=task, classifier="aligned")
    own = copy.deepcopy(method)
    contexts = [name for name, p in own.named_parameters() if name.endswith("class.context")]
    assert len(contexts) == 4  # whole images and patches, labelled and not
    assert sum("vlm.visual" in name for name in own.state_dict()) == sum(
        "vlm.visual" in name
        for name in methods.create("cap", backbone=load(), task=task, classifier="aligned").state_dict()
    )
    tower = own.classifier.vlm
    assert tower is not method.classifier.vlm
    for head in own.heads():
        assert head.prompt("class")._vlm[0] is tower  # a copy encodes with its own tower
        assert not any("vlm" in name for name in head.state_dict())

"""CSAA against literal loops, and each part where it could silently do nothing."""

import copy
import dataclasses
import functools
import math

import open_clip
import pytest
import torch
import torch.nn.functional as F

import methods
from csaa.contexts import label_contexts
from csaa.method import CSAA, CSAAHyper
from methods.backbones.clip import VisionLanguageModel
from methods.base import Batch, Pool, Task
from methods.errors import UserError
from methods.losses import asymmetric_loss
from methods.thresholds import class_distribution_thresholds

CLASSES = ("cat", "dog", "traffic light", "car", "bus")
SIZE, POOL = 64, 12


def backbone() -> VisionLanguageModel:
    made, tokenizer = _made()
    return copy.deepcopy(made, {id(tokenizer): tokenizer})


@functools.cache
def _made():
    """What `backbone` copies, and its tokenizer: reading that takes longer than a test."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg=open_clip.CLIPVisionCfg(layers=[1, 1, 1, 1], width=8, image_size=SIZE, head_width=64),
        text_cfg=open_clip.CLIPTextCfg(context_length=77, width=32, heads=2, layers=1),
    )
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    made = VisionLanguageModel(model, tokenizer, SIZE, "tiny test model", mean=(0.5,) * 3, std=(0.25,) * 3)
    return made, tokenizer


def labels() -> torch.Tensor:
    return torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 0, 1], [1, 1, 0, 0, 0.0]])


def build(unlabelled: int = POOL, **changes) -> CSAA:
    task = Task(CLASSES, CLASSES, labels(), unlabelled, seed=1)
    values = {"num_contexts": 2, "context_length": 4, **changes}
    return methods.create("csaa", backbone=backbone(), task=task, **values)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(5)

    def images(count):
        return torch.rand(count, 3, SIZE, SIZE, generator=generator)

    return Batch(
        0,
        0,
        torch.arange(4),
        images(4),
        images(4),
        labels(),
        torch.tensor([3, 7, 11]),
        images(3),
        images(3),
        4,
        3,
    )


def refreshed(method: CSAA) -> CSAA:
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(POOL, 5, generator=generator)
    extra = torch.randn(POOL, 2 if method.teaches("context") else 0, generator=generator)
    method.refresh(Pool(0, scores, extra))
    return method


@pytest.mark.parametrize("reading", ["semantic+class", "semantic+negative", "semantic+positive+negative"])
def test_logits_against_a_literal_loop(reading):
    method = build(reading=reading)
    model, images = method.classifier, batch().weak_labelled
    model.bias.data.normal_()
    logits = method.predict(images)
    texts = model.texts()
    _, local = model.vlm.dense_features(images)
    for j in range(len(images)):
        for k in range(len(CLASSES)):
            units = [feature / feature.norm() for feature in local[j]]
            raw = [math.exp(20.0 * float((unit @ texts["semantic"][k]).detach())) for unit in units]
            v = sum(w / sum(raw) * unit for w, unit in zip(raw, units, strict=True))
            v = v / v.norm()
            if reading == "semantic+class":
                score = v @ texts["class"][k]
            elif reading == "semantic+negative":
                score = v @ texts["semantic"][k] - v @ texts["negative"][k]
            else:
                score = v @ texts["positive"][k] - v @ texts["negative"][k]
            expected = math.exp(3.0) * score + model.bias[k]
            torch.testing.assert_close(logits[j, k], expected, rtol=1e-4, atol=1e-4)


def test_global_variant_is_the_cosine_with_the_global_feature():
    method = build(features="global")
    assert set(method.classifier.prompts) == {"class"}  # nothing weighs locations
    images = batch().weak_labelled
    feature = F.normalize(method.classifier.vlm.features(images), dim=-1)
    expected = math.exp(3.0) * feature @ method.classifier.texts()["class"].T
    torch.testing.assert_close(method.predict(images), expected, rtol=1e-4, atol=1e-4)


def test_losses_are_the_written_sums():
    method = refreshed(build())
    data = batch()
    output = method.training_step(data)
    assert set(output.losses) == {"labelled", "unlabelled", "context", "context_unlabelled"}
    logits = method.classifier(torch.cat([data.strong_labelled, data.strong_unlabelled]))
    rows = data.unlabelled
    labelled = asymmetric_loss(logits[:4], data.targets, 0, 4, 0.05).sum()
    torch.testing.assert_close(output.losses["labelled"], labelled)
    element = asymmetric_loss(logits[4:], method.class_targets[rows].float(), 0, 4, 0.05)
    torch.testing.assert_close(output.losses["unlabelled"], (element * method.class_mask[rows]).sum())
    # The pseudo-labels that are scored are the ones the loss used.
    assert torch.equal(output.pseudo_labels.targets.bool(), method.class_targets[rows])
    assert torch.equal(output.pseudo_labels.mask.bool(), method.class_mask[rows])


def test_pseudo_labels_follow_the_labelled_distribution():
    method = build()
    scores = torch.randn(POOL, 5, generator=torch.Generator().manual_seed(9))
    method.refresh(Pool(0, scores, torch.randn(POOL, 2)))
    thresholds = class_distribution_thresholds(scores, labels().mean(dim=0))
    assert torch.equal(method.class_targets, scores >= thresholds)
    assert method.class_targets.sum(dim=0).tolist() == [6, 6, 6, 3, 3]
    # Contexts: both occur in half of the labelled images.
    assert method.context_targets.sum(dim=0).tolist() == [6, 6]


def test_contexts_come_from_the_labelled_images_only():
    method = build()
    expected = label_contexts(labels(), 2, seed=1)
    assert method.contexts.tolist() == expected.tolist()
    assert expected[0] == expected[1] != expected[2]


@pytest.mark.parametrize("where", ["context", "context_unlabelled"])
def test_the_context_task_reaches_the_shared_features(where):
    method = refreshed(build())
    loss = method.training_step(batch()).losses[where]
    loss.backward()
    towers = [value.grad for value in method.classifier.vlm.visual.parameters()]
    assert sum(float(grad.abs().sum()) for grad in towers if grad is not None) > 0


def test_context_labels_can_follow_the_class_pseudo_labels():
    method = refreshed(build(context_labels="pseudo-labels"))
    membership = F.one_hot(method.contexts, 2).bool()
    expected = (method.class_targets[:, :, None] & membership).any(dim=1)
    assert torch.equal(method.context_targets, expected)
    assert method.score_pool(batch().weak_labelled).shape == (4, 5)


def test_ablations_remove_what_they_say():
    none = build(context_weight=0.0)
    assert not any("context" in name for name, _ in none.named_parameters() if "head" in name)
    refreshed(none)
    assert set(none.training_step(batch()).losses) == {"labelled", "unlabelled"}
    labelled = build(pseudo_labels="none")
    assert not labelled.wants_pool(0)
    output = labelled.training_step(batch())
    assert set(output.losses) == {"labelled", "context"}
    assert output.pseudo_labels is None
    half = refreshed(build(context_images="labelled"))
    assert set(half.training_step(batch()).losses) == {"labelled", "unlabelled", "context"}
    fixed = build(pseudo_labels="fixed", fixed_pos=0.7, fixed_neg=0.3)
    scores = torch.randn(POOL, 5)
    fixed.refresh(Pool(0, scores, torch.randn(POOL, 2)))
    assert torch.equal(fixed.class_targets, scores.sigmoid() >= 0.7)
    assert torch.equal(fixed.class_mask, (scores.sigmoid() >= 0.7) | (scores.sigmoid() <= 0.3))


def test_a_frozen_tower_is_frozen_and_a_context_task_that_does_nothing_is_refused():
    method = refreshed(build(freeze_visual=True, context_feature="label-specific"))
    before = {name: value.clone() for name, value in method.classifier.vlm.named_parameters()}
    groups = method.param_groups()
    trained = {id(value) for group in groups for value in group["params"]}
    assert not trained & {id(value) for value in method.classifier.vlm.parameters()}
    optimizer = torch.optim.SGD(groups, lr=0.1)
    sum(method.training_step(batch()).losses.values()).backward()
    # The auxiliary task reaches the prompts, hence the classifier.
    assert float(method.classifier.prompts["semantic"].context.grad.abs().sum()) > 0
    optimizer.step()
    for name, value in method.classifier.vlm.named_parameters():
        assert torch.equal(value, before[name])
    with pytest.raises(UserError, match="label-specific"):
        build(freeze_visual=True)


def test_every_trainable_parameter_is_in_one_group_at_its_rate():
    method = build(lr_backbone=1e-5, lr_head=2e-3, lr_prompts=3e-3)
    rates = {}
    for group in method.param_groups():
        for value in group["params"]:
            assert id(value) not in rates
            rates[id(value)] = group["lr"], group["weight_decay"]
    for name, value in method.named_parameters():
        if not value.requires_grad:
            assert id(value) not in rates
            continue
        rate, decay = rates.pop(id(value))
        if "visual" in name:
            assert rate == 1e-5
        elif "context_head" in name:
            assert rate == 2e-3
        else:
            assert rate == 3e-3
        assert decay == (1e-4 if value.ndim > 1 else 0.0)
    assert not rates


def test_calibration_gives_the_labelled_frequencies():
    method = build()
    images = batch().weak_labelled
    method.calibrate(method.predict(images).detach())
    mean = method.predict(images).sigmoid().mean(dim=0)
    torch.testing.assert_close(mean, labels().mean(dim=0), atol=0.02, rtol=0)


def test_variants_share_a_warm_up_exactly_where_they_may():
    def warmup(**changes):
        return CSAA.warmup_hyper(dataclasses.replace(CSAAHyper(), **changes))

    full = warmup()
    assert full.pseudo_labels == "none"
    assert warmup(pseudo_labels="fixed", fixed_pos=0.8) == full
    assert warmup(context_images="labelled") == full
    assert warmup(eta_neg=0.5, unlabelled_weight=2.0) == full
    assert warmup(context_weight=0.0) != full
    assert warmup(features="global") != full
    assert warmup(num_contexts=5) != full
    assert warmup(context_weight=0.0, num_contexts=5) == warmup(context_weight=0.0)


def test_a_warm_up_is_loaded_into_every_variant_that_shares_it():
    warm = build(unlabelled=0, pseudo_labels="none")
    for value in warm.parameters():
        if value.requires_grad:
            value.data.normal_(std=0.05)
    for changes in ({}, {"pseudo_labels": "fixed"}, {"context_images": "labelled"}):
        method = build(**changes)
        method.load_warmup(warm.training_state())
        images = batch().weak_labelled
        torch.testing.assert_close(method.predict(images), warm.predict(images))
        assert method.class_targets.shape == (POOL, 5)


def test_needs_a_text_tower():
    from methods.backbones import BackboneSpec, load_backbone

    task = Task(CLASSES, CLASSES, labels(), POOL, seed=1)
    tower = load_backbone(BackboneSpec("torchvision/squeezenet1_0"), 64)
    with pytest.raises(UserError, match="vision-language"):
        methods.create("csaa", backbone=tower, task=task)

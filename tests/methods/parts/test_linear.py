import pytest
import torch
from torch.nn import functional as F

import methods
from methods.backbones import BackboneSpec, load_backbone
from methods.base import PseudoLabels
from methods.errors import UserError
from methods.parts.linear import LinearClassifier, calibrated_bias
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod


def test_calibrated_bias_makes_the_mean_probability_the_frequency():
    torch.manual_seed(0)
    logits = 4 * torch.randn(200, 5) + torch.tensor([-30.0, -3.0, 0.0, 8.0, 60.0])
    frequencies = torch.tensor([0.3, 0.01, 0.5, 0.9, 0.05])
    shifted = logits + calibrated_bias(logits, frequencies)
    assert torch.allclose(torch.sigmoid(shifted).mean(dim=0), frequencies, atol=1e-4)


def test_calibrated_bias_stays_finite_for_absent_and_omnipresent_classes():
    logits = torch.randn(20, 2)
    bias = calibrated_bias(logits, torch.tensor([0.0, 1.0]))
    p = torch.sigmoid(logits + bias).mean(dim=0)
    assert p[0] == pytest.approx(0.5 / 21, abs=1e-4)
    assert p[1] == pytest.approx(1 - 0.5 / 21, abs=1e-4)


def test_text_start_ranks_as_zero_shot(load, task):
    vlm = load()
    images = torch.rand(6, 3, 64, 64)
    classifier = LinearClassifier(vlm, task, init="text")
    zero_shot = methods.create("zero_shot", backbone=vlm, task=task)
    with torch.no_grad():
        cosine = zero_shot.predict(vlm.features(images))
        logits = classifier(images)
    centred = logits - logits.mean(dim=0)
    assert torch.allclose(centred, 20 * (cosine - cosine.mean(dim=0)), atol=1e-4)


def test_start_gives_a_typical_image_the_labelled_frequency(load, task):
    classifier = LinearClassifier(load(), task, init="text", scale=10.0)
    assert torch.allclose(torch.sigmoid(classifier.bias + 10 * 0.2), task.prior.float(), atol=1e-6)


def test_match_means_text_with_a_text_tower_and_random_without(load, task):
    vlm = load()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = LinearClassifier(vlm, task, init="text").weight
        assert torch.equal(LinearClassifier(vlm, task, init="match").weight, text)
        assert not torch.allclose(LinearClassifier(vlm, task, init="random").weight, text)
    cnn = load_backbone(BackboneSpec("torchvision/squeezenet1_1"), 64)
    with pytest.raises(UserError, match="init='text' needs a text tower"):
        LinearClassifier(cnn, task, init="text")
    classifier = LinearClassifier(cnn, task, init="match")
    images = torch.rand(2, 3, 64, 64)
    features = cnn.features(images)
    unit = features / features.pow(2).mean(dim=1, keepdim=True).sqrt()
    expected = F.linear(unit, classifier.weight, classifier.bias)
    assert torch.allclose(classifier(images), expected, atol=1e-5)


def test_the_text_tower_is_not_kept(load, task):
    classifier = LinearClassifier(load(), task)
    assert not any("text" in name for name in classifier.state_dict())


def test_scores_are_not_rounded_to_half_precision_under_autocast(load, task):
    # bfloat16 scores would tie, and thresholds select by rank.
    classifier = LinearClassifier(load(), task)
    features = torch.randn(500, 24).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        logits = classifier.classify(features)
    assert logits.dtype == torch.float32
    assert all(len(column.unique()) > 490 for column in logits.T)


def test_backbone_rate_zero_freezes_it(load, task):
    method = methods.create("supervised", backbone=load(), task=task, lr_backbone=0)
    (group,) = method.param_groups()
    assert group["params"] == [method.classifier.weight, method.classifier.bias]
    assert not method.train().classifier.backbone.visual.training


def test_bce_is_an_option(load, task, make_batch):
    batch = make_batch()
    method = methods.create("supervised", backbone=load(), task=task, loss="bce")
    loss = method(batch).losses["labelled"]
    logits = method.predict(batch.strong_labelled)
    expected = F.binary_cross_entropy_with_logits(logits, batch.targets, reduction="sum")
    assert torch.allclose(loss, expected, rtol=1e-5)


def test_calibration_uses_the_labelled_frequencies(load, task):
    method = methods.create("supervised", backbone=load(), task=task).eval()
    images = torch.rand(8, 3, 64, 64)
    with torch.no_grad():
        method.calibrate(method.predict(images))
        mean = torch.sigmoid(method.predict(images)).mean(dim=0)
    margin = 0.5 / 9
    assert torch.allclose(mean, task.frequencies.float().clamp(margin, 1 - margin), atol=1e-4)


def test_fixmatch_takes_confident_entries_of_the_weak_view(load, task, make_batch):
    batch = make_batch()
    method = methods.create(
        "fixmatch", backbone=load(), task=task, positive=0.6, negative=0.4, unlabelled_weight=0.5
    )
    with torch.no_grad():
        logits = method.predict(batch.weak_unlabelled)
        method.classifier.bias -= logits.median(dim=0).values  # both positives and negatives occur
        p = torch.sigmoid(method.predict(batch.weak_unlabelled))
    output = method(batch)
    pseudo = output.pseudo_labels
    assert isinstance(pseudo, PseudoLabels)
    assert torch.equal(pseudo.targets, (p >= 0.5).float())  # used or not
    assert torch.equal(pseudo.mask, ((p >= 0.6) | (p <= 0.4)).float())
    strong = method.predict(batch.strong_unlabelled)
    element = method.loss(strong, pseudo.targets)
    expected = 0.5 * sum(element[i, k] for i in range(6) for k in range(4) if pseudo.mask[i, k])
    assert torch.allclose(output.losses["unlabelled"], torch.as_tensor(expected), rtol=1e-4)


def test_fixmatch_runs_the_backbone_once_with_gradients_and_once_without(load, task, make_batch):
    method = methods.create("fixmatch", backbone=load(), task=task)
    passes = []
    method.classifier.backbone.visual.register_forward_hook(
        lambda _, args, out: passes.append((len(args[0]), out.requires_grad))
    )
    method(make_batch())
    assert passes == [(6, False), (10, True)]


def test_a_new_pseudo_labelling_baseline_is_one_rule(load, task, make_batch):
    # The promise of README: a subclass with nothing but a rule trains, warms up and predicts.
    class TopOne(PseudoLabelMethod):
        name = "top_one"
        Hyper = PseudoLabelHyper

        def pseudo_labels(self, batch):
            scores = self.weak_probabilities(batch)
            targets = F.one_hot(scores.argmax(dim=1), scores.shape[1]).float()
            return PseudoLabels(targets, torch.ones_like(targets))

    method = TopOne(load(), task, PseudoLabelHyper())
    output = method(make_batch())
    assert output.pseudo_labels.targets.sum(dim=1).tolist() == [1] * 6
    assert not output.pseudo_labels.targets.requires_grad
    sum(output.losses.values()).backward()
    assert method.classifier.weight.grad is not None
    shared = methods.get("fixmatch").warmup_hyper(methods.hyper("fixmatch", positive=0.8))
    assert TopOne.warmup_hyper(method.hyper) == shared  # one warm-up for both

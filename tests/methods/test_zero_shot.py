import pytest
import torch
from torch.nn import functional as F

import methods
from methods.zero_shot import _softmax_log_odds


def test_cosine_with_the_class_texts(load, task):
    vlm = load()
    method = methods.create("zero_shot", backbone=vlm, task=task)
    features = torch.randn(5, 24)
    method.fit(features[:0], seed=0)
    texts = vlm.encode_text([f"a photo of a {name}." for name in task.prompts])
    expected = torch.stack([F.cosine_similarity(features, t[None]) for t in texts], dim=1)
    assert torch.allclose(method.predict(features), expected, atol=1e-5)


def test_softmax_couples_the_classes(load, task):
    vlm = load()
    features = torch.randn(40, 24)
    plain = methods.create("zero_shot", backbone=vlm, task=task).predict(features)
    coupled = methods.create("zero_shot", backbone=vlm, task=task, score="softmax").predict(features)
    p = torch.softmax(vlm.logit_scale * plain, dim=1)
    assert torch.allclose(torch.sigmoid(coupled), p, atol=1e-5)
    # The ranking of a class's images is that of the probability, not of the cosine.
    assert torch.equal(coupled.argsort(dim=0), p.argsort(dim=0))
    assert not torch.equal(coupled.argsort(dim=0), plain.argsort(dim=0))


def test_log_odds_do_not_tie_where_probabilities_underflow():
    logits = torch.tensor([[100.0, 0.0, 1.0], [120.0, 0.0, 1.0], [-900.0, 0.0, 5.0]]).double()
    found = _softmax_log_odds(logits)
    for i in range(3):
        for k in range(3):
            others = torch.logsumexp(logits[i, [j for j in range(3) if j != k]], dim=0)
            assert float(found[i, k]) == pytest.approx(float(logits[i, k] - others), rel=1e-9)
    assert found[1, 0] > found[0, 0]


@pytest.mark.parametrize("templates", ["simple7", "imagenet80"])
def test_ensembles_differ_from_the_single_template(load, task, templates):
    vlm = load()
    single = methods.create("zero_shot", backbone=vlm, task=task)
    ensemble = methods.create("zero_shot", backbone=vlm, task=task, templates=templates)
    assert not torch.allclose(single.texts, ensemble.texts, atol=1e-3)
    assert torch.allclose(ensemble.texts.norm(dim=1), torch.ones(4), atol=1e-5)

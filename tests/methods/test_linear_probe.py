import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

import methods
from methods.base import Task


def data(n=120, d=6, classes=3, seed=0):
    rng = np.random.RandomState(seed)
    x = rng.randn(n, d)
    z = x @ rng.randn(d, classes) * 1.5 + rng.randn(n, classes) - 0.5
    return x, (z > 0).astype(float)


def task_of(y, n_l):
    names = tuple(f"class {k}" for k in range(y.shape[1]))
    return Task(names, names, torch.from_numpy(y[:n_l]).float(), 0, 0)


@pytest.mark.parametrize("preprocess", ["l2", "standardise", "l2+standardise"])
def test_probe_generalises_and_reports_its_search(preprocess, load):
    x, y = data(n=500, d=8)
    x = x * np.array([1, 1, 1, 1, 1, 1, 50, 0]) + 2  # uneven scales and a constant dimension
    task = task_of(y, 200)
    probe = methods.create("linear_probe", backbone=load(), task=task, preprocess=preprocess)
    features = torch.from_numpy(x).float()
    probe.fit(features[:200], seed=0)
    scores = probe.predict(features[200:])
    assert scores.shape == (300, 3)
    assert scores.dtype == torch.float32
    found = np.mean([average_precision_score(y[200:, k], scores[:, k]) for k in range(3)])
    assert found > np.mean(y[200:]) + (0.05 if preprocess == "l2" else 0.25)
    assert probe.searched[probe.C] == max(probe.searched.values())


def test_held_out_images_are_not_used_to_choose_c_and_all_are_used_to_refit(load):
    x, y = data(n=60)
    features = torch.from_numpy(x).float()
    task = task_of(y, 60)
    probe = methods.create(
        "linear_probe", backbone=load(), task=task, preprocess="standardise", held_out=0.25
    )
    probe.fit(features, seed=4)
    order = np.random.RandomState(4).permutation(60)
    held, kept = order[:15], order[15:]
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)

    def held_out_score(c):
        precision = []
        for k in range(3):
            model = LogisticRegression(C=c, tol=1e-9, max_iter=5000).fit(scaled[kept], y[kept, k])
            logits = scaled[held] @ model.coef_[0] + model.intercept_[0]
            precision.append(average_precision_score(y[held, k], logits))
        return np.mean(precision)

    for c in (1e-2, 1.0):
        assert probe.searched[c] == pytest.approx(held_out_score(c), abs=1e-6)
    refit = LogisticRegression(C=probe.C, tol=1e-9, max_iter=5000).fit(scaled, y[:, 0])
    expected = scaled @ refit.coef_[0] + refit.intercept_[0]
    assert np.allclose(probe.predict(features)[:, 0].numpy(), expected, atol=2e-2)


def test_class_without_positives_has_one_score(load):
    x, y = data(n=50)
    y[:, 1] = 0
    probe = methods.create("linear_probe", backbone=load(), task=task_of(y, 50))
    features = torch.from_numpy(x).float()
    probe.fit(features, seed=0)
    scores = probe.predict(features)
    assert scores[:, 1].unique().tolist() == [-30]
    assert len(scores[:, 0].unique()) > 40


def test_too_few_labels_for_a_search_use_the_documented_c(load):
    x, y = data(n=2)
    probe = methods.create("linear_probe", backbone=load(), task=task_of(y, 2))
    probe.fit(torch.from_numpy(x).float(), seed=0)
    assert probe.C == 0.316
    assert not probe.searched

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from methods.parts.logistic import LogisticRegressions, binary_search


def data(n=120, d=6, classes=3, seed=0):
    rng = np.random.RandomState(seed)
    x = rng.randn(n, d)
    z = x @ rng.randn(d, classes) * 1.5 + rng.randn(n, classes) - 0.5
    return x, (z > 0).astype(float)


@pytest.mark.parametrize("c", [1e-4, 0.05, 1.0, 300.0])
@pytest.mark.parametrize("balanced", [False, True])
def test_regression_equals_scikit_learn(c, balanced):
    x, y = data()
    found = LogisticRegressions(x).fit(y, c, balanced, tolerance=1e-9)
    for k in range(y.shape[1]):
        model = LogisticRegression(
            C=c, class_weight="balanced" if balanced else None, tol=1e-10, max_iter=10000
        ).fit(x, y[:, k])
        assert np.allclose(found[:-1, k], model.coef_[0], rtol=2e-3, atol=2e-4)
        assert found[-1, k] == pytest.approx(model.intercept_[0], rel=2e-3, abs=2e-4)


def test_warm_start_ends_at_the_same_place():
    x, y = data()
    cold = LogisticRegressions(x).fit(y, 0.5, tolerance=1e-9)
    start = LogisticRegressions(x).fit(y, 1e-3)
    assert np.allclose(cold, LogisticRegressions(x).fit(y, 0.5, start=start, tolerance=1e-9), atol=1e-5)


def test_classes_with_one_label_value_get_a_constant():
    x, y = data()
    y[:, 0], y[:, 1] = 0, 1
    found = LogisticRegressions(x).fit(y, 1.0)
    assert not found[:-1, :2].any()
    assert found[-1, :2].tolist() == [-30, 30]
    assert np.allclose(found[:, 2], LogisticRegressions(x).fit(y[:, 2:], 1.0)[:, 0], atol=1e-3)


def test_large_logits_do_not_overflow():
    x, y = data()
    with np.errstate(over="raise", invalid="raise"):
        assert np.isfinite(LogisticRegressions(1e4 * x).fit(y, 1e6)).all()


@pytest.mark.parametrize("peak", [-4.3, -0.2, 0.0, 1.7, 3.2])
def test_binary_search_finds_a_single_peak(peak):
    calls = []

    def score(c):
        calls.append(c)
        return -abs(np.log10(c) - peak)

    best = binary_search(score, [10.0**k for k in (-6, -4, -2, 0, 2, 4, 6)])
    assert np.log10(best) == pytest.approx(peak, abs=2 / 2**8 + 1e-9)


def test_equal_scores_take_the_usual_strength():
    assert 0.1 <= binary_search(lambda c: 1.0, [1e-2, 1.0, 1e2]) <= 1

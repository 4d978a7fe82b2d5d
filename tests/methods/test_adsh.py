import math

import pytest
import torch

import methods
from methods.adsh import share_thresholds
from methods.base import Pool
from tests.methods.table import GOLDEN, PixelBackbone, gradients_of, numbers, step_of, task

OFFICIAL = GOLDEN["adsh"]  # microsoft/Semi-supervised-learning at 1ef4cbe, run
UNSET = torch.full((2, 4), torch.inf, dtype=torch.float64)


def official_pool():
    """The single-label pool of the official run: one class above one half, the others share the rest."""
    top, classes = numbers(OFFICIAL["confidence"]), torch.tensor(OFFICIAL["class"])
    p = ((1 - top) / 3)[:, None].repeat(1, 4)
    p[torch.arange(len(top)), classes] = top
    return p


def literal(p, majority, confidence, old):
    """The rule in loops."""
    classes = p.shape[1]
    chosen = [float(v) for v in p[:, majority] if v >= 0.5]
    passing = sum(v >= confidence for v in chosen)
    found = old.clone()
    for k in range(classes):
        for row in (0, 1):
            lists = [[float(v) for v in p[:, k] if v >= 0.5], [1 - float(v) for v in p[:, k] if v < 0.5]]
            ordered = sorted(lists[row], reverse=True)
            if ordered:
                rank = math.ceil(passing * len(ordered) / len(chosen) - 1e-9) if chosen else 0
                found[row, k] = ordered[max(rank, 1) - 1]
    return found


def test_at_the_same_share_thresholds_are_the_official_ones():
    # Its share is (m - 1)/n for m passing: with five above 0.93 it has the half that ours has with four above
    # 0.95. Every class has an even number of predictions, so that no rank is rounded.
    run = next(run for run in OFFICIAL["runs"] if run["tau_1"] == 0.93)
    found = share_thresholds(official_pool(), 0, 0.95, UNSET)
    torch.testing.assert_close(found[0], numbers(run["thresholds"]), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("tau", "passing"), [(0.995, 0), (0.985, 1)])
def test_the_corners_of_the_share_use_the_surest_prediction_and_not_all(tau, passing):
    p, classes = official_pool(), torch.tensor(OFFICIAL["class"])
    run = next(run for run in OFFICIAL["runs"] if run["tau_1"] == tau)
    assert int((p[:, 0] >= tau).sum()) == passing
    found = share_thresholds(p, 0, tau, UNSET)[0]
    for k in range(4):
        mine = p[classes == k, k]
        assert run["thresholds"][k] == pytest.approx(float(mine.min()))  # the official code: everything
        assert float(found[k]) == float(mine.max())


def test_a_majority_that_passes_as_a_whole_uses_everything():
    found = share_thresholds(official_pool(), 0, 0.5, UNSET)
    p, classes = official_pool(), torch.tensor(OFFICIAL["class"])
    assert found[0].tolist() == [float(p[classes == k, k].min()) for k in range(4)]


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_equal_the_rule_in_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    shift = torch.tensor([1.0, -1.0, -4.0, 30.0, -30.0])
    p = torch.sigmoid(3 * torch.randn(83, 5, generator=generator) + shift).double()
    p[:20] = p[20:40]  # ties
    old = torch.rand(2, 5, generator=generator).double()
    for majority in range(5):
        found = share_thresholds(p, majority, 0.9, old)
        assert torch.equal(found, literal(p, majority, 0.9, old))
    assert float(found[0, 4]) == float(old[0, 4])  # nowhere predicted: kept
    assert float(found[1, 3]) == float(old[1, 3])


def test_the_majority_is_found_in_the_labels():
    labels = torch.tensor([[0, 1, 1], [0, 1, 0], [1, 1, 0]])
    found = [
        methods.create("adsh", backbone=PixelBackbone(), task=task(labels[:, order])).majority
        for order in ([0, 1, 2], [1, 0, 2], [0, 2, 1])
    ]
    assert found == [1, 0, 2]


def build(inputs, labels, confidence=0.95):
    method, batch = step_of("adsh", inputs, labels=labels, loss="bce", confidence=confidence)
    return method, batch


def test_a_class_that_is_nowhere_predicted_is_never_all_positive():
    # Class 1 is on no labelled image; the pool's model predicts it nowhere, the present one everywhere.
    inputs = {
        "weak_labelled": [[0.0, 0.0]],
        "strong_labelled": [[0.0, 0.0]],
        "weak_unlabelled": [[3.0, 9.0], [-3.0, 9.0], [3.0, 9.0]],
        "strong_unlabelled": [[0.0, 0.0]] * 3,
        "targets": [[1.0, 0.0]],
    }
    method, batch = build(inputs, [[1, 0], [1, 0]])
    scores = numbers([[4.0, -5.0], [3.0, -4.0], [-4.0, -4.5]])
    method.refresh(Pool(0, scores, scores[:, :0]))
    assert math.isinf(float(method.thresholds[0, 1]))
    output = method(batch)
    assert output.pseudo_labels.targets[:, 1].tolist() == [1, 1, 1]
    assert output.pseudo_labels.mask[:, 1].tolist() == [0, 0, 0]
    assert not gradients_of(method, batch, output)["strong_unlabelled"][:, 1].any()


def test_before_any_score_nothing_is_used():
    method, batch = build(GOLDEN["inputs"], GOLDEN["inputs"]["targets"])
    assert not method(batch).pseudo_labels.mask.any()
    assert method(batch).losses["unlabelled"].item() == 0


def test_a_step_uses_entries_that_reach_the_threshold_of_their_state():
    inputs = GOLDEN["inputs"]
    method, batch = build(inputs, inputs["targets"])
    generator = torch.Generator().manual_seed(5)
    scores = (2 * torch.randn(10, 4, generator=generator)).double()
    method.refresh(Pool(0, scores, scores[:, :0]))
    majority = int(torch.tensor(inputs["targets"]).sum(dim=0).argmax())
    expected = literal(torch.sigmoid(scores), majority, 0.95, UNSET)
    assert torch.equal(method.thresholds, expected)
    pseudo = method(batch).pseudo_labels
    weak, used = torch.sigmoid(numbers(inputs["weak_unlabelled"])), 0
    for i in range(5):
        for k in range(4):
            p = float(weak[i, k])
            reached = p >= expected[0, k] if p >= 0.5 else 1 - p >= expected[1, k]
            assert bool(pseudo.mask[i, k]) == bool(reached)
            assert float(pseudo.targets[i, k]) == (p >= 0.5)
            used += bool(reached)
    assert 0 < used < 20


def test_thresholds_are_saved_and_a_state_without_predictions_keeps_them():
    method, _ = build(GOLDEN["inputs"], GOLDEN["inputs"]["targets"])
    scores = numbers([[2.0, 1.0, -1.0, 1.0]] * 3)
    method.refresh(Pool(0, scores, scores[:, :0]))
    fresh, _ = build(GOLDEN["inputs"], GOLDEN["inputs"]["targets"])
    fresh.load_training_state(method.training_state())
    assert torch.equal(fresh.thresholds, method.thresholds)
    fresh.refresh(Pool(1, -scores, scores[:, :0]))
    assert torch.equal(fresh.thresholds[0, :2], method.thresholds[0, :2])  # positives before, none now
    assert torch.isfinite(fresh.thresholds).all()


def test_scores_that_are_no_numbers_stop_the_run():
    method, _ = build(GOLDEN["inputs"], GOLDEN["inputs"]["targets"])
    scores = torch.full((3, 4), torch.nan).double()
    with pytest.raises(ValueError, match="diverged"):
        method.refresh(Pool(0, scores, scores[:, :0]))


def test_an_empty_pool_changes_nothing():
    assert torch.equal(share_thresholds(torch.zeros(0, 4).double(), 0, 0.95, UNSET), UNSET)
    assert not methods.create("adsh", backbone=PixelBackbone(), task=task([[1.0]], 0)).wants_pool(0)

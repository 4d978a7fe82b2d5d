from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.data.ops import OPERATIONS
from benchmarks.data.views import (
    OPERATION_NAMES,
    POLICIES,
    apply_strong,
    draw_flip,
    draw_strong,
    magnitudes,
    make_view,
)
from methods.errors import UserError

N = 20_000


@pytest.fixture(scope="module")
def draws():
    return draw_strong(np.arange(N), 100, 80, seed=1, epoch=0)


@pytest.fixture
def images(photo_like):
    arrays = np.stack([photo_like(seed, 32, 32) for seed in range(48)])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def close(share, expected, n=N):
    return abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / n)


# -- the draws ---------------------------------------------------------------------------------


def test_a_quarter_of_the_strong_views_get_no_operation(draws):
    number = draws.applied.sum(axis=1)
    for count, share in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert close((number == count).mean(), share)


def test_operations_levels_and_flips_are_uniform_and_independent(draws):
    for slot in range(2):
        for code in range(15):
            assert close((draws.operation[:, slot] == code).mean(), 1 / 15)
        levels = np.bincount(draws.level[:, slot], minlength=10)
        assert levels[0] == 0
        assert len(levels) == 10
        assert all(close(count / N, 1 / 9) for count in levels[1:])
    # with replacement: the same operation twice once in fifteen
    assert close((draws.operation[:, 0] == draws.operation[:, 1]).mean(), 1 / 15)
    assert close(draws.flip.mean(), 0.5)
    assert close((draws.flip & draws.applied[:, 0] & draws.applied[:, 1]).mean(), 1 / 8)


def test_signs_and_magnitudes_follow_the_protocol(draws):
    values, level, operation = draws.params[:, 0, 0], draws.level[:, 0], draws.operation[:, 0]

    def drawn(name):
        where = operation == OPERATION_NAMES.index(name)
        return values[where], level[where]

    for name, scale in (("ShearX", 0.3), ("ShearY", 0.3), ("TranslateX", 80 * 150 / 331),
                        ("TranslateY", 100 * 150 / 331)):  # fmt: skip
        value, at = drawn(name)
        np.testing.assert_allclose(np.abs(value), scale * at / 9)
        assert close((value < 0).mean(), 0.5, len(value))
    for name in ("Sharpness", "Contrast", "Color", "Brightness"):
        value, at = drawn(name)
        np.testing.assert_allclose(np.abs(value - 1), 0.9 * at / 9)
        assert close((value < 1).mean(), 0.5, len(value))
    value, at = drawn("Rotate")
    np.testing.assert_allclose(value, 30 * at / 9)  # one sign only
    value, at = drawn("Solarize")
    np.testing.assert_allclose(value, 256 - 256 * at / 9)
    value, at = drawn("Posterize")
    assert dict(zip(at.tolist(), value.tolist(), strict=True)) == {
        1: 8, 2: 7, 3: 7, 4: 6, 5: 6, 6: 5, 7: 5, 8: 4, 9: 4
    }  # fmt: skip
    value, at = drawn("Cutout")
    assert dict(zip(at.tolist(), value.tolist(), strict=True)) == {
        1: 2, 2: 4, 3: 7, 4: 9, 5: 11, 6: 13, 7: 16, 8: 18, 9: 20
    }  # fmt: skip


def test_grids_start_at_nothing():
    for name in ("ShearX", "TranslateY", "Rotate", "Contrast", "Cutout"):
        assert magnitudes(name)[0] == 0
    assert magnitudes("Posterize")[0] == 8
    assert magnitudes("Solarize")[0] == 256
    assert not magnitudes("Equalize").any()


def test_cutout_boxes_are_half_as_large_as_the_image_around_a_uniform_pixel(draws):
    top, bottom, left, right = draws.box.T
    # CutoutPIL draws [centre - 25, centre + 25] with both ends included
    assert set(bottom - top) == {51.0}
    assert set(right - left) == {41.0}
    for centre, size in ((top + 25, 100), (left + 20, 80)):
        assert centre.min() == 0
        assert centre.max() == size - 1
        assert close((centre < size // 4).mean(), 0.25)
    assert draws.colour.min() == 0
    assert draws.colour.max() == 255
    assert draws.params[..., 1].max() == 99
    assert draws.params[..., 2].max() == 79


# -- the views ---------------------------------------------------------------------------------


def test_the_test_view_is_the_image(images):
    view = make_view(images, np.arange(48), policy="test", seed=1, epoch=0)
    assert view.dtype == torch.float32
    torch.testing.assert_close(view, images / 255, rtol=0, atol=1e-7)


def test_the_weak_view_is_the_image_or_its_mirror(images):
    view = (make_view(images, np.arange(48), policy="weak", seed=1, epoch=0) * 255).round().byte()
    same = (view == images).flatten(1).all(1)
    mirrored = (view == images.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 10 < int(mirrored.sum()) < 38


def test_strong_views_equal_operations_applied_one_image_at_a_time(images):
    for cutout in (True, False):
        draws = draw_strong(np.arange(48), 32, 32, seed=3, epoch=5)
        found = apply_strong(images, draws, cutout=cutout)
        for k, image in enumerate(images):
            one = image.flip(-1) if draws.flip[k] else image
            if cutout:
                one = one.clone()
                top, bottom, left, right = np.maximum(draws.box[k], 0).astype(int)
                colour = torch.from_numpy(draws.colour[k])[:, None, None]
                one[:, top:bottom, left:right] = colour
            for slot in range(2):
                if draws.applied[k, slot]:
                    operation = OPERATIONS[OPERATION_NAMES[draws.operation[k, slot]]]
                    one = operation(one[None], torch.from_numpy(draws.params[k : k + 1, slot]))[0]
            assert torch.equal(found[k], one), k


@pytest.mark.parametrize("policy", POLICIES)
def test_a_view_does_not_depend_on_its_batch(images, policy):
    indices = np.arange(48) * 7 + 3
    options = {"policy": policy, "seed": 1, "epoch": 4}
    whole = make_view(images, indices, **options)
    assert whole.is_contiguous()
    assert whole.min() >= 0
    assert whole.max() <= 1
    order = np.random.default_rng(0).permutation(48)
    assert torch.equal(make_view(images[order], indices[order], **options), whole[order])
    for some in np.array_split(order, 5):
        part = make_view(images[some], torch.from_numpy(indices[some]), **options)
        assert torch.equal(part, whole[some])
    assert torch.equal(make_view(images, indices, **options), whole)


def test_views_change_with_seed_epoch_and_index_and_leave_their_input(images):
    before = images.clone()
    indices = np.arange(48)
    base = make_view(images, indices, policy="strong", seed=1, epoch=0)
    for other in (
        make_view(images, indices, policy="strong", seed=2, epoch=0),
        make_view(images, indices, policy="strong", seed=1, epoch=1),
        make_view(images, indices + 48, policy="strong", seed=1, epoch=0),
    ):
        assert (base != other).flatten(1).any(1).float().mean() > 0.9
    assert torch.equal(images, before)


def test_warm_up_views_are_the_strong_ones_without_cutout(images):
    options = {"seed": 1, "epoch": 0}
    without = make_view(images, np.arange(48), policy="strong-no-cutout", **options)
    with_cutout = make_view(images, np.arange(48), policy="strong", **options)
    draws = draw_strong(np.arange(48), 32, 32, **options)
    plain = ~draws.applied.any(axis=1)
    assert plain.any()
    for k in np.flatnonzero(plain):
        top, bottom, left, right = np.clip(draws.box[k], 0, 32).astype(int)
        outside = torch.ones(32, 32, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        assert torch.equal(without[k][:, outside], with_cutout[k][:, outside])
        assert not torch.equal(without[k], with_cutout[k])


def test_flips_of_weak_and_strong_views_are_independent():
    weak = draw_flip(np.arange(N), seed=1, epoch=0)
    strong = draw_strong(np.arange(N), 8, 8, seed=1, epoch=0).flip
    assert close((weak & strong).mean(), 0.25)


def test_an_empty_batch_gives_an_empty_view(images):
    for policy in POLICIES:
        view = make_view(images[:0], np.arange(0), policy=policy, seed=1, epoch=0)
        assert view.shape == (0, 3, 32, 32)


def test_wrong_input_is_refused(images):
    with pytest.raises(UserError, match=r"no view policy 'stong'.*'strong'"):
        make_view(images, np.arange(48), policy="stong", seed=1, epoch=0)
    with pytest.raises(ValueError, match="uint8"):
        make_view(images / 255, np.arange(48), policy="weak", seed=1, epoch=0)
    with pytest.raises(ValueError, match="48 images, but indices of shape"):
        make_view(images, np.arange(47), policy="weak", seed=1, epoch=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy", POLICIES)
def test_views_on_a_gpu_equal_those_on_the_cpu(images, policy):
    options = {"policy": policy, "seed": 1, "epoch": 0}
    here = make_view(images, np.arange(48), **options)
    there = make_view(images.cuda(), np.arange(48), **options)
    difference = ((there.cpu() - here) * 255).abs()
    assert difference.max() <= 1.001
    assert (difference > 1e-3).float().mean() < 1e-3

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from benchmarks.data.views import views
from benchmarks.data.views.batch_ops import OPERATIONS
from benchmarks.data.views.crop import resized_crop
from benchmarks.data.views.draws import (
    OPERATION_NAMES,
    SCPNET_OPERATIONS,
    draw_flip,
    draw_scpnet_strong,
    draw_scpnet_weak,
    draw_strong,
    magnitudes,
)
from benchmarks.data.views.views import (
    FAMILIES,
    ONE_BY_ONE,
    POLICIES,
    apply_in_groups,
    apply_one_by_one,
    make_view,
)
from methods.errors import UserError

N = 20_000


@pytest.fixture(scope="module")
def draws():
    return draw_strong(np.arange(N), 100, 80, seed=1, epoch=0)


def stack(photo_like, side):
    arrays = np.stack([photo_like(seed, side, side) for seed in range(48)])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


@pytest.fixture
def images(photo_like):
    return stack(photo_like, 32)


@pytest.fixture(params=[32, 84], ids=["in groups", "one by one"])
def both_images(photo_like, request):
    assert (request.param**2 >= ONE_BY_ONE) == (request.param == 84)
    return stack(photo_like, request.param)


def fixed_images(n, height, width):
    """Noise, gradients and noise of little contrast in turn, the same on every machine."""
    values = np.random.default_rng(20240501).integers(0, 256, (n, 3, height, width), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    values[::3] = np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) % 256])
    values[1::3] = values[1::3] // 4 + 60
    return torch.from_numpy(values)


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

    for name, scale in (
        ("ShearX", 0.3),
        ("ShearY", 0.3),
        ("TranslateX", 80 * 150 / 331),
        ("TranslateY", 100 * 150 / 331),
    ):
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
        1: 8,
        2: 7,
        3: 7,
        4: 6,
        5: 6,
        6: 5,
        7: 5,
        8: 4,
        9: 4,
    }
    value, at = drawn("Cutout")
    assert dict(zip(at.tolist(), value.tolist(), strict=True)) == {
        1: 2,
        2: 4,
        3: 7,
        4: 9,
        5: 11,
        6: 13,
        7: 16,
        8: 18,
        9: 20,
    }


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


def test_dualcoop_draws_the_strong_views_without_mirroring():
    strong = draw_strong(np.arange(500), 40, 30, seed=1, epoch=2)
    plain = draw_strong(np.arange(500), 40, 30, seed=1, epoch=2, mirrored=False)
    assert strong.flip.any()
    assert not plain.flip.any()
    for name in ("box", "colour", "operation", "applied", "params"):
        assert (getattr(plain, name) == getattr(strong, name)).all()


def test_scpnet_draws_three_operations_always_applied_and_a_cutout():
    draws = draw_scpnet_strong(np.arange(N), 100, 80, seed=1, epoch=0)
    names = [*OPERATION_NAMES, "Identity"]  # -1: nothing to do
    assert draws.operation.shape == (N, 4)
    assert {names[k] for k in np.unique(draws.operation[:, :3])} == set(SCPNET_OPERATIONS)
    for slot in range(3):
        for code in np.unique(draws.operation[:, :3]):
            assert close((draws.operation[:, slot] == code).mean(), 1 / 14)
    assert (draws.applied == (draws.operation >= 0)).all()
    assert close(draws.flip.mean(), 0.5)
    ranges = {
        "Brightness": (0.05, 0.95),
        "Sharpness": (0.05, 0.95),
        "BlackRotate": (-30, 30),
        "NearestShearX": (-0.3, 0.3),
        "Solarize": (0, 256),
        "BlackTranslateX": (-24, 24),
        "BlackTranslateY": (-30, 30),
    }
    for name, (low, high) in ranges.items():
        share = (draws.params[draws.operation == names.index(name), 0] - low) / (high - low)
        assert share.min() >= 0
        assert share.max() <= 1
        assert abs(share.mean() - 0.5) < 0.02
        assert abs(share.std() - 12**-0.5) < 0.01
    bits = draws.params[draws.operation == names.index("Posterize"), 0]
    assert set(bits) == {4, 5, 6, 7}  # a fraction of a bit is cut off, so 8 does not come up
    side, row, column = draws.params[:, 3].T
    assert (draws.operation[:, 3] == names.index("WideCutout")).all()
    assert (side.min() >= 0) & (side.max() <= 40) & (abs(side.mean() - 20) < 0.4)
    assert (row.min() >= 1) & (row.max() <= 100) & (abs(row.mean() - 50.5) < 1)
    assert (column.min() >= 1) & (column.max() <= 80) & (abs(column.mean() - 40.5) < 1)


# -- the views ---------------------------------------------------------------------------------

DIGESTS = {
    ((48, 32, 32), "test"): "8eff5f85",
    ((48, 32, 32), "weak"): "4a5b52f2",
    ((48, 32, 32), "strong"): "eed763df",
    ((48, 32, 32), "strong-no-cutout"): "677d840e",
    ((48, 45, 67), "test"): "943c9166",
    ((48, 45, 67), "weak"): "ae4c94fe",
    ((48, 45, 67), "strong"): "b46222e8",
    ((48, 45, 67), "strong-no-cutout"): "12f62b55",
    ((24, 129, 128), "test"): "736c018e",
    ((24, 129, 128), "weak"): "9318911f",
    ((24, 129, 128), "strong"): "480ca693",
    ((24, 129, 128), "strong-no-cutout"): "23631f5f",
    ((40, 224, 224), "test"): "b91be58d",
    ((40, 224, 224), "weak"): "c9403cd3",
    ((40, 224, 224), "strong"): "075222b6",
    ((40, 224, 224), "strong-no-cutout"): "b471d159",
    ((48, 45, 67), "dualcoop"): "02b63ca8",
    ((40, 224, 224), "dualcoop"): "33894281",
    ((48, 45, 67), "scpnet-weak"): "db9bac47",
    ((40, 224, 224), "scpnet-weak"): "45223c75",
    ((48, 45, 67), "scpnet-strong"): "f6e6e1c7",
    ((40, 224, 224), "scpnet-strong"): "ce2bebeb",
}
"""Heads of SHA-256 digests of the views that results were trained on; CAP's precede `imageops`."""


@pytest.mark.parametrize(("shape", "policy"), list(DIGESTS))
def test_views_keep_every_bit(shape, policy):
    images = fixed_images(*shape)
    digest = hashlib.sha256()
    for epoch in range(3):
        indices = np.arange(len(images)) * 5 + epoch
        digest.update(make_view(images, indices, policy=policy, seed=1, epoch=epoch).numpy().data)
    assert digest.hexdigest()[:8] == DIGESTS[shape, policy]


@pytest.mark.parametrize("side", [40, 96])
def test_views_do_not_depend_on_the_number_of_threads(side):
    images = fixed_images(24, side, 100)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (3, 2, 1):
            views.single_thread.cache_clear()
            torch.set_num_threads(threads)
            found.append(make_view(images, np.arange(24), policy="scpnet-strong", seed=1, epoch=0))
            assert torch.get_num_threads() == threads  # the caller's setting is left alone
            with ThreadPoolExecutor(1) as fresh:  # and so is that of threads yet to come
                assert fresh.submit(torch.get_num_threads).result() == threads
            lone = views.single_thread(os.getpid())
            assert lone.submit(torch.get_num_threads).result() == 1
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("height", "width"), [(50, 60), (60, 20), (3, 5), (1, 1)])
def test_both_ways_to_a_view_give_the_same_bytes(policy, height, width):
    images = fixed_images(60, height, width)
    draws = POLICY_DRAWS[policy](np.arange(60), height, width, seed=4, epoch=9)
    assert torch.equal(apply_one_by_one(images, draws), apply_in_groups(images, draws))


POLICY_DRAWS = views._POLICIES


def test_scpnets_views_equal_its_steps_taken_one_image_at_a_time(both_images):
    size = both_images.shape[-1]
    for policy, draw in (("scpnet-weak", draw_scpnet_weak), ("scpnet-strong", draw_scpnet_strong)):
        draws = draw(np.arange(48), size, size, seed=3, epoch=5)
        found = make_view(both_images, np.arange(48), policy=policy, seed=3, epoch=5)
        for k, image in enumerate(both_images):
            one = image[None]
            for code, values in zip(draws.operation[k], draws.params[k], strict=True):
                if code >= 0:
                    one = OPERATIONS[OPERATION_NAMES[code]](one, torch.from_numpy(values)[None])
            one = one.flip(-1) if draws.flip[k] else one  # after the operations, before the crop
            expected = resized_crop(one, draws.crop[k : k + 1])[0] / 255
            torch.testing.assert_close(found[k], expected, rtol=0, atol=1e-6)


def test_families_name_policies():
    assert list(FAMILIES) == ["cap", "dualcoop", "scpnet"]
    for family in FAMILIES.values():
        assert {family.weak, family.strong, family.labelled, family.warmup} <= set(POLICIES)


def test_the_test_view_is_the_image(both_images):
    images = both_images
    view = make_view(images, np.arange(48), policy="test", seed=1, epoch=0)
    assert view.dtype == torch.float32
    torch.testing.assert_close(view, images / 255, rtol=0, atol=1e-7)


def test_the_weak_view_is_the_image_or_its_mirror(both_images):
    images = both_images
    view = (make_view(images, np.arange(48), policy="weak", seed=1, epoch=0) * 255).round().byte()
    same = (view == images).flatten(1).all(1)
    mirrored = (view == images.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 10 < int(mirrored.sum()) < 38


def test_strong_views_equal_operations_applied_one_image_at_a_time(images):
    for cutout in (True, False):
        draws = draw_strong(np.arange(48), 32, 32, seed=3, epoch=5, cutout=cutout)
        found = (apply_in_groups(images, draws) * 255).round().byte()
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
def test_a_view_does_not_depend_on_its_batch(both_images, policy):
    images = both_images
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


@pytest.mark.parametrize("policy", ["strong", "dualcoop", "scpnet-weak", "scpnet-strong"])
def test_views_change_with_seed_epoch_and_index_and_leave_their_input(both_images, policy):
    images = both_images
    before = images.clone()
    indices = np.arange(48)
    base = make_view(images, indices, policy=policy, seed=1, epoch=0)
    for other in (
        make_view(images, indices, policy=policy, seed=2, epoch=0),
        make_view(images, indices, policy=policy, seed=1, epoch=1),
        make_view(images, indices + 48, policy=policy, seed=1, epoch=0),
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


def test_an_empty_batch_gives_an_empty_view():
    for policy in POLICIES:
        for side in (32, 96):
            none = torch.zeros(0, 3, side, side, dtype=torch.uint8)
            view = make_view(none, np.arange(0), policy=policy, seed=1, epoch=0)
            assert view.shape == (0, 3, side, side)


def test_wrong_input_is_refused(images):
    with pytest.raises(UserError, match=r"no view policy 'stong'.*'strong'"):
        make_view(images, np.arange(48), policy="stong", seed=1, epoch=0)
    with pytest.raises(UserError, match=r"'scpnet-string'.*'scpnet-strong'"):
        make_view(images, np.arange(48), policy="scpnet-string", seed=1, epoch=0)
    with pytest.raises(ValueError, match="uint8"):
        make_view(images / 255, np.arange(48), policy="weak", seed=1, epoch=0)
    with pytest.raises(ValueError, match="48 images, but indices of shape"):
        make_view(images, np.arange(47), policy="weak", seed=1, epoch=0)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: run on a machine with an NVIDIA GPU"
)
@pytest.mark.parametrize("policy", POLICIES)
def test_views_on_a_gpu_equal_those_on_the_cpu(both_images, policy):
    images = both_images
    options = {"policy": policy, "seed": 1, "epoch": 0}
    here = make_view(images, np.arange(48), **options)
    there = make_view(images.cuda(), np.arange(48), **options)
    difference = ((there.cpu() - here) * 255).abs()
    assert difference.max() <= 1.001
    assert (difference > 1e-3).float().mean() < 1e-3

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.dataset import Dataset, ImageSet
from benchmarks.data.splits import rules
from benchmarks.data.splits.rules import (
    absent_classes,
    check_rule,
    draw,
    known_digest,
    labelled_indices,
    split_digest,
    stratified_indices,
)
from methods.errors import UserError

PUBLISHED = {  # counts printed by the published code and papers; VOC2007 by the same rule
    "voc2007": (5011, (250, 501, 751, 1002)),
    "voc2012": (5717, (285, 571, 857, 1143)),
    "coco2014": (82081, (4104, 8208, 12312, 16416)),
    "nuswide": (150000, (7500, 15000, 22500, 30000)),
}
RATIOS = (0.05, 0.1, 0.15, 0.2)


def twister_permutation(seed: int, n: int) -> list[int]:
    """`RandomState(seed).permutation(n)` without NumPy: Python's generator is the same twister."""
    state = [seed]
    for k in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + k) & 0xFFFFFFFF)
    generator = random.Random()
    generator.setstate((3, (*state, 624), None))
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        mask = (1 << i.bit_length()) - 1
        j = i + 1
        while j > i:
            j = generator.getrandbits(32) & mask
        order[i], order[j] = order[j], order[i]
    return order


def long_tailed(n: int, k: int, seed: int, cardinality: float = 2.0) -> np.ndarray:
    """(n, k) labels with frequencies like 1/rank; every image has one."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, k + 1) ** 1.3
    share = np.minimum(share / share.sum() * cardinality, 0.7)
    labels = (rng.random((n, k)) < share).astype(np.uint8)
    bare = np.flatnonzero(~labels.any(axis=1))
    labels[bare, rng.integers(0, k, len(bare))] = 1
    return labels


def dataset_of(labels: np.ndarray) -> Dataset:
    n, k = labels.shape
    names = tuple(f"class{c}" for c in range(k))
    ids = tuple(f"image{i}" for i in range(n))
    train = ImageSet(ids, tuple(Path(f"train/{i}.jpg") for i in ids), labels)
    test = ImageSet(("t",), (Path("test/t.jpg"),), np.ones((1, k), np.uint8))
    return Dataset("toy", names, names, train, test)


# -- the published rule ------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "sizes"), PUBLISHED.values())
def test_sizes_of_the_published_protocol(n, sizes):
    for ratio, size in zip(RATIOS, sizes, strict=True):
        labelled, unlabelled = labelled_indices(n, ratio, 1)
        assert len(labelled) == size
        assert len(unlabelled) == n - size


def test_the_split_is_a_prefix_of_the_seeded_permutation():
    np.random.seed(1)  # the published code seeds a legacy generator the same way
    order = np.random.permutation(5717)
    labelled, unlabelled = labelled_indices(5717, 0.05, 1)
    assert labelled.tolist() == order[:285].tolist()
    assert unlabelled.tolist() == order[285:].tolist()
    assert labelled.dtype == unlabelled.dtype == np.int64
    larger, _ = labelled_indices(5717, 0.2, 1)
    assert larger[:285].tolist() == labelled.tolist()


def test_the_permutation_is_the_one_that_a_twister_without_numpy_gives():
    for seed, n in ((1, 5717), (2, 1000), (3, 1024), (2**32 - 1, 257), (0, 1)):
        labelled, _ = labelled_indices(n, 1.0, seed)
        assert labelled.tolist() == twister_permutation(seed, n), (seed, n)


def test_the_recorded_hashes_are_those_of_the_published_rule():
    content = json.loads(Path(rules.__file__).with_name("published_splits.json").read_text())
    listed = {(e["dataset"], e["n_train"], e["ratio"], e["seed"]): e for e in content["splits"]}
    assert len(listed) == len(content["splits"]) == 16
    for name, (n, sizes) in PUBLISHED.items():
        order = twister_permutation(1, n)
        for ratio, size in zip(RATIOS, sizes, strict=True):
            entry = listed[name, n, ratio, 1]
            assert entry["labelled"] == size
            packed = struct.pack(f"<{size}q", *order[:size])
            assert entry["sha256"] == hashlib.sha256(packed).hexdigest()
            assert entry["sha256"] == split_digest(labelled_indices(n, ratio, 1)[0])
            assert known_digest(n, ratio, 1) == entry["sha256"]
    assert known_digest(5717, 0.05, 2) is None


def test_a_numpy_that_draws_another_permutation_is_refused(monkeypatch):
    dataset = dataset_of(np.ones((5011, 1), np.uint8))
    assert len(draw(dataset, "published", 0.05, 1).labelled) == 250
    changed = np.random.RandomState

    class Other(changed):
        def permutation(self, n):
            return super().permutation(n)[::-1]

    monkeypatch.setattr(np.random, "RandomState", Other)
    with pytest.raises(UserError, match=r"NumPy .* another labelled subset .*constraints.txt"):
        draw(dataset, "published", 0.05, 1)
    draw(dataset, "published", 0.05, 2)  # nothing is on record for it


def test_all_labelled_leaves_an_empty_pool():
    labelled, unlabelled = labelled_indices(50, 1.0, 3)
    assert sorted(labelled) == list(range(50))
    assert unlabelled.shape == (0,)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(UserError, match=r"ratio is .*\(0, 1\]"):
        labelled_indices(100, ratio, 1)
    with pytest.raises(UserError, match=r"ratio is .*\(0, 1\]"):
        stratified_indices(np.ones((100, 2), np.uint8), ratio, 1)


def test_a_ratio_that_labels_nothing_is_refused():
    with pytest.raises(UserError, match=r"0\.05 of 19 training images is no labelled image"):
        labelled_indices(19, 0.05, 1)


def test_a_negative_seed_is_refused():
    with pytest.raises(UserError, match="seed is -1"):
        labelled_indices(100, 0.5, -1)


def test_the_digest_tells_splits_apart():
    digests = {split_digest(labelled_indices(200, p, s)[0]) for p in (0.1, 0.2) for s in (1, 2, 3)}
    assert len(digests) == 6
    assert split_digest(labelled_indices(200, 0.1, 1)[0]) in digests


# -- the stratified rule -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_every_class_is_labelled_and_keeps_its_share(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(200, 3000)), int(rng.integers(2, 40))
    labels = long_tailed(n, k, seed, cardinality=float(rng.uniform(1, 3)))
    ratio = float(rng.choice([0.05, 0.1, 0.2, 0.5, 0.9]))
    if int(ratio * n) < 2 * k:
        ratio = 0.5
    labelled, unlabelled = stratified_indices(labels, ratio, seed)
    assert len(labelled) == int(ratio * n)
    assert sorted([*labelled, *unlabelled]) == list(range(n))
    assert labelled.dtype == unlabelled.dtype == np.int64
    have, total = labels[labelled].sum(axis=0, dtype=int), labels.sum(axis=0, dtype=int)
    assert (have[total > 0] > 0).all()
    owed = np.maximum(total * len(labelled) / n, 1)[total > 0]
    off = np.abs(have[total > 0] - owed)
    chance, _ = labelled_indices(n, ratio, seed)
    by_chance = np.abs(labels[chance].sum(axis=0, dtype=int)[total > 0] - owed)
    assert off.max() <= 4 + np.sqrt(owed.max()) / 4
    assert off.max() < by_chance.max()
    assert off.mean() < by_chance.mean()


def test_the_published_rule_leaves_classes_out_where_the_stratified_one_does_not():
    labels = long_tailed(2000, 40, 5)
    dataset = dataset_of(labels)
    present = [name for k, name in enumerate(dataset.classes) if labels[:, k].any()]
    published = absent_classes(dataset, draw(dataset, "published", 0.05, 1).labelled)
    assert set(published) & set(present)
    assert not set(absent_classes(dataset, draw(dataset, "stratified", 0.05, 1).labelled)) & set(present)


def test_absent_classes_are_named_in_their_order():
    labels = np.zeros((4, 4), np.uint8)
    labels[[0, 1, 2, 3], [1, 1, 3, 0]] = 1  # class 2 is on no image at all
    assert absent_classes(dataset_of(labels), np.array([1])) == ("class0", "class2", "class3")
    assert absent_classes(dataset_of(labels), np.array([0, 2, 3])) == ("class2",)


def smallest_cover(labels: np.ndarray) -> int:
    wanted = set(np.flatnonzero(labels.any(axis=0)))
    for size in range(1, len(labels) + 1):
        for chosen in itertools.combinations(range(len(labels)), size):
            if wanted <= set(np.flatnonzero(labels[list(chosen)].any(axis=0))):
                return size
    raise AssertionError


@pytest.mark.parametrize("seed", range(40))
def test_small_sets_against_brute_force(seed):
    """A cover that greedy must find is found; where none is, the error tells the truth."""
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(4, 11)), int(rng.integers(2, 7))
    labels = (rng.random((n, k)) < rng.uniform(0.1, 0.5)).astype(np.uint8)
    labels[~labels.any(axis=1), 0] = 1
    present = labels.any(axis=0)
    best = smallest_cover(labels)
    greedy = best * sum(1 / size for size in range(1, int(labels.sum(axis=1).max()) + 1))
    for count in range(1, n + 1):
        ratio = min((count + 0.5) / n, 1.0)
        try:
            labelled, _ = stratified_indices(labels, ratio, seed)
        except UserError as error:
            assert count < greedy  # Chvátal's bound on the greedy cover
            size = int(re.search(r"\((\d+) images\)", str(error))[1])
            assert best <= size <= greedy
            assert size > count
            absent = [int(name) for name in re.findall(r"column (\d+)", str(error))]
            assert absent
            assert all(present[c] for c in absent)
            needed = float(re.search(r"at least ([\d.]+)", str(error))[1])
            labelled, _ = stratified_indices(labels, needed, seed)
            assert len(labelled) >= size
        else:
            assert len(labelled) == count
        assert (labels[labelled].any(axis=0) == present).all()


def test_as_many_images_as_classes_are_enough_when_each_shows_one():
    labels = np.repeat(np.eye(20, dtype=np.uint8), 50, axis=0)
    labelled, _ = stratified_indices(labels, 0.02, 1)
    assert sorted(labels[labelled].argmax(axis=1)) == list(range(20))
    with pytest.raises(UserError) as caught:
        stratified_indices(labels, 0.019, 1, [f"c{k}" for k in range(20)])
    assert re.fullmatch(
        r"ratio 0.019 of 1000 training images leaves no labelled image of 'c\d+'; a stratified "
        r"split needs a ratio of at least 0.02 \(20 images\)",
        str(caught.value),
    )


def test_many_absent_classes_are_counted():
    labels = np.repeat(np.eye(40, dtype=np.uint8), 5, axis=0)
    with pytest.raises(UserError, match=r"column \d+ and 18 more; .* at least 0.2 \(40 images\)"):
        stratified_indices(labels, 0.05, 1)


@pytest.mark.parametrize(("size", "total"), [(1, 1), (1, 3), (29, 100), (7, 150), (999, 1000)])
def test_the_ratio_that_is_named_gives_enough_images(size, total):
    ratio = rules.smallest_ratio(size, total)
    assert size <= int(ratio * total) <= size + 1
    assert len(repr(ratio)) <= 2 + max(2, math.ceil(math.log10(total)))


def test_the_stratified_split_is_a_function_of_its_arguments():
    labels = long_tailed(1000, 15, 3)
    np.random.seed(0)
    first = stratified_indices(labels, 0.1, 1)
    np.random.seed(99)
    state = np.random.get_state()[1].tolist()
    second = stratified_indices(labels.copy(order="F"), 0.1, 1)
    assert np.random.get_state()[1].tolist() == state
    for a, b in zip(first, second, strict=True):
        assert a.tolist() == b.tolist()
    assert set(stratified_indices(labels, 0.1, 2)[0]) != set(first[0])


def test_the_stratified_split_stays_what_it_is():
    """Another machine or version must not draw another subset: finished runs depend on it."""
    image, column = np.arange(3000)[:, None], np.arange(12)[None]
    labels = ((image * (column + 3) + image // 7) % (3 + 5 * column) == 0).astype(np.uint8)
    labels[~labels.any(axis=1), 0] = 1
    labelled, _ = stratified_indices(labels, 0.05, 1)
    golden = "b2204b9f513335c396d46d6f7ae560d86d200e8b4f3a827a4d047b4a87c25706"
    assert split_digest(labelled) == golden


def test_the_labelled_images_come_in_random_order():
    """A held-out tail is a random part: each class has its share of it."""
    labels = long_tailed(20000, 10, 4)
    labelled, _ = stratified_indices(labels, 0.2, 1)
    tail = labels[labelled[-800:]].mean(axis=0)
    expected = labels[labelled].mean(axis=0)
    # Five standard deviations of drawing 800 of 4,000 without replacement.
    assert (np.abs(tail - expected) < 5 * np.sqrt(expected * (1 - expected) / 800 * 0.8)).all()
    assert np.abs(np.corrcoef(np.arange(4000), labelled)[0, 1]) < 0.08


def test_images_without_a_class_are_divided_too():
    labels = long_tailed(150_000, 81, 6)
    labels[:75_000] = 0
    started = time.process_time()
    labelled, _ = stratified_indices(labels, 0.2, 1)
    assert abs((labelled < 75_000).sum() - 15_000) <= 50
    assert time.process_time() - started < 2  # all at once, not one by one


def test_everything_labelled_is_stratified_too():
    labelled, unlabelled = stratified_indices(long_tailed(60, 4, 1), 1.0, 1)
    assert sorted(labelled) == list(range(60))
    assert unlabelled.shape == (0,)


def test_the_largest_dataset_is_stratified_in_two_seconds():
    labels = long_tailed(150_000, 81, 0, cardinality=2.4)
    started = time.process_time()
    labelled, _ = stratified_indices(labels, 0.2, 1)
    assert time.process_time() - started < 2
    assert len(labelled) == 30_000


# -- by name -----------------------------------------------------------------------------------


def test_the_pool_has_the_same_order_whatever_the_rule(tmp_path):
    """Runs with one labelled subset and one seed are one run, so their pools must agree."""
    labels = long_tailed(400, 6, 2)
    dataset = dataset_of(labels)
    order = np.random.RandomState(7).permutation(400)
    for rule in ("published", "stratified"):
        drawn = draw(dataset, rule, 0.25, 7)
        file = tmp_path / f"{rule}.json"
        file.write_text(json.dumps(drawn.labelled.tolist()))
        again = draw(dataset, str(file), 0.25, 7)
        assert again.labelled.tolist() == drawn.labelled.tolist()
        assert again.unlabelled.tolist() == drawn.unlabelled.tolist()
        taken = set(drawn.labelled.tolist())
        assert drawn.unlabelled.tolist() == [k for k in order.tolist() if k not in taken]


def test_rules_are_checked_by_name():
    for rule in ("published", "stratified", "lists/p{ratio}-seed{seed}.txt", "a.NPY"):
        check_rule(rule)
    with pytest.raises(UserError, match=r"no split 'stratifed'; did you mean 'stratified'.*\.txt"):
        check_rule("stratifed")
    with pytest.raises(UserError, match="no split 'random'"):
        draw(dataset_of(np.ones((9, 2), np.uint8)), "random", 0.5, 1)

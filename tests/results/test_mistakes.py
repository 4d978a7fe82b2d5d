"""The most confident mistakes, against a literal search, and the page that shows them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from results.errors import StoreError
from results.mistakes import lines, mistakes, page

NAMES = ["cat", "dog", "<b>&tram"]


def drawn(scale: str, seed: int = 0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(50, 3)).round(1).astype(np.float32)  # with ties
    scores = 1 / (1 + np.exp(-scores)) if scale == "probabilities" else scores
    labels = (rng.random((50, 3)) < 0.4).astype(np.uint8)
    ids = np.array([f"image-{k}" for k in range(50)])
    return {"classes": NAMES, "score_scale": scale}, {"scores": scores, "labels": labels, "ids": ids}


@pytest.mark.parametrize(("scale", "cut"), [("logits", 0.0), ("probabilities", 0.5)])
def test_decisions_that_are_wrong_come_by_their_margin(scale, cut):
    result, arrays = drawn(scale)
    found = mistakes(result, arrays, 4)
    for k, name in enumerate(NAMES):
        expected = []
        for row in range(50):
            score, present = float(arrays["scores"][row, k]), bool(arrays["labels"][row, k])
            if (score > cut) != present:
                expected.append((-abs(score - cut), row, present))
        expected = sorted(expected)[:4]
        assert [(one.row, one.kind == "false negative") for one in found[name]] == [
            (row, present) for _, row, present in expected
        ]
        for one in found[name]:
            assert one.image == f"image-{one.row}"
            assert one.true == tuple(NAMES[j] for j in range(3) if arrays["labels"][one.row, j])
            p = one.score if scale == "probabilities" else 1 / (1 + np.exp(-one.score))
            assert one.confidence == pytest.approx(max(p, 1 - p), abs=1e-6)


def test_scores_that_only_rank_are_mistaken_where_a_negative_is_above_a_positive():
    result, arrays = drawn("ranking", 3)
    found = mistakes(result, arrays, 50)
    for k, name in enumerate(NAMES):
        scores, labels = arrays["scores"][:, k], arrays["labels"][:, k].astype(bool)
        expected = {}
        for row in range(50):
            others = scores[~labels] if labels[row] else scores[labels]
            beaten = np.mean(others > scores[row] if labels[row] else others < scores[row])
            if beaten > 0:
                expected[row] = beaten
        assert {one.row: pytest.approx(one.confidence) for one in found[name]} == expected
        shares = [one.confidence for one in found[name]]
        assert shares == sorted(shares, reverse=True)
    # A perfect ranking has no mistakes, and neither has a class without a positive.
    arrays["scores"][:, 0] = arrays["labels"][:, 0] * 2.0 - 5
    arrays["labels"][:, 1] = 0
    again = mistakes(result, arrays, 5)
    assert again["cat"] == again["dog"] == []


def test_results_of_earlier_versions_name_rows_and_bad_words_are_refused():
    result, arrays = drawn("logits")
    del arrays["ids"]
    assert mistakes(result, arrays, 1, ["dog"])["dog"][0].image.startswith("row ")
    with pytest.raises(StoreError, match="no class 'dgo'; did you mean 'dog'"):
        mistakes(result, arrays, 1, ["dgo"])
    with pytest.raises(StoreError, match="stored no labels"):
        mistakes(result, {"scores": arrays["scores"]}, 1)


def test_the_page_shows_names_as_they_are_and_each_picture():
    result, arrays = drawn("logits")
    found = mistakes(result, arrays, 2)
    asked = []

    def picture(row: int) -> bytes:
        asked.append(row)
        return bytes([row])

    text = page("run <1>", found, "logits", picture)
    rows = [one.row for some in found.values() for one in some]
    assert text.count("data:image/jpeg;base64,") == len(rows)
    assert sorted(asked) == sorted(set(rows))  # an image is encoded once
    assert "<h2>&lt;b&gt;&amp;tram</h2>" in text
    assert not re.search(r"<script|src=\"(?!data:)|href=", text)
    assert sum(line.startswith("  ") for line in lines(found, "logits")) == len(rows)

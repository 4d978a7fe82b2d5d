"""The verdict of a table: recomputed from stored predictions without its own code, and its words."""

from __future__ import annotations

import csv
import io
import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from results import intervals
from results.columns import Column
from results.frames import collect, located
from results.tables import Table, table
from results.writers import to_csv, to_latex, to_markdown, to_text, write_tables
from tests.results.test_statistics import literal

METHODS = [f"method {letter}" for letter in "ABCDEFGHIJ"]
SIGNALS = [2.2, 2.1, 1.9, 1.9, 1.6, 1.5, 1.5, 1.2, 0.9, 0.1]
RESAMPLES = 60


def mean_ap(scores: np.ndarray, labels: np.ndarray) -> float:
    present = [k for k in range(labels.shape[1]) if labels[:, k].any()]
    return 100 * float(np.mean([average_precision_score(labels[:, k], scores[:, k]) for k in present]))


def fill(fake: Any, datasets: tuple[str, ...], seeds: int, images: int = 90) -> None:
    """Ten methods with stored predictions."""
    rng = np.random.default_rng(11)
    for dataset in datasets:
        labels = (rng.random((images, 3)) < 0.3).astype(np.uint8)
        for seed in range(1, seeds + 1):
            shared = rng.normal(size=labels.shape)
            for label, signal in zip(METHODS, SIGNALS, strict=True):
                scores = (shared + 0.5 * rng.normal(size=labels.shape) + signal * labels).astype(np.float32)
                fake.add(
                    label,
                    mean_ap(scores, labels),
                    dataset=dataset,
                    seed=seed,
                    arrays={"scores": scores, "labels": labels},
                )


def marked(text: str) -> set[str]:
    """The methods whose row of a Markdown table has a dagger."""
    return {
        label
        for label in METHODS
        for line in text.splitlines()
        if line.startswith(f"| {label}") and "†" in line
    }


def told(made: Table, name: str) -> str:
    (line,) = (line for line in made.verdict.lines() if line.startswith(name))
    return line


def test_verdict_marks_and_intervals_of_one_column_are_those_of_literal_resampling(fake: Any) -> None:
    fill(fake, ("GlyphScenes",), seeds=3)
    found = intervals.compute(fake.store, fake.wanted, "last", resamples=RESAMPLES)
    made = table(collect(fake.store, fake.wanted), "last", intervals=found)

    runs: dict[str, list[np.ndarray]] = {}
    for keys, directory in located(fake.store, fake.wanted):
        with np.load(directory / "predictions.npz") as file:
            runs.setdefault(keys["label"], []).append(file["scores"])
            labels = file["labels"]
    values = {label: np.mean([mean_ap(scores, labels) for scores in three]) for label, three in runs.items()}
    rng = np.random.Generator(np.random.PCG64(0))
    picks = [rng.integers(0, len(labels), len(labels)) for _ in range(RESAMPLES)]
    points = {label: np.array([mean_ap(scores, labels) for scores in three]) for label, three in runs.items()}
    draws = {
        label: np.array([[mean_ap(scores[pick], labels[pick]) for pick in picks] for scores in three])
        for label, three in runs.items()
    }
    pairs = list(itertools.combinations(METHODS, 2))
    points |= {(a, b): points[a] - points[b] for a, b in pairs}
    draws |= {(a, b): draws[a] - draws[b] for a, b in pairs}

    def beyond(name: str | tuple[str, str], group: list[Any]) -> float:
        """What trainings add to the variance of a mean of three seeds; chi-squared, 2: median 2 log 2."""
        median = np.median([points[other].var(ddof=1) for other in group]) / np.log(2)
        # Each seed's own part of what the images do.
        own = sum((draws[name] - draws[name].mean(axis=0)).var(axis=1)) / 2
        return max(max(points[name].var(ddof=1), median) - own, 0) / 3

    t = {f: np.random.Generator(np.random.PCG64(2)).standard_t(f, RESAMPLES) for f in (2, 18)}
    for row in found.rows:
        away = draws[row.label].mean(axis=0)
        away = away - away.mean() + np.sqrt(beyond(row.label, METHODS)) * t[2]
        low, high = np.quantile(away, [0.025, 0.975]) + values[row.label]
        assert 0 < low < high < 100
        assert (row.value, row.low, row.high) == pytest.approx((values[row.label], low, high))
    of_trainings = {pair: beyond(pair, pairs) for pair in pairs}
    assert min(of_trainings.values()) == 0 < max(of_trainings.values())
    grid = np.array([points[label] for label in METHODS])
    grid = grid - grid.mean(axis=0) - grid.mean(axis=1)[:, None] + grid.mean()
    noise = np.random.Generator(np.random.PCG64(1)).standard_normal((10, RESAMPLES))
    half = np.median([*of_trainings.values()]) / 2
    noise = {
        label: np.sqrt(max((row**2).sum() / 2 / 3 * 10 / 9, half)) * one
        for label, row, one in zip(METHODS, grid, noise, strict=True)
    }
    away, clear = {}, {}
    for pair in pairs:
        images = draws[pair].mean(axis=0)
        error = np.sqrt(images.var() + of_trainings[pair])
        clear[pair] = abs(points[pair].mean()) / error
        if of_trainings[pair]:
            clear[pair] = stats.norm.isf(stats.t.sf(clear[pair], 18))
        low, high = np.quantile(images - images.mean() + np.sqrt(of_trainings[pair]) * t[18], [0.025, 0.975])
        (stored,) = (one for one in found.pairs if (one.first, one.second) == pair)
        expected = points[pair].mean() + np.array([0, low, high])
        assert (stored.difference, stored.low, stored.high) == pytest.approx(tuple(expected))
        away[pair] = images - images.mean() + noise[pair[0]] - noise[pair[1]]
        away[pair] = away[pair] / away[pair].std()
    left, p, running = sorted(pairs, key=lambda pair: -clear[pair]), {}, 0.0
    while left:
        largest = np.max([np.abs(away[pair]) for pair in left], axis=0)
        running = max(running, (1 + np.sum(largest >= clear[left[0]])) / (1 + RESAMPLES))
        p[left.pop(0)] = running
    assert {(pair.first, pair.second): pair.p for pair in found.pairs} == pytest.approx(p)

    best = max(METHODS, key=values.__getitem__)
    alike = {pair for pair in pairs if p[pair] > 0.05}
    leading = {next(iter({*pair} - {best})) for pair in alike if best in pair}
    assert 0 < len(leading) < 9  # a verdict that says something
    assert 9 < len(alike) < 45
    (ranking,) = made.verdict.rankings
    assert (ranking.best, set(ranking.leading[1:])) == (best, leading)
    assert {frozenset(pair) for pair in ranking.alike} == {frozenset(pair) for pair in alike}
    text = to_markdown(made)
    assert marked(text) == leading
    names = sorted(leading, key=lambda name: -values[name])
    lead = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    assert text.startswith(
        "**Verdict.** On these test images and in these trainings of GlyphScenes, 5 %: "
        f"{best} leads with {lead}, which cannot be told from it; the other {9 - len(leading)} are "
        "significantly worse.\n"
    )
    compared = told(made, "Compared")
    assert "question (a)" in compared
    assert "10 methods, 45 pairs, 3 seeds, 90 test images" in compared
    assert f"{RESAMPLES} resamples" in compared
    assert f": {len(alike)} of 45 pairs (" in told(made, "Cannot be told apart")
    # Every form has the verdict and the marks.
    assert to_text(made).startswith("Verdict: On these test images")
    assert to_text(made).count(" †\n") == len(leading)
    assert to_latex(made).count(r" $^\dagger$ \\") == len(leading)
    rows = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert {row["question"] for row in rows} == {"these test images, these trainings"}
    expected = {label: p.get((label, best), p.get((best, label))) for label in METHODS}
    for row in rows:
        assert (float(row["p_adjusted"]) if row["p_adjusted"] else None) == pytest.approx(
            expected[row["label"]]
        )


def test_verdict_and_marks_across_datasets_and_seeds_are_those_of_literal_sign_flips(
    fake: Any, tmp_path: Any
) -> None:
    fill(fake, ("GlyphScenes", "Other"), seeds=3)
    made = table(collect(fake.store, fake.wanted), "last")
    scores: dict[str, list[float]] = {}
    for keys, directory in located(fake.store, fake.wanted):
        with np.load(directory / "predictions.npz") as file:
            scores.setdefault(keys["label"], []).append(mean_ap(file["scores"], file["labels"]))
    rows = np.array([scores[label] for label in METHODS])
    p = literal(rows)
    best = int(rows.mean(axis=1).argmax())
    leading = {METHODS[k] for k in range(10) if k != best and p[best, k] > 0.05}
    alike = {frozenset((METHODS[i], METHODS[j])) for i in range(10) for j in range(i) if p[i, j] > 0.05}
    assert 0 < len(leading) < 9
    (ranking,) = made.verdict.rankings
    assert (ranking.best, set(ranking.leading[1:])) == (METHODS[best], leading)
    assert {frozenset(pair) for pair in ranking.alike} == alike
    assert marked(to_markdown(made)) == leading
    assert (
        "question (b), across datasets and seeds: 10 methods, 45 pairs, over the 6 dataset × seed units"
        in told(made, "Compared")
    )
    assert "6 units are of 2 datasets" in told(made, "What weakens")
    # With intervals the answer across datasets and seeds stays, and its marks.
    found = intervals.Intervals()
    assert table(collect(fake.store, fake.wanted), "last", intervals=found).verdict == made.verdict
    paths = write_tables(made, tmp_path)
    assert paths[-1].name == "mAP-last-pairs.csv"
    lines = [line.split(",") for line in paths[-1].read_text().splitlines()[1:]]
    assert len(lines) == 45
    for higher, lower, difference, adjusted in lines:
        i, j = METHODS.index(higher), METHODS.index(lower)
        assert float(difference) == pytest.approx(rows[i].mean() - rows[j].mean())
        assert float(difference) >= 0
        assert float(adjusted) == pytest.approx(p[i, j])


def test_without_intervals_and_units_nothing_is_said_to_differ(fake: Any) -> None:
    fill(fake, ("GlyphScenes",), seeds=2)
    made = table(collect(fake.store, fake.wanted), "last")
    assert made.verdict.rankings == ()
    assert "†" not in to_markdown(made)
    first = made.verdict.lines()[0]
    assert "no method is said to lead" in first
    assert "a verdict needs 6" in first
    assert "no intervals were computed" in first
    assert "about " in told(made, "More seeds")
    # Intervals of other metrics do not exist, and those of the mAP say nothing about them.
    found = intervals.compute(fake.store, fake.wanted, "last", resamples=20)
    assert table(collect(fake.store, fake.wanted), "last", "tail", intervals=found).verdict.rankings == ()
    assert table(collect(fake.store, fake.wanted), "last", intervals=found).verdict.rankings


def test_every_column_has_its_own_verdict(fake: Any) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 3)) < 0.3).astype(np.uint8)
    for dataset, better in (("VOC", "CAP"), ("COCO", "CSAA")):
        for label in ("CAP", "CSAA"):
            scores = rng.normal(size=labels.shape) + (4 if label == better else 0) * labels
            fake.add(
                label, mean_ap(scores, labels), dataset=dataset, arrays={"scores": scores, "labels": labels}
            )
    found = intervals.compute(fake.store, fake.wanted, "last", resamples=100)
    made = table(collect(fake.store, fake.wanted), "last", intervals=found)
    assert [lead.split(": ")[1] for lead in made.verdict.lead] == [
        "CAP leads alone; the other one is significantly worse.",
        "CSAA leads alone; the other one is significantly worse.",
    ]
    assert made.verdict.p("CSAA", Column("VOC", 0.05)) == pytest.approx(1 / 101)
    assert made.verdict.p("CSAA", Column("COCO", 0.05)) is None
    assert "Cannot be told apart" in "\n".join(made.verdict.lines())
    assert "one seed: nothing is said about other trainings" in told(made, "What weakens")


def grid(fake: Any, seeds: int = 6, **changes: Any) -> None:
    rng = np.random.default_rng(4)
    for seed in range(1, seeds + 1):
        for label, value in (("A", 70.0), ("B", 60.0), ("C", 50.0)):
            fake.add(label, value + rng.normal(), seed=seed, **changes)


def test_what_weakens_the_answer_and_which_checks_passed(fake: Any) -> None:
    grid(fake)
    made = table(collect(fake.store, fake.wanted), "last")
    passed, weak = told(made, "Checks passed"), told(made, "What weakens")
    for clause in (
        "all 18 wanted runs have a value",
        "no method takes units from the others",
        "the selection rule last does not look at the test images",
        "methods had the same labelled images in every cell and seed",
    ):
        assert clause in passed
    assert "6 units are of one dataset and share its test images" in weak
    assert "results do not say how long the settings" in weak
    assert "told apart already" in told(made, "More seeds")
    oracle = table(collect(fake.store, fake.wanted), "oracle")
    assert "the selection rule oracle looks at the test images" in told(oracle, "What weakens")


def test_a_method_that_lacks_half_of_its_results_and_cuts_the_others_is_named(fake: Any) -> None:
    grid(fake, seeds=12)
    for seed in range(1, 13):
        fake.add("D", None if seed > 6 else 40.0 + seed, seed=seed, state="failed" if seed > 6 else "done")
    for seed in range(1, 13):
        fake.add("E", None if seed > 2 else 40.0, seed=seed, state="failed" if seed > 2 else "done")
    made = table(collect(fake.store, fake.wanted), "last")
    weak = told(made, "What weakens")
    assert "16 of 60 runs have no value (D 6, E 10)" in weak
    assert (
        "D lacks 6 of 12 results, at least half of them, and cuts what is compared across datasets and "
        "seeds: the others share 12 units without it, 6 with it" in weak
    )
    assert "not tested, with results in fewer than half of 12 cells × seeds: E (2)" in weak


def test_shared_splits_other_labels_rows_of_one_method_and_recipes_are_named(fake: Any) -> None:
    for seed in range(1, 7):
        for label in ("A", "B"):
            fake.add(label, 60.0 + seed, seed=seed, method="csaa" if label == "A" else "cap")
            fake.wanted[-1]["split_seed"] = 1 + seed % 2
        fake.add("A'", 50.0 + seed, seed=seed, method="csaa", lr=1)
        fake.wanted[-1]["split_seed"] = 1 + seed % 2
    frame = collect(fake.store, fake.wanted)
    for place, spec in enumerate(frame["spec"]):
        frame.at[place, "spec"] = {
            **spec,
            "split_digest": "other" if place == 0 else "same",
            "recipe": {"epochs": 3 if place == 1 else 4, "val_share": 0.0},
        }
    weak = told(table(frame, "last"), "What weakens")
    assert "6 units share 2 draws of labelled images" in weak
    assert "methods had different labelled images in 1 of 2 cells × seeds" in weak
    assert "unequal tuning: more than one row, and so more chances to lead: csaa 2" in weak
    assert "methods were trained differently: recipe.epochs" in weak


def test_names_are_quoted_in_the_words_of_every_format(fake: Any) -> None:
    for seed in range(1, 7):
        fake.add("A|B_*", 60.0 + seed, seed=seed, method="a")
        fake.add("50 % & $x", 60.0 + seed / 2, seed=seed, method="b")
    made = table(collect(fake.store, fake.wanted), "last")
    assert r"A\|B\_\*" in to_markdown(made).splitlines()[0]
    assert r"50 \% \& \$x" in to_latex(made)

"""Published numbers beside ours: what has to agree, and the verdicts at their bounds."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from typing import Any

import pytest

from results.columns import Column
from results.frames import collect
from results.published import read
from results.reproduced import DIFFERENT, OPEN, OTHER, REPRODUCED, beside
from results.tables import Table, table
from results.writers import to_latex, to_markdown, to_text, write_tables

RN50 = {"name": "torchvision/resnet50", "weights_sha256": "a" * 64, "pool": "avg"}
MATCHING = {
    "backbone": RN50,
    "recipe": {"resolution": 224},
    "hyper": {"head": "linear", "loss": "asl"},
    "split": {"labelled": 4104, "held_out": 0, "unlabelled": 77977},
}


def run(fake: Any, method: str, oracle: float, *, dataset="coco2014", ratio=0.05, seed=1, **changes: Any):
    """A finished run with made-up metrics (`oracle` = `last` + 1), which says what it was made with."""
    run_id = fake.add(method, oracle - 1, dataset=dataset, ratio=ratio, seed=seed)
    item = next(each for each in fake.wanted if each["run_id"] == run_id)
    spec = {**item, "dataset": {"alias": item["dataset"]}}
    path = fake.store.directory(run_id, spec) / "result.json"
    result = json.loads(path.read_text())
    facts = {**MATCHING, **changes}
    split = facts.pop("split")
    result["spec"] |= facts
    if split:
        result["split"] = split
    path.write_text(json.dumps(result))


def shown(fake: Any, rule: str = "oracle") -> Table:
    made = table(collect(fake.store, fake.wanted), rule)
    means = {place: cell.mean for place, cell in made.cells.items()}
    return dataclasses.replace(made, published=beside(fake.store, fake.wanted, read(), means, rule))


def verdicts(made: Table, dataset: str = "coco2014", ratio: float = 0.05) -> dict[float, tuple[str, str]]:
    """Verdict and reasons of each published number beside a column, by its value."""
    assert made.published is not None
    return {
        pair.number.value: (pair.verdict, "; ".join(pair.reasons))
        for pair in made.published.pairs
        if pair.column == Column(dataset, ratio)
    }


def test_the_four_published_numbers_of_cap_on_coco(fake: Any) -> None:
    run(fake, "cap", 62.5)
    found = verdicts(shown(fake))
    assert found[62.43] == (REPRODUCED, "")
    assert found[63.52] == (DIFFERENT, "")  # 1.02 points
    assert found[62.91][0] == OTHER  # the nearest of all, from a polluted pool
    assert "another setting: SSMLL+OOD pool (ImageNet-21K, 20 classes)" in found[62.91][1]
    assert found[62.88] == (OTHER, "backbone RN50-ImageNet+ML-Decoder, ours RN50-ImageNet")
    assert set(found) == {62.43, 63.52, 62.91, 62.88}


@pytest.mark.parametrize(("value", "verdict"), [(63.43, REPRODUCED), (63.44, DIFFERENT), (61.43, REPRODUCED)])
def test_one_point_is_the_bound(fake: Any, value: float, verdict: str) -> None:
    run(fake, "cap", value)
    assert verdicts(shown(fake))[62.43][0] == verdict


def test_the_published_deviation_is_the_bound_where_it_is_larger(fake: Any) -> None:
    scratch = {"backbone": {**RN50, "weights_sha256": "random"}, "split": None}
    run(fake, "mean_teacher", 33.0, dataset="voc2007", ratio=0.1, **scratch)  # `last` is 32.0
    found = verdicts(shown(fake, "last"), "voc2007", 0.1)
    assert found == {23.4: (DIFFERENT, ""), 32.55: (REPRODUCED, "")}
    fake.wanted.clear()
    run(
        fake, "mean_teacher", 32.1, dataset="voc2007", ratio=0.1, seed=2, **scratch
    )  # 31.1: 1.45 of 1.48 away
    assert verdicts(shown(fake, "last"), "voc2007", 0.1)[32.55] == (REPRODUCED, "")
    fake.wanted.clear()
    run(fake, "mean_teacher", 32.0, dataset="voc2007", ratio=0.1, seed=3, **scratch)
    assert verdicts(shown(fake, "last"), "voc2007", 0.1)[32.55] == (DIFFERENT, "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"backbone": {"name": "open_clip/RN101"}},
            "backbone RN50-ImageNet, ours CLIP RN101 with head linear",
        ),
        (
            {"backbone": {"name": "open_clip/RN101"}, "hyper": {"classifier": "aligned"}},
            "ours CLIP RN101 with classifier aligned",
        ),
        ({"backbone": {**RN50, "weights_sha256": "random"}}, "ours RN50 from scratch"),
        ({"backbone": {**RN50, "pool": "max"}}, "ours RN50-ImageNet with max pooling"),
        ({"backbone": {"name": "timm/convnext_base"}}, "ours timm/convnext_base"),
        ({"recipe": {"resolution": 448}}, "resolution 224 px, ours 448 px"),
        ({"recipe": {}}, "resolution 224 px, ours not recorded"),
        ({"hyper": {"head": "cosine"}}, "ours RN50-ImageNet with head cosine"),
        ({"hyper": {}}, "ours RN50-ImageNet with head match"),  # a result from before there were heads
        ({"split": {"labelled": 4103, "held_out": 1, "unlabelled": 0}}, "4104 labelled images, ours 4103"),
    ],
)
def test_what_has_to_agree(fake: Any, changes: dict[str, Any], reason: str) -> None:
    run(fake, "cap", 62.43, **changes)
    verdict, reasons = verdicts(shown(fake))[62.43]
    assert verdict == OTHER
    assert reason in reasons


def test_another_selection_rule_is_not_comparable(fake: Any) -> None:
    run(fake, "cap", 63.43)  # `last` is 62.43
    verdict, reasons = verdicts(shown(fake, "last"))[62.43]
    assert verdict == OTHER
    assert reasons == "its selection rule is 'best epoch on test, max(regular,EMA)': see --rule oracle"
    run(fake, "supervised", 59.3)
    assert verdicts(shown(fake, "last"))[58.3] == (REPRODUCED, "")
    assert "see --rule last or model" in verdicts(shown(fake, "oracle"))[58.3][1]


def test_the_loss_that_a_name_asks_for(fake: Any) -> None:
    decoder = {"head": "ml_decoder", "loss": "bce"}
    run(fake, "supervised", 57.0, hyper=decoder)
    found = verdicts(shown(fake))
    assert found[57.09] == (REPRODUCED, "")
    assert found[57.87] == (OTHER, "loss asl, ours bce")


def test_zero_shot_has_no_share_and_no_selection(fake: Any) -> None:
    clip = {"backbone": {"name": "open_clip/RN101", "weights_sha256": "b" * 64}}
    run(fake, "zero_shot", 63.9, hyper={"templates": "imagenet80"}, **clip)  # `last` is 62.9
    found = verdicts(shown(fake, "last"))
    assert found == {62.9: (REPRODUCED, ""), 64.9: (OTHER, "backbone CLIP ViT-B/16, ours CLIP RN101")}
    fake.wanted.clear()
    run(fake, "zero_shot", 63.9, hyper={"templates": "single"}, seed=2, **clip)
    assert verdicts(shown(fake, "last"))[62.9] == (OTHER, "templates imagenet80, ours single")


def test_numbers_of_other_methods_datasets_shares_and_own_code_stay_away(fake: Any) -> None:
    run(fake, "csaa", 62.4)
    run(fake, "cap", 62.4, dataset="my-coco")
    run(fake, "cap", 62.4, ratio=0.04)
    run(fake, "cap", 62.4, ratio=0.1, code="f" * 64)
    made = shown(fake)
    assert made.published is not None
    assert made.published.pairs == ()
    assert "no number of these methods" in to_text(made)
    assert "published" not in to_markdown(made).splitlines()[0]


def test_runs_of_a_cell_that_differ_are_not_comparable(fake: Any) -> None:
    run(fake, "cap", 62.4, seed=1)
    run(fake, "cap", 62.4, seed=2, recipe={"resolution": 448})
    assert verdicts(shown(fake))[62.43] == (OTHER, "resolution 224 px, ours 448 px")


def test_a_run_that_is_not_done_has_no_verdict(fake: Any) -> None:
    fake.add("cap", None, dataset="coco2014", state="not started")
    found = verdicts(shown(fake))
    assert {verdict for verdict, _ in found.values()} == {OPEN}
    assert found[62.43] == (OPEN, "")


def test_the_table_in_every_format(fake: Any, tmp_path: Any) -> None:
    run(fake, "cap", 62.5)
    run(fake, "cap", 66.0, ratio=0.1, split={"labelled": 8208, "held_out": 0, "unlabelled": 1})
    run(fake, "csaa", 70.0)
    made = shown(fake)
    lines = [line for line in to_markdown(made).splitlines() if line.startswith("|")]
    cells = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert cells == [
        "method",
        "coco2014 5 %",
        "coco2014 5 % published",
        "coco2014 10 %",
        "coco2014 10 % published",
    ]
    row = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert row[1] == "62.5"
    assert row[2] == "62.43 (=), 63.52 (≠ −1.02), 62.88 (a), 62.91 (b)"
    assert row[4] == "65.22? (=), 67.48 (≠ −1.48), 66.96 (b), 67.18 (a)"
    assert [cell.strip() for cell in lines[3].strip("|").split("|")][2] == ""
    text = to_text(made)
    assert "at most 1 point away" in text
    assert "(a) backbone RN50-ImageNet+ML-Decoder, ours RN50-ImageNet." in text
    assert "?: doubted, 65.22: the same group prints 67.48 elsewhere" in text
    assert "third-party notes) (secondary)" in text
    latex = to_latex(made)
    body = [line for line in latex.splitlines() if line.endswith("\\\\")]
    # Columns this wide stand in a float each, a published number beside ours.
    assert latex.count(r"\begin{table*}") == 2
    assert {line.count("&") for line in body if "multicolumn" not in line} == {2}
    assert "62.43 (=), 63.52 ($\\neq$ $-$1.02)" in latex
    run(fake, "cap", 62.5, ratio=0.2, seed=2)
    assert "XeLaTeX" not in to_latex(shown(fake, "last"))
    names = {path.name for path in write_tables(made, tmp_path / "out")}
    assert "mAP-oracle-published.csv" in names
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "mAP-oracle-published.csv").read_text())))
    assert [(each["value"], each["verdict"]) for each in rows[:2]] == [
        ("62.43", "reproduced"),
        ("63.52", "not reproduced"),
    ]
    assert float(rows[0]["difference"]) == pytest.approx(0.07)
    assert rows[0]["source"].startswith("xiemk/SSMLL-CAP")


def test_without_published_numbers_nothing_changes(fake: Any) -> None:
    run(fake, "cap", 62.5)
    plain = table(collect(fake.store, fake.wanted), "oracle")
    assert "ublished" not in to_text(plain) + to_markdown(plain) + to_latex(plain)

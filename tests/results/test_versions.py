"""Means over results that different versions of the code made are marked in every format, never silent."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from results.frames import collect
from results.schema import check
from results.tables import Table, table
from results.versions import UNKNOWN, MadeBy, differing, made_by
from results.why import why
from results.writers import to_csv, to_latex, to_markdown, to_runs_csv, to_text

OLD = {"methods/losses.py": "aaaaaaaaaaaa", "methods/fixmatch.py": "bbbbbbbbbbbb"}
NEW = {**OLD, "methods/losses.py": "cccccccccccc"}


def said(store: Any, run_id: str, **provenance: Any) -> None:
    """Have a stored result say which code made it."""
    (path,) = Path(store.root).rglob(f"*-{run_id[:16]}/result.json")
    record = json.loads(path.read_text())
    record["provenance"] |= provenance
    check(record, "changed")
    path.write_text(json.dumps(record))


def sources(files: dict[str, str]) -> dict[str, Any]:
    return {"sha256": "0" * 64, "files": files}


@pytest.fixture
def made(fake: Any):
    """Makes a table of two methods with three seeds each; gets what each seed of "a" says of its code."""

    wanted = []
    for label in ("a", "b"):
        for seed in (1, 2, 3):
            run_id = fake.add(label, 60.0 + seed, dataset="voc", seed=seed)
            keys = {"run_id": run_id, "dataset": "voc", "ratio": 0.05, "seed": seed}
            wanted.append({**keys, "method": label, "label": label})

    def make(*said_by_a: dict[str, Any]) -> Table:
        for item, provenance in zip(wanted, said_by_a, strict=False):
            said(fake.store, item["run_id"], **provenance)
        return table(collect(fake.store, wanted), "last")

    return make


def test_a_mean_over_two_versions_is_marked_in_every_format_and_named(made: Any) -> None:
    found = made({"sources": sources(OLD)}, {"sources": sources(NEW)}, {"sources": sources(NEW)})
    (key,) = found.mixed()
    assert (key[0], found.cells[key].differing) == ("a", ("methods/losses.py",))
    note = "a on voc 5 % (differ in methods/losses.py)"
    # Its words need no quoting, so that they are the same in every format.
    assert "\\`" not in to_markdown(found)
    for text, mark in ((to_markdown(found), "‡"), (to_text(found), "‡"), (to_latex(found), r"$^\ddagger$")):
        rows = {line.lstrip("| ")[0]: line for line in text.splitlines() if "62.0" in line}
        assert mark in rows["a"]
        assert mark not in rows["b"]
    assert note in to_markdown(found)
    assert note in to_text(found)
    rows = {row["label"]: row["differing_code"] for row in csv.DictReader(io.StringIO(to_csv(found)))}
    assert rows == {"a": "methods/losses.py", "b": ""}
    codes = [row["code"] for row in csv.DictReader(io.StringIO(to_runs_csv(found)))]
    assert codes[0] != codes[1] == codes[2] != ""
    assert codes[3:] == ["", "", ""]


def test_equal_code_and_another_commit_is_no_difference_and_changes_no_byte(made: Any) -> None:
    plain = made()
    same = made(*({"sources": sources(OLD), "commit": sha * 40} for sha in "abc"))
    assert same.mixed() == {}
    assert to_csv(same) == to_csv(plain)
    assert to_markdown(same).splitlines()[:4] == to_markdown(plain).splitlines()[:4]
    assert "‡" not in to_markdown(same) + to_text(same)


def test_results_of_before_are_unknown_and_said_once(made: Any) -> None:
    assert not [note for note in made().notes("Bold") if "not recorded" in note]
    found = made({"sources": sources(OLD)})
    assert found.mixed() == {}
    (line,) = [note for note in found.notes("Bold") if "not recorded" in note]
    assert line.startswith("The code of 2 results in 1 of the means is not recorded")


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ({"stages": {"warmup": "a" * 64}}, {"stages": {"warmup": "b" * 64}}, "the warmup stage"),
        ({"stages": {"warmup": None}}, {"stages": {"warmup": "b" * 64}}, "the warmup stage"),
        (
            {"module_data": [["prior.npy", "1"]]},
            {"module_data": [["prior.npy", "2"]]},
            "prior.npy beside the method",
        ),
        (
            {"method_code": {"sha256": "1", "files": {"mine.py": "1"}}},
            {"method_code": {"sha256": "2", "files": {"mine.py": "2"}}},
            "mine.py of the method",
        ),
    ],
)
def test_stages_and_users_files_count_too(made: Any, one: Any, other: Any, name: str) -> None:
    both = [{"sources": sources(OLD), **each} for each in (one, other, other)]
    found = made(*both)
    assert [cell.differing for cell in found.cells.values()] == [(name,), ()]


def test_what_differs_is_named_whether_or_not_all_have_it() -> None:
    some = [MadeBy((("a", "1"), ("b", "1"))), MadeBy((("a", "1"), ("c", "1")))]
    assert differing(some) == ["b", "c"]
    assert not UNKNOWN
    assert made_by({"provenance": {}}) is UNKNOWN


def test_why_says_that_a_mean_is_over_two_versions(made: Any, fake: Any) -> None:
    made({"sources": sources(OLD)}, {"sources": sources(NEW)}, {"sources": sources(NEW)})
    lines = why(fake.store, "a/voc/0.05").splitlines()
    assert any(
        "different versions of the code made them (differ in methods/losses.py)" in line for line in lines
    )
    lines = why(fake.store, "b/voc/0.05").splitlines()
    assert not any("different versions" in line for line in lines)
    text = why(fake.store, "a/voc/0.05/1", differs=lambda files: [n for n in files if "losses" in n])
    assert "not that of today: it differs in methods/losses.py" in text
    assert "methods/fixmatch.py" not in text  # 80 hashes tell nobody

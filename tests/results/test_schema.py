"""The schema of result.json: old and new results pass, damaged ones are named by file and field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from results.errors import StoreError
from results.frames import collect
from results.schema import FORMAT, check
from results.store import RunStore
from results.why import why
from tests.results.records import RUN_ID, claim, make_cost, make_result, make_spec, make_summary

OLD = Path(__file__).with_name("result-format-1.json")
"""Written by the runner of commit b1c1b62, before results had a format: CSAA of `--grid demo`."""


def test_a_result_without_a_format_is_of_format_1_and_its_epochs_come_to_count_from_1():
    record, again = json.loads(OLD.read_text()), json.loads(OLD.read_text())
    assert "format" not in record
    found = check(record, "old")
    assert found["metrics"]["oracle"]["epoch"] == record["metrics"]["oracle"]["epoch"] + 1
    found["metrics"]["oracle"]["epoch"] -= 1
    assert found == record == again


@pytest.mark.parametrize(("version", "written", "read"), [(2, 0, 1), (2, 7, 8), (3, 1, 1), (3, 8, 8)])
@pytest.mark.parametrize("rule", ["val", "oracle"])
def test_chosen_epochs_count_from_1_whatever_wrote_them(version: int, written: int, read: int, rule: str):
    record = make_result(format=version)
    record["metrics"][rule] = make_summary(epoch=written)
    assert check(record, "x")["metrics"][rule]["epoch"] == read


def test_a_writer_that_counts_from_0_is_found():
    record = make_result(format=FORMAT)
    record["metrics"]["val"] = make_summary(epoch=0)
    with pytest.raises(StoreError, match=r"metrics\.val\.epoch is 0; epochs of format 3 count from 1"):
        check(record, "x")


def test_written_results_say_their_format_and_old_files_keep_their_bytes(store: RunStore, run: Path):
    peak = {"host": 1 << 30, "device": None}
    with claim(store, run) as lease:
        store.write_result(run, lease, make_result(cost=make_cost(peak_memory_bytes=peak)), {})
    assert store.load(run)["format"] == FORMAT == 3
    assert store.load(run)["cost"]["peak_memory_bytes"] == peak
    (run / "result.json").write_bytes(OLD.read_bytes())
    store.load(run)
    assert (run / "result.json").read_bytes() == OLD.read_bytes()


def test_fields_of_a_later_writer_are_kept():
    record = make_result(format=FORMAT, colour="red", cost=make_cost(joules=3))
    assert check(record, "x") == record


def changed(path: str, value: Any) -> dict[str, Any]:
    """A whole result in which one field has another value."""
    record = make_result(
        metrics={"last": make_summary(), "val": None, "oracle": make_summary(epoch=2, weights="ema")},
        cost=make_cost(peak_memory_bytes={"host": 1, "device": 1}),
        split={"labelled": 1, "held_out": 0, "unlabelled": 2},
        provenance={"packages": {"torch": "2"}, "commit": None},
    )
    check(record, "whole")
    *above, last = path.split(".")
    place = record
    for name in above:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("run_id", ..., "the result lacks run_id"),
        ("run_id", 7, "run_id is 7, not text"),
        ("spec", [], r"spec is \[\], not a table"),
        ("spec.dataset", {}, "spec.dataset lacks alias"),
        ("spec.seed", True, "spec.seed is True, not a whole number"),
        ("spec.ratio", "5%", "spec.ratio is '5%', not a number"),
        ("metrics.val", ..., "metrics lacks val"),
        ("metrics.last", None, "metrics.last is None, not a table"),
        ("metrics.last.AP", ..., "metrics.last lacks AP"),
        ("metrics.last.mAP", None, "metrics.last.mAP is None, not a number"),
        ("metrics.last.AP", [1.0, "x"], r"metrics.last.AP\[1\] is 'x', not a number"),
        ("metrics.last.AP", [1.0], "metrics.last.AP has 1 values for 2 classes"),
        ("metrics.oracle.groups", ["head", "neck"], r"oracle.groups\[1\] is 'neck', not one of head, medium"),
        ("metrics.oracle.train_counts", [1, 2.5], r"oracle.train_counts\[1\] is 2.5, not a whole number"),
        ("metrics.oracle.weights", "mean", "oracle.weights is 'mean', not one of ema, model"),
        ("classes", ["sun", 3], r"classes\[1\] is 3, not text"),
        ("cost.seconds", ..., "cost lacks seconds"),
        ("cost.peak_memory_bytes", {"host": 1}, "cost.peak_memory_bytes lacks device"),
        ("cost.peak_memory_bytes.host", 0.5, "cost.peak_memory_bytes.host is 0.5, not a whole number"),
        ("split.labelled", "1", "split.labelled is '1', not a whole number"),
        ("provenance.packages", {"torch": 2}, "provenance.packages.torch is 2, not text"),
        ("provenance.commit", 5, "provenance.commit is 5, not text"),
        ("finished", None, "finished is None, not text"),
        ("format", "2", "format is '2', not a whole number above 0"),
        ("format", 0, "format is 0, not a whole number above 0"),
        ("format", 4, r"format 4 is newer than this version of SSMLL-Bench reads \(up to 3\); update it"),
    ],
)
def test_a_damaged_field_is_named(path, value, message):
    with pytest.raises(StoreError, match=f"^some/file: .*{message}"):
        check(changed(path, value), "some/file")


@pytest.mark.parametrize("record", [None, [], 3, "text"])
def test_a_record_that_is_no_table_is_said(record):
    with pytest.raises(StoreError, match=r"the result is .*, not a table"):
        check(record, "file")


def test_readers_of_the_store_name_the_file_and_the_field(store: RunStore, run: Path):
    with claim(store, run) as lease:
        store.write_result(run, lease, make_result(), {})
    (run / "result.json").write_text(json.dumps(changed("metrics.last.AP", ...)))
    message = r"p0\.05-s1-0123456789abcdef/result\.json: metrics\.last lacks AP"
    wanted = {**make_spec(), "dataset": "GlyphScenes", "run_id": RUN_ID}
    (row,) = collect(store, [wanted]).to_dict("records")  # a table has other runs to show
    assert row["state"] == "unreadable"
    assert re.search(message, row["detail"])
    for read in (lambda: store.load(run), lambda: why(store, RUN_ID)):
        with pytest.raises(StoreError, match=message) as raised:
            read()
        assert "\n" not in str(raised.value)


def test_a_wrong_result_is_not_written(store: RunStore, run: Path):
    with claim(store, run) as lease:
        with pytest.raises(StoreError, match=r"metrics\.last lacks AP"):
            store.write_result(run, lease, changed("metrics.last.AP", ...), {})
        assert not (run / "result.json").exists()
        assert not (run / "predictions.npz").exists()

"""What runs cost: means over runs, peaks, and what is said of devices."""

from __future__ import annotations

import csv

import pytest

from results.columns import Column
from results.costs import costs, to_markdown, write_costs

KEYS = {"label": "csaa", "dataset": "scenes", "ratio": 0.05, "budget": ""}


def run(seconds=10.0, images=100, host=3 * 2**20, device=None, name="cpu", parameters=7, **keys):
    cost = {
        "seconds": seconds,
        "images_seen": images,
        "device": name,
        "trainable_parameters": parameters,
        "peak_memory_bytes": {"host": host, "device": device},
    }
    return {**KEYS, **keys}, {"cost": cost}


def test_means_are_over_runs_and_peaks_are_the_largest():
    (found,) = costs([run(), run(30.0, 200, host=5 * 2**20, parameters=9)])
    assert (found.label, found.column, found.runs) == ("csaa", Column("scenes", 0.05), 2)
    assert found.seconds == 20
    assert found.milliseconds == pytest.approx((100 + 150) / 2)
    assert (found.memory, found.parameters, found.devices) == (5.0, 9, ("cpu",))


def test_memory_is_the_device_s_where_there_is_one_and_absent_where_nobody_knows():
    (found,) = costs([run(device=2**30, name="H100")])
    assert found.memory == 1024
    item, old = run()
    del old["cost"]["peak_memory_bytes"]
    (found,) = costs([(item, old)])
    assert found.memory is None
    (row,) = [line for line in to_markdown([found]).splitlines() if line.startswith("| csaa")]
    assert [cell.strip() for cell in row.split("|")[4:7]] == ["10", "100", ""]


def test_rows_and_columns_are_apart_and_other_devices_are_said(tmp_path):
    found = costs([run(), run(label="cap"), run(ratio=0.2), run(budget="9 images", name="H100")])
    assert [(cost.label, cost.column.share) for cost in found] == [
        ("csaa", "5 %"), ("cap", "5 %"), ("csaa", "20 %"), ("csaa", "9 images"),
    ]  # fmt: skip
    page = to_markdown(found)
    assert "Devices: H100, cpu." in page
    assert "Times of different devices are not comparable." in page
    assert "not comparable" not in to_markdown(found[:1])
    paths = write_costs(found, tmp_path / "new")
    with paths[1].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["csaa", "cap", "csaa", "csaa"]
    assert float(rows[0]["ms_per_image"]) == 100


def test_a_fit_of_no_image_divides_by_nothing():
    (found,) = costs([run(images=0)])
    assert found.milliseconds == 10_000

"""What was submitted, read back after calls that were killed half way."""

from __future__ import annotations

import re

import pytest

from methods.errors import UserError
from slurm import launches as module
from slurm.client import Queued
from slurm.launches import Launch, Launches, assigned, last_jobs


def plan(*bundles: tuple[str, ...], name: str = "ssmll-demo") -> dict:
    return {"job_name": name, "bundles": [{"run_ids": list(ids)} for ids in bundles]}


def queued(job: str) -> Queued:
    return Queued(job, "RUNNING", "None", "1:00", "n1")


def test_a_launch_is_found_again(tmp_path):
    made = Launches(tmp_path).create("demo", plan(("a",), ("b",)))
    made.record({0: "7_0"})
    made.record({1: "8"})
    [found] = Launches(tmp_path)
    assert found.folder == made.folder
    assert found.jobs() == {0: "7_0", 1: "8"}
    assert found.job_name == "ssmll-demo"
    assert found.log("7_0", 1) == made.folder / "jobs" / "7_0_1_log.out"
    assert Launches(tmp_path).names() == {"ssmll-demo"}


def test_the_last_job_of_a_run_is_that_of_the_newest_launch_that_has_one(tmp_path, monkeypatch):
    made = []
    for number, bundles in enumerate(([("a", "b"), ("c",)], [("b",), ("d",)], [("a",)])):
        monkeypatch.setattr(module.time, "gmtime", lambda hour=number: (2026, 1, 1, hour, 0, 0, 0, 1, 0))
        made.append(Launches(tmp_path).create("demo", plan(*bundles)))
    first, second, _ = made  # the third has submitted nothing
    first.record({0: "1_0", 1: "1_1"})
    second.record({0: "2_0", 7: "2_7"})
    found = {run: (launch.folder, job) for run, (launch, job) in last_jobs(Launches(tmp_path)).items()}
    assert found == {
        "a": (first.folder, "1_0"),
        "b": (second.folder, "2_0"),
        "c": (first.folder, "1_1"),
    }


def test_no_launches_yet(tmp_path):
    assert list(Launches(tmp_path)) == []
    assert Launches(tmp_path).names() == set()
    assert Launches(tmp_path).create("demo", plan()).jobs() == {}


def test_a_torn_last_line_is_left_out(tmp_path):
    made = Launches(tmp_path).create("demo", plan(("a",), ("b",)))
    made.record({0: "7_0"})
    whole = (made.folder / "jobs.jsonl").read_text()
    for length in range(1, len(whole) - 1):
        (made.folder / "jobs.jsonl").write_text(whole + whole.replace('"7_0"', '"8"')[:length])
        assert made.jobs() in ({0: "7_0"}, {0: "8"})
    (made.folder / "jobs.jsonl").write_text(whole + "\0\0\0")
    assert made.jobs() == {0: "7_0"}, "as after a loss of power"


def test_a_record_after_a_torn_line_is_kept(tmp_path):
    made = Launches(tmp_path).create("demo", plan(("a",), ("b",)))
    made.record({0: "7_0"})
    with open(made.folder / "jobs.jsonl", "a") as file:
        file.write('{"jobs":{"1":"8')
    made.record({1: "9"})
    assert made.jobs() == {0: "7_0", 1: "9"}


def test_half_made_folders_are_left_out(tmp_path):
    made = Launches(tmp_path).create("demo", plan())
    (made.folder.parent / "29990101-000000-demo-0000").mkdir()
    (made.folder.parent / ".note").write_text("x")
    assert [launch.folder for launch in Launches(tmp_path)] == [made.folder]


def test_a_damaged_plan_is_named(tmp_path):
    made = Launches(tmp_path).create("demo", plan())
    (made.folder / "plan.json").write_text('{"job_')
    [found] = Launches(tmp_path)
    with pytest.raises(UserError, match=r"plan\.json is damaged .*remove the folder"):
        _ = found.job_name


def test_the_newest_comes_first(tmp_path, monkeypatch):
    times = iter(["20260101-000000", "20260102-000000", "20251231-000000"])
    monkeypatch.setattr(module.time, "strftime", lambda *_: next(times))
    for grid in ("b", "a", "c"):
        Launches(tmp_path).create(grid, plan())
    order = [launch.folder.name.split("-")[2] for launch in Launches(tmp_path)]
    assert order == ["a", "b", "c"]


def launch(folder, jobs: dict[int, str], *bundles: tuple[str, ...]) -> Launch:
    made = Launches(folder).create("demo", plan(*bundles))
    made.record(jobs)
    return made


def test_assigned_takes_the_newest(tmp_path):
    old = launch(tmp_path / "old", {0: "5_0", 1: "5_1"}, ("a", "b"), ("c",))
    new = launch(tmp_path / "new", {0: "6_0"}, ("b", "d"))
    live = {job: queued(job) for job in ("5_0", "5_1", "6_0")}
    found = assigned([new, old], live)
    assert {run: (where.folder, job.job) for run, (where, job) in found.items()} == {
        "a": (old.folder, "5_0"),
        "b": (new.folder, "6_0"),
        "c": (old.folder, "5_1"),
        "d": (new.folder, "6_0"),
    }


def test_assigned_knows_jobs_that_ended(tmp_path):
    only = launch(tmp_path, {0: "5_0", 1: "5_1", 2: "9"}, ("a",), ("b",), ("c",))
    assert set(assigned([only], {"5_1": queued("5_1")})) == {"b"}
    assert assigned([only], {}) == {}


@pytest.mark.parametrize("name", ["zs, v2", "a%jb", "a b", "ä", "x|y", "100%", "a,b", "a;b", "-n"])
def test_names_are_safe_in_slurm_s_lists_and_patterns(name):
    found = module.job_name(name)
    assert re.fullmatch(r"[\w.+-]+", found, re.ASCII)
    assert module.job_name(name) == found
    assert found not in {module.job_name(other) for other in ("zs v2", "a_jb", "zs__v2", "ab")}


def test_plain_names_stay_as_they_are(tmp_path):
    assert [module.job_name(name) for name in ("zs", "full-2.1_b")] == ["ssmll-zs", "ssmll-full-2.1_b"]
    made = Launches(tmp_path).create("100%, j", plan())
    assert not set("%, ") & set(made.folder.name)


def test_stages_have_jobs_too(tmp_path):
    made = Launches(tmp_path).create(
        "demo",
        {"job_name": "ssmll-demo", "bundles": [{"stage_ids": ["w", "f"], "run_ids": []}, {"run_ids": ["a"]}]},
    )
    made.record({0: "7", 1: "8_0"})
    live = {job: queued(job) for job in ("7", "8_0")}
    assert module.assigned_stages([made], live) == {"w": "7", "f": "7"}
    assert module.assigned_stages([made], {"8_0": queued("8_0")}) == {}

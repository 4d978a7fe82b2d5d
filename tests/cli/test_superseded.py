"""A store of an earlier version: its results are superseded, not lost and not never run."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plan.identity import digest
from benchmarks.run import main
from results.files import canonical_json
from results.store import RunStore
from tests.conftest import CommandLine, grid_text


@pytest.fixture(scope="module")
def finished(tmp_path_factory, voc_root) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    text = grid_text(voc_root, '["zero_shot", "linear_probe"]').replace("seeds = [1]", "seeds = [1, 2]")
    (folder / "grid.toml").write_text(text)
    CommandLine(folder)("--grid", "grid.toml", "--no-plots", "--workers", "1")
    return folder


def aged(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec of a run as the version before 2026-11-27 had it."""
    old = copy.deepcopy(spec)
    old["dataset"] = {"alias": spec["dataset"]["alias"], "digest": "0" * 64}
    old["backbone"].pop("quick_gelu", None)
    old["backbone"] |= {"mean": None, "std": None}
    old.pop("split_seed")
    old["recipe"].pop("ema_warmup", None)
    return old


@pytest.fixture
def earlier(finished, tmp_path, monkeypatch) -> Path:
    """The grid as an earlier version left it: linear_probe with other settings, too; one run made anew."""
    for name in ("runs", "data"):
        shutil.copytree(finished / name, tmp_path / name)
    shutil.copyfile(finished / "grid.toml", tmp_path / "grid.toml")
    store = RunStore(tmp_path / "runs" / "store")
    for run in store.scan():
        record = json.loads((run / "result.json").read_text())
        kept = run.parent.name == "zero_shot" and record["spec"]["seed"] == 2
        record["spec"] = aged(record["spec"])
        if run.parent.name == "linear_probe" and record["spec"]["seed"] == 2:
            record["spec"]["hyper"]["held_out"] = 0.35  # a setting of the user: another run
        record |= {"format": 2, "run_id": digest({k: v for k, v in record["spec"].items() if k != "label"})}
        del record["identities"]
        old = store.directory(record["run_id"], record["spec"])
        shutil.copytree(run, old)
        (old / "spec.json").write_text(json.dumps(record["spec"]))
        (old / "result.json").write_text(json.dumps(record))
        if not kept:
            shutil.rmtree(run)
    shutil.rmtree(tmp_path / "runs" / "tables")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_status_and_plan_count_them_apart(earlier, capsys):
    counts = "4 runs (2 superseded, 1 done, 1 not started)"
    assert main(["run", "--grid", "grid.toml", "--dry-run"]) == 0
    assert counts in capsys.readouterr().out
    assert main(["plan", "--grid", "grid.toml", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert out.count("\nsuperseded   ") == 2
    assert main(["status", "--grid", "grid.toml"]) == 0
    out = capsys.readouterr().out
    assert "4 runs (1 done, 2 superseded, 1 not started)" in out
    section = out[out.index("superseded (2)") :]
    assert "zero_shot · tiny p=0.5 seed=1" in section
    assert "differs in " in section
    assert "  2 in dataset.digest: the dataset's hash is over the bytes of the pictures" in section
    assert main(["status", "--grid", "grid.toml", "--json"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert view["counts"] == {"done": 1, "superseded": 2, "not started": 1}
    assert sum("superseded by [" in run.get("detail", "") for run in view["runs"]) == 2


def test_tables_keep_them_apart(earlier, capsys):
    assert main(["tables", "--grid", "grid.toml"]) == 0
    out = capsys.readouterr().out
    assert "(1/2; 1 superseded)" in out
    assert "– (0/2; 1 not started, 1 superseded)" in out
    assert "Superseded, and in no cell: 3 results of earlier versions (moved: " in out
    assert "Made of 1 run" in out
    assert main(["tables", "--grid", "grid.toml", "--superseded"]) == 0
    out = capsys.readouterr().out
    assert "zero_shot (superseded)" in out
    assert "linear_probe (superseded)" in out
    assert "All numbers here are SUPERSEDED" in out
    assert "Made of 3 runs" in out
    folder = earlier / "runs" / "tables" / "grid"
    assert {"mAP-last.md", "mAP-last-superseded.md", "mAP-last-superseded.tex"} <= {
        path.name for path in folder.iterdir()
    }
    assert "SUPERSEDED" not in (folder / "mAP-last.md").read_text()
    assert (
        main(["tables", "--grid", "grid.toml", "--methods", "linear_probe", "--seeds", "2", "--superseded"])
        == 2
    )
    assert "none of its runs supersedes a stored result" in capsys.readouterr().err


def test_why_names_the_run_of_the_plan_that_supersedes(earlier, capsys):
    store = RunStore(earlier / "runs" / "store")
    (old,) = (earlier / "runs" / "store" / "tiny" / "zero_shot").glob("*-s1-*")
    record = store.load(old)
    assert main(["why", record["run_id"][:12]]) == 0
    out = capsys.readouterr().out
    assert "superseded by " in out
    assert ", because\n" in out
    assert "\n    dataset.digest 00000000… → " in out
    (line,) = [line for line in out.splitlines() if line.startswith("superseded by ")]
    assert main(["plan", "--grid", "grid.toml", "--verbose"]) == 0
    assert f"seed=1 [{line.split()[2][:8]}]" in capsys.readouterr().out
    assert main(["why", f"{record['metrics']['last']['mAP']:.2f}"]) == 0
    assert "superseded by [" in capsys.readouterr().out
    # The run whose setting is another is not superseded by one of this grid.
    (other,) = (earlier / "runs" / "store" / "tiny" / "linear_probe").glob("*-s2-*")
    assert main(["why", store.load(other)["run_id"][:12]]) == 0
    assert "what supersedes it is not known here" in capsys.readouterr().out


def test_tables_without_a_grid_keep_them_apart_too(earlier, capsys):
    assert main(["tables"]) == 0
    out = capsys.readouterr().out
    assert "Made of 1 run" in out
    assert "Superseded, and in no cell: 4 results of earlier versions" in out
    assert main(["tables", "--superseded"]) == 0
    out = capsys.readouterr().out
    assert "Made of 4 runs" in out
    assert "zero_shot (superseded)" in out
    # Two ways to make linear_probe are two rows.
    assert "linear_probe (held_out=0.2) (superseded)" in out
    assert "linear_probe (held_out=0.35) (superseded)" in out
    shutil.rmtree(earlier / "runs" / "plans")
    shutil.rmtree(earlier / "data")
    assert main(["tables", "--superseded"]) == 0
    assert capsys.readouterr().out == out
    assert main(["tables", "--methods", "zero_shot"]) == 2
    assert "add --grid NAME" in capsys.readouterr().err
    shutil.rmtree(earlier / "runs" / "store")
    assert main(["tables"]) == 2
    assert "no finished result" in capsys.readouterr().err


def test_the_plan_of_an_earlier_version_is_said_to_be_one_where_it_cannot_be_made_anew(earlier, capsys):
    (file,) = (earlier / "runs" / "plans").iterdir()
    record = json.loads(file.read_text())
    plan = record["body"]["plan"]
    ids = {}
    for run in RunStore(earlier / "runs" / "store").scan():
        found = json.loads((run / "result.json").read_text())
        if "identities" not in found:
            ids[found["spec"]["method"], found["spec"]["seed"]] = found["run_id"]
    for run in plan["runs"]:
        before, run["run_id"] = run["run_id"], ids[run["method"], run["seed"]]
        run["path"] = run["path"].replace(before[:16], run["run_id"][:16])
        run.pop("spec")
    record["digest"] = hashlib.sha256(canonical_json(record["body"]).encode()).hexdigest()
    file.write_text(canonical_json(record))
    shutil.rmtree(earlier / "data")
    assert main(["tables", "--grid", "grid.toml"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("remark: grid grid: the runs are those of the plan of ")
    assert "Made of 4 runs" in out
    assert "SUPERSEDED: 4 of the results here are of an earlier version" in out

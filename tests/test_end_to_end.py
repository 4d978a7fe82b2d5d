"""The whole path, as a user calls it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.run import main
from tests.conftest import CommandLine, grid_text

METHODS = ["zero_shot", "linear_probe", "supervised", "fixmatch", "dualcoop", "csaa"]
SMOKE = ("--grid", "smoke", "--methods", *METHODS)  # one of each kind; the contract suite runs all


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time of change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def result_of(runs: Path, method: str) -> tuple[Path, dict]:
    (path,) = (runs / "store").glob(f"*/{method}/*/result.json")
    return path.parent, json.loads(path.read_text())


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    command = CommandLine(tmp_path_factory.mktemp("smoke"))
    out, err = command(*SMOKE)
    return command, out, err


def test_smoke_grid_prints_a_table_of_its_methods(smoke):
    command, out, _ = smoke
    for method in METHODS:
        assert f"\n{method} " in out
        place, result = result_of(command.runs, method)
        assert 0 < result["metrics"]["last"]["mAP"] < 100
        assert result["run_id"].startswith(place.name.rsplit("-", 1)[1])
        assert {"commit", "dirty", "packages", "host", "command"} <= set(result["provenance"])
        assert not (place / "checkpoints").exists()
    tables = command.runs / "tables" / "smoke"
    names = {path.name for path in tables.iterdir()}
    assert {"mAP-last.md", "mAP-last.csv", "mAP-last.tex", "mAP-vs-ratio.png"} <= names
    assert any(name.startswith("classes-") for name in names)
    assert any(name.startswith("pseudo-labels-") for name in names)


def test_a_second_call_does_nothing_but_print_the_table_again(smoke):
    command, out, _ = smoke
    before = snapshot(command.runs / "store") | snapshot(command.data)
    again, err = command(*SMOKE)
    assert again == out
    assert "workers" not in err
    assert snapshot(command.runs / "store") | snapshot(command.data) == before


def test_predictions_recompute_the_reported_number(smoke):
    from sklearn.metrics import average_precision_score

    command, _, _ = smoke
    directory, result = result_of(command.runs, "csaa")
    stored = np.load(directory / "predictions.npz")
    annotations = json.loads(
        (command.data / "glyphscenes" / "annotations" / "instances_test.json").read_text()
    )
    order = [entry["id"] for entry in annotations["categories"]]
    images = sorted({str(entry["image_id"]) for entry in annotations["annotations"]})
    truth = np.zeros((len(images), len(order)))
    for entry in annotations["annotations"]:
        truth[images.index(str(entry["image_id"])), order.index(entry["category_id"])] = 1

    def mean_ap(scores):
        return 100 * np.mean([average_precision_score(truth[:, k], scores[:, k]) for k in range(len(order))])

    hashes = {name: hashlib.sha256(stored[name].tobytes()).hexdigest() for name in stored.files}
    assert result["arrays_sha256"] == hashes
    assert set(hashes) == {"scores", "raw_scores", "labels", "ids", "classes"}
    assert result["predictions_sha256"] == hashes["scores"]
    average, raw = mean_ap(stored["scores"]), mean_ap(stored["raw_scores"])
    metrics = result["metrics"]
    assert metrics["last"]["mAP"] == pytest.approx(average, abs=1e-4)
    assert metrics["model"]["mAP"] == pytest.approx(raw, abs=1e-4)
    assert average != pytest.approx(raw, abs=1e-4)  # two models, not one twice
    better = "model" if raw > average else "ema"
    assert (metrics["max"]["mAP"], metrics["max"]["weights"]) == (pytest.approx(max(raw, average)), better)
    told, _ = command("tables", *SMOKE, "--rule", "max")
    assert "better of EMA and raw weights on the TEST images" in told


def test_pseudo_labelling_methods_record_their_quality(smoke):
    command, _, _ = smoke
    for method in ("fixmatch", "csaa"):
        directory, _ = result_of(command.runs, method)
        rows = [json.loads(line) for line in (directory / "epochs.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
        assert {"OP", "OR", "CP", "CR", "coverage"} <= set(rows[-1]["pseudo_labels"])


def test_status_plan_tables_and_why_read_the_store(smoke):
    command, _, _ = smoke
    assert "6 done" in command("status", *SMOKE)[0]
    assert command("plan", *SMOKE, "--verbose")[0].count("done ") >= 6
    assert "csaa" in command("tables", *SMOKE)[0]
    directory, result = result_of(command.runs, "csaa")
    told = command("why", directory.name.rsplit("-", 1)[1])[0]
    assert result["run_id"] in told
    assert "--grid smoke" in told


def test_intervals_hold_the_scores_of_the_table(smoke):
    command, _, _ = smoke
    told = command("tables", *SMOKE, "--intervals")[0]
    for method in METHODS:
        _, result = result_of(command.runs, method)
        (line,) = (
            line.split() for line in told.splitlines() if line.startswith(f"{method} ") and " to " in line
        )
        score, low, high = float(line[4]), float(line[5]), float(line[7])
        assert score == pytest.approx(result["metrics"]["last"]["mAP"], abs=0.06)
        assert low < score < high
    again, err = command("tables", *SMOKE, "--intervals")
    assert again == told
    assert "resamples" not in err


def holders(runs: Path) -> dict[int, Path]:
    """Process ids that hold runs or stages at this moment."""
    found = {}
    for directory in [*(runs / "store").glob("*/*/*"), *(runs / "stages").glob("*")]:
        leases = sorted(directory.glob("lease.*"))
        if leases:
            try:
                found[json.loads(leases[-1].read_text())["pid"]] = directory
            except (ValueError, KeyError, FileNotFoundError):
                continue
    return found


def wait_for(condition, process, seconds: float = 120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        if process.poll() is not None:
            pytest.fail(f"ended too early: {process.communicate()}")
        time.sleep(0.005)
    pytest.fail("waited in vain")


@pytest.fixture(scope="module")
def long(tmp_path_factory, voc_root):
    """A run that is long enough for a signal to come before its end, and its calm execution."""
    calm = CommandLine(tmp_path_factory.mktemp("calm"))
    grid = calm.folder / "grid.toml"
    grid.write_text(grid_text(voc_root, '["csaa"]', epochs=12))
    calm("--grid", str(grid), "--checkpoint-seconds", "0", "--no-plots")
    return grid, calm


@pytest.mark.parametrize("stop", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_stopped_in_the_middle_ends_with_the_same_bytes(tmp_path, long, stop):
    grid, calm = long
    rough = CommandLine(tmp_path)
    process = rough.start("--grid", str(grid), "--checkpoint-seconds", "0", "--no-plots")

    def in_the_middle():
        """The run has saved a step inside its second epoch."""
        return list((rough.runs / "store").glob("*/csaa/*/checkpoints/00001-*[1-9].*"))

    wait_for(in_the_middle, process)
    if stop == signal.SIGKILL:
        process.kill()
        for pid in holders(rough.runs):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    else:
        process.send_signal(stop)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "the same command goes on from here" in err
    assert not list((rough.runs / "store").glob("*/csaa/*/result.json"))
    rough("--grid", str(grid), "--checkpoint-seconds", "0", "--no-plots")

    first, calm_result = result_of(calm.runs, "csaa")
    second, rough_result = result_of(rough.runs, "csaa")
    assert (first / "predictions.npz").read_bytes() == (second / "predictions.npz").read_bytes()
    assert calm_result["metrics"] == rough_result["metrics"]
    rows = [
        [json.loads(line) for line in (place / "epochs.jsonl").read_text().splitlines()]
        for place in (first, second)
    ]
    for row in rows[0] + rows[1]:
        del row["seconds"]
    assert rows[0] == rows[1]
    assert not (second / "checkpoints").exists()


def test_a_diverging_run_is_recorded_and_the_others_go_on(command, tmp_path, voc_root):
    methods = """[
      { name = "supervised", label = "diverges", hyper = { lr_backbone = 1e30, lr_head = 1e30 } },
      { name = "fixmatch", label = "stands on it", hyper = { lr_backbone = 1e30, lr_head = 1e30 } },
      "supervised", "linear_probe",
    ]"""
    grid = tmp_path / "grid.toml"
    grid.write_text(grid_text(voc_root, methods))
    out, err = command("--grid", str(grid), "--no-plots", code=1)
    assert "failed: diverges" in err
    assert re.search(r"Diverged: loss of supervised not finite at epoch \d+ step \d+: labelled=nan", err)
    assert re.search(r"labelled images \[\d+, \d+,", err)
    assert "failed: stands on it" in err
    assert "warmup failed: Diverged" in err
    assert "1 failed" in out
    states = command("status", "--grid", str(grid), code=1)[0]
    assert "2 done" in states
    assert "2 failed" in states


def test_a_method_of_the_users_own_file_runs_beside_the_others(command, tmp_path, voc_root):
    (tmp_path / "top_one.py").write_text(
        '''"""Top-1: the most probable class is positive, all others negative."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from methods import register
from methods.base import PseudoLabels
from methods.parts.pseudo_labelling import PseudoLabelHyper, PseudoLabelMethod


@dataclass(frozen=True)
class Hyper(PseudoLabelHyper):
    """Nothing of its own."""


@register
class TopOne(PseudoLabelMethod):
    name = "top_one"
    Hyper = Hyper

    def pseudo_labels(self, batch):
        p = self.weak_probabilities(batch)
        targets = F.one_hot(p.argmax(dim=1), p.shape[1]).float()
        return PseudoLabels(targets, torch.ones_like(targets))
'''
    )
    grid = tmp_path / "grid.toml"
    # The recipe gives both the rate of all classifiers; a warm-up is shared by methods that train it alike.
    grid.write_text('modules = ["top_one.py"]\n' + grid_text(voc_root, '["top_one", "fixmatch"]'))
    out, _ = command("--grid", str(grid), "--no-plots")
    assert "top_one" in out
    # Both pseudo-labelling methods stand on one warm-up.
    assert len(list((command.runs / "stages").glob("warmup-*"))) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "dmeo"], "no grid 'dmeo'; did you mean 'demo'?"),
        (["stauts", "--grid", "demo"], "did you mean 'status'?"),
        (["--grid", "demo", "--rule", "best"], "invalid choice: 'best'"),
        (["--grid", "demo", "--wrokers", "2"], "--wrokers"),
        (["--grid", "demo", "--workers", "0"], "0 is not a positive number"),
        (["--grid", "demo", "--ratios", "0.5"], "grid 'demo' has no ratio 0.5"),
        (["--grid", "demo", "--methods", "cssa"], "did you mean 'csaa'?"),
        (["--grid", "demo", "--launcher", "slrum"], "invalid choice: 'slrum'"),
        (["--grid", "demo", "--profile", "cpu"], "--profile goes with --launcher slurm"),
        (["plan", "--grid", "demo", "--probe"], "--probe goes with --launcher slurm"),
        (
            ["--grid", "demo", "--launcher", "slurm", "--profile", "gpu"],
            "no profile 'gpu'; did you mean 'cpu'?",
        ),
        (["prepare", "voc2021"], "voc2012"),
        (["prepare", "voc2012"], "VOCtrainval_11-May-2012.tar"),
    ],
)
def test_wrong_words_name_the_nearest_and_start_nothing(tmp_path, capsys, words, message):
    places = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    assert main([*words, *places]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"csaa"', '"cssa"'), "no method 'cssa'; did you mean 'csaa'?"),
        (('"voc2007"', '"voc207"'), "no dataset 'voc207'; did you mean 'voc2007'?"),
        (("epochs = 2", "epoks = 2"), "did you mean 'epochs'?"),
        (("num_contexts = 2", "num_context = 2"), "did you mean 'num_contexts'?"),
        (("[hyper.csaa]", "[hyper.csaaa]"), "did you mean 'csaa'?"),
        (("ratios = [0.5]", "ratios = [1.5]"), "ratio 1.5 is outside (0, 1]"),
        (("ratios = [0.5]", "ratio = [0.5]"), "did you mean 'ratios'?"),
        (("ratios = [0.5]", "ratios = [1.0]"), "at ratio 1 there are none"),
        (("seeds = [1]", 'seeds = ["one"]'), "'seeds' holds 'one'"),
        (('recipe = "embedded"', 'recipe = "embeded"'), "did you mean 'embedded'?"),
        (
            ('recipe = "embedded"', 'recipe = "embedded"\nbackbone = "torchvision/resnet18"'),
            "'csaa' needs a vision-language backbone",
        ),
        (("ratios = [0.5]", "ratios = [0.5"), "not valid TOML"),
    ],
)
def test_a_wrong_grid_is_one_line(tmp_path, capsys, voc_root, change, message):
    text = grid_text(voc_root, '["csaa"]')
    assert change[0] in text
    grid = tmp_path / "grid.toml"
    grid.write_text(text.replace(*change))
    places = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    assert main(["--grid", str(grid), *places]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_the_full_grid_asks_for_every_absent_dataset_at_once(tmp_path, capsys):
    places = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    assert main(["--grid", "full", *places]) == 2
    err = capsys.readouterr().err
    for name in ("voc2012", "coco2014", "nuswide"):
        assert name in err
    assert "VOCtrainval_11-May-2012.tar" in err
    assert "unzip" in err

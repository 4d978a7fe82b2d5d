"""Weights that stay: what is written, when it is not, and what becomes of it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from benchmarks.data.cache.decode import DECODING
from benchmarks.models import keep as keeping
from benchmarks.models.rebuild import Kept, Model
from benchmarks.run import main
from benchmarks.training.group import Group
from benchmarks.training.strategy import make
from methods.errors import UserError
from results.damage import UnreadableError
from results.store import RunStore
from results.weights import NAME, read_header, verified
from tests.conftest import CLASSES, ROOT, grid_text
from tests.models.conftest import Trained

METHODS = ("zero_shot", "linear_probe", "supervised")


@pytest.mark.parametrize("name", METHODS)
def test_the_file_says_what_the_model_is_and_its_bytes_give_the_stored_scores(trained, name):
    directory = trained.directory(name)
    result = trained.workspace.store.load(directory)
    kept = Kept.read(directory / NAME)
    record = kept.record
    assert record["spec"] == result["spec"]
    assert record["classes"] == list(CLASSES)
    assert record["weights"] == ("ema" if name == "supervised" else "fitted")
    assert record["scores_sha256"] == result["predictions_sha256"]
    expected = {"size": 64, "channels": "RGB", "range": [0, 1], "decoding": DECODING, "precision": "fp32"}
    assert expected.items() <= record["input"].items()
    # The library reads the same file without our code.
    plain = safetensors.torch.load_file(directory / NAME)
    assert plain.keys() == kept.tensors.keys()
    assert plain["task.labels"].shape == (45, 3)
    model = Model(kept, make("ddp", "fp32", Group()))
    prepared = trained.jobs[name].prepared
    rows = [model.rows(prepared.images("test", part)) for part in torch.arange(40).split(model.batch)]
    stored = trained.workspace.store.predictions(directory)["scores"]
    assert np.array_equal(model.finish(torch.cat(rows)).numpy(), stored)


def test_a_run_keeps_nothing_unless_asked_and_an_earlier_attempt_leaves_nothing(trained, tmp_path):
    place = trained.directory("zero_shot", tmp_path / "runs")
    place.mkdir(parents=True)
    (place / NAME).write_bytes(b"of an attempt that was killed")
    trained.work("zero_shot", runs=tmp_path / "runs", keep_weights="")
    assert not (place / NAME).exists()
    one, other = (RunStore(run.parents[2]).load(run) for run in (place, trained.directory("zero_shot")))
    # Whether weights are kept is no part of the identity, and changes nothing else.
    assert one["run_id"] == other["run_id"]
    assert one["arrays_sha256"] == other["arrays_sha256"]


def test_a_full_disk_costs_the_weights_and_not_the_run(trained, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeping, "write", full)
    said = trained.work("zero_shot", runs=tmp_path / "runs")
    place = trained.directory("zero_shot", tmp_path / "runs")
    assert RunStore(place.parents[2]).state(place).kind == "done"
    assert not (place / NAME).exists()
    (line,) = [line for line in said if line.startswith("weights not kept")]
    assert "No space left on device" in line


def test_weights_that_give_other_scores_are_not_kept(trained, tmp_path, monkeypatch):
    """As of a method that remembers something beside its tensors."""
    from methods.linear_probe import LinearProbe

    fit = LinearProbe.fit

    def hidden(self, features, seed):
        fit(self, features, seed)
        self.hidden = 2.0

    predict = LinearProbe.predict
    monkeypatch.setattr(LinearProbe, "fit", hidden)
    monkeypatch.setattr(
        LinearProbe, "predict", lambda self, x: predict(self, x) * vars(self).get("hidden", 1)
    )
    said = trained.work("linear_probe", runs=tmp_path / "runs")
    (line,) = [line for line in said if line.startswith("weights not kept")]
    assert "gives other scores than the run's" in line
    place = trained.directory("linear_probe", tmp_path / "runs")
    assert not (place / NAME).exists()
    assert RunStore(place.parents[2]).state(place).kind == "done"


def damaged(data: bytes, how: str) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if how == "cut":
        return data[:-100]
    if how == "cut header":
        return data[: length // 2]
    if how == "flipped":
        return data[:-5] + bytes([data[-5] ^ 64]) + data[-4:]
    if how == "empty":
        return b""
    if how == "another kind":
        return b"\x89PNG\r\n\x1a\n" + bytes(1000)
    if how == "plain":
        return safetensors.torch.save({"weight": torch.zeros(3)})
    if how == "newer":
        return data.replace(b'\\"format\\": 1', b'\\"format\\": 9', 1)
    raise ValueError(how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "is cut off: it has"),
        ("cut header", "its header is cut off"),
        ("flipped", "has changed on the disk, its checksum differs"),
        ("empty", "its header is cut off"),
        ("another kind", "its header is cut off"),
        ("plain", "holds no model of a run"),
        ("newer", "format 9 is newer than this version"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(trained, tmp_path, how, message):
    path = tmp_path / NAME
    path.write_bytes(damaged((trained.directory("linear_probe") / NAME).read_bytes(), how))
    with pytest.raises(UserError, match=message) as caught:
        Kept.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnreadableError):
        verified(path)


def test_other_code_and_other_weights_of_the_backbone_are_refused(trained, tmp_path, monkeypatch):
    kept, strategy = Kept.read(trained.directory("supervised") / NAME), make("ddp", "fp32", Group())
    with pytest.raises(
        UserError, match=r"needs the pretrained weights of glyphclip with SHA-256 .*--weights"
    ):
        Model(kept, strategy, tmp_path / "absent.safetensors")
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(UserError, match=r"have [0-9a-f]{16}…; give the right file with --weights"):
        Model(kept, strategy, other)
    copy = tmp_path / "copy.safetensors"
    from methods.backbones.spec import GLYPHCLIP

    shutil.copy(GLYPHCLIP / "glyphclip.safetensors", copy)
    Model(kept, strategy, copy)
    for field, value, message in (
        ("version", 99, "trained by version 99 of method 'supervised'"),
        ("code", "f" * 64, "the code of method 'supervised' is not that of the run"),
        ("method", "supervisd", "unknown method 'supervisd'; did you mean 'supervised'"),
    ):
        record = {**kept.record, "spec": {**kept.record["spec"], field: value}}
        with pytest.raises(UserError, match=message):
            Model(Kept(kept.path, record, kept.tensors), strategy)
    record = {**kept.record, "input": {**kept.record["input"], "decoding": "0"}}
    with pytest.raises(UserError, match="pixels of decoding rule '0'"):
        Model(Kept(kept.path, record, kept.tensors), strategy)
    last = max(name for name in kept.tensors if name.startswith("state."))
    fewer = {name: value for name, value in kept.tensors.items() if name != last}
    with pytest.raises(UserError, match="the saved state does not fit 'supervised'"):
        Model(Kept(kept.path, kept.record, fewer), strategy)
    record = {**kept.record, "classes": ["car", "cat"]}
    with pytest.raises(UserError, match="2 classes, 3 prompts and 3 label columns"):
        Model(Kept(kept.path, record, kept.tensors), strategy)


def test_a_merge_takes_weights_with_runs_and_to_equal_runs(trained, tmp_path, capsys):
    target = tmp_path / "all"
    assert main(["merge", str(trained.workspace.runs), "--runs", str(target)]) == 0
    places = {name: trained.directory(name, target) for name in METHODS}
    for name, place in places.items():
        assert (place / NAME).read_bytes() == (trained.directory(name) / NAME).read_bytes()
    (places["zero_shot"] / NAME).unlink()
    capsys.readouterr()
    assert main(["merge", str(trained.workspace.runs), "--runs", str(target)]) == 0
    assert capsys.readouterr().out.count("its weights are taken") == 1
    assert (places["zero_shot"] / NAME).exists()

    # Damaged or foreign weights stay where they are; the run is taken.
    source = tmp_path / "source"
    shutil.copytree(trained.workspace.runs, source)
    file = trained.directory("zero_shot", source) / NAME
    file.write_bytes(damaged(file.read_bytes(), "flipped"))
    shutil.copy(places["supervised"] / NAME, trained.directory("linear_probe", source) / NAME)
    shutil.rmtree(target)
    capsys.readouterr()
    assert main(["merge", str(source), "--runs", str(target)]) == 0
    out = capsys.readouterr().out
    assert f"its weights are left there: {file} has changed on the disk" in out
    assert "they are of run" in out
    assert [(place / NAME).exists() for place in places.values()] == [False, False, True]


@pytest.fixture(scope="module")
def best(voc_root, tmp_path_factory) -> Trained:
    """A grid whose runs kept their weights to choose the best."""
    text = grid_text(voc_root, '["zero_shot", "linear_probe"]').replace("[0.5]", "[0.5, 0.2]")
    found = Trained(tmp_path_factory.mktemp("best"), text)
    found.work(keep_weights="best")
    return found


def test_only_the_best_method_of_each_column_keeps_its_weights(best, capsys):
    store, words = best.workspace.store, ["--grid", best.grid, "--keep-weights=best", "--no-plots"]
    runs = store.scan()
    assert all((run / NAME).exists() for run in runs)
    # Where a row of a column is not complete, it may become the best: nothing of it is removed.
    assert best.run("retry", *words, "--methods", "zero_shot", "--ratios", "0.5") == 0
    assert "removed" not in capsys.readouterr().out
    assert best.run(*words) == 0
    out = capsys.readouterr().out
    columns: dict[float, dict[str, float]] = {}
    kept = set()
    for run in runs:
        result = store.load(run)
        method, ratio = result["spec"]["method"], result["spec"]["ratio"]
        columns.setdefault(ratio, {})[method] = result["metrics"]["last"]["mAP"]
        if (run / NAME).exists():
            kept.add((ratio, method))
            assert read_header(run / NAME).record["kept"] == "best"
    assert kept == {(ratio, max(found, key=found.get)) for ratio, found in columns.items()}
    size = sum(path.stat().st_size for path in best.workspace.runs.rglob("store/**/model.safetensors"))
    assert f"weights: 2 runs, {size / 1e3:.0f} kB" in out
    assert "removed the weights of 2 other runs" in out
    # Again: nothing is executed, removed or complained of.
    assert best.run(*words) == 0
    told = capsys.readouterr()
    assert "removed" not in told.out
    assert "weights: 2 runs" in told.out
    assert "without weights" not in told.err


def test_weights_that_were_kept_for_good_are_not_removed(trained, tmp_path, capsys):
    runs = tmp_path / "runs"
    shutil.copytree(trained.workspace.runs, runs)
    (trained.directory("zero_shot", runs) / NAME).unlink()
    words = ["--grid", trained.grid, "--keep-weights=best", "--no-plots", "--data", trained.workspace.data]
    assert main([*map(str, words), "--runs", str(runs)]) == 0
    told = capsys.readouterr()
    assert "weights: 2 runs" in told.out
    assert "removed" not in told.out
    assert (
        main(["--grid", *map(str, words[1:2]), "--keep-weights", *map(str, words[3:]), "--runs", str(runs)])
        == 0
    )
    assert "1 runs were finished before without weights" in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_run_without_weights_names_the_commands_that_bring_them(trained, tmp_path, capsys):
    runs = tmp_path / "runs"
    shutil.copytree(trained.workspace.runs, runs)
    bare = trained.directory("linear_probe", runs)
    result = json.loads((bare / "result.json").read_text())
    (bare / NAME).unlink()
    result["provenance"]["command"] = f"run.py --workers 2 --grid {trained.grid} --seeds 1"
    (bare / "result.json").write_text(json.dumps(result))
    places = ["--data", str(trained.workspace.data), "--runs", str(runs)]
    assert main(["predict", "linear_probe/tiny", str(tmp_path), *places]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has kept no weights" in line
    for words in line.partition("take them over: ")[2].split(" && "):
        done = subprocess.run(
            [sys.executable, *shlex.split(words)[1:]], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (bare / NAME).read_bytes() == (trained.directory("linear_probe") / NAME).read_bytes()
    assert json.loads((bare / "result.json").read_text()) == result


def test_a_plan_keeps_weights_only_where_it_is_saved(trained, capsys):
    assert trained.run("plan", "--grid", trained.grid, "--keep-weights") == 2
    assert "goes with --save" in capsys.readouterr().err
    assert trained.run("run", "--grid", trained.grid, "--keep-weights=bst", "--dry-run") == 2
    assert "--keep-weights" in capsys.readouterr().err


def test_the_wish_travels_in_the_work_order(trained, tmp_path):
    from types import SimpleNamespace

    from benchmarks.launch.local import Local
    from benchmarks.launch.slurm import SlurmOptions, plan_record
    from benchmarks.launch.work_order import WorkOrder
    from benchmarks.plan.grid import load
    from slurm.profile import Profile

    local = Local(1, 1, 1, 30.0, 600.0, keep_weights="best")
    made = local.order(trained.grid, list(trained.jobs.values()), trained.workspace)
    made.write(tmp_path / "plan.json")
    assert WorkOrder.read(tmp_path / "plan.json").keep_weights == "best"
    record = {**made.record()}
    del record["keep_weights"]  # a plan of an earlier version
    assert WorkOrder.from_record(record, "plan.json").keep_weights == ""
    with pytest.raises(UserError, match="keep_weights = True is not what a plan holds there"):
        WorkOrder.from_record({**record, "keep_weights": True}, "plan.json")
    proposal = SimpleNamespace(
        options=SlurmOptions(Profile(), keep_weights="all"),
        submitted=[],
        about=list(trained.jobs.values()),
        bundles=[],
        estimates=None,
    )
    submitted = plan_record(load(str(trained.grid)), proposal, trained.workspace, tmp_path, trained.grid)
    assert WorkOrder.from_record(json.loads(json.dumps(submitted)), "x").keep_weights == "all"


def rest(*names: str) -> str:
    return json.dumps(list(names))


@pytest.mark.slow
def test_every_built_in_method_can_keep_its_weights(voc_root, tmp_path):
    from methods.registry import built_in

    names = sorted(built_in())
    text = grid_text(voc_root, rest(*names), labelled_epochs=1, epochs=1, warmup_epochs=1)
    found = Trained(tmp_path, text)
    said = found.work(*names)
    assert not [line for line in said if line.startswith(("failed", "weights not kept"))], said
    for name in names:
        assert verified(found.directory(name) / NAME).record["run_id"] == found.jobs[name].spec.run_id


@pytest.mark.slow
def test_a_run_that_was_stopped_keeps_the_same_weights(voc_root, tmp_path):
    from benchmarks.training.trainer import Interrupted

    found = Trained(tmp_path, grid_text(voc_root, '["csaa"]', epochs=2))
    found.work(runs=tmp_path / "calm")
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        found.work(should_stop=lambda: next(steps) > 9)
    assert not (found.directory("csaa") / NAME).exists()
    found.work(launch="2")
    ours, calm = (found.directory("csaa", runs) / NAME for runs in (None, tmp_path / "calm"))
    assert ours.read_bytes() == calm.read_bytes()


@pytest.mark.slow
def test_a_group_of_processes_keeps_the_weights_of_its_scores(command, voc_root):
    grid = command.folder / "group.toml"
    grid.write_text(grid_text(voc_root, '["fixmatch"]', epochs=1))
    words = ["--grid", str(grid), "--processes", "2", "--workers", "1", "--keep-weights", "--no-plots"]
    out, _ = command(*words)
    assert "weights: 1 runs" in out
    (run,) = RunStore(command.runs / "store").scan()
    assert verified(run / NAME).record["weights"] == "ema"

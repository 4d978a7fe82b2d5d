"""One bad file harms one run: every file of a store, damaged in every way, under every verb that reads it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.run import main
from benchmarks.training.metrics import summary
from results.store import RunStore
from slurm.launches import Launches
from tests.results.records import make_result, make_spec

NOBODY = 65534
CLASSES, COUNTS = ["sun", "moon"], [700, 20]
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "random": lambda data: np.random.default_rng(0).bytes(300) + b"\n",
    "list": lambda data: b"[]\n",
    "text": lambda data: b'"text"\n',
    "foreign": lambda data: b'{"format": 99}\n',
    "empty table": lambda data: b"{}\n",
    "latin-1": lambda data: b'{"type": "\xe9", "epoch": 1}\n',
    "nested": lambda data: b"[" * 100_000 + b"\n",
}
PLACES = ("directory", "circle", "nowhere")
EVERY = [*DAMAGE, *PLACES]
MOST = [how for how in EVERY if how not in ("text", "empty table", "nowhere")]


def harm(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.unlink()
    if how == "directory":
        path.mkdir()
    elif how == "circle":
        path.symlink_to(path.name)
    elif how == "nowhere":
        path.symlink_to("gone")
    else:
        path.write_bytes(DAMAGE[how](data))


class Store:
    """Runs of one method: two done, one failed, one running; a remembered plan, and a launch."""

    def __init__(self, runs: Path) -> None:
        self.runs, self.store = runs, RunStore(runs / "store")
        self.done, self.other, self.failed, self.running = (self._run(seed) for seed in (1, 2, 3, 4))
        (runs / "plans").mkdir()
        (runs / "plans" / "demo-0123.json").write_text('{"format": 1, "digest": "", "body": {}}')
        bundles = [{"run_ids": [self.running.name[-16:]], "stage_ids": []}]
        plan = {"job_name": "ssmll-x", "bundles": bundles}
        self.launch = Launches(runs).create("x", plan).folder
        (self.launch / "jobs.jsonl").write_text('{"jobs": {"0": "7_0"}, "time": 1.0}\n')

    def _run(self, seed: int) -> Path:
        run_id = hashlib.sha256(f"{seed}".encode()).hexdigest()
        spec = make_spec(seed=seed)
        run = self.store.directory(run_id, spec)
        lease = self.store.claim(run, spec)
        assert lease is not None
        for epoch in (1, 2):
            self.store.append_epoch(run, {"epoch": epoch, "mAP_ema": None, "losses": {"asl": 1.5}}, 1)
        if seed < 3:
            rng = np.random.default_rng(seed)
            scores, labels = rng.normal(size=(9, 2)).astype(np.float32), np.eye(9, 2, dtype=np.uint8)
            last = summary(scores, labels, COUNTS, scale="logits")
            metrics = {"last": last, "val": None, "oracle": None}
            result = make_result(run_id, spec=spec, metrics=metrics, classes=CLASSES)
            self.store.write_result(run, lease, result, {"scores": scores, "labels": labels})
        elif seed == 3:
            self.store.write_failure(run, lease, {"type": "ValueError", "message": "bad"})
        else:
            place = {"epoch": 1, "epochs": 2, "step": 1, "steps": 3, "time": 1.0, "left": 5.0, "pid": 1}
            (run / "progress.json").write_text(json.dumps({"format": 2, "title": "x", **place}))
            self.lease = lease
            return run
        lease.release()
        return run


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        made = Store(tmp_path_factory.mktemp("pattern"))
        yield made
        made.lease.release()


class Copy:
    """A copy of the store that may be damaged, and what verbs say of it."""

    def __init__(self, pattern: Store, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.copytree(pattern.runs, runs, dirs_exist_ok=True)
        self.pattern, self.runs, self.capsys = pattern, runs, capsys

    def at(self, path: Path) -> Path:
        return self.runs / path.relative_to(self.pattern.runs)

    def __call__(self, *words: str, code: int | None = None) -> str:
        """What a verb prints, stdout and stderr; it must not raise."""
        found = main([*words, "--runs", str(self.runs)])
        out, err = self.capsys.readouterr()
        assert "Traceback" not in out + err
        assert code is None or found == code, (words, found, out, err)
        return out + err


@pytest.fixture
def copy(
    pattern: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Copy:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM
    return Copy(pattern, tmp_path / "runs", capsys)


def named(text: str, path: Path) -> bool:
    """Whether one line names a file, and says something of it."""
    return any(str(path) in line and len(line) > len(str(path)) + 10 for line in text.splitlines())


@pytest.mark.parametrize("how", EVERY)
def test_a_result(copy: Copy, how: str) -> None:
    path = copy.at(copy.pattern.done) / "result.json"
    harm(path, how)
    text = copy("status", code=1)
    assert "4 runs (1 done, 1 running, 1 failed, 1 unreadable)" in text
    assert named(text, path)
    text = copy("tables", "--verify", code=1)
    assert named(text, path)
    assert "Recomputed from the stored predictions: 1 of 1." in text
    assert named(copy("why", copy.pattern.done.name[-16:], code=2), path)
    text = copy("why", "csaa/GlyphScenes", code=0)
    assert named(text, path)
    assert text.count("last mAP") == 1
    value = copy.pattern.store.load(copy.pattern.other)["metrics"]["last"]["mAP"]
    assert named(copy("why", f"{value:.2f}", code=0), path)
    copy("logs", copy.pattern.done.name[-16:], code=0)


@pytest.mark.parametrize("how", MOST)
@pytest.mark.parametrize("name", ["spec.json", "epochs.jsonl", "predictions.npz"])
def test_what_lies_beside_a_result(copy: Copy, name: str, how: str) -> None:
    path = copy.at(copy.pattern.done) / name
    harm(path, how)
    assert "2 done" in copy("status", code=1)
    assert "2 of 2" in copy("tables", "--verify") or name == "predictions.npz"
    code = 1 if name == "predictions.npz" else None
    text = copy("why", copy.pattern.done.name[-16:], code=code)
    whole = name == "epochs.jsonl" and how in ("empty", "half")  # lines of a writer that was killed
    assert named(text, path) or whole
    assert "last     mAP" in text
    copy("why", "csaa/GlyphScenes", code=0)
    copy("logs", copy.pattern.done.name[-16:], code=0)
    if name == "predictions.npz":
        text = copy("tables", "--verify", code=1)
        assert (
            "CONTRADICTED by their stored predictions, do not use: CSAA · GlyphScenes p=0.05 seed=1" in text
        )
        assert "1 of 2" in text


@pytest.mark.parametrize("how", MOST)
@pytest.mark.parametrize("name", ["failure.json", "spec.json", "lease.000001", "epochs.jsonl"])
def test_files_of_a_run_that_failed(copy: Copy, name: str, how: str) -> None:
    run = copy.at(copy.pattern.failed)
    path = run / name
    harm(path, how)
    text = copy("status")
    assert "2 done" in text
    if name == "failure.json":
        assert "1 failed" in text
        assert named(text, path)
    assert copy("tables", code=0).count("CSAA") >= 1
    copy("why", run.name[-16:])
    copy("logs", run.name[-16:])
    # The run goes on: what is damaged is put aside, and nothing else is in the way.
    store = RunStore(copy.runs / "store")
    if name == "spec.json" and how == "directory":  # it cannot go on, and says where
        with pytest.raises(IsADirectoryError, match="spec"):
            store.claim(run, make_spec(seed=3))
        return
    if name == "lease.000001":  # whoever it was, its time to live is over
        os.utime(path, (1, 1), follow_symlinks=False)
    lease = store.claim(run, make_spec(seed=3))
    assert lease is not None
    with lease:
        assert store.spec(run)["seed"] == 3
        store.truncate_epochs(run, 2)
        assert [row["epoch"] for row in store.epochs(run)] in ([1], [])
        assert store.state(run).kind == "running"
        assert store.write_failure(run, lease, {"type": "ValueError", "message": "again"})
    assert store.state(run).detail == "ValueError: again"


@pytest.mark.parametrize("how", MOST)
@pytest.mark.parametrize("name", ["lease.000001", "progress.json", "epochs.jsonl", "spec.json"])
def test_files_of_a_run_at_work(copy: Copy, name: str, how: str) -> None:
    run = copy.at(copy.pattern.running)
    harm(run / name, how)
    text = copy("status", code=1)
    assert "2 done, 1 running, 1 failed" in text
    copy("tables", code=0)
    copy("why", run.name[-16:])
    text = copy("logs", run.name[-16:])
    assert name != "epochs.jsonl" or how in ("empty", "half") or named(text, run / name)


@pytest.mark.parametrize("how", MOST)
@pytest.mark.parametrize("name", ["plan.json", "jobs.jsonl"])
def test_files_of_a_launch(copy: Copy, name: str, how: str) -> None:
    path = copy.at(copy.pattern.launch) / name
    harm(path, how)
    text = copy("status", code=1)
    assert "2 done" in text
    assert str(path.parent) in text or name == "jobs.jsonl"
    assert named(text, path) or name == "plan.json" or how not in ("directory", "circle")
    copy("logs", copy.pattern.done.name[-16:], code=0)
    copy("cancel", code=2)  # no SLURM here
    copy("tables", code=0)


@pytest.mark.parametrize("how", MOST)
def test_a_remembered_plan(copy: Copy, how: str) -> None:
    harm(copy.runs / "plans" / "demo-0123.json", how)
    copy("tables", code=0)
    copy("why", "csaa/GlyphScenes", code=0)


def test_a_result_of_another_run(copy: Copy) -> None:
    one, two = (copy.at(run) / "result.json" for run in (copy.pattern.done, copy.pattern.other))
    shutil.copy(two, one)
    for words in (["status"], ["tables"]):
        text = copy(*words, code=1)
        assert f"{one} is not the result of this run; move it away to run again" in text
        assert str(two) not in text


@pytest.mark.parametrize("place", ["run", "method", "result.json", "predictions.npz", "lease.000001"])
def test_what_a_colleague_does_not_let_us_read(
    pattern: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As another user: root may read everything."""
    folder = Path(tempfile.mkdtemp(prefix="ssmll-"))  # pytest's own folders let nobody in
    mode = folder.stat().st_mode
    monkeypatch.setenv("PATH", str(folder))  # no SLURM
    copy = Copy(pattern, folder / "runs", capsys)
    run = copy.at(pattern.done)
    path = {"run": run, "method": run.parent}.get(place, run / place)
    try:
        for words in (["status"], ["tables", "--verify"], ["why", "csaa/GlyphScenes"]):
            copy(*words)  # imports what the other user could not
        folder.chmod(0o755)
        for each in (folder / "runs", *(folder / "runs").rglob("*")):
            each.chmod(0o777 if each.is_dir() else 0o666)
        path.chmod(0)
        before = os.geteuid()
        if before == 0:
            os.seteuid(NOBODY)
        try:
            texts = [copy("status", code=1), copy("tables", "--verify"), copy("why", "csaa/GlyphScenes")]
        finally:
            os.seteuid(before)
    finally:
        path.chmod(0o700)
        folder.chmod(mode)
        shutil.rmtree(folder)
    said = f"{path} cannot be read: Permission denied; ask its owner for the right to read it"
    if place != "lease.000001":  # nobody needs it of a finished run
        assert sum(said in text for text in texts) >= (1 if place == "predictions.npz" else 2)
    if place != "method":
        assert all(pattern.other.name[:8] in text or "CSAA" in text for text in texts)

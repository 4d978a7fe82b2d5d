"""`results.merge`: nothing is replaced, nothing is half taken, nothing of a conflict is lost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from results import merge as merging
from results.errors import StoreError
from results.merge import merge, merge_stages, summary
from results.store import RunStore
from tests.results.records import make_result, make_spec, make_summary


class Store(RunStore):
    """A store that is filled by hand."""

    def put(self, seed: int, value: float = 71.25, score: float = 0.5) -> Path:
        """A finished run."""
        place, spec, run_id = self._place(seed)
        scores = np.full((3, 2), score, np.float32)
        result = make_result(
            run_id,
            spec=spec,
            metrics={"last": make_summary(mAP=value), "val": None, "oracle": None},
            predictions_sha256=hashlib.sha256(scores.tobytes()).hexdigest(),
        )
        lease = self.claim(place, spec)
        assert lease is not None
        with lease:
            self.append_epoch(place, {"epoch": 1, "mAP_ema": value})
            self.write_result(place, lease, result, {"scores": scores})
        return place

    def begin(self, seed: int) -> tuple[Path, object]:
        place, spec, _ = self._place(seed)
        return place, self.claim(place, spec)

    def _place(self, seed: int) -> tuple[Path, dict, str]:
        spec, run_id = make_spec(seed=seed), hashlib.sha256(str(seed).encode()).hexdigest()
        return self.directory(run_id, spec), spec, run_id


@pytest.fixture
def here(tmp_path) -> Store:
    return Store(tmp_path / "here" / "store")


@pytest.fixture
def there(tmp_path) -> Store:
    return Store(tmp_path / "there" / "store")


def content(place: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(f.relative_to(place)): f.read_bytes() for f in place.rglob("*") if f.is_file()}


def test_finished_runs_come_with_what_belongs_to_them_and_once(here, there):
    first, second = there.put(1), there.put(2)
    then = time.time() - 5000
    os.utime(first / "result.json", (then, then))
    os.utime(first / "spec.json", (then - 700, then - 700))
    before = content(there.root)
    assert summary(merge(here, there)) == "2 taken"
    assert content(there.root) == before, "the source is only read"
    for place in (first, second):
        copy = here.root / place.relative_to(there.root)
        for name in ("result.json", "predictions.npz", "epochs.jsonl", "spec.json"):
            assert (copy / name).read_bytes() == (place / name).read_bytes()
        assert here.state(copy).kind == "done"
    copy = here.root / first.relative_to(there.root)
    took = (copy / "result.json").stat().st_mtime - (copy / "spec.json").stat().st_mtime
    assert took == pytest.approx(700), "estimates take the length of a run from these times"
    before = content(here.root)
    again = merge(here, there)
    assert (summary(again), again.complete) == ("2 equal", True)
    assert content(here.root) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [({"value": 60.0}, "metrics.last.mAP|mAP 71.25 here, 60.0 there"), ({"score": 0.1}, "predictions ")],
)
def test_a_conflict_is_named_with_both_and_nothing_of_it_is_lost(here, there, change, named):
    ours, theirs = here.put(1), there.put(1, **change)
    there.put(2)
    before = content(ours), content(theirs)
    found = merge(here, there)
    assert summary(found) == "1 taken, 1 conflict"
    assert not found.complete
    (met,) = found.of("conflict")
    assert met.path == theirs
    assert str(ours) in met.detail
    assert any(part in met.detail for part in named.split("|"))
    assert (content(ours), content(theirs)) == before


def averaged(store: Store, seed: int, raw: float, *, named: bool = True) -> Path:
    """A finished run with scores of its raw weights, too; earlier versions did not name them."""
    place, spec, run_id = store._place(seed)
    arrays = {"scores": np.full((3, 2), 0.5, np.float32), "raw_scores": np.full((3, 2), raw, np.float32)}
    hashes = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    more = {"arrays_sha256": hashes} if named else {}
    result = make_result(run_id, spec=spec, predictions_sha256=hashes["scores"], **more)
    with store.claim(place, spec) as lease:
        store.write_result(place, lease, result, arrays)
    return place


@pytest.mark.parametrize("named", [(True, True), (True, False), (False, True)])
def test_the_scores_of_the_raw_weights_are_compared_too(here, there, named):
    averaged(here, 1, 0.25, named=named[0])
    averaged(there, 1, 0.25, named=named[1])
    averaged(here, 2, 0.25, named=named[0])
    averaged(there, 2, 0.75, named=named[1])
    found = merge(here, there)
    assert summary(found) == "1 equal, 1 conflict"
    assert "raw_scores " in found.of("conflict")[0].detail


def test_other_scores_of_the_raw_weights_than_the_result_names_are_not_taken(here, there):
    place = averaged(there, 1, 0.25)
    np.savez(place / "predictions.npz", scores=np.full((3, 2), 0.5, np.float32), raw_scores=np.ones((3, 2)))
    found = merge(here, there)
    assert summary(found) == "1 damaged"
    assert "arrays_sha256.raw_scores differs" in found.of("damaged")[0].detail


def test_an_equal_result_of_another_machine_is_no_conflict(here, there):
    here.put(1)
    theirs = there.put(1)
    record = json.loads((theirs / "result.json").read_text())
    record["provenance"] = {"host": "elsewhere"}
    record["cost"]["seconds"] = 99.0
    (theirs / "result.json").write_text(json.dumps(record))
    assert summary(merge(here, there)) == "1 equal"


def test_what_runs_or_died_there_stays_there_and_what_runs_here_is_left(here, there):
    _, running = there.begin(1)
    _, died = there.begin(2)
    died.release()
    there.put(3)
    mine, held = here.begin(3)
    found = merge(here, there)
    assert summary(found) == "1 held, 2 unfinished (1 running, 1 dead)"
    assert not found.complete
    assert str(mine) in found.of("held")[0].detail
    assert here.state(mine).kind == "running"
    held.release()
    running.release()
    assert summary(merge(here, there)) == "1 taken, 2 unfinished (2 dead)"
    assert here.state(mine).kind == "done"


def test_what_a_dead_attempt_left_here_does_not_stay_beside_the_result(here, there):
    theirs = there.put(1)
    mine, lease = here.begin(1)
    here.append_epoch(mine, {"epoch": 1, "mAP_ema": 3.0})
    here.append_epoch(mine, {"epoch": 2, "mAP_ema": 4.0})
    (mine / "checkpoints").mkdir()
    (mine / "predictions.npz").write_bytes(b"of an attempt that was killed")
    here.write_failure(mine, lease, {"type": "ValueError", "message": "bad"})
    lease.release()
    assert summary(merge(here, there)) == "1 taken"
    assert here.epochs(mine) == there.epochs(theirs)
    assert (mine / "predictions.npz").read_bytes() == (theirs / "predictions.npz").read_bytes()
    assert here.state(mine).kind == "done"
    assert not (mine / "checkpoints").exists()
    assert (mine / "failure.1.json").exists(), "the history of failures stays"


def test_damaged_and_foreign_folders_are_named_and_others_are_taken(here, there):
    good = there.put(1)
    torn = there.put(2)
    (torn / "result.json").write_text('{"run_id": ')
    others = there.put(3)
    np.savez(others / "predictions.npz", scores=np.zeros((3, 2), np.float32))
    cut = there.put(4)
    (cut / "predictions.npz").write_bytes((cut / "predictions.npz").read_bytes()[:40])
    lost = there.put(5)
    (lost / "predictions.npz").unlink()
    shutil.copytree(good, good.parent / "p0.1-s9-00000000")
    (good.parent / "notes").mkdir()
    found = merge(here, there)
    assert summary(found) == "1 taken, 4 damaged, 2 foreign"
    assert {met.path for met in found.of("damaged")} == {torn, others, cut, lost}
    assert not found.complete
    assert [path.name for path in here.scan()] == [good.name]


def test_a_merge_that_was_killed_is_repeated(here, there, monkeypatch):
    theirs = there.put(1)
    made = []

    def killed(path, data, *, whole=False):
        if path.name == "result.json":
            raise KeyboardInterrupt
        made.append(path)
        return True

    monkeypatch.setattr(merging, "create_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        merge(here, there)
    copy = here.root / theirs.relative_to(there.root)
    assert here.state(copy).kind == "dead"
    monkeypatch.undo()
    assert summary(merge(here, there)) == "1 taken"
    assert (copy / "result.json").read_bytes() == (theirs / "result.json").read_bytes()


def test_a_dry_run_says_the_same_and_writes_nothing(here, there):
    there.put(1)
    here.put(2)
    there.put(2, value=3.0)
    _, lease = here.begin(3)
    there.put(3)
    before = content(here.root)
    assert summary(merge(here, there, dry_run=True)) == "1 taken, 1 conflict, 1 held"
    assert content(here.root) == before
    lease.release()


def test_a_store_is_not_merged_into_itself_and_must_exist(here, there, tmp_path):
    here.put(1)
    (tmp_path / "link").symlink_to(here.root.parent)
    with pytest.raises(StoreError, match="is the folder of runs that it would be merged into"):
        merge(here, RunStore(tmp_path / "link" / "store"))
    with pytest.raises(StoreError, match="no runs there"):
        merge(here, there)


def test_stages_come_by_their_key_and_only_whole(here, there):
    stages, mine = there.root.parent / "stages", here.root.parent / "stages"
    for name, ended in (("features-1", True), ("warmup-2", False)):
        (stages / name).mkdir(parents=True)
        (stages / name / "train.npy").write_bytes(b"features")
        (stages / name / "lease.000001").write_text('{"generation": 1, "released": true}')
        if ended:
            (stages / name / "stage.json").write_text('{"kind": "features", "key": {"split": "a"}}')
    assert summary(merge_stages(RunStore(mine), RunStore(stages))) == "1 taken, 1 unfinished (1 dead)"
    assert (mine / "features-1" / "train.npy").read_bytes() == b"features"
    assert (mine / "features-1" / "stage.json").exists()
    assert not (mine / "warmup-2").exists()
    assert summary(merge_stages(RunStore(mine), RunStore(stages))) == "1 equal, 1 unfinished (1 dead)"


def test_a_stage_whose_files_have_changed_is_named_and_one_of_another_key_is_a_conflict(here, there):
    stages, mine = there.root.parent / "stages", here.root.parent / "stages"
    data = b"weights"
    record = {"kind": "warmup", "key": {"split": "a"}}
    sums = {"ema.safetensors": [len(data), hashlib.sha256(data).hexdigest()]}
    for name, content_of in (("warmup-1", data), ("warmup-2", b"changed")):
        (stages / name).mkdir(parents=True)
        (stages / name / "ema.safetensors").write_bytes(content_of)
        (stages / name / "stage.json").write_text(json.dumps({**record, "files": sums}))
    found = merge_stages(RunStore(mine), RunStore(stages))
    assert summary(found) == "1 taken, 1 damaged"
    assert "ema.safetensors is not what was written" in found.of("damaged")[0].detail
    assert not (mine / "warmup-2").exists()
    (mine / "warmup-1" / "stage.json").write_text(json.dumps({**record, "key": {"split": "b"}}))
    found = merge_stages(RunStore(mine), RunStore(stages))
    assert summary(found) == "1 conflict, 1 damaged"
    assert str(mine / "warmup-1") in found.of("conflict")[0].detail


def test_a_run_of_one_store_that_two_others_have_in_two_ways_is_a_conflict_with_the_first(here, tmp_path):
    stores = [Store(tmp_path / name / "store") for name in "ab"]
    kept, other = stores[0].put(1), stores[1].put(1, value=5.0)
    assert [summary(merge(here, store)) for store in stores] == ["1 taken", "1 conflict"]
    (mine,) = here.scan()
    assert (mine / "result.json").read_bytes() == (kept / "result.json").read_bytes()
    assert merge(here, stores[1]).of("conflict")[0].path == other

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from results.errors import StoreError
from results.moves import GENERATION
from results.schema import FORMAT
from results.store import RunStore, error_signature
from tests.results.records import RUN_ID, claim, make_cost, make_result, make_spec, python, wait_for

# -------------------------------------------------------------------- names


def test_directory_is_readable_and_safe(store: RunStore) -> None:
    run = store.directory(RUN_ID, make_spec(dataset={"alias": "../my data"}, method="a/b"))
    assert run == store.root / "_my_data" / "a_b" / "p0.05-s1-0123456789abcdef"
    with pytest.raises(StoreError, match=r"lacks 'seed'; need dataset\.alias"):
        store.directory(RUN_ID, {"dataset": {"alias": "x"}, "method": "m", "ratio": 0.1})


def test_scan_and_find(store: RunStore) -> None:
    assert store.scan() == []
    runs = []
    for i, ratio in enumerate([0.05, 0.2, 1e-05]):
        run_id = f"{i}f" * 32
        run = store.directory(run_id, make_spec(ratio=ratio))
        with claim(store, run) as lease:
            if i < 2:
                store.write_result(run, lease, make_result(run_id), {})
        runs.append(run)
    (store.root / "notes").mkdir()
    (store.root / "GlyphScenes" / "csaa" / "scratch").mkdir()
    assert store.scan() == sorted(runs)
    assert store.find("1f1") == [runs[1]]
    assert store.find("1f" * 32) == [runs[1]]
    assert store.find("1f" * 8 + "0") == []
    assert store.find("2f" * 8) == [runs[2]]
    assert store.find("") == sorted(runs)


# -------------------------------------------------------------------- one life of a run


def test_states_from_start_to_end(store: RunStore, run: Path) -> None:
    assert store.state(run).kind == "not started"
    with claim(store, run) as lease:
        state = store.state(run)
        assert (state.kind, state.attempts) == ("running", 1)
        assert state.heartbeat_age is not None
        assert 0 <= state.heartbeat_age < 5
        assert str(os.getpid()) in state.detail
        assert store.claim(run, make_spec()) is None
        store.write_failure(run, lease, {"type": "ValueError", "message": "loss is NaN\nat 3"})
    failed = store.state(run)
    assert (failed.kind, failed.detail) == ("failed", "ValueError: loss is NaN")
    assert failed.error is not None
    assert failed.error["signature"] == "ValueError: loss is NaN"
    with claim(store, run):
        assert store.state(run).kind == "running"
        assert json.loads((run / "failure.1.json").read_text())["type"] == "ValueError"
    stopped = store.state(run)
    assert (stopped.kind, stopped.attempts) == ("dead", 2)
    assert "stopped" in stopped.detail
    with claim(store, run) as lease:
        store.write_result(run, lease, make_result(), {"scores": np.zeros((3, 2))})
    assert store.state(run).kind == "done"
    assert store.state(run).attempts == 3
    assert store.load(run) == {**make_result(), "format": FORMAT, "identities": GENERATION}
    assert store.spec(run) == make_spec()
    assert store.claim(run, make_spec()) is None


def test_a_failure_that_a_newer_dead_attempt_could_not_clear_is_not_its_own(
    store: RunStore, run: Path
) -> None:
    with claim(store, run) as lease:
        store.write_failure(run, lease, {"type": "ValueError", "message": "x"})
    content = json.loads((run / "lease.000001").read_text())
    (run / "lease.000002").write_text(
        json.dumps({**content, "generation": 2, "released": False, "pid": 1 << 22})
    )
    assert store.state(run).kind == "dead"


def test_write_result_refuses_nonsense_and_writes_nothing(store: RunStore, run: Path) -> None:
    with claim(store, run) as lease:
        bad = {k: v for k, v in make_result().items() if k not in ("cost", "finished")}
        with pytest.raises(StoreError, match="lacks cost, finished"):
            store.write_result(run, lease, bad, {})
        with pytest.raises(StoreError, match="result of another run"):
            store.write_result(run, lease, make_result("f" * 64), {})
        with pytest.raises(ValueError, match=r"cost\.seconds is NaN"):
            store.write_result(run, lease, make_result(cost=make_cost(seconds=float("nan"))), {})
        with pytest.raises(StoreError, match="'ids' holds Python objects"):
            store.write_result(run, lease, make_result(), {"ids": np.array([None])})
        assert {p.name for p in run.iterdir()} == {"lease.000001", "spec.json"}
        store.write_result(run, lease, make_result(), {})
        with pytest.raises(StoreError, match="never rewritten"):
            store.write_result(run, lease, make_result(), {})
        other = store.directory("f" * 64, make_spec())
        with pytest.raises(StoreError, match="the lease is for"):
            store.write_failure(other, lease, {"type": "E", "message": ""})
        with pytest.raises(StoreError, match="needs 'type' and 'message'"):
            store.write_failure(run, lease, {"type": "E"})


def test_predictions_round_trip_with_equal_bytes(store: RunStore) -> None:
    arrays = {
        "scores": np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32),
        "labels": np.eye(50, 4, dtype=np.uint8),
    }
    contents = []
    for i, order in enumerate([("scores", "labels"), ("labels", "scores")]):
        run_id = f"{i}a" * 32
        run = store.directory(run_id, make_spec())
        with pytest.raises(StoreError, match="not started"):
            store.predictions(run)
        with claim(store, run) as lease:
            result = make_result(run_id)
            store.write_result(run, lease, result, {name: arrays[name] for name in order})
        for name, array in store.predictions(run).items():
            np.testing.assert_array_equal(array, arrays[name])
        contents.append((run / "predictions.npz").read_bytes())
        time.sleep(0.01)
    assert contents[0] == contents[1]


def test_load_says_the_state_or_the_damage(store: RunStore, run: Path) -> None:
    with pytest.raises(StoreError, match=r"no result\.json, the run is not started"):
        store.load(run)
    with claim(store, run) as lease:
        store.write_result(run, lease, make_result(), {})
    (run / "result.json").write_text('{"run_id": "0123')
    with pytest.raises(StoreError, match=r"result\.json is damaged"):
        store.load(run)


@pytest.mark.parametrize(
    ("message", "signature"),
    [
        ("Tried to allocate 20.5 MiB at 0x7f3a", "E: Tried to allocate # MiB at #"),
        ("No such file: '/data/x y/a.jpg', line 3", "E: No such file: '<path> y/a.jpg', line #"),
        ("first\nsecond 2", "E: first"),
        ("", "E: "),
    ],
)
def test_error_signature(message: str, signature: str) -> None:
    assert error_signature("E", message) == signature


# -------------------------------------------------------------------- epochs


def test_epochs_append_truncate_and_torn_tail(store: RunStore, run: Path) -> None:
    assert store.epochs(run) == []
    store.truncate_epochs(run, 1)  # nothing there yet
    with claim(store, run):
        for epoch in range(1, 4):
            store.append_epoch(run, {"epoch": epoch, "lr": 0.1})
        path = run / "epochs.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole + b'{"epoch": 4, "l')  # killed in the middle of a line
        assert [row["epoch"] for row in store.epochs(run)] == [1, 2, 3]
        store.append_epoch(run, {"epoch": 4})
        assert [row["epoch"] for row in store.epochs(run)] == [1, 2, 3, 4]
        assert path.read_bytes() == whole + b'{"epoch": 4, "l\n{"epoch":4,"format":2}\n'
        store.truncate_epochs(run, 3)
        assert [row["epoch"] for row in store.epochs(run)] == [1, 2]
        with pytest.raises(StoreError, match="integer 'epoch'"):
            store.append_epoch(run, {"lr": 1})
        with pytest.raises(StoreError, match="of at least 1"):
            store.append_epoch(run, {"epoch": 0})
        with pytest.raises(ValueError, match="lr is NaN"):
            store.append_epoch(run, {"epoch": 2, "lr": float("nan")})
        path.write_bytes(b'{"epoch": 0}\n{"ep"}\n{"epoch": 2}\n')
        with pytest.raises(StoreError, match="line 2 is damaged"):
            store.epochs(run)


def test_epochs_of_a_process_that_was_overtaken_do_not_count(store: RunStore, run: Path) -> None:
    with claim(store, run):
        for epoch, lr, generation in ((1, 1, 1), (2, 2, 1), (2, 20, 3), (3, 3, 1), (3, 30, 3), (3, 3.5, 1)):
            store.append_epoch(run, {"epoch": epoch, "lr": lr}, generation)
        expected = [{"epoch": 1, "lr": 1}, {"epoch": 2, "lr": 20}, {"epoch": 3, "lr": 30}]
        assert store.epochs(run) == expected
        store.truncate_epochs(run, 3)
        store.append_epoch(run, {"epoch": 2, "lr": 2}, 1)  # still none of the newer generation's
        assert store.epochs(run) == expected[:2]
        store.settle_epochs(run)
        assert store.epochs(run) == expected[:2]
        assert "generation" not in (run / "epochs.jsonl").read_text()


def test_epochs_of_an_earlier_version_count_from_1_too_and_a_continued_run_does_not_mix(
    store: RunStore, run: Path
) -> None:
    with claim(store, run):
        path = run / "epochs.jsonl"
        path.write_bytes(b'{"epoch":0,"lr":1}\n{"epoch":1,"lr":2}\n{"epoch":2,"lr":3}\n')
        assert [(row["epoch"], row["lr"]) for row in store.epochs(run)] == [(1, 1), (2, 2), (3, 3)]
        store.append_epoch(run, {"epoch": 4, "lr": 4})  # without a cut: lines of both kinds
        assert [(row["epoch"], row["lr"]) for row in store.epochs(run)] == [(1, 1), (2, 2), (3, 3), (4, 4)]
        store.truncate_epochs(run, 3)  # continued from the checkpoint after two epochs
        store.append_epoch(run, {"epoch": 3, "lr": 5})
        assert [(row["epoch"], row["lr"]) for row in store.epochs(run)] == [(1, 1), (2, 2), (3, 5)]
        assert path.read_text().count('"format":2') == 3


def test_a_kill_while_results_are_written_leaves_whole_results_only(store: RunStore, run: Path) -> None:
    rng, seen = random.Random(0), set()
    for attempt in range(4):
        process = python(
            """
            arrays = {"scores": np.arange(500_000, dtype=np.float32)}
            filler = list(range(20_000))  # a result.json that takes a while to write
            for i in range(10_000):
                run_id = f"{sys.argv[3]}{i:05d}" + "0" * 58
                run = store.directory(run_id, make_spec())
                lease = store.claim(run, make_spec())
                store.write_result(run, lease, make_result(run_id, cost=make_cost(a=filler)), arrays)
                if i == 0:
                    print("first", flush=True)
            """,
            store.root,
            run,
            attempt,
        )
        wait_for(process, "first")
        time.sleep(rng.uniform(0.02, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
    for found in store.scan():
        kind = store.state(found).kind
        seen.add(kind)
        assert kind in ("done", "dead", "not started")  # killed before the lease: an empty folder
        if kind == "done":
            assert store.load(found)["cost"]["a"][-1] == 19_999
            assert store.predictions(found)["scores"][-1] == 499_999
        else:
            with claim(store, found) as lease:
                run_id = found.name.rsplit("-", 1)[1] + "0" * 48
                store.write_result(found, lease, make_result(run_id), {})
            assert not list(found.glob(".*.tmp"))
    assert seen >= {"done", "dead"}


# -------------------------------------------------------------------- size


def test_status_of_many_runs_is_fast(store: RunStore) -> None:
    template = None
    for i in range(2_000):
        run = store.directory(f"{i:08x}" * 8, make_spec(method=f"m{i % 10}", seed=i))
        run.mkdir(parents=True)
        if template is None:
            with claim(store, run):
                template = (run / "lease.000001").read_bytes()
        (run / "lease.000001").write_bytes(template)
        (run / "spec.json").write_bytes(b"{}")
        if i % 4:
            (run / "result.json").write_bytes(b"{}")
    looks: list[str] = []
    listening = True

    # What is slow on a network's file system is asking it: that is counted, whatever else this machine does.
    def note(event: str, values: tuple) -> None:
        if listening and values and str(store.root) in str(values[0]):
            looks.append(event)

    sys.addaudithook(note)
    start = time.process_time()
    kinds = [store.state(found).kind for found in store.scan()]
    seconds = time.process_time() - start
    listening = False
    assert kinds.count("done") == 1_500
    assert looks.count("os.scandir") <= 2_000 + 20  # once a run, and its folders above
    assert looks.count("open") <= 500 + 20  # the lease of a run without a result
    assert seconds < 3.0  # 10,000 in 2 s; here a fifth of them, on a busy machine

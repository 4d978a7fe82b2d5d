from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results.errors import LeaseLostError, StoreError
from results.lease import filesystem_now
from results.store import RunStore, error_signature

RUN_ID = "0123456789abcdef" * 4
ROOT = Path(__file__).resolve().parents[2]


def make_spec(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "dataset": {"alias": "GlyphScenes"},
        "method": "csaa",
        "ratio": 0.05,
        "seed": 1,
        "label": "CSAA",
    }
    return {**spec, **changes}


def make_result(run_id: str = RUN_ID, **changes: Any) -> dict[str, Any]:
    result: dict[str, Any] = {
        "run_id": run_id,
        "spec": make_spec(),
        "metrics": {"last": {"mAP": 71.25, "num_classes": 2}, "val": None, "oracle": None},
        "classes": ["sun", "moon"],
        "cost": {"seconds": 12.0},
        "provenance": {},
        "finished": "2026-01-01T00:00:00Z",
    }
    return {**result, **changes}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


@pytest.fixture
def run(store: RunStore) -> Path:
    return store.directory(RUN_ID, make_spec())


def claim(store: RunStore, run: Path, ttl: float = 60.0):  # type: ignore[no-untyped-def]
    lease = store.claim(run, make_spec(), ttl=ttl)
    assert lease is not None
    return lease


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs some lines with a store; it prints when it got where it should."""
    head = """
        import sys, time, os
        import numpy as np
        from pathlib import Path
        from results.store import RunStore
        sys.path.insert(0, "tests/results")
        from test_store import make_spec, make_result, RUN_ID
        store, run = RunStore(sys.argv[1]), Path(sys.argv[2])
    """
    source = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


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
    assert store.load(run) == make_result()
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
            store.write_result(run, lease, make_result(cost={"seconds": float("nan")}), {})
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
    store.truncate_epochs(run, 0)  # nothing there yet
    with claim(store, run):
        for epoch in range(3):
            store.append_epoch(run, {"epoch": epoch, "lr": 0.1})
        path = run / "epochs.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole + b'{"epoch": 3, "l')  # killed in the middle of a line
        assert [row["epoch"] for row in store.epochs(run)] == [0, 1, 2]
        store.append_epoch(run, {"epoch": 3})
        assert [row["epoch"] for row in store.epochs(run)] == [0, 1, 2, 3]
        assert path.read_bytes() == whole + b'{"epoch":3}\n'
        store.truncate_epochs(run, 2)
        assert [row["epoch"] for row in store.epochs(run)] == [0, 1]
        with pytest.raises(StoreError, match="integer 'epoch'"):
            store.append_epoch(run, {"lr": 1})
        with pytest.raises(ValueError, match="lr is NaN"):
            store.append_epoch(run, {"epoch": 2, "lr": float("nan")})
        path.write_bytes(b'{"epoch": 0}\n{"ep\n{"epoch": 2}\n')
        with pytest.raises(StoreError, match="line 2 is damaged"):
            store.epochs(run)


# -------------------------------------------------------------------- leases


def test_heartbeat_keeps_a_lease_and_release_is_for_its_own_process(store: RunStore, run: Path) -> None:
    lease = claim(store, run, ttl=0.3)
    time.sleep(0.8)
    assert lease.still_mine()
    assert store.claim(run, make_spec(), ttl=0.3) is None
    child = os.fork()
    if child == 0:  # a forked data-loading worker ends
        lease.release()
        os._exit(0 if not lease.still_mine() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert lease.still_mine()
    lease.release()
    lease.release()
    assert not lease.still_mine()
    assert claim(store, run).generation == 2


def age(run: Path, generation: int, seconds: float) -> None:
    stamp = filesystem_now(run) - seconds
    os.utime(run / f"lease.{generation:06d}", (stamp, stamp))


def test_stale_lease_of_another_host_is_taken_over(store: RunStore, run: Path) -> None:
    lease = claim(store, run, ttl=30)
    path = run / "lease.000001"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "host": "node-17"}))
    age(run, 1, 20)
    assert store.claim(run, make_spec(), ttl=5) is None  # the holder's own time to live counts
    assert store.state(run).kind == "running"
    age(run, 1, 40)
    state = store.state(run)
    assert state.kind == "dead"
    assert "no heartbeat of process" in state.detail
    assert "node-17" in state.detail
    with claim(store, run, ttl=30) as second:
        assert second.generation == 2
        assert not lease.still_mine()
        with pytest.raises(LeaseLostError, match="no longer held"):
            store.write_result(run, lease, make_result(), {"scores": np.zeros(3)})
        with pytest.raises(LeaseLostError):
            store.write_failure(run, lease, {"type": "E", "message": ""})
        lease.release()  # must not touch the lease of the new holder
        assert second.still_mine()
        assert not (run / "predictions.npz").exists()


def test_another_process_with_the_same_number_does_not_hold_the_run(store: RunStore, run: Path) -> None:
    claim(store, run)
    path = run / "lease.000001"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "start": content["start"] - 1}))
    assert store.state(run).kind == "dead"
    assert claim(store, run).generation == 2


@pytest.mark.parametrize("key", ["host", "boot", "namespace"])
def test_process_numbers_of_elsewhere_mean_nothing(store: RunStore, run: Path, key: str) -> None:
    claim(store, run)
    path = run / "lease.000001"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "pid": 1 << 22, key: "elsewhere"}))
    assert store.claim(run, make_spec()) is None


def test_a_lease_that_is_being_written_is_held(store: RunStore, run: Path) -> None:
    run.mkdir(parents=True)
    (run / "lease.000001").touch()
    assert store.claim(run, make_spec()) is None
    assert store.state(run).kind == "running"
    age(run, 1, 100)
    assert claim(store, run).generation == 2


def test_without_hard_links_one_claim_wins_too(
    store: RunStore, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with claim(store, run) as lease:
        assert lease.still_mine()
        assert store.claim(run, make_spec()) is None
        assert {p.name for p in run.iterdir()} == {"lease.000001", "spec.json"}


def test_a_deleted_directory_loses_the_lease_even_after_it_was_claimed_anew(
    store: RunStore, run: Path
) -> None:
    lease = claim(store, run)
    for path in run.iterdir():
        path.unlink()
    run.rmdir()
    assert not lease.still_mine()
    with claim(store, run) as new:
        assert new.generation == lease.generation == 1
        assert not lease.still_mine()
        lease.release()
        assert new.still_mine()


def test_a_killed_holder_on_this_machine_is_replaced_at_once(store: RunStore, run: Path) -> None:
    process = python(
        """
        lease = store.claim(run, make_spec())
        (run / ".checkpoint.pt.host-1-aa.tmp").write_text("half")
        print("claimed", flush=True)
        time.sleep(60)
        """,
        store.root,
        run,
    )
    wait_for(process, "claimed")
    assert store.claim(run, make_spec()) is None
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    lease = None
    while lease is None and time.monotonic() < deadline:  # not waited for: it stays a zombie
        lease = store.claim(run, make_spec())
    assert lease is not None
    assert not list(run.glob(".*.tmp"))
    lease.release()
    process.wait()


def race(root: str, runs: list[str], barrier: Any, wins: Any) -> None:
    store, held = RunStore(root), []
    for i, run in enumerate(runs):
        barrier.wait()
        lease = store.claim(Path(run), make_spec())
        if lease is not None:
            wins[i] += 1
            held.append(lease)
    barrier.wait()  # nobody ends, and so loses its leases, before the other has tried them all
    assert all(lease.still_mine() for lease in held)


def test_of_two_processes_exactly_one_wins_each_of_200_claims(store: RunStore) -> None:
    runs = []
    for i in range(200):
        run = store.directory(f"{i:04x}" * 16, make_spec())
        if i % 2:  # every other one is a takeover of a released lease
            claim(store, run).release()
        runs.append(str(run))
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2, timeout=60)
    wins = [context.Array("i", len(runs)) for _ in range(2)]
    processes = [
        context.Process(target=race, args=(str(store.root), runs, barrier, wins[i])) for i in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert [a + b for a, b in zip(*wins, strict=True)] == [1] * 200


def test_two_threads_of_one_process_cannot_share_a_run(store: RunStore, run: Path) -> None:
    leases: list[Any] = []
    threads = [
        threading.Thread(target=lambda: leases.append(store.claim(run, make_spec()))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lease is not None for lease in leases) == 1


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
                store.write_result(run, lease, make_result(run_id, cost={"a": filler}), arrays)
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
    start = time.perf_counter()
    kinds = [store.state(found).kind for found in store.scan()]
    seconds = time.perf_counter() - start
    assert kinds.count("done") == 1_500
    assert seconds < 0.4 * 2  # 10,000 in 2 s; twice that on a busy machine

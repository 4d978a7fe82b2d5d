from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results.errors import LeaseLostError
from results.files import filesystem_now
from results.store import RunStore
from tests.results.records import claim, make_result, make_spec, python, wait_for


def test_heartbeat_keeps_a_lease_and_release_is_for_its_own_process(store: RunStore, run: Path) -> None:
    lease = claim(store, run, ttl=6)
    age(run, 1, 100)  # as without heartbeats; the next one is at most a second away
    deadline = time.monotonic() + 60
    while seconds_old(run, 1) > 50 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert store.claim(run, make_spec(), ttl=50) is None
    assert lease.still_mine()
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


def seconds_old(run: Path, generation: int) -> float:
    return filesystem_now(run) - (run / f"lease.{generation:06d}").stat().st_mtime


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
    deadline = time.monotonic() + 60
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

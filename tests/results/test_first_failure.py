"""The first failure of an attempt is its cause, however many processes of a group fail."""

from __future__ import annotations

import json
import threading

from results.lease import MemberLease
from results.store import RunStore


def test_of_two_ranks_that_fail_at_the_same_moment_one_records_it(tmp_path):
    """As ranks do that see their group hang: one failure, reported once."""
    store, spec = RunStore(tmp_path), {"dataset": {"alias": "toy"}, "method": "m", "ratio": 0.1, "seed": 1}
    for number in range(20):
        run = store.directory(f"{number:02x}" * 32, spec)
        lease = store.claim(run, spec)
        assert lease is not None
        both, written = threading.Barrier(2), []

        def fail(holder, run=run, both=both, written=written):
            both.wait()
            error = {"type": "Hung", "message": type(holder).__name__}
            if store.write_failure(run, holder, error):
                written.append(error)

        threads = [threading.Thread(target=fail, args=(holder,)) for holder in (lease, MemberLease(run, 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (error,) = written
        found = json.loads((run / "failure.json").read_text())
        assert found["message"] == error["message"]
        lease.release()

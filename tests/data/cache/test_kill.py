"""Calls that are killed, and calls at the same time."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.data.cache import pool
from benchmarks.data.cache.prepared import prepare
from methods.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


SCRIPT = """
import pickle, sys
from pathlib import Path
from benchmarks.data.cache import prepared as cache
cache.CHUNK = 4
# No guard against a second import of this script: decoding processes must not need one.
dataset = pickle.load(open(sys.argv[1], "rb"))
ready = cache.prepare(
    dataset, 96, Path(sys.argv[2]), workers=int(sys.argv[3]),
    progress=lambda done, total: print(done, flush=True),
)
assert "torch" not in sys.modules, "preparing needs no torch"
print(ready.digest, flush=True)
"""


@pytest.fixture
def start(tmp_path, build_dataset):
    """Starts a process that prepares one larger dataset into a given folder."""
    dataset = build_dataset(tmp_path / "large", 100, 20, width=160, height=120)
    script, packed = tmp_path / "prepare_in_a_process.py", tmp_path / "dataset.pkl"
    script.write_text(SCRIPT)
    packed.write_bytes(pickle.dumps(dataset))

    def process(folder: Path, workers: int, **options) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(script), str(packed), str(folder), str(workers)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            **options,
        )

    process.dataset = dataset
    return process


def test_killed_anywhere_and_resumed_gives_the_same_cache(tmp_path, start):
    expected = prepare(start.dataset, 96, tmp_path / "undisturbed", workers=1)
    rng = random.Random(4)
    folder, kills, progressed = tmp_path / "killed", 0, []
    while kills < 12:
        process = start(folder, 1)
        # Wait for some chunks of this attempt, then kill at any instant of the next ones.
        lines = [process.stdout.readline() for _ in range(rng.randint(1, 3))]
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
        if expected.digest in (rest + "".join(lines)):
            break
        progressed.append(int(lines[0]))
        kills += 1
    assert kills >= 3
    assert progressed == sorted(progressed)
    assert progressed[0] == 0
    assert progressed[-1] > 0, "nothing was kept"
    resumed = prepare(start.dataset, 96, folder, workers=1)
    assert resumed.digest == expected.digest
    resumed.verify()
    assert (resumed.train == expected.train).all()
    assert sorted(f.name for f in resumed.directory.iterdir()) == [
        "lock",
        "meta.json",
        "sources.npy",
        "test.u8",
        "train.u8",
    ]


def test_killed_decoding_processes_die_with_their_parent(tmp_path, start):
    process = start(tmp_path / "killed", 2)
    for _ in range(4):  # the pool is at work after the first report
        process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(_runs(pid) for pid in children):
        time.sleep(0.02)
    assert not [pid for pid in children if _runs(pid)]
    resumed = prepare(start.dataset, 96, tmp_path / "killed", workers=1)
    assert resumed.digest == prepare(start.dataset, 96, tmp_path / "other", workers=1).digest


def test_a_decoding_process_that_dies_is_a_clear_error(tmp_path, start, monkeypatch):
    import subprocess as real

    def dies(command, **options):
        return real.Popen([*command[:2], "import sys; sys.stdin.buffer.read(1)"], **options)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "subprocess", type("fake", (), {"Popen": dies, "PIPE": real.PIPE}))
        with pytest.raises(UserError, match=r"a decoding process died at .*images after it"):
            prepare(start.dataset, 96, tmp_path / "cache", workers=2)
    prepare(start.dataset, 96, tmp_path / "cache", workers=2).verify()


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_two_processes_at_once_share_one_piece_of_work(tmp_path, start):
    folder = tmp_path / "shared"
    outputs = [p.communicate(timeout=60)[0].split() for p in [start(folder, 1), start(folder, 1)]]
    digests = {lines[-1] for lines in outputs}
    assert len(digests) == 1
    assert len(next(iter(digests))) == 64
    # the one that waited found everything done and reported nothing
    assert min(len(lines) for lines in outputs) == 1
    assert digests == {prepare(start.dataset, 96, tmp_path / "alone", workers=1).digest}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_kills_of_all_processes_change_no_byte(tmp_path, start, build_dataset, workers):
    dataset = build_dataset(tmp_path / "larger", 500, 100, width=500, height=375)
    (tmp_path / "dataset.pkl").write_bytes(pickle.dumps(dataset))
    calm = start(tmp_path / "calm", workers)
    expected = calm.communicate(timeout=300)[0].split()[-1]
    rng = random.Random(workers)
    folder, found = tmp_path / "killed", []
    for kill in range(20):
        process = start(folder, workers, start_new_session=True)
        # Anywhere: while it starts, in the first chunks, between two writes, later and later. In
        # all it is left less time than the 150 chunks take.
        reports = rng.randint(0, 2 + kill // 3)
        lines = [process.stdout.readline() for _ in range(reports)]
        time.sleep(rng.random() * (0.05 if reports else 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        output = ("".join(lines) + process.communicate()[0]).split()
        assert process.returncode == -signal.SIGKILL, "it was finished before it was killed"
        found += [int(output[0])] if output else []
    assert found == sorted(found)  # what was finished stays finished
    assert len(set(found)) >= 5, found
    assert 0 < found[-1] < 600
    last = start(folder, workers)
    output = last.communicate(timeout=300)[0].split()
    assert int(output[0]) >= found[-1]
    assert output[-1] == expected
    (one,), (two,) = ([*place.glob("tiny-*")] for place in (tmp_path / "calm", folder))
    names = ["lock", "meta.json", "sources.npy", "test.u8", "train.u8"]
    for place in (one, two):
        assert sorted(file.name for file in place.iterdir()) == names
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    prepare(dataset, 96, folder).verify()

"""Full disks: real ones where a small file system can be mounted, limited files everywhere."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.data import disk
from benchmarks.data.cache import build
from benchmarks.data.cache.prepared import prepare
from benchmarks.data.disk import DiskFullError
from methods.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small file system (needs root): run as root to test full disks")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_the_space_needed_is_announced_before_anything_is_decoded(tmp_path, dataset, monkeypatch):
    lines = []
    real = build.decode

    def watched(*arguments):
        assert len(lines) == 1
        return real(*arguments)

    monkeypatch.setattr(build, "decode", watched)
    prepare(dataset, 256, tmp_path / "cache", workers=1, announce=lines.append)
    size = 29 * 3 * 256 * 256 / 2**20
    (line,) = lines
    assert line.startswith(f"cache of 29 images at 256 px: {size:.1f} MiB in {tmp_path / 'cache'}, ")
    assert "free" in line
    prepare(dataset, 256, tmp_path / "cache", announce=lines.append)
    assert len(lines) == 1  # it is there: nothing is needed


def test_too_little_space_is_reported_before_anything_is_decoded(tmp_path, dataset, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("benchmarks.data.cache.build.shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr("benchmarks.data.cache.pool.decode_chunk", lambda c: pytest.fail("decoded"))
    with pytest.raises(DiskFullError, match=r"0.1 MiB more are needed, 0.0 MiB are left") as caught:
        prepare(dataset, 16, tmp_path / "cache", workers=1)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_files_are_reserved_in_full(tmp_path):
    file = tmp_path / "a"
    with open(file, "wb") as stream:
        stream.truncate(300_000)
    if not disk.unallocated(file):
        pytest.skip("this file system has no sparse files: run where $TMPDIR is on ext4, xfs, tmpfs")
    assert disk.unallocated(file) == 300_000
    disk.reserve(file)
    if disk.unallocated(file):
        pytest.skip("this file system cannot reserve: try ext4, xfs or tmpfs")
    assert file.read_bytes() == bytes(300_000)


def test_a_full_disk_shows_before_anything_is_decoded(small_disk, dataset, monkeypatch):
    # The free space is misjudged, as where another program takes it in the meantime.
    usage = type("Usage", (), {"free": 2**40})
    monkeypatch.setattr("benchmarks.data.cache.build.shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr("benchmarks.data.cache.pool.decode_chunk", lambda c: pytest.fail("decoded"))
    with pytest.raises(DiskFullError, match="No space left on device"):
        prepare(dataset, 128, small_disk / "cache", workers=1)  # 1.4 MB
    assert list((small_disk / "cache").iterdir()) == []
    assert os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize > 0.9 * 2**20


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(small_disk, dataset, monkeypatch, workers):
    usage = type("Usage", (), {"free": 2**40})
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.data.cache.build.shutil.disk_usage", lambda path: usage)
        patch.setattr("benchmarks.data.cache.build.reserve", lambda file: None)  # it cannot do that
        seen = []
        with pytest.raises(DiskFullError) as caught:
            prepare(
                dataset,
                128,
                small_disk / "cache",
                workers=workers,
                progress=lambda done, total: seen.append(done),
            )
        assert seen[-1] > 0, "the disk was full from the start"
    message = str(caught.value)
    assert "No space left on device; the unfinished cache is removed; make room" in message
    assert "\n" not in message
    assert list((small_disk / "cache").iterdir()) == []
    prepare(dataset, 96, small_disk / "cache", workers=workers).verify()  # 0.8 MB fit again


def test_a_disk_that_is_full_at_the_last_file_is_a_clear_error(tmp_path, dataset, monkeypatch):
    def full(path, value):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(build, "atomic_write_json", full)
    with pytest.raises(DiskFullError, match="Disk quota exceeded"):
        prepare(dataset, 16, tmp_path / "cache", workers=1)
    assert list((tmp_path / "cache").iterdir()) == []


LIMITED = """
import pickle, resource, sys
from pathlib import Path
from benchmarks.data.cache import build, prepared as cache
from methods.errors import UserError
cache.CHUNK = 4
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
seen = []
dataset = pickle.load(open(sys.argv[1], "rb"))
try:
    cache.prepare(dataset, 128, Path(sys.argv[2]), workers=int(sys.argv[3]),
                  progress=lambda done, total: seen.append(done))
except UserError as error:
    print(type(error).__name__, seen[-1] if seen else None, error)
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_limit_on_files_is_a_full_disk(tmp_path, dataset, workers):
    (tmp_path / "script.py").write_text(LIMITED)
    (tmp_path / "dataset.pkl").write_bytes(pickle.dumps(dataset))
    done = subprocess.run(
        [sys.executable, "script.py", "dataset.pkl", "cache", workers],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stderr == ""
    assert done.stdout.startswith("DiskFullError None ")
    assert "File too large" in done.stdout
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_other_failures_of_writing_keep_what_is_finished(tmp_path, dataset, monkeypatch, workers):
    made = build.Builder._layout

    def then_locked(self):
        made(self)
        (self.directory / "test.u8").unlink()  # opening it for writing fails in the process

    with monkeypatch.context() as patch:
        patch.setattr(build.Builder, "_layout", then_locked)
        patch.setattr(build.Builder, "_make_room", lambda self, pending: None)
        with pytest.raises(UserError, match=r"cannot be written: No such file or dir.* are kept"):
            prepare(dataset, 16, tmp_path / "cache", workers=workers)
    seen = []
    prepare(dataset, 16, tmp_path / "cache", workers=1, progress=lambda *a: seen.append(a[0]))
    assert seen[0] > 0

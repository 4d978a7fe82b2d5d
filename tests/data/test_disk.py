from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.data.disk import exclusive
from methods.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

HOLD = """
import sys, time
from pathlib import Path
from benchmarks.data.disk import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_at_a_time_in_a_folder_that_is_made(tmp_path):
    path, inside, most = tmp_path / "a" / "b" / "lock", [], []

    def work():
        for _ in range(20):
            with exclusive(path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80
    assert max(most) == 1


def test_its_holder_may_remove_the_folder(tmp_path):
    path, inside, most = tmp_path / "folder" / "lock", [], []

    def work():
        for _ in range(20):
            with exclusive(path):
                inside.append(1)
                most.append(len(inside))
                (path.parent / "work").write_text("x")
                time.sleep(0.0005)
                inside.pop()
                shutil.rmtree(path.parent, ignore_errors=True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80, "somebody failed"
    assert max(most) == 1, "two held locks of one name"


def test_a_killed_holder_frees_it(tmp_path):
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert holder.stdout.readline() == "held\n"
    got = threading.Event()

    def wait():
        with exclusive(path):
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(0.2)
    holder.kill()
    assert got.wait(10)
    thread.join()
    holder.wait()


def test_a_place_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere" / "lock")
    for place, message in (
        (tmp_path / "file" / "lock", "cannot be created"),
        (tmp_path / "gone", "cannot be locked"),
    ):
        with pytest.raises(UserError, match=message), exclusive(place):
            pytest.fail("it was locked")

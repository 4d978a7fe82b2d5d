"""A real Slurm for the tests marked `slurm`, started once and taken down at the end."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import grid_text
from tests.slurm.on_cluster import calm_run
from tests.slurm.site import Site

METHODS = '["zero_shot", "linear_probe", "supervised", "fixmatch", "csaa"]'
CLUSTER = Path(__file__).resolve().parents[2] / "slurm" / "cluster"


class Cluster:
    """A running cluster: `env` points every Slurm command at it."""

    def __init__(self, folder: Path, accounting: bool, line: str) -> None:
        self.folder, self.accounting, self.line = folder, accounting, line
        self.conf = shlex.split(line)[1].removeprefix("SLURM_CONF=")
        self.env = {**os.environ, "SLURM_CONF": self.conf}

    def run(self, *words: str | Path) -> str:
        """A command's standard output; a failure shows what it said."""
        done = self.attempt(*words)
        assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def attempt(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in words], env=self.env, capture_output=True, text=True, timeout=120
        )

    def node(self, action: str, name: str) -> None:
        """`kill` or `start` a node's slurmd."""
        self.run(CLUSTER / "node", "--folder", self.folder, action, name)

    def job(self, number: str) -> dict[str, str]:
        """The fields of one job as scontrol shows them."""
        words = self.run("scontrol", "show", "job", "-o", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(
                    f"not within {seconds:g} s: {what}\n{self.run('squeue')}{self.run('sinfo')}"
                )
            time.sleep(0.3)


@pytest.fixture(scope="session")
def slurm(request) -> Iterator[Cluster]:
    # Not under tmp_path: it is closed to others, and a socket's path has at most 108 characters.
    folder = Path(tempfile.mkdtemp(prefix="ssmll-slurm-", dir="/tmp"))
    accounting = os.environ.get("SSMLL_SLURM_ACCOUNTING", "on") != "off"
    words = [str(CLUSTER / "up"), "--folder", str(folder)]
    if not accounting:
        words.append("--no-accounting")
    # Only who asked for these tests (`-m slurm`) gets packages installed.
    asked = request.config.getoption("markexpr")
    if "slurm" not in asked or "not slurm" in asked:
        words.append("--no-install")
    try:
        up = subprocess.run(words, capture_output=True, text=True, timeout=540)
        if up.returncode == 2:
            pytest.skip(f"no Slurm: {up.stderr.strip()}")
        assert up.returncode == 0, up.stderr
        yield Cluster(folder, accounting, up.stdout)
    finally:
        down = subprocess.run(
            [str(CLUSTER / "down"), "--folder", str(folder)], capture_output=True, text=True
        )
        assert down.returncode == 0, down.stderr


@pytest.fixture(autouse=True)
def _empty_queue(request) -> Iterator[None]:
    """No test finds the jobs or the lost nodes of another."""
    yield
    if "slurm" not in request.fixturenames:
        return
    cluster: Cluster = request.getfixturevalue("slurm")
    cluster.run("scancel", "--user=root")
    for name in cluster.run("sinfo", "-h", "-p", "low", "-N", "-o", "%N").split():
        cluster.node("start", name)
    cluster.wait(lambda: not cluster.run("squeue", "-h"), "an empty queue")
    cluster.wait(lambda: set(cluster.run("sinfo", "-h", "-o", "%T").split()) == {"idle"}, "idle nodes")


@pytest.fixture(scope="session")
def small(tmp_path_factory, voc_root) -> Path:
    folder = tmp_path_factory.mktemp("grids")
    path = folder / "small.toml"
    path.write_text(grid_text(voc_root, METHODS).replace("seeds = [1]", "seeds = [1, 2]"))
    return path


@pytest.fixture(scope="session")
def long(tmp_path_factory, voc_root) -> Path:
    """Two runs that last long enough to be interrupted."""
    path = tmp_path_factory.mktemp("grids") / "long.toml"
    text = grid_text(voc_root, '["csaa"]', epochs=30, eval_every=30)
    path.write_text(text.replace("seeds = [1]", "seeds = [1, 2]"))
    return path


@pytest.fixture(scope="session")
def calm(tmp_path_factory, small) -> Path:
    return calm_run(tmp_path_factory.mktemp("calm"), small)


@pytest.fixture(scope="session")
def calm_long(tmp_path_factory, long) -> Path:
    return calm_run(tmp_path_factory.mktemp("calm-long"), long)


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    made = Site(tmp_path / "bin")
    made.use(monkeypatch)
    return made

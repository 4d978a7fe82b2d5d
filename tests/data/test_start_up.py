"""Opening a dataset, drawing a split and finding a cache work without torch, which takes seconds to load."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

SCRIPT = """
import sys
from pathlib import Path

import benchmarks.data.archives.catalogue
from benchmarks.data.cache.prepared import prepare
from benchmarks.data.registry import DatasetSpec, open_dataset
from benchmarks.data.splits.files import SplitRecord, keep
from benchmarks.data.splits.rules import draw

folder = Path(sys.argv[1])
spec = DatasetSpec("voc2007", allow_counts=True)
dataset = open_dataset(spec, folder)
prepare(dataset, 8, folder / "cache", workers=1)
labelled = draw(dataset, "published", 0.5, 1).labelled
keep(folder / "splits", SplitRecord.of(dataset, spec.table(), "published", 0.5, 1, labelled))

from benchmarks import run

code = run.main(["splits", "verify", "--data", str(folder)])
print(code, "torch" in sys.modules)
"""


def test_torch_is_not_loaded(tmp_path, small_voc):
    small_voc("2007")
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert ended.stdout.splitlines()[-1] == "0 False", ended.stderr

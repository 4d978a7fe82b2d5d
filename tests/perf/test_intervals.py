"""`perf intervals`: it resamples what it says."""

from __future__ import annotations

import json

from benchmarks.perf.__main__ import main


def test_what_was_measured_is_said(capsys):
    arguments = ["intervals", "--images", "300", "--classes", "5", "--methods", "3", "--resamples", "40"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["classes"], found["methods"], found["resamples"]) == (300, 5, 3, 40)
    assert min(found["seconds"], found["processor"], found["memory"]) > 0
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("3 matrices of 300 × 5, 40 resamples: 0 s (")

"""The measurement of learnt prompts at a small size."""

from __future__ import annotations

import json

from benchmarks.perf import prompts as perf
from benchmarks.perf.__main__ import main


def test_the_json_line_has_every_figure(capsys):
    words = ["--json", "--backbone", "glyphclip", "--length", "4", "--rounds", "2"]
    assert main(["prompts", *words]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["ratio"] == found["full_ms"] / found["tree_ms"] > 1
    assert found["difference"] < 1e-5 * found["scale"]
    assert found["tokens"] < found["cut_tokens"]
    assert (found["classes"], found["length"], len(found["ratios"])) == (20, 4, 2)
    table = perf.table(found)
    assert f"ratio {found['ratio']:.1f}" in table
    assert f"{found['tokens']} tokens" in table


def test_other_towers_are_refused(capsys):
    assert main(["prompts", "--backbone", "torchvision/resnet18"]) == 2
    assert "has no causal text tower" in capsys.readouterr().err

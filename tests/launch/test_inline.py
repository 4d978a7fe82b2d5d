"""`--launcher inline`: runs are executed by the process that was called, where a debugger's prompt works."""

from __future__ import annotations

import os
import subprocess

from tests.conftest import grid_text

METHOD = '''
import os

from methods.registry import register
from methods.supervised import Supervised


@register
class Halting(Supervised):
    """It stops once for whoever looks."""

    name = "halting"
    halted = False

    def training_step(self, batch):
        if not Halting.halted:
            Halting.halted = True
            breakpoint()
        return super().training_step(batch)
'''


def test_a_breakpoint_in_a_method_asks_at_the_terminal(command, tmp_path, voc_root):
    (tmp_path / "halting.py").write_text(METHOD)
    grid = tmp_path / "grid.toml"
    text = grid_text(voc_root, '["halting"]')
    grid.write_text(text.replace("[override]", 'modules = ["halting.py"]\n[override]'))
    words = command.arguments("--grid", str(grid), "--launcher", "inline", "--no-plots")
    done = subprocess.run(
        words,
        input="print('pid', os.getpid(), os.getppid(), len(batch.labelled))\ncontinue\n",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "pid" in line)
    _, _, parent, images = line.split("(Pdb)")[-1].split()
    assert (int(parent), int(images)) == (os.getpid(), 12)  # no worker in between
    assert "\nhalting " in done.stdout
    assert len(list((command.runs / "store").glob("tiny/halting/*/result.json"))) == 1


def test_it_is_one_process(command, tmp_path, voc_root):
    grid = tmp_path / "grid.toml"
    grid.write_text(grid_text(voc_root, '["zero_shot"]'))
    for flag in ("--workers", "--processes"):
        _, err = command("--grid", str(grid), "--launcher", "inline", flag, "2", code=2)
        assert "error: --launcher inline is this process alone: leave --workers and --processes out" in err

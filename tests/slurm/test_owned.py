"""Jobs that wait run what was launched: grid, recipe and modules may be edited, broken or gone meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, grid_text
from tests.slurm.on_cluster import OnCluster, results

pytestmark = pytest.mark.slurm

MINE = """
from methods import register
from methods.zero_shot import ZeroShot
from sign_of_mine import SIGN


@register
class Mine(ZeroShot):
    name = "mine"

    def predict(self, features):
        from late_of_mine import FACTOR

        return SIGN * FACTOR * super().predict(features)
"""


def wait_for(condition, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(1.0)


def test_what_is_edited_while_jobs_wait_changes_nothing(slurm, tmp_path, voc_root):
    folder = tmp_path / "own"
    folder.mkdir()
    files = {
        "mine.py": MINE,
        "sign_of_mine.py": "SIGN = 1.0\n",
        "late_of_mine.py": "FACTOR = 1.0\n",
        "recipe.toml": (ROOT / "benchmarks" / "recipes" / "embedded.toml").read_text(),
    }
    text = grid_text(voc_root, '["mine", "zero_shot"]').replace('"embedded"', '"recipe.toml"')
    files["own.toml"] = 'modules = ["mine.py"]\n' + text
    for name, content in files.items():
        (folder / name).write_text(content)
    command = OnCluster(tmp_path, slurm, folder / "own.toml", more="[extra]\nhold = true\n")
    command("prepare", "--grid", str(command.grid))
    command.launch("--yes")
    held = [line[0] for line in command.queue()]
    assert held
    for name in ("mine.py", "recipe.toml"):
        (folder / name).write_text("broken [\n")
    (folder / "sign_of_mine.py").write_text("SIGN = -1.0\n")
    (folder / "late_of_mine.py").unlink()
    out, _ = command.call("status")
    assert (
        "runs its own copies: late_of_mine.py, mine.py, recipe.toml, sign_of_mine.py were edited since" in out
    )
    (folder / "own.toml").unlink()
    for job in {job.partition("_")[0] for job in held}:
        slurm.run("scontrol", "release", job)
    wait_for(lambda: not command.queue())
    scores = command.predictions()
    assert len(scores) == 2
    assert len(set(scores.values())) == 1, "the edited sign was used"
    for result in results(command.runs):
        assert result["provenance"]["recipe"]["file"] == "recipe.toml"
        assert not list(Path(command.runs).rglob("failure.json"))

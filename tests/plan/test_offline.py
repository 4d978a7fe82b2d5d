"""A grid whose weights, tokenizer and text encoder lie on the hub: `prepare` fetches, then no run needs it.

The hub is a server of this test, and the model one of a few thousand parameters that the grid's own module
tells open_clip of.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.conftest import ROOT, grid_text
from tests.hub import BERT, COMMIT, MODEL, Hub, bert_files

MODULE = """
import json
from pathlib import Path

import open_clip
from open_clip import pretrained

folder = Path(__file__).parent
open_clip.add_model_config(folder / "words-bert.json")
pretrained._PRETRAINED["words-bert"] = {"small": dict(hf_hub="words/weights/", quick_gelu=False)}
"""
CLOSED = "http://127.0.0.1:9"


def weights(folder: Path) -> bytes:
    """A state dict of the model, made in another process, where its text encoder is not from the hub."""
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text(json.dumps(BERT))
    import open_clip

    text = {**MODEL["text_cfg"], "hf_model_name": str(folder / "bert"), "hf_model_pretrained": False}
    torch.manual_seed(3)
    model = open_clip.CustomTextCLIP(MODEL["embed_dim"], MODEL["vision_cfg"], text)
    return save({name: value.contiguous() for name, value in model.state_dict().items()})


@pytest.mark.slow
def test_prepare_brings_all_that_a_run_without_a_network_needs(tmp_path, voc_root):
    content = weights(tmp_path)
    hub = Hub(
        {
            ("words/weights", "open_clip_model.safetensors"): content,
            **{("words/bert", name): each for name, each in bert_files().items()},
        }
    )
    (tmp_path / "words-bert.json").write_text(json.dumps(MODEL))
    (tmp_path / "words_bert.py").write_text(MODULE)
    text = grid_text(voc_root, '["zero_shot", "linear_probe"]')
    backbone = (
        'backbone = { name = "open_clip/words-bert", weights = "small" }\nmodules = ["words_bert.py"]\n'
    )
    (tmp_path / "mine.toml").write_text(backbone + text)

    def call(*words: str, endpoint: str, code: int = 0) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "run.py"), *words, "--data", "data", "--runs", "runs"],
            cwd=tmp_path,
            env={
                **os.environ,
                "HF_HOME": str(tmp_path / "hf"),
                "HF_ENDPOINT": endpoint,
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done.stdout, done.stderr

    out, _ = call("--grid", "mine.toml", "--dry-run", endpoint=CLOSED)
    assert out.startswith("grid mine: 2 runs (2 unknown)")
    for missing in (
        "weights 'small' of open_clip/words-bert are not here: `prepare --grid mine.toml --weights` fetches",
        "the tokenizer 'words/bert' of open_clip/words-bert is not here: `prepare --grid mine.toml --w",
        "the text configuration 'words/bert' of open_clip/words-bert is not here",
    ):
        assert missing in out
    assert not (tmp_path / "hf").exists()

    out, _ = call("prepare", "--grid", "mine.toml", "--weights", endpoint=hub.endpoint)
    fetched = [path for method, path in map(str.split, hub.asked) if method == "GET" and "resolve" in path]
    assert any(path.endswith("open_clip_model.safetensors") for path in fetched)
    lines = {line.split(": ")[0]: line for line in out.splitlines()}
    digest = hashlib.sha256(content).hexdigest()
    assert f"{len(content)} bytes, sha256 {digest}" in lines["weights of open_clip/words-bert (small)"]
    tokenizer = [line for line in out.splitlines() if line.startswith("tokenizer words/bert of ")]
    assert {Path(line.split(": ")[1].split(",")[0]).name for line in tokenizer} == set(bert_files())
    assert all(COMMIT in line for line in tokenizer)

    hub.asked.clear()
    again, _ = call("prepare", "--grid", "mine.toml", "--weights", endpoint=hub.endpoint)
    assert again == out
    assert hub.asked == []
    hub.close()
    out, err = call("--grid", "mine.toml", "--no-plots", endpoint=CLOSED)
    assert "zero_shot" in out
    assert "Retrying" not in err
    assert "Connection refused" not in err
    results = [json.loads(file.read_text()) for file in (tmp_path / "runs").glob("store/*/*/*/result.json")]
    assert len(results) == 2
    assert {each["spec"]["backbone"]["weights_sha256"] for each in results} == {digest}

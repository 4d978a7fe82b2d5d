"""`plan` and `--dry-run` make nothing, and say what is known, unknown and missing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.splits.rules import split_digest
from benchmarks.plan import grid
from benchmarks.run import main
from methods.backbones.hub import parts
from methods.backbones.open_clip_models import cached_tag_file, tag_file
from methods.backbones.spec import BackboneSpec
from methods.errors import UserError
from tests.conftest import grid_text
from tests.hub import fill, tokenizer_files
from tests.slurm.site import Site

SIGLIP = BackboneSpec("open_clip/ViT-B-16-SigLIP")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the Hugging Face hub, and no network."""
    import huggingface_hub.constants as constants
    import huggingface_hub.file_download as file_download

    folder = tmp_path / "hub"

    def lookup(repository: str, name: str) -> str | None:
        return original(repository, name, cache_dir=folder)

    original = file_download.try_to_load_from_cache
    monkeypatch.setattr(file_download, "try_to_load_from_cache", lookup)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("socket.getaddrinfo", _no_network)
    return folder


def _no_network(*args: object, **kwargs: object) -> None:
    raise AssertionError("the network is asked")


@pytest.mark.parametrize("words", [["--grid", "full", "--dry-run"], ["plan", "--grid", "full"]])
def test_an_empty_folder_stays_empty_and_all_is_unknown(tmp_path, monkeypatch, capsys, hub, words):
    place = tmp_path / "empty"
    place.mkdir()
    monkeypatch.chdir(place)
    assert main([*words, "--data", "data", "--runs", "runs"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("grid full: 1404 runs (1404 unknown)")
    rows = [line for line in out.splitlines() if line.startswith("csaa ")]
    assert [row.count("3 unknown") for row in rows] == [4, 4, 4]
    assert all(row.endswith(" unknown") for row in rows)  # the cost
    for name in ("voc2012", "coco2014"):
        assert f"prepare {name} --root data/{name} --download" in out
    assert "weights 'openai' of open_clip/RN101 are not here: `prepare --grid full --weights`" in out
    assert list(place.iterdir()) == []


def test_verbose_lists_the_runs(tmp_path, capsys, hub):
    places = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    assert main(["plan", "--grid", "full", "--methods", "csaa", "--seeds", "2", "--verbose", *places]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("unknown  ")]
    assert len(lines) == 12
    assert any("csaa · nuswide p=0.15 seed=2" in line for line in lines)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('[{ name = "csaa", hyper = { num_contexts = 21 } }]', "num_contexts is 21"),
        (
            '[{ name = "dualcoop", backbone = "open_clip/ViT-B-32", hyper = { locations = "code" } }]',
            "dualcoop.locations",
        ),
    ],
)
def test_the_classes_of_an_absent_dataset_are_counted(tmp_path, capsys, rows, message):
    file = tmp_path / "mine.toml"
    file.write_text(
        f'datasets = ["voc2012"]\nratios = [0.5]\nseeds = [1]\nmethods = {rows}\nrecipe = "embedded"\n'
    )
    assert main(["--grid", str(file), "--dry-run", "--data", str(tmp_path), "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: mine.toml, ")
    assert message in error


def test_what_is_prepared_has_a_state(tmp_path, voc_root, capsys):
    file = tmp_path / "mine.toml"
    absent = '{ name = "voc2012" }'
    text = grid_text(voc_root, '["zero_shot", "linear_probe"]').replace("}]", f"}}, {absent}]")
    file.write_text(text)
    places = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    main(["prepare", "--grid", str(file), *places])
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["plan", "--grid", str(file), *places]) == 0
    out = capsys.readouterr().out
    assert out.startswith("grid mine: 4 runs (2 not started, 2 unknown)")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hub_tokenizer_is_found_missing_and_present(tmp_path, hub):
    (part,) = parts(SIGLIP)
    assert (part.what, part.repository, part.files()) == ("tokenizer", "timm/ViT-B-16-SigLIP", ())
    fill(hub, part.repository, {"tokenizer_config.json": b"{}"}, ["config.json"])
    assert part.files() == ()  # a configuration alone is no tokenizer
    file = fill(hub, part.repository, {"tokenizer.json": b"{}"}) / "tokenizer.json"
    assert file in part.files()
    text = parts(BackboneSpec("open_clip/roberta-ViT-B-32"))
    assert [each.what for each in text] == ["tokenizer", "text configuration"]
    assert parts(BackboneSpec("open_clip/RN101")) == ()


def test_a_dry_run_says_what_keeps_a_downloaded_tokenizer_from_loading_offline(
    tmp_path, voc_root, capsys, hub
):
    """`hf download` of a repository without config.json makes no note of that; transformers needs one."""
    (tmp_path / "r.toml").write_text(
        '[backbone]\nname = "open_clip/ViT-B-16-SigLIP"\n[recipe]\nresolution = 224\n'
    )
    text = (
        grid_text(voc_root, '["zero_shot"]').replace('"embedded"', '"r.toml"').replace("resolution = 64", "")
    )
    (tmp_path / "mine.toml").write_text(text)
    words = [
        "--grid",
        str(tmp_path / "mine.toml"),
        "--dry-run",
        "--data",
        str(tmp_path),
        "--runs",
        str(tmp_path),
    ]
    said = "the tokenizer 'timm/ViT-B-16-SigLIP' of open_clip/ViT-B-16-SigLIP is not here"
    for files, absent, expected in (
        ({}, (), f"{said}: `prepare --grid "),
        (tokenizer_files(), (), f"{said} as a whole: the cache has neither config.json nor a note"),
        ({}, ("config.json",), ""),
    ):
        fill(hub, "timm/ViT-B-16-SigLIP", files, absent)
        assert main(words) == 0
        out = capsys.readouterr().out
        assert expected in out
        assert bool(expected) == (said in out)


def test_a_dry_run_fetches_no_weights_with_a_wrong_checksum(tmp_path, monkeypatch, capsys, hub, voc_root):
    """open_clip downloads a tag's file anew when its checksum is another one; a plan says that it lacks."""
    url = f"https://openaipublic.azureedge.net/clip/models/{'0' * 64}/RN101.pt"
    entry = {"url": url, "quick_gelu": True}
    monkeypatch.setattr("methods.backbones.open_clip_models.tag_entry", lambda model, tag: entry)
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / ".cache" / "clip" / "RN101.pt"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"cut off")
    backbone = 'backbone = { name = "open_clip/RN101", weights = "openai" }'
    file = tmp_path / "mine.toml"
    file.write_text(backbone + grid_text(voc_root, '["zero_shot"]'))
    places = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    assert main(["prepare", "--grid", str(file), *places]) == 0
    assert main(["plan", "--grid", str(file), *places]) == 0
    out = capsys.readouterr().out
    assert (
        f"weights 'openai' of open_clip/RN101 are not here: `prepare --grid {file} --weights` fetches" in out
    )
    assert url in out
    assert place.read_bytes() == b"cut off"


def test_a_tag_in_the_cache_needs_no_network(hub):
    spec = BackboneSpec("open_clip/RN101", "openai")
    assert cached_tag_file(spec) is None
    name = "open_clip_model.safetensors"
    file = fill(hub, "timm/resnet101_clip.openai", {name: b"weights"}) / name
    assert tag_file(spec) == file


def test_prepare_lists_weights_with_their_hash(tmp_path, capsys, voc_root):
    file = tmp_path / "mine.toml"
    file.write_text(grid_text(voc_root, '["zero_shot"]'))
    places = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    assert main(["prepare", "--grid", str(file), "--weights", *places]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    weights = Path(line.split(": ")[1].split(",")[0])
    content = weights.read_bytes()
    assert f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}" in line
    assert main(["prepare", "voc2012", "--weights", *places]) == 2
    assert "add --grid NAME" in capsys.readouterr().err


def test_paths_start_at_the_file_that_they_are_written_in(tmp_path, monkeypatch):
    (tmp_path / "grids").mkdir()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.toml").write_text(
        '[backbone]\nname = "glyphclip"\nweights = "w.safetensors"\n'
    )
    (tmp_path / "grids" / "g.toml").write_text(
        'datasets = [{ name = "csv", root = "../x", train = "a.csv", split = "l/{seed}.txt" }]\n'
        'ratios = [0.5]\nseeds = [1]\nmethods = ["zero_shot"]\nrecipe = "../recipes/r.toml"\n'
    )
    for folder in (tmp_path, tmp_path / "grids"):
        monkeypatch.chdir(folder)
        (cell,) = grid.load(str(tmp_path / "grids" / "g.toml")).cells
        assert cell.dataset.root == str(tmp_path / "x")
        assert cell.dataset.train == "a.csv"  # at the root
        assert cell.dataset.split == str(tmp_path / "grids" / "l" / "{seed}.txt")
        assert cell.backbone.weights == str(tmp_path / "recipes" / "w.safetensors")


def test_a_tag_does_not_depend_on_the_files_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "openai").write_text("no weights")
    monkeypatch.chdir(tmp_path)
    assert grid.load("full").cells[0].backbone.file is None
    with pytest.raises(UserError, match="no pretrained tag 'opanai'"):
        cached_tag_file(BackboneSpec("open_clip/RN101", "opanai"))


@pytest.mark.parametrize("prepared", [True, False])
def test_a_dry_run_holds_split_files_against_what_their_rules_draw(tmp_path, voc_root, capsys, prepared):
    """Prepared or not: a file that is stale, of another rule's subset, or damaged is found before the run."""
    file = tmp_path / "mine.toml"
    file.write_text(grid_text(voc_root, '["zero_shot"]').replace("seeds = [1]", "seeds = [1, 2, 3]"))
    places = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    if prepared:
        assert main(["prepare", "--grid", str(file), *places]) == 0
    assert main(["splits", "write", "--grid", str(file), "--data", str(tmp_path / "data")]) == 0
    capsys.readouterr()
    assert main(["plan", "--grid", str(file), *places]) == 0
    first, second, third = sorted((tmp_path / "data" / "splits").rglob("*.json"))
    stale = json.loads(first.read_text())
    stale["labelled"][:2], stale["ids"][:2] = stale["labelled"][1::-1], stale["ids"][1::-1]
    stale["sha256"] = split_digest(np.array(stale["labelled"]))
    first.write_text(json.dumps(stale))
    second.write_text(third.read_text())
    third.write_text(third.read_text()[:-200])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for verb in (["plan"], ["run", "--dry-run"]):
        assert main([*verb, "--grid", str(file), *places]) == 2
        out, err = capsys.readouterr()
        assert out.startswith(f"grid mine: 3 runs (3 {'not started' if prepared else 'unknown'})")
        lines = err.splitlines()
        assert len(lines) == 3
        assert f"{first} differs from what the rule 'published' draws now: labelled image 1 is" in lines[0]
        assert f"{second} differs from what the rule 'published' draws now: seed is 3 in the file" in lines[1]
        assert f"{third}: not valid JSON" in lines[2]
        assert all("remove" in line for line in lines)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("budget", ['"30 images"', '"4 per class"'])
def test_split_files_of_budgets_are_looked_at_too(tmp_path, voc_root, capsys, budget):
    file = tmp_path / "mine.toml"
    text = grid_text(voc_root, '["zero_shot"]').replace("[0.5]", f"[{budget}]")
    file.write_text(text.replace("seeds = [1]", "seeds = [1]\nsplit_seeds = [4]"))
    places = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    assert main(["splits", "write", "--grid", str(file), "--data", str(tmp_path / "data")]) == 0
    assert main(["plan", "--grid", str(file), *places]) == 0
    (split,) = (tmp_path / "data" / "splits").rglob("*seed4.json")
    split.write_text(split.read_text().replace('"seed": 4', '"seed": 5').replace('"seed":4', '"seed":5'))
    capsys.readouterr()
    assert main(["plan", "--grid", str(file), *places]) == 2
    assert f"split file {split} differs" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["plan"], ["run", "--dry-run"], ["retry", "--dry-run"]])
@pytest.mark.parametrize("half", [False, True])
def test_a_plan_for_a_cluster_prints_the_same_matrix(tmp_path, monkeypatch, capsys, voc_root, words, half):
    """Images that are not cached are no error; what a launch would submit is printed as far as known."""
    Site(tmp_path / "bin").use(monkeypatch)
    file = tmp_path / "mine.toml"
    text = grid_text(voc_root, '["zero_shot", "linear_probe"]')
    dataset = text.partition("datasets = [")[2].partition("]\n")[0]
    other = dataset.replace('"tiny"', '"other"').replace('"car", ', "")
    file.write_text(text.replace(dataset, f"{dataset}, {other}"))
    (tmp_path / "profile.toml").write_text('gpus = 0\ncpus = 1\nminutes = 30\npartition = "gpu"\n')
    places = ["--grid", str(file), "--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    cluster = ["--launcher", "slurm", "--profile", str(tmp_path / "profile.toml")]
    if half:
        file.write_text(text)
        assert main(["prepare", *places[:4]]) == 0
        file.write_text(text.replace(dataset, f"{dataset}, {other}"))
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    assert main([*words, *places]) == 0
    here = capsys.readouterr().out
    assert main([*words, *places, *cluster]) == 0
    there = capsys.readouterr().out
    assert there.startswith(here.rstrip("\n"))
    added = there[len(here.rstrip("\n")) :]
    unknown = "2 of 4" if half else "4 of 4"
    assert f"{unknown} runs have no identity yet" in added
    assert "A launch has a job cache the images first" in added
    rows = [line.split() for line in added.splitlines() if line.startswith("tiny")]
    submitted = "0" if words[0] == "retry" else "1"
    assert [row[1:6] for row in rows] == (
        [[name, "1", "0", "0", submitted] for name in ("zero_shot", "linear_probe")] if half else []
    )
    made = {"squeue.calls", "bin"}
    assert [
        path for path in sorted(tmp_path.rglob("*")) if path not in before and path.name not in made
    ] == []
    if words == ["plan"]:
        assert main([*words, *places, *cluster, "--save", str(tmp_path / "plan.json")]) == 2
        assert (
            f"--save needs the identities of all runs, and {unknown} runs have none"
            in capsys.readouterr().err
        )


def test_no_job_caches_images_for_weights_that_are_absent(tmp_path, monkeypatch, capsys, voc_root):
    """A launch would fail after the job, on the login node, which fetches weights."""
    site = Site(tmp_path / "bin")
    site.use(monkeypatch)
    file = tmp_path / "mine.toml"
    backbone = 'backbone = { name = "open_clip/RN101", weights = "absent.safetensors" }\n'
    file.write_text(backbone + grid_text(voc_root, '["zero_shot"]'))
    (tmp_path / "profile.toml").write_text('gpus = 0\ncpus = 1\nminutes = 30\npartition = "gpu"\n')
    places = ["--grid", str(file), "--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    assert (
        main(["run", *places, "--launcher", "slurm", "--profile", str(tmp_path / "profile.toml"), "--yes"])
        == 2
    )
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: weights file {tmp_path / 'absent.safetensors'} does not exist"
    assert not [call for call in site.calls("sbatch") if call != "--version"]

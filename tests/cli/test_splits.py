"""`splits write` and `splits verify` on a tiny VOC tree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.registry import DatasetSpec, open_dataset
from benchmarks.data.splits.rules import draw, split_digest
from benchmarks.run import parser
from methods.errors import UserError
from tests.conftest import grid_text


def call(*argv: object) -> int:
    args = parser()[0].parse_args(["splits", *map(str, argv)])
    return args.execute(args)


def write(voc_root: Path, data: Path, *words: object) -> int:
    return call("write", "voc2007", "--root", voc_root, "--allow-counts", "--data", data, *words)


def opened(voc_root: Path, split: str = "published"):
    spec = DatasetSpec("voc2007", root=str(voc_root), allow_counts=True, split=split)
    return open_dataset(spec, Path("absent"))


def test_write_draws_prints_and_leaves_files(tmp_path, voc_root, capsys):
    assert write(voc_root, tmp_path, "--ratios", 0.1, 0.5, "--seeds", 1, 2) == 0
    out, err = capsys.readouterr()
    header, *rows = out.splitlines()
    assert header.split() == ["dataset", "rule", "ratio", "seed", "labelled", "absent", "classes", "sha256"]
    dataset = opened(voc_root)
    assert len(rows) == 4
    for row, (ratio, seed) in zip(rows, ((0.1, 1), (0.1, 2), (0.5, 1), (0.5, 2)), strict=True):
        labelled = draw(dataset, "published", ratio, seed).labelled
        cells = row.split()
        assert cells[:5] == ["voc2007", "published", f"{ratio:g}", str(seed), str(len(labelled))]
        assert cells[-1] == split_digest(labelled)[:16]
        shown = dataset.train.labels[labelled].any(axis=0)
        absent = [name for name, seen in zip(dataset.classes, shown, strict=True) if not seen]
        assert f"{', '.join(absent[:5])} and {len(absent) - 5} more" in row  # 17 classes are empty
        file = tmp_path / "splits" / f"voc2007-{dataset.digest[:12]}"
        content = json.loads((file / f"published-p{ratio}-seed{seed}.json").read_text())
        assert content["labelled"] == labelled.tolist()
    assert f"files are in {tmp_path / 'splits'}" in err


def test_the_defaults_are_the_published_ratios_and_seed(tmp_path, voc_root):
    write(voc_root, tmp_path)
    names = sorted(path.name for path in (tmp_path / "splits").rglob("*.json"))
    assert names == [f"published-p{ratio}-seed1.json" for ratio in ("0.05", "0.1", "0.15", "0.2")]


def test_written_files_verify_until_one_changes(tmp_path, voc_root, capsys):
    write(voc_root, tmp_path, "--ratios", 0.2)
    write(voc_root, tmp_path, "--ratios", 0.2, "--rule", "stratified")
    write(voc_root, tmp_path, "--ratios", 0.2)  # again, which changes nothing
    capsys.readouterr()
    assert call("verify", "--data", tmp_path) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("ok: ") for line in lines)
    assert "names not compared" not in out
    assert "2 split files, 0 of them differ" in err

    file = next((tmp_path / "splits").rglob("stratified-*.json"))
    content = json.loads(file.read_text())
    for key in ("labelled", "ids"):
        content[key][:2] = content[key][1::-1]
    content["sha256"] = split_digest(np.array(content["labelled"]))
    file.write_text(json.dumps(content))
    assert call("verify", "--data", tmp_path) == 1
    out, err = capsys.readouterr()
    good, bad = out.splitlines()
    assert good.startswith("ok: ")
    assert bad.startswith(f"differs: {file}: voc2007, stratified, ratio 0.2, seed 1: 18 of 90: ")
    assert "labelled image 1 is" in bad
    with pytest.raises(UserError, match="differs from what the rule 'stratified' draws now"):
        write(voc_root, tmp_path, "--ratios", 0.2, "--rule", "stratified")


def test_verify_takes_files_and_folders_and_needs_some(tmp_path, voc_root, capsys):
    write(voc_root, tmp_path, "--ratios", 0.2, 0.5)
    one, two = sorted((tmp_path / "splits").rglob("*.json"))
    capsys.readouterr()
    assert call("verify", one, two, one.parent, "--data", tmp_path) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert call("verify", two, "--data", tmp_path / "elsewhere") == 0
    assert capsys.readouterr().out.count("ok: ") == 1
    (tmp_path / "empty").mkdir()
    for wrong in ("empty", "absent", "absent.json"):
        with pytest.raises(UserError, match=rf"no split file in .*{wrong}; write some"):
            call("verify", tmp_path / wrong, "--data", tmp_path)


def test_a_grid_names_its_splits(tmp_path, voc_root, capsys):
    grid = tmp_path / "grid.toml"
    text = grid_text(voc_root, '["linear_probe", "supervised"]')
    grid.write_text(text.replace("seeds = [1]", "seeds = [1, 2]"))
    assert call("write", "--grid", grid, "--data", tmp_path) == 0
    names = sorted(path.name for path in (tmp_path / "splits").rglob("*.json"))
    assert names == ["published-p0.5-seed1.json", "published-p0.5-seed2.json"]
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert call("write", "--grid", grid, "--seeds", 2, "--data", tmp_path / "b") == 0
    assert len(list((tmp_path / "b").rglob("*.json"))) == 1
    assert call("write", "--grid", grid, "--split-seeds", 1, "--data", tmp_path / "c") == 0
    assert [path.name for path in (tmp_path / "c").rglob("*.json")] == ["published-p0.5-seed1.json"]
    assert call("verify", "--data", tmp_path) == 0  # with the grid's classes and alias

    stratified = grid_text(voc_root, '["linear_probe"]').replace(
        "allow_counts", 'split = "stratified", allow_counts'
    )
    grid.write_text(stratified)
    capsys.readouterr()
    call("write", "--grid", grid, "--data", tmp_path)
    assert "tiny     stratified  0.5" in capsys.readouterr().out
    grid.write_text(stratified.replace("allow_counts", "skip_bad = true, allow_counts"))
    with pytest.raises(UserError, match=r"'tiny' leaves unreadable images out \(skip_bad\)"):
        call("write", "--grid", grid, "--data", tmp_path)


def test_a_users_list_is_shown_and_not_written(tmp_path, voc_root, capsys):
    (tmp_path / "mine.json").write_text(json.dumps(list(range(45))))
    grid = tmp_path / "grid.toml"
    grid.write_text(
        grid_text(voc_root, '["linear_probe"]').replace(
            "allow_counts", f'split = "{tmp_path}/mine.json", allow_counts'
        )
    )
    call("write", "--grid", grid, "--data", tmp_path)
    out = capsys.readouterr().out
    assert f"{tmp_path}/mine.json" in out
    assert split_digest(np.arange(45))[:16] in out
    assert not (tmp_path / "splits").exists()


def test_bad_usage_is_one_clear_line(tmp_path, voc_root):
    for words, message in (
        ((), "name either a dataset or a --grid"),
        (("voc2007", "--grid", "demo"), "name either a dataset or a --grid"),
        (("voc2008",), "did you mean 'voc200"),
        (("--grid", "demo", "--rule", "stratified"), "--rule belongs to a dataset in the grid"),
        (("--grid", "demo", "--root", "x"), "--root belongs to a dataset in the grid"),
        (("--grid", "demo", "--seeds", "9"), "grid 'demo' has no seed 9"),
        (("voc2007", "--split-seeds", "1"), "--split-seeds goes with --grid; for a dataset write --seeds"),
        (("voc2007",), "is not in"),
    ):
        with pytest.raises(UserError, match=message):
            call("write", *words, "--data", tmp_path)
    with pytest.raises(UserError, match=r"ratio 0\.001 of 90 training images is no labelled image"):
        write(voc_root, tmp_path, "--ratios", 0.001, "--rule", "stratified")
    (tmp_path / "splits").write_text("in the way")
    with pytest.raises(UserError, match=r"published-p0\.5-seed1\.json: cannot be written: "):
        write(voc_root, tmp_path, "--ratios", 0.5)

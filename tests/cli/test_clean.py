"""`clean`: it says what takes room, deletes what is asked, and never a result or what somebody works with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.run import main
from benchmarks.status import room
from benchmarks.workspace import Workspace
from results.store import RunStore


def spec(seed: int) -> dict:
    return {"dataset": {"alias": "tiny"}, "method": "cap", "ratio": 0.05, "seed": seed}


def fill(path: Path, size: int = 9000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


@pytest.fixture
def place(tmp_path):
    """Caches and stages, finished and not, a stopped and a finished run, copied code."""
    work = Workspace(tmp_path / "data", tmp_path / "runs")
    fill(work.cache / "tiny-0123-64" / "train.bin")
    (work.cache / "tiny-0123-64" / "meta.json").write_text("{}")
    fill(work.cache / "tiny-4567-64" / "train.bin")
    fill(work.cache / "sources" / "tiny.json")
    stages = RunStore(work.stages)
    for name in ("warmup-aaaa", "warmup-bbbb"):
        lease = stages.claim(work.stages / name, {"kind": "warmup"})
        lease.release()
    fill(work.stages / "warmup-aaaa" / "model.safetensors")
    (work.stages / "warmup-aaaa" / "stage.json").write_text("{}")
    fill(work.stages / "warmup-bbbb" / "checkpoints" / "3.000001" / "model.safetensors")
    for seed, files in (
        (1, ["checkpoints/2.000001/x"]),
        (2, ["result.json", "predictions.npz", "model.safetensors"]),
    ):
        run = work.store.directory(f"{seed}" * 64, spec(seed))
        work.store.claim(run, spec(seed)).release()
        for file in [*files, "epochs.jsonl"]:
            fill(run / file)
    fill(work.runs / "slurm" / "code" / "abc" / "benchmarks" / "run.py")
    return work


def command(work: Workspace, *words: str) -> int:
    return main(["clean", "--data", str(work.data), "--runs", str(work.runs), *words])


def everything(work: Workspace) -> set[str]:
    return {
        path.relative_to(work.runs.parent).as_posix()
        for path in work.runs.parent.rglob("*")
        if path.is_file()
    }


NAMES = [
    "caches/tiny-0123-64",
    "stages/warmup-aaaa",
    "checkpoints/stages/warmup-bbbb",
    "checkpoints/tiny/cap/p0.05-s1-1111111111111111",
    "snapshots/code/abc",
    "weights/tiny/cap/p0.05-s2-2222222222222222",
]


def test_what_takes_room_is_listed_with_what_it_takes_on_the_disk(place, capsys):
    before = everything(place)
    assert command(place, "--all") == 0
    out = capsys.readouterr().out
    assert everything(place) == before
    found = room.items(place, [])
    assert sorted(item.name for item in found) == sorted(NAMES)
    assert all(name in out for name in NAMES)
    assert "tiny-4567" not in out  # unfinished: it is continued
    for item in found:
        files = [p for path in item.paths for p in [path, *path.rglob("*")] if p.is_file()]
        assert item.size == sum(path.stat().st_blocks * 512 for path in files) > 9000


def test_what_is_asked_is_deleted_and_nothing_else(place, capsys):
    before = everything(place)
    assert command(place, "--delete", "stages", NAMES[3]) == 0
    assert "deleted: 2 of 2" in capsys.readouterr().out
    gone = before - everything(place)
    assert {path.rsplit("/", 1)[0] for path in gone} == {
        "runs/stages/warmup-aaaa",
        "runs/store/tiny/cap/p0.05-s1-1111111111111111/checkpoints/2.000001",
    }
    stage = place.stages / "warmup-aaaa"
    assert sorted(path.name for path in stage.iterdir()) == ["lease.000001", "spec.json"]
    # The next attempt at it has the next number.
    assert RunStore(place.stages).claim(stage, {"kind": "warmup"}).generation == 2
    assert command(place, "--delete", *room.KINDS) == 1  # that attempt is running, and may need what is left
    assert "may need it" in capsys.readouterr().err


def test_a_result_stays_whatever_is_asked(place):
    assert command(place, "--delete", *room.KINDS) == 0
    assert {path for path in everything(place) if "lease." not in path and "spec.json" not in path} == {
        "data/cache/sources/tiny.json",
        "data/cache/tiny-4567-64/train.bin",
        "runs/store/tiny/cap/p0.05-s1-1111111111111111/epochs.jsonl",
        *(
            f"runs/store/tiny/cap/p0.05-s2-2222222222222222/{name}"
            for name in ("result.json", "predictions.npz", "epochs.jsonl")
        ),
    }


def test_what_somebody_works_with_is_held(place, capsys):
    run = place.store.directory("1" * 64, spec(1))
    with place.store.claim(run, spec(1)):
        before = everything(place)
        assert command(place, "--delete", "checkpoints", "caches", "snapshots") == 1
        out, err = capsys.readouterr()
        assert "deleted: 1 of 4" in out  # the stopped stage's checkpoint
        assert f"kept: {NAMES[3]}: it is running" in err
        assert "kept: caches/tiny-0123-64: 1 runs or stages are running or wait in a queue" in err
        assert len(before - everything(place)) == 1
        assert command(place) == 0
        assert "1 (1 held)" in capsys.readouterr().out


def test_an_unknown_name_deletes_nothing(place, capsys):
    before = everything(place)
    assert command(place, "--delete", "caches", "checkpoint") == 2
    assert "nothing here is called 'checkpoint'; did you mean 'checkpoints'" in capsys.readouterr().err
    assert everything(place) == before


def test_what_cannot_be_deleted_is_named_and_the_rest_goes(place, capsys, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(room.shutil, "rmtree", refuse)
    assert command(place, "--delete", "caches", "weights") == 1
    out, err = capsys.readouterr()
    assert "deleted: 1 of 2" in out
    assert "kept: caches/tiny-0123-64" in err
    assert "Permission denied" in err


def test_an_empty_folder_has_nothing(tmp_path, capsys):
    work = Workspace(tmp_path / "data", tmp_path / "runs")
    assert command(work) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[3:8]] == [
        [kind, "0"] for kind in room.KINDS
    ]
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == "[]"

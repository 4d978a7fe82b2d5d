"""Predictions on images: those of the test give the stored scores back, and bad input is named."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.models.pictures import Pixels, find_images
from benchmarks.models.predictions import Predictions, text_of
from methods.errors import UserError
from tests.conftest import CLASSES
from tests.models.conftest import Trained

METHODS = ("zero_shot", "linear_probe", "supervised")


def test_images(trained: Trained):
    return list(trained.jobs["supervised"].prepared.dataset.test.paths)


def list_of(tmp_path, paths) -> str:
    file = tmp_path / "images.txt"
    file.write_text("\n".join(map(str, paths)) + "\n\n")
    return str(file)


test_images.__test__ = False  # it gives the images of the test split


@pytest.mark.parametrize("name", METHODS)
def test_the_test_images_give_the_stored_predictions_back(trained, tmp_path, name):
    out = tmp_path / "found.json"
    images = list_of(tmp_path, test_images(trained))
    assert trained.run("predict", f"{name}/tiny/0.5/1", images, "--out", out) == 0
    found = json.loads(out.read_text())
    scores = np.array(
        [[each["score"] for each in image["classes"]] for image in found["images"]], dtype=np.float32
    )
    stored = trained.workspace.store.predictions(trained.directory(name))["scores"]
    assert scores.tobytes() == stored.tobytes()
    assert [each["class"] for each in found["images"][0]["classes"]] == list(CLASSES)
    assert found["run_id"] == trained.jobs[name].spec.run_id
    # In batches of another size the scores are the same but for rounding.
    assert trained.run("predict", found["run_id"][:12], images, "--out", out, "--batch", "7") == 0
    again = json.loads(out.read_text())
    scores = np.array([[each["score"] for each in image["classes"]] for image in again["images"]])
    assert np.abs(scores - stored).max() <= 1e-5 * max(1, np.abs(stored).max())


def test_probability_decision_and_rank_are_those_of_the_score(trained, tmp_path, capsys):
    capsys.readouterr()
    assert trained.run("predict", "supervised/tiny/0.5/1", *test_images(trained)[:5]) == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    parts = ("score", "probability", "decision", "rank")
    assert header == ["image", *(f"{name}:{part}" for name in CLASSES for part in parts)]
    assert [row[0] for row in rows] == [str(path) for path in test_images(trained)[:5]]
    for row in rows:
        values = np.array(row[1:], dtype=float).reshape(3, 4)
        expected = 1 / (1 + np.exp(-values[:, 0]))
        assert values[:, 1] == pytest.approx(expected, abs=1e-12)
        assert (values[:, 2] == (expected > 0.5)).all()
        order = sorted(values[:, 0], reverse=True)
        assert [order.index(value) + 1 for value in values[:, 0]] == list(values[:, 3])


def test_scores_that_only_rank_have_no_probability(trained, tmp_path, capsys):
    out = tmp_path / "found.csv"
    assert trained.run("predict", "zero_shot/tiny/0.5/1", test_images(trained)[0], "--out", out) == 0
    assert "have no threshold" in capsys.readouterr().err
    (row,) = csv.DictReader(out.open())
    assert (row["car:probability"], row["car:decision"]) == ("", "")
    assert {row[f"{name}:rank"] for name in CLASSES} == {"1", "2", "3"}


def test_equal_scores_share_a_rank_and_large_ones_do_not_overflow():
    scores = np.array([[800.0, -800.0, 800.0]], dtype=np.float32)
    found = Predictions([Path("a.jpg")], ["x", "y", "z"], scores, "logits")
    assert found.ranks.tolist() == [[1, 3, 1]]
    assert found.probabilities.tolist() == [[1.0, 0.0, 1.0]]
    assert found.decisions.tolist() == [[True, False, True]]
    half = Predictions([Path("a.jpg")], ["x"], np.array([[0.5]], dtype=np.float32), "probabilities")
    assert not half.decisions.any()  # above one half, as F1 counts


def bad_folder(tmp_path, trained):
    """A folder with sound images, one of another size and kind, and four that cannot be read."""
    folder = tmp_path / "photos" / "below"
    folder.mkdir(parents=True)
    sound = test_images(trained)[:3]
    for k, path in enumerate(sound):
        shutil.copy(path, folder / f"{k}.jpg")
    Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)).save(folder / "3.PNG")
    (folder / "cut.jpg").write_bytes(sound[0].read_bytes()[:500])
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<html>not found</html>")
    (folder / "notes.md").write_text("no image")
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    return tmp_path / "photos"


BAD = ("cut.jpg", "empty.jpg", "gone.jpg", "page.jpg")


def test_unreadable_images_are_named_and_the_others_written(trained, tmp_path, capsys):
    folder, out = bad_folder(tmp_path, trained), tmp_path / "found.csv"
    words = ["predict", "supervised/tiny/0.5/1", folder, "--out", out]
    assert trained.run(*words, "--strict") == 2
    assert "4 of 8 images cannot be read; nothing is written" in capsys.readouterr().err
    assert not out.exists()
    assert trained.run(*words) == 1
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line.startswith("cannot be read: ")]
    assert [line.split(": ")[1].rpartition("/")[2] for line in lines] == list(BAD)
    assert "empty file" in lines[1]
    assert "No such file" in lines[2]
    assert "1 files are left out" in told.err
    rows = list(csv.DictReader(out.open()))
    assert [row["image"].rpartition("/")[2] for row in rows] == ["0.jpg", "1.jpg", "2.jpg", "3.PNG"]
    assert f"4 images written to {out}" in told.out


def test_the_same_pixels_from_one_process_and_several(trained, tmp_path, monkeypatch):
    import benchmarks.models.pictures as pictures

    monkeypatch.setattr(pictures, "CHUNK", 3)
    monkeypatch.setattr(pictures, "WINDOW_BYTES", 3 * 64 * 64 * 25)
    paths = find_images([str(bad_folder(tmp_path, trained))]).paths + test_images(trained)
    kinds = []
    for workers in (1, 2):
        pixels = Pixels(paths, 64, workers)
        found = list(pixels.batches(4))
        assert [len(places) for places, _ in found] == [4] * 11
        kinds.append(([place for places, _ in found for place in places], pixels.unreadable))
        together = np.concatenate([some for _, some in found])
        prepared = trained.jobs["supervised"].prepared
        assert np.array_equal(together[4:], np.asarray(prepared.test))  # as the cache has them
    assert kinds[0] == kinds[1]
    assert [place for place, _ in kinds[0][1]] == [4, 5, 6, 7]


def test_images_are_files_folders_patterns_and_lists(tmp_path, trained):
    folder = bad_folder(tmp_path, trained) / "below"
    (folder / "names.txt").write_text("\ufeff0.jpg\n\n  3.PNG \nmissing.jpg\n")
    names = lambda *words: [path.name for path in find_images(list(map(str, words))).paths]  # noqa: E731
    assert names(folder.parent / "**" / "[12].jpg") == ["1.jpg", "2.jpg"]
    assert names(folder / "names.txt") == ["0.jpg", "3.PNG", "missing.jpg"]
    assert names(folder / "notes.md") == ["notes.md"]
    assert names(folder / "1.jpg", folder / "0.jpg", folder / "*.jpg")[:2] == ["1.jpg", "0.jpg"]
    twice = find_images([str(folder / "1.jpg"), str(folder)])
    assert twice.remarks[-1] == "1 images were named more than once"
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "list.txt").touch()
    for word, message in (
        (empty, "no image in it"),
        (empty / "*.jpg", "no file matches"),
        (empty / "a.jpg", "no such file or folder"),
        (empty / "list.txt", "the list names no image"),
    ):
        with pytest.raises(UserError, match=message):
            find_images([str(word)])


def test_coco_results_have_the_ids_of_annotations(trained, tmp_path, capsys):
    images, out, file = test_images(trained)[:2], tmp_path / "found.json", tmp_path / "instances.json"
    words = ["predict", "supervised/tiny/0.5/1", *images, "--out", out, "--format", "coco"]
    assert trained.run(*words) == 0
    entries = json.loads(out.read_text())
    assert [(each["image_id"], each["category_id"]) for each in entries[:4]] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 1),
    ]
    assert entries[1]["file_name"] == images[0].name
    assert entries[1]["category_name"] == "cat"
    table = {
        "images": [{"id": 70 + k, "file_name": f"val/{path.name}"} for k, path in enumerate(images)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 5, "name": "car"}, {"id": 2, "name": "cat"}],
    }
    file.write_text(json.dumps(table))
    assert trained.run(*words, "--annotations", file) == 0
    again = json.loads(out.read_text())
    assert [(each["image_id"], each["category_id"]) for each in again[:4]] == [
        (70, 5),
        (70, 2),
        (70, 9),
        (71, 5),
    ]
    assert [each["score"] for each in again] == [each["score"] for each in entries]
    del table["categories"][0]
    file.write_text(json.dumps(table))
    capsys.readouterr()
    assert trained.run(*words, "--annotations", file) == 2
    assert "it has no class 'dog' (1 are missing)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("csaa/tiny/0.5/1", "PHOTO"), "csaa"),
        (("supervised/tiny/0.5/7", "PHOTO"), "7"),
        (("ffffffffffff", "PHOTO"), "no run matches 'ffffffffffff'"),
        (("supervised/tiny/0.5/1", "nowhere.jpg"), "nowhere.jpg: no such file or folder"),
        (("supervised/tiny/0.5/1", "PHOTO", "--out", "x.npz"), "end it in .csv or .json"),
        (("supervised/tiny/0.5/1", "PHOTO", "--out", "nowhere/x.csv"), "there is no folder nowhere"),
        (("supervised/tiny/0.5/1", "PHOTO", "--annotations", "x"), "goes with --format coco"),
        (("supervised/tiny/0.5/1", "PHOTO", "--batch", "0"), "--batch"),
        (("supervised/tiny/0.5/1", "PHOTO", "--module", "absent.py"), "cannot import 'absent.py'"),
    ],
)
def test_wrong_words_are_one_line(trained, capsys, words, message):
    photo = str(test_images(trained)[0])
    assert trained.run("predict", *(photo if word == "PHOTO" else word for word in words)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_weights_of_another_run_or_attempt_are_refused(trained, tmp_path, capsys):
    runs = tmp_path / "runs"
    shutil.copytree(trained.workspace.runs, runs)
    place = trained.directory("supervised", runs)
    words = ["predict", "supervised/tiny/0.5/1", str(test_images(trained)[0]), "--runs", str(runs)]
    from benchmarks.run import main

    shutil.copy(trained.directory("zero_shot") / "model.safetensors", place / "model.safetensors")
    assert main(words) == 2
    assert "has not the weights of this run: they are of run" in capsys.readouterr().err
    whole = (trained.directory("supervised") / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(whole[:-1])
    assert main(words) == 2
    assert "is cut off" in capsys.readouterr().err
    result = json.loads((place / "result.json").read_text())
    (place / "model.safetensors").write_bytes(whole)
    (place / "result.json").write_text(json.dumps({**result, "predictions_sha256": "0" * 64}))
    assert main(words) == 2
    assert "they are of another attempt at the run" in capsys.readouterr().err


def test_the_text_of_coco_without_probabilities_has_scores():
    found = Predictions([Path("a.jpg")], ["x"], np.array([[0.25]], dtype=np.float32), "ranking")
    (entry,) = json.loads(text_of(found, "coco", {}))
    assert entry["score"] == 0.25

"""The verb `errors`: what it lists is in the predictions, and the page shows the images of these."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks.run import main
from tests.conftest import CLASSES


def test_the_page_shows_the_images_of_the_listed_mistakes(trained, tmp_path, capsys):
    out = tmp_path / "page.html"
    capsys.readouterr()
    assert trained.run("errors", "linear_probe/tiny/0.5/1", "--count", "2", "--out", out) == 0
    listed = re.findall(r"^  (false \w+) .* (\d{6})$", capsys.readouterr().out, re.MULTILINE)
    directory = trained.directory("linear_probe")
    arrays = trained.workspace.store.predictions(directory)
    test = trained.jobs["linear_probe"].prepared.dataset.test
    assert arrays["ids"].tolist() == list(test.ids)
    assert arrays["classes"].tolist() == list(CLASSES)
    rows = {name: k for k, name in enumerate(test.ids)}
    wrong = (arrays["scores"] > 0) != arrays["labels"].astype(bool)
    assert 0 < len(listed) <= 6
    for _, image in listed:
        assert wrong[rows[image]].any()
    shown = re.findall(r"base64,([^\"]+)\"><figcaption><b>(false \w+)</b>.*?<br>(\d{6})<br>", out.read_text())
    assert [(kind, image) for _, kind, image in shown] == listed
    pixels = np.asarray(trained.jobs["linear_probe"].prepared.test)
    for data, _, image in shown:
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).transpose(2, 0, 1)
        assert np.abs(picture.astype(int) - pixels[rows[image]]).mean() < 12  # JPEG


def test_without_a_place_the_page_lies_beside_the_store(trained, tmp_path, capsys):
    runs = tmp_path / "runs"
    shutil.copytree(trained.workspace.runs / "store", runs / "store")
    places = ["--data", str(trained.workspace.data), "--runs", str(runs)]
    assert main(["errors", "zero_shot/tiny/0.5/1", "--classes", "dog", *places]) == 0
    (page,) = (runs / "errors").iterdir()
    told = capsys.readouterr().out
    assert f"written to {page}" in told
    assert "% below it, of the positives" in told or "% above it, of the negatives" in told
    # Without the cache the list is there, and no page.
    page.unlink()
    assert main(["errors", "zero_shot/tiny/0.5/1", "--data", str(tmp_path), "--runs", str(runs)]) == 1
    told = capsys.readouterr()
    assert "dog: " in told.out
    assert "no page: " in told.err
    assert "`prepare` makes it" in told.err
    assert not list((runs / "errors").iterdir())
    # Predictions that are not the run's are not listed.
    place = trained.directory("zero_shot", runs)
    result = json.loads((place / "result.json").read_text())
    result["arrays_sha256"]["ids"] = "0" * 64
    (place / "result.json").write_text(json.dumps(result))
    assert main(["errors", "zero_shot/tiny/0.5/1", *places]) == 2
    assert "ids in predictions.npz are not those of the run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("supervised/tiny/0.5/1", "--classes", "cta"), "no class 'cta'; did you mean 'cat'"),
        (("supervised/tiny/0.5/1", "--out", "page.txt"), "end it in .html"),
        (("supervised/tiny/0.5/1", "--count", "none"), "--count"),
        (("nothing/tiny/0.5/1",), "nothing"),
    ],
)
def test_wrong_words_are_one_line(trained, capsys, words, message):
    assert trained.run("errors", *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Resize

from benchmarks.data import cache, pool
from benchmarks.data.cache import prepare
from benchmarks.data.decode import load_image
from benchmarks.data.types import Dataset, ImageSet
from methods.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dataset(tmp_path, build_dataset):
    return build_dataset(tmp_path / "images", 20, 9)


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 4)


# -- decoding ----------------------------------------------------------------------------------


def test_the_resize_is_torchvision_s_on_a_pillow_image(tmp_path, save_jpeg):
    path = save_jpeg(tmp_path / "a.jpg", 1, width=123, height=77)
    expected = np.asarray(Resize((32, 32))(Image.open(path))).transpose(2, 0, 1)
    assert (load_image(path, 32) == expected).all()


def test_every_kind_of_picture_becomes_rgb(tmp_path, photo_like):
    rgb = Image.fromarray(photo_like(3, 24, 24))
    grey16 = (np.asarray(rgb.convert("L")).astype(np.uint16) << 8) | 0x7F
    kinds = {
        "grey.png": rgb.convert("L"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "palette.png": rgb.quantize(256),
        "alpha.png": rgb.convert("RGBA"),
        "bits.png": rgb.convert("1"),
        "grey16.png": Image.fromarray(grey16),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name, **({"quality": 95} if name.endswith("jpg") else {}))
        pixels = load_image(tmp_path / name, 24)
        assert pixels.shape == (3, 24, 24), name
        assert pixels.dtype == np.uint8
        expected = image if name == "grey16.png" else image.convert("RGB")
        if name == "grey16.png":
            expected = rgb.convert("L").convert("RGB")
        tolerance = 12 if name == "cmyk.jpg" else 0
        difference = np.abs(pixels.astype(int) - np.asarray(expected).transpose(2, 0, 1))
        assert np.percentile(difference, 99) <= tolerance, name


def test_exif_orientation_is_undone(tmp_path, photo_like):
    upright = Image.fromarray(photo_like(3, 24, 48))
    exif = Image.Exif()
    exif[0x0112] = 6  # must be turned clockwise to be upright
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    assert (
        load_image(tmp_path / "turned.png", 24) == load_image(tmp_path / "upright.png", 24)
    ).all()


# -- the cache ---------------------------------------------------------------------------------


def test_images_come_back_as_they_were_decoded(tmp_path, dataset):
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1)
    assert ready.directory.name == f"tiny-{dataset.digest[:12]}-16"
    assert ready.train.shape == (20, 3, 16, 16)
    assert ready.test.shape == (9, 3, 16, 16)
    for pixels, images in ((ready.train, dataset.train), (ready.test, dataset.test)):
        for k, path in enumerate(images.paths):
            assert (pixels[k] == load_image(path, 16)).all()
    indices = [3, 3, 19, 0]
    for some in (indices, np.array(indices), torch.tensor(indices)):
        gathered = ready.images("train", some)
        assert gathered.dtype == torch.uint8
        assert gathered.is_contiguous()
        assert (gathered.numpy() == ready.train[indices]).all()
    gathered[:] = 0  # a copy: the cache is read-only
    assert ready.images("test", [8]).shape == (1, 3, 16, 16)
    assert ready.images("train", []).shape == (0, 3, 16, 16)
    with pytest.raises(IndexError):
        ready.images("test", [9])
    ready.verify()


def test_a_second_call_is_instant_and_touches_nothing(tmp_path, dataset):
    first = prepare(dataset, 16, tmp_path / "cache", workers=1)
    before = {f: f.stat().st_mtime_ns for f in first.directory.iterdir()}
    for path in (*dataset.train.paths, *dataset.test.paths):
        path.unlink()
    start = time.perf_counter()
    again = prepare(dataset, 16, tmp_path / "cache", progress=lambda *a: pytest.fail("worked"))
    assert time.perf_counter() - start < 0.5
    assert again.digest == first.digest
    assert {f: f.stat().st_mtime_ns for f in first.directory.iterdir()} == before


def test_the_digest_covers_dataset_size_and_pixels(tmp_path, dataset, photo_like):
    base = prepare(dataset, 16, tmp_path / "a", workers=1)
    assert prepare(dataset, 16, tmp_path / "b", workers=1).digest == base.digest
    assert prepare(dataset, 18, tmp_path / "b", workers=1).digest != base.digest
    Image.fromarray(photo_like(99, 40, 50)).save(dataset.test.paths[-1])
    changed = prepare(dataset, 16, tmp_path / "c", workers=1)
    assert changed.directory.name == base.directory.name
    assert changed.digest != base.digest


def test_the_digest_does_not_depend_on_the_number_of_processes(tmp_path, dataset):
    seen = []
    one = prepare(dataset, 16, tmp_path / "a", workers=1)
    two = prepare(dataset, 16, tmp_path / "b", workers=2, progress=lambda *a: seen.append(a))
    assert one.digest == two.digest
    assert (one.train == two.train).all()
    assert seen[0] == (0, 29)
    assert seen[-1] == (29, 29)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_verify_finds_a_changed_byte(tmp_path, dataset):
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1)
    with open(ready.directory / "test.u8", "r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match=r"test.u8 has changed on the disk; remove the folder"):
        prepare(dataset, 16, tmp_path / "cache").verify()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: os.truncate(d / "train.u8", 100), r"train.u8 has 100 bytes for 20 images"),
        (lambda d: (d / "test.u8").unlink(), r"test.u8 has 0 bytes"),
        (lambda d: (d / "meta.json").write_text("{"), r"meta.json"),
        (lambda d: (d / "meta.json").write_text('{"format": 0}'), r"format 0 instead of 1"),
    ],
)
def test_a_damaged_cache_is_named(tmp_path, dataset, damage, message):
    damage(prepare(dataset, 16, tmp_path / "cache", workers=1).directory)
    with pytest.raises(UserError, match=message) as caught:
        prepare(dataset, 16, tmp_path / "cache")
    assert "remove the folder and prepare again" in str(caught.value)


def test_a_pickled_cache_carries_no_pixels(tmp_path, dataset):
    ready = prepare(dataset, 64, tmp_path / "cache", workers=1)
    assert ready.train.size > 200_000
    packed = pickle.dumps(ready)
    assert len(packed) < 20_000
    assert (pickle.loads(packed).train == ready.train).all()


# -- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_unreadable_images_are_all_named_and_the_rest_is_kept(tmp_path, dataset, workers):
    bad = [dataset.train.paths[k] for k in (2, 17)] + [dataset.test.paths[5]]
    good = {path: path.read_bytes() for path in bad}
    bad[0].write_bytes(b"")
    bad[1].write_bytes(good[bad[1]][:400])  # truncated
    bad[2].write_bytes(b"not an image at all")
    with pytest.raises(UserError) as caught:
        prepare(dataset, 16, tmp_path / "cache", workers=workers)
    message = str(caught.value)
    assert message.startswith("dataset 'tiny': 3 of 29 images cannot be read: ")
    assert all(str(path) in message for path in bad)
    assert "\n" not in message
    listed = next((tmp_path / "cache").iterdir()) / "unreadable.txt"
    assert [line.split("\t")[0] for line in listed.read_text().splitlines()] == sorted(
        map(str, bad)
    )
    for path, content in good.items():
        path.write_bytes(content)
    seen = []
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1, progress=lambda *a: seen.append(a))
    assert seen[0] == (29 - 12, 29)  # only the three damaged chunks of four are left to do
    assert not listed.exists()
    assert ready.digest == prepare(dataset, 16, tmp_path / "other", workers=1).digest


def test_too_little_disk_space_is_said_before_anything_is_decoded(tmp_path, dataset, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("benchmarks.data.cache.shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr("benchmarks.data.pool.decode_chunk", lambda c: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"the cache needs 0.0 GiB more, the disk has 0.0 GiB left"):
        prepare(dataset, 16, tmp_path / "cache", workers=1)


def test_a_full_disk_is_a_clear_error_and_can_be_continued(tmp_path, dataset, monkeypatch):
    real, calls = pool.decode_chunk, []

    def fills_up(chunk):
        calls.append(chunk)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return real(chunk)

    monkeypatch.setattr("benchmarks.data.pool.decode_chunk", fills_up)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device"):
        prepare(dataset, 16, tmp_path / "cache", workers=1)
    seen = []
    prepare(dataset, 16, tmp_path / "cache", workers=1, progress=lambda *a: seen.append(a))
    assert seen[0] == (12, 29)


def test_a_file_in_the_place_of_the_folder_is_a_clear_error(tmp_path, dataset):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        prepare(dataset, 16, tmp_path / "cache")
    with pytest.raises(UserError, match="image size is 0"):
        prepare(dataset, 0, tmp_path)


# -- interrupted and simultaneous calls --------------------------------------------------------

SCRIPT = """
import pickle, sys
from pathlib import Path
from benchmarks.data import cache
cache.CHUNK = 4
# No guard against a second import of this script: decoding processes must not need one.
dataset = pickle.load(open(sys.argv[1], "rb"))
ready = cache.prepare(
    dataset, 96, Path(sys.argv[2]), workers=int(sys.argv[3]),
    progress=lambda done, total: print(done, flush=True),
)
assert "torch" not in sys.modules, "preparing needs no torch"
print(ready.digest, flush=True)
"""


@pytest.fixture
def start(tmp_path, build_dataset):
    """Starts a process that prepares one larger dataset into a given folder."""
    dataset = build_dataset(tmp_path / "large", 100, 20, width=160, height=120)
    script, packed = tmp_path / "prepare_in_a_process.py", tmp_path / "dataset.pkl"
    script.write_text(SCRIPT)
    packed.write_bytes(pickle.dumps(dataset))

    def process(folder: Path, workers: int) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(script), str(packed), str(folder), str(workers)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    process.dataset = dataset
    return process


def test_a_kill_just_before_the_clean_up_leaves_nothing_behind(tmp_path, build_dataset):
    dataset = build_dataset(tmp_path / "images", 10, 5)
    first = prepare(dataset, 32, tmp_path / "cache", workers=1)
    markers = first.directory / "chunks"
    markers.mkdir()
    (markers / "train-00000.json").write_text("{}")
    again = prepare(dataset, 32, tmp_path / "cache", workers=1)
    assert again.digest == first.digest
    assert not markers.exists()


def test_killed_anywhere_and_resumed_gives_the_same_cache(tmp_path, start):
    expected = prepare(start.dataset, 96, tmp_path / "undisturbed", workers=1)
    rng = random.Random(4)
    folder, kills, progressed = tmp_path / "killed", 0, []
    while kills < 12:
        process = start(folder, 1)
        # Wait for some chunks of this attempt, then kill at any instant of the next ones.
        lines = [process.stdout.readline() for _ in range(rng.randint(1, 3))]
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
        if expected.digest in (rest + "".join(lines)):
            break
        progressed.append(int(lines[0]))
        kills += 1
    assert kills >= 3
    assert progressed == sorted(progressed)
    assert progressed[0] == 0
    assert progressed[-1] > 0, "nothing was kept"
    resumed = prepare(start.dataset, 96, folder, workers=1)
    assert resumed.digest == expected.digest
    resumed.verify()
    assert (resumed.train == expected.train).all()
    assert sorted(f.name for f in resumed.directory.iterdir()) == [
        "lock", "meta.json", "test.u8", "train.u8",
    ]  # fmt: skip


def test_killed_decoding_processes_die_with_their_parent(tmp_path, start):
    process = start(tmp_path / "killed", 2)
    for _ in range(4):  # the pool is at work after the first report
        process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(_runs(pid) for pid in children):
        time.sleep(0.02)
    assert not [pid for pid in children if _runs(pid)]
    resumed = prepare(start.dataset, 96, tmp_path / "killed", workers=1)
    assert resumed.digest == prepare(start.dataset, 96, tmp_path / "other", workers=1).digest


def test_a_decoding_process_that_dies_is_a_clear_error(tmp_path, start, monkeypatch):
    import subprocess as real

    def dies(command, **options):
        return real.Popen([*command[:2], "import sys; sys.stdin.buffer.read(1)"], **options)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "subprocess", type("fake", (), {"Popen": dies, "PIPE": real.PIPE}))
        with pytest.raises(UserError, match=r"a decoding process died at .*images after it"):
            prepare(start.dataset, 96, tmp_path / "cache", workers=2)
    prepare(start.dataset, 96, tmp_path / "cache", workers=2).verify()


def test_a_full_disk_is_a_clear_error_in_a_decoding_process_too(tmp_path, dataset, monkeypatch):
    made = cache._Builder._layout

    def then_locked(self):
        made(self)
        (self.directory / "test.u8").unlink()  # opening it for writing fails in the process

    monkeypatch.setattr(cache._Builder, "_layout", then_locked)
    with pytest.raises(UserError, match=r"cannot be written: No such file or directory"):
        prepare(dataset, 16, tmp_path / "cache", workers=2)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_two_processes_at_once_share_one_piece_of_work(tmp_path, start):
    folder = tmp_path / "shared"
    outputs = [p.communicate(timeout=60)[0].split() for p in [start(folder, 1), start(folder, 1)]]
    digests = {lines[-1] for lines in outputs}
    assert len(digests) == 1
    assert len(next(iter(digests))) == 64
    # the one that waited found everything done and reported nothing
    assert min(len(lines) for lines in outputs) == 1
    assert digests == {prepare(start.dataset, 96, tmp_path / "alone", workers=1).digest}


def test_torn_markers_are_not_believed(tmp_path, dataset, monkeypatch):
    def interrupted(self, hashes):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache._Builder, "_finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(dataset, 16, tmp_path / "cache", workers=1)
    directory = next((tmp_path / "cache").iterdir())
    markers = sorted((directory / "chunks").iterdir())
    assert len(markers) == 8
    markers[0].write_text("")
    markers[3].write_text("abc")
    (directory / "chunks" / ".x.tmp").write_text("left behind")
    seen = []
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1, progress=lambda *a: seen.append(a))
    chunk_sizes = [1 if m.name.startswith("test-000002") else 4 for m in (markers[0], markers[3])]
    assert seen[0] == (29 - sum(chunk_sizes), 29)
    assert ready.digest == prepare(dataset, 16, tmp_path / "other", workers=1).digest


def test_a_data_file_of_another_length_starts_over(tmp_path, dataset, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cache._Builder, "_finish", lambda self, hashes: (_ for _ in ()).throw(
            KeyboardInterrupt))  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            prepare(dataset, 16, tmp_path / "cache", workers=1)
    directory = next((tmp_path / "cache").iterdir())
    os.truncate(directory / "train.u8", 5)
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1)
    ready.verify()
    assert ready.digest == prepare(dataset, 16, tmp_path / "other", workers=1).digest


def test_the_digest_is_what_it_says(tmp_path, dataset):
    ready = prepare(dataset, 16, tmp_path / "cache", workers=1)
    meta = json.loads((ready.directory / "meta.json").read_text())
    chunks = [
        [
            hashlib.sha256(np.asarray(p[k : k + 4]).tobytes()).hexdigest()
            for k in range(0, len(p), 4)
        ]
        for p in (ready.train, ready.test)
    ]
    pixels = hashlib.sha256("\n".join([*chunks[0], "-", *chunks[1]]).encode()).hexdigest()
    assert meta["pixels"] == pixels
    assert ready.digest == hashlib.sha256(f"{dataset.digest} {pixels}".encode()).hexdigest()
    assert meta["resize"] == "PIL bilinear, antialiased"


def test_restricted_classes_have_a_cache_of_their_own(tmp_path, dataset):
    labels = dataset.train.labels.copy()
    labels[:, 0] = np.arange(20) % 2
    images = ImageSet(dataset.train.ids, dataset.train.paths, labels)
    whole = Dataset("tiny", dataset.classes, dataset.prompts, images, dataset.test)
    some = whole.restrict(("a",))
    assert prepare(some, 16, tmp_path, workers=1).train.shape[0] == 10
    assert prepare(whole, 16, tmp_path, workers=1).train.shape[0] == 20

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import subprocess
import tarfile
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.data.archives import catalogue as archives
from benchmarks.data.archives import download
from benchmarks.data.archives.catalogue import ARCHIVES, Archive, commands
from benchmarks.data.registry import available
from methods.errors import UserError


def test_the_table_is_of_datasets_and_complete():
    assert set(ARCHIVES) == {"voc2007", "voc2012", "coco2014"}
    assert set(ARCHIVES) <= set(available())
    for name, files in ARCHIVES.items():
        for archive in files:
            kind, _, digest = archive.checksum.partition(":")
            assert re.fullmatch("[0-9a-f]+", digest)
            assert len(digest) == 2 * hashlib.new(kind).digest_size
            assert all(re.fullmatch(r"https?://[\w./-]+", url) for url in archive.urls)
            assert {url.rsplit("/", 1)[1] for url in archive.urls} == {archive.name}
            assert archive.unpacked >= archive.size > 10**8, name
    every = [archive for files in ARCHIVES.values() for archive in files]
    assert len({archive.checksum for archive in every}) == len(every)
    # the years in the addresses are those of the datasets, not of the file names' dates only
    assert "/voc2007/VOCtest_06-Nov-2007.tar" in ARCHIVES["voc2007"][1].urls[0]
    assert "/voc2012/VOCtrainval_11-May-2012.tar" in ARCHIVES["voc2012"][0].urls[0]


FAKE = """#!/bin/bash
# -fLO -C - URL: what curl would leave behind
echo "$@" >> "$LOG"
cp "$FILES/$(basename "${@: -1}")" .
"""


@pytest.mark.parametrize("name", ["voc2007", "voc2012", "coco2014"])
def test_the_commands_do_what_they_say(tmp_path, name):
    for folder in ("bin", "files"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin" / "curl").write_text(FAKE)
    (tmp_path / "bin" / "curl").chmod(0o755)
    (tmp_path / "bin" / "unzip").write_text('#!/bin/bash\npython3 -m zipfile -e "$2" .\n')
    (tmp_path / "bin" / "unzip").chmod(0o755)
    for archive in ARCHIVES[name]:
        write_archive(tmp_path / "files" / archive.name, {f"{archive.unpacks}/of {archive.name}": b"x"})
    root = tmp_path / "it's my data"
    text = commands(name, root)
    assert "\n" not in text
    subprocess.run(
        ["bash", "-ec", text],
        check=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "LOG": str(tmp_path / "log"),
            "FILES": str(tmp_path / "files"),
        },
    )
    for archive in ARCHIVES[name]:
        assert (root / archive.unpacks / f"of {archive.name}").is_file()
    asked = (tmp_path / "log").read_text().splitlines()
    assert asked == [f"-fLO -C - {archive.urls[0]}" for archive in ARCHIVES[name]]


def test_what_has_no_archives(tmp_path):
    assert commands("glyphscenes", tmp_path) == ""
    assert "Flickr.zip" in commands("nuswide", tmp_path)
    with pytest.raises(UserError, match=r"'nuswide' has no public address .* by hand: mkdir -p"):
        archives.download("nuswide", tmp_path, progress=silent)
    with pytest.raises(UserError, match=r"'glyphscenes' has no official archives.*voc2007"):
        archives.download("glyphscenes", tmp_path, progress=silent)


def silent(title):
    return lambda done, total: None


def write_archive(path, files):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in files.items():
                file.writestr(name, content)
    else:
        with tarfile.open(path, "w") as file:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Two archives of "voc2007" on a server of this process."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.001)
    folder = tmp_path / "server"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    found = []
    for name, files in {
        "one.tar": {"VOC/a.txt": b"a" * 1000, "VOC/b.txt": b"b" * 2000},
        "two.zip": {"VOC/c.txt": b"c" * 3000},
    }.items():
        write_archive(folder / name, files)
        content = (folder / name).read_bytes()
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        url = f"http://127.0.0.1:{http.server_port}/{name}"
        found.append(Archive((url,), len(content), digest, "VOC", 3000))
    monkeypatch.setattr(archives, "ARCHIVES", {"voc2007": tuple(found)})
    yield folder
    http.shutdown()
    http.server_close()


def bring(root):
    lines = []
    archives.download("voc2007", root, progress=silent, announce=lines.append)
    return lines


def files(root):
    return {p.name for p in root.rglob("*.txt")}


def test_archives_are_brought_checked_and_unpacked(tmp_path, published, monkeypatch):
    root = tmp_path / "data" / "voc2007"
    lines = bring(root)
    assert files(root) == {"a.txt", "b.txt", "c.txt"}
    assert {"one.tar", "two.zip"} <= {p.name for p in root.iterdir()}  # kept
    assert lines[0].startswith("one.tar: 0.0 MiB from http://127.0.0.1")
    assert "are needed for archives and their content, the disk has" in lines[2]  # before the work
    assert "the archives can be removed: rm " in lines[3]
    assert not [p for p in root.rglob("*") if p.name.endswith((".part", ".json"))]
    # a second call looks at nothing, even with the archives gone and no network
    (root / "one.tar").unlink()
    monkeypatch.setattr(archives, "fetch", lambda *a, **k: pytest.fail("asked for"))
    bring(root)


def test_archives_that_lie_there_are_used(tmp_path, published, monkeypatch):
    root = tmp_path / "voc2007"
    root.mkdir()
    for path in published.iterdir():
        path.rename(root / path.name)
    bring(root)
    assert files(root) == {"a.txt", "b.txt", "c.txt"}


def test_a_call_killed_while_unpacking_is_continued(tmp_path, published, monkeypatch):
    root, real = tmp_path / "voc2007", archives.unpack

    def killed(place, folder, progress):
        if place.suffix == ".zip":
            raise KeyboardInterrupt
        real(place, folder, progress)

    with monkeypatch.context() as patch:
        patch.setattr(archives, "unpack", killed)
        with pytest.raises(KeyboardInterrupt):
            bring(root)
    assert files(root) == {"a.txt", "b.txt"}
    for path in published.iterdir():
        path.unlink()
    bring(root)
    assert files(root) == {"a.txt", "b.txt", "c.txt"}


def test_too_little_space_is_reported_before_the_first_byte(tmp_path, published, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(archives, "fetch", lambda *a, **k: pytest.fail("begun"))
    with pytest.raises(UserError, match=r"are needed .* has 0.0 MiB left; make room or choose"):
        bring(tmp_path / "voc2007")


def test_the_need_counts_what_is_there(tmp_path, published, monkeypatch):
    monkeypatch.setattr(archives, "amount", str)
    usage = type("Usage", (), {"free": 10**12})
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage)
    _, two = archives.ARCHIVES["voc2007"]
    root = tmp_path / "voc2007"
    (root / "VOC").mkdir(parents=True)
    (root / "two.zip.part").write_bytes(bytes(100))
    (root / "one.tar").write_bytes((published / "one.tar").read_bytes())
    (root / "VOC" / "a.txt").write_bytes(b"a" * 1000)
    lines = bring(root)
    # of the first: b.txt, by its listing; of the second: the rest, and about what it unpacks to
    assert f"{2000 + (two.size - 100) + 3000} are needed" in lines[2]


def test_a_wrong_archive_stops_everything(tmp_path, published, monkeypatch):
    one, two = archives.ARCHIVES["voc2007"]
    wrong = dataclasses.replace(one, checksum="md5:" + "0" * 32)
    monkeypatch.setattr(archives, "ARCHIVES", {"voc2007": (wrong, two)})
    root = tmp_path / "voc2007"
    with pytest.raises(UserError, match="not the published file"):
        bring(root)
    assert files(root) == set()
    assert {p.name for p in root.iterdir()} == {".download.lock"}


def test_a_root_that_cannot_be_made_is_a_clear_error(tmp_path, published):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        bring(tmp_path / "file" / "voc2007")

from __future__ import annotations

import io
import os
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.data.archives import unpack as module
from benchmarks.data.archives.unpack import need, unpack
from methods.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
FILES = {
    "VOC/lists/a.txt": b"one\n",
    "VOC/images/1.jpg": bytes(range(256)) * 20,
    "VOC/images/2.jpg": b"x" * 3_000_000,
    "VOC/empty": b"",
}


def make_tar(path, files=FILES, extra=(), **options):
    with tarfile.open(path, "w", **options) as file:
        for name in ("VOC", "VOC/images"):
            folder = tarfile.TarInfo(name)
            folder.type = tarfile.DIRTYPE
            file.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o6777
            file.addfile(member, io.BytesIO(content))
        for member in extra:
            file.addfile(member)
    return path


def make_zip(path, files=FILES, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("VOC/", b"")
        for name, content in files.items():
            file.writestr(name, content)
    return path


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture(params=["a.tar", "a.zip"])
def archive(request, tmp_path):
    return (make_tar if request.param == "a.tar" else make_zip)(tmp_path / request.param)


def test_files_come_out_as_they_went_in(archive, out):
    assert need(archive, out) == sum(map(len, FILES.values()))
    seen = []
    unpack(archive, out, lambda done, total: seen.append((done, total)))
    assert content(out) == FILES
    assert seen[-1] == (3, 3)
    assert seen == sorted(seen)
    assert need(archive, out) == 0
    # no bits of the archive's: neither set-user-id nor writable by everybody
    assert not (out / "VOC/images/1.jpg").stat().st_mode & (stat.S_ISUID | stat.S_ISGID)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats_and_long_names(tmp_path, out, form):
    files = {f"VOC/{'d' * 80}/{'f' * 90}.txt": b"long", "./VOC/dot.txt": b"dot"}
    unpack(make_tar(tmp_path / "a.tar", files, format=form), out)
    assert content(out) == {name.removeprefix("./"): value for name, value in files.items()}


def test_what_is_there_is_left_alone_and_the_rest_is_completed(archive, out):
    (out / "VOC/images").mkdir(parents=True)
    (out / "VOC/images/1.jpg").write_bytes(b"k" * 5120)  # the right length
    (out / "VOC/images/2.jpg").write_bytes(b"torn")
    (out / "own.txt").write_text("mine")
    assert need(archive, out) == 3_000_000 + 4
    unpack(archive, out)
    assert content(out) == {**FILES, "VOC/images/1.jpg": b"k" * 5120, "own.txt": b"mine"}


def test_files_listed_twice_hold_the_last(tmp_path, out):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        for text in (b"first", b"second"):
            member = tarfile.TarInfo("a.txt")
            member.size = len(text)
            file.addfile(member, io.BytesIO(text))
    unpack(path, out)
    assert content(out) == {"a.txt": b"second"}


def info(name, kind=tarfile.REGTYPE, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


EVIL = [
    info("/etc/passwd"),
    info("../outside.txt"),
    info("VOC/../../outside.txt"),
    info("VOC/link", tarfile.SYMTYPE, "/etc/passwd"),
    info("VOC/link", tarfile.SYMTYPE, ".."),
    info("VOC/hard", tarfile.LNKTYPE, "../../secret"),
    info("VOC/null", tarfile.CHRTYPE),
    info("VOC/disk", tarfile.BLKTYPE),
    info("VOC/pipe", tarfile.FIFOTYPE),
    info("VOC\\..\\..\\outside.txt"),
    info("."),
]


@pytest.mark.parametrize("member", EVIL, ids=lambda m: f"{m.name}-{m.type!r}")
def test_evil_tars_write_nothing(tmp_path, out, member):
    path = make_tar(tmp_path / "a.tar", extra=[member])
    before = content(tmp_path)
    with pytest.raises(UserError, match="not an official archive, remove it") as caught:
        unpack(path, out)
    assert repr(member.name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == before


def test_a_sparse_file_is_refused(tmp_path, out):
    # GNU's old sparse form: a file of no bytes that says it is a terabyte long.
    header = bytearray(info("VOC/huge", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % 2**32
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header[:512]) + bytes(1024))
    with tarfile.open(path) as file:
        assert file.getmembers()[0].isreg()  # Python calls it a plain file
    with pytest.raises(UserError, match="neither a plain file nor a folder"):
        unpack(path, out)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside.txt", "VOC/../../x", "a\\..\\..\\x"])
def test_evil_zip_paths_write_nothing(tmp_path, out, name):
    path = make_zip(tmp_path / "a.zip", {**FILES, name: b"evil"})
    before = content(tmp_path)
    with pytest.raises(UserError, match="its path does not stay in the folder"):
        unpack(path, out)
    assert content(tmp_path) == before


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_zips_with_links_and_devices_write_nothing(tmp_path, out, kind):
    path = make_zip(tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as file:
        member = zipfile.ZipInfo("VOC/link")
        member.external_attr = (kind | 0o777) << 16
        file.writestr(member, "/etc/passwd")
    with pytest.raises(UserError, match="neither a plain file nor a folder"):
        unpack(path, out)
    assert content(out) == {}


def patched(path: Path, name: bytes, field: int, size: int) -> None:
    """Change a length in a zip's listing and local header: `field` counts from the local one."""
    data = bytearray(path.read_bytes())
    local, listing = data.index(name) - 30, data.rindex(name) - 46
    struct.pack_into("<I", data, local + field, size)
    struct.pack_into("<I", data, listing + field + 2, size)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("listed", [10, 2_999_999, 3_000_001, 2**31])
def test_content_that_is_not_as_long_as_listed_is_damaged(tmp_path, out, listed, monkeypatch):
    path = make_zip(tmp_path / "a.zip")
    patched(path, b"VOC/images/2.jpg", 22, listed)
    usage = type("Usage", (), {"free": 2**40})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"a.zip: damaged: VOC/images/2.jpg"):
        unpack(path, out)
    assert "VOC/images/2.jpg" not in content(out)
    assert sum(map(len, content(out).values())) <= 4_000_000  # no more than was listed was written


def test_a_bomb_is_stopped_by_the_disk_it_does_not_fit(tmp_path, out, monkeypatch):
    path = make_zip(tmp_path / "a.zip", {"big": bytes(50_000_000)})
    assert path.stat().st_size < 100_000
    usage = type("Usage", (), {"free": 10_000_000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"unpacks to 47.7 MiB more, .* has 9.5 MiB left; make"):
        unpack(path, out)
    assert content(out) == {}


def test_encrypted_zips_are_refused(tmp_path, out):
    path = make_zip(tmp_path / "a.zip", {"a.txt": b"secret"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="it is encrypted"):
        unpack(path, out)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_archives_are_damaged(archive, out, share):
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="damaged") as caught:
        unpack(archive, out)
    assert "\n" not in str(caught.value)
    assert all(FILES[name] == value for name, value in content(out).items())


def test_wrong_bytes_in_a_zip_are_damaged(tmp_path, out):
    path = make_zip(tmp_path / "a.zip", compression=zipfile.ZIP_STORED)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"x" * 1000, b"y" * 1000, 1))
    with pytest.raises(UserError, match=r"damaged: VOC/images/2.jpg"):
        unpack(path, out)
    assert "VOC/images/2.jpg" not in content(out)


def test_a_file_in_the_way_is_a_clear_error(archive, out):
    (out / "VOC").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        unpack(archive, out)


def test_something_that_is_no_archive_and_nothing_at_all(tmp_path, out):
    for name in ("a.tar", "a.zip"):
        (tmp_path / name).write_text("<html>")
        with pytest.raises(UserError, match="damaged"):
            unpack(tmp_path / name, out)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        unpack(tmp_path / "b.tar", out)


SCRIPT = """
import sys
from pathlib import Path
from benchmarks.data.archives.unpack import unpack
print("begun", flush=True)
unpack(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_killed_and_continued_it_is_complete(tmp_path, out, name):
    files = {f"VOC/{k:03d}.bin": os.urandom(200_000) for k in range(150)}
    path = (make_tar if name == "a.tar" else make_zip)(tmp_path / name, files)
    counts = []
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(path), str(out)], cwd=ROOT, stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole = {k: v for k, v in content(out).items() if not k.endswith(".part")}
        assert all(files[k] == v for k, v in whole.items())  # files in place are complete
        counts.append(len(whole))
    assert counts == sorted(counts)
    unpack(path, out)
    assert content(out) == files

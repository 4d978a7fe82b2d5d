"""Downloads from a server in this process that misbehaves on request."""

from __future__ import annotations

import hashlib
import re
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.data.archives import download as module
from benchmarks.data.archives.download import fetch, have
from methods.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
CONTENT = hashlib.shake_256(b"archive").digest(3_500_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Server:
    """Serves `content`; what it does otherwise is set on it.

    Attributes:
        ranges: honour `Range` (and `If-Range`).
        etag, modified: the version, empty for none.
        drops: bytes after which each of the next connections breaks off.
        statuses: error codes of the next answers.
        requests: headers of each request.
    """

    def __init__(self):
        self.content, self.ranges, self.etag, self.modified = CONTENT, True, '"one"', ""
        self.drops, self.statuses, self.requests, self.length = [], [], [], True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *a: None  # the other side may hang up
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/a.tar"

    def answer(self, request):
        self.requests.append(dict(request.headers))
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        first, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        version = request.headers.get("If-Range")
        if asked and self.ranges and version in (None, self.etag, self.modified):
            first, status = int(asked[1]), 206
            if first >= len(self.content):
                request.send_error(416)
                return
        body = self.content[first:]
        request.send_response(status)
        if self.length:
            request.send_header("Content-Length", str(len(body)))
        if status == 206:
            last = len(self.content) - 1
            request.send_header("Content-Range", f"bytes {first}-{last}/{last + 1}")
        if self.etag:
            request.send_header("ETag", self.etag)
        if self.modified:
            request.send_header("Last-Modified", self.modified)
        request.end_headers()
        if self.drops:
            request.wfile.write(body[: self.drops.pop(0)])
            request.wfile.flush()
            request.connection.shutdown(socket.SHUT_RDWR)
        else:
            request.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE", 0.001)
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture
def bring(server, tmp_path):
    """Downloads into a.tar; remarks and progress are kept on the function."""

    def call(*urls, checksum=MD5):
        fetch(
            urls or (server.url,),
            tmp_path / "a.tar",
            size=len(CONTENT),
            checksum=checksum,
            progress=lambda title: lambda done, total: call.seen.append((title, done, total)),
            announce=call.lines.append,
        )

    call.seen, call.lines, call.target = [], [], tmp_path / "a.tar"
    return call


def alone(target):
    """Nothing but the finished file is left."""
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def ranges(server):
    return [request.get("Range") for request in server.requests]


@pytest.mark.parametrize("checksum", [MD5, "sha256:" + hashlib.sha256(CONTENT).hexdigest()])
def test_a_file_is_brought_and_checked(server, bring, checksum):
    bring(checksum=checksum)
    alone(bring.target)
    assert bring.seen[0] == ("a.tar (MiB)", 0, 4)
    assert ("a.tar (MiB)", 4, 4) in bring.seen
    assert bring.seen[-1] == ("check a.tar (MiB)", 4, 4)
    bring(checksum=checksum)
    assert len(server.requests) == 1  # it is there and right


def test_a_broken_connection_is_taken_up_where_it_broke(server, bring):
    server.drops = [1_500_000, 700_000, 0, 10]
    bring()
    alone(bring.target)
    assert ranges(server) == [None, "bytes=1500000-", "bytes=2200000-", "bytes=2200000-", "bytes=2200010-"]
    assert [r.get("If-Range") for r in server.requests] == [None] + ['"one"'] * 4


def test_a_later_call_goes_on(server, bring):
    server.drops = [1_500_000, 0, 0, 0]
    with pytest.raises(UserError, match=r"the connection ended early; 1.4 MiB are kept; run again"):
        bring()
    assert have(bring.target) == 1_500_000
    assert not bring.target.exists()
    bring()
    alone(bring.target)
    assert ranges(server)[-1] == "bytes=1500000-"


SCRIPT = """
import sys
from pathlib import Path
from benchmarks.data.archives.download import fetch
fetch([sys.argv[1]], Path("a.tar"), size=int(sys.argv[2]), checksum=sys.argv[3],
      progress=lambda title: lambda done, total: print(done, flush=True))
"""


def test_a_killed_process_is_continued(server, bring):
    blocked = threading.Event()
    real = server.answer

    def slow(request):  # sends two MiB, then nothing for as long as the other side lives
        request.send_response(200)
        request.send_header("Content-Length", str(len(CONTENT)))
        request.send_header("ETag", server.etag)
        request.end_headers()
        request.wfile.write(CONTENT[: 2 * 2**20])
        blocked.wait(20)

    server.answer = slow
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, server.url, str(len(CONTENT)), MD5],
        stdout=subprocess.PIPE,
        cwd=bring.target.parent,
        env={"PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"},
    )
    while process.stdout.readline() != b"2\n":
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    blocked.set()
    assert have(bring.target) == 2 * 2**20
    server.answer = real
    bring()
    alone(bring.target)
    assert ranges(server) == [f"bytes={2 * 2**20}-"]
    assert server.requests[0]["If-Range"] == '"one"'


def test_a_server_without_ranges_begins_anew(server, bring):
    server.ranges, server.drops = False, [1_500_000]
    bring()
    alone(bring.target)
    assert bring.lines == ["a.tar: the server begins at the start again"]


def test_a_server_that_never_gets_further_is_given_up(server, bring):
    server.ranges, server.drops = False, [900_000, 500_000] * 25
    with pytest.raises(UserError, match="the connection ended early"):
        bring()
    assert len(server.requests) == 4


@pytest.mark.parametrize("version", ["etag", "modified"])
def test_a_file_that_changed_in_between_is_not_glued_together(server, bring, version):
    old = bytes(len(CONTENT))
    server.etag = '"old"' if version == "etag" else 'W/"weak"'
    server.modified = "Mon, 01 Jan 2024 00:00:00 GMT"
    server.content, server.drops = old, [1_000_000, 0, 0, 0]
    with pytest.raises(UserError):
        bring()
    server.content, server.modified = CONTENT, "Tue, 02 Jan 2024 00:00:00 GMT"
    server.etag = '"new"' if version == "etag" else 'W/"weak"'
    bring()
    alone(bring.target)
    expected = '"old"' if version == "etag" else "Mon, 01 Jan 2024 00:00:00 GMT"
    assert server.requests[-1]["If-Range"] == expected


def test_without_a_version_the_checksum_decides(server, bring):
    server.etag = ""
    server.content, server.drops = bytes(len(CONTENT)), [1_000_000, 0, 0, 0]
    with pytest.raises(UserError):
        bring()
    server.content = CONTENT
    with pytest.raises(UserError, match=r"not the published file .* and was removed; run again"):
        bring()
    assert list(bring.target.parent.iterdir()) == []  # wrong bytes are not resumed
    bring()
    alone(bring.target)


def test_a_wrong_file_on_the_server_is_removed(server, bring):
    server.content = bytes(len(CONTENT))
    with pytest.raises(UserError, match=re.escape(MD5)) as caught:
        bring()
    assert "\n" not in str(caught.value)
    assert list(bring.target.parent.iterdir()) == []


@pytest.mark.parametrize("length", [10, 4_000_000])
def test_a_file_of_another_length_is_not_begun(server, bring, length):
    server.content = bytes(length)
    with pytest.raises(UserError, match=rf"offers {length} bytes, the published file has 3500000"):
        bring()
    assert list(bring.target.parent.iterdir()) == []


def test_a_file_of_another_length_is_not_continued(server, bring):
    server.drops = [1_000_000, 0, 0, 0]
    with pytest.raises(UserError):
        bring()
    server.content = CONTENT + b"more"
    with pytest.raises(UserError, match="another length"):
        bring()
    assert not bring.target.exists()


def test_an_endless_answer_without_a_length_is_cut(server, bring):
    server.content, server.length = CONTENT + bytes(3_000_000), False
    bring()
    alone(bring.target)


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_errors_of_the_server_are_named(server, bring, status, tries):
    server.statuses = [status] * 10
    with pytest.raises(UserError, match=rf"a.tar cannot be brought: {server.url}: {status} ") as e:
        bring()
    assert len(server.requests) == tries
    assert "\n" not in str(e.value)
    assert str(bring.target.parent) in str(e.value)


def test_a_passing_fault_is_waited_out(server, bring):
    server.statuses = [503, 500]
    bring()
    alone(bring.target)


def test_the_next_address_is_asked_and_goes_on_where_the_first_broke(server, bring):
    server.drops = [1_000_000, 0, 0, 0]
    bring(server.url, server.url.replace("a.tar", "mirror/a.tar"))
    alone(bring.target)
    assert ranges(server)[-1] == "bytes=1000000-"
    assert "If-Range" not in server.requests[-1]  # another server names its versions differently


def test_no_network_is_a_clear_error(bring, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.001)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(UserError, match="Connection refused"):
        bring(f"http://127.0.0.1:{port}/a.tar")

    def unknown(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match="Name or service not known; run again, or put the file"):
        bring("http://images.example/a.tar")


def test_what_another_program_has_begun_is_continued(server, bring):
    bring.target.write_bytes(CONTENT[:2_000_000])
    bring()
    alone(bring.target)
    assert ranges(server) == ["bytes=2000000-"]


@pytest.mark.parametrize("there", [bytes(len(CONTENT)), CONTENT + b"x"])
def test_another_file_in_its_place_is_not_touched(server, bring, there):
    bring.target.write_bytes(there)
    with pytest.raises(UserError, match=r"not the published file .* remove it and run again"):
        bring()
    assert bring.target.read_bytes() == there
    assert server.requests == []


def test_a_part_that_is_whole_is_only_checked(server, bring):
    bring.target.with_name("a.tar.part").write_bytes(CONTENT)
    bring()
    alone(bring.target)
    assert server.requests == []


def test_a_part_that_is_too_long_is_begun_anew(server, bring):
    bring.target.with_name("a.tar.part").write_bytes(CONTENT * 2)
    bring()
    alone(bring.target)


def test_a_full_disk_keeps_what_has_arrived(server, bring, monkeypatch):
    real = module._Appending.write
    written = []

    def fills_up(self, block):
        if len(written) == 2:
            self.file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        written.append(block)
        real(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(module._Appending, "write", fills_up)
        with pytest.raises(UserError, match=r"part: cannot be written: No space left on device"):
            bring()
    assert have(bring.target) == 2 * 2**20
    bring()
    alone(bring.target)
    assert ranges(server)[-1] == f"bytes={2 * 2**20}-"

"""Downloads over real HTTP servers: resume, restart, checks, retries."""

import hashlib
import http.server
import os
import subprocess
import sys

import pytest
from data_inputs import serve
from RangeHTTPServer import RangeRequestHandler

from neox.config.errors import UserError
from neox.data import parallel
from neox.data.fetch import Download, fetch

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Recorder:
    """What a server was asked: the Range headers, in order."""

    def __init__(self, base, drop_after=(), fail_after=None):
        ranges = self.ranges = []
        drops = list(drop_after)

        class Handler(base):
            def do_GET(self):  # noqa: N802
                ranges.append(self.headers.get("Range"))
                if fail_after is not None and len(ranges) > fail_after:
                    return self.send_error(404)
                super().do_GET()

            def copyfile(self, source, target):
                if not drops:
                    return super().copyfile(source, target)
                if getattr(self, "range", None):
                    source.seek(self.range[0])
                target.write(source.read(drops.pop(0)))
                target.flush()
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.handler = Handler


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file").write_bytes(CONTENT)
    return tmp_path / "served"


def download(url, folder, **options):
    return Download(f"{url}/file", folder.parent / "out", backoff_s=0.01, **options)


def left_over(folder):
    return sorted(path.name for path in folder.parent.iterdir() if path != folder)


@pytest.mark.parametrize("base", [RangeRequestHandler, http.server.SimpleHTTPRequestHandler])
def test_whole_file(folder, base):
    with serve(folder, Recorder(base).handler) as url:
        job = download(url, folder, sha256=SHA256.upper(), size=len(CONTENT))
        assert fetch(job) == SHA256
    assert job.output.read_bytes() == CONTENT
    assert left_over(folder) == ["out"]
    assert fetch(job) == SHA256  # the server is gone: a file that is right is not fetched again


def test_file_url_and_no_hash(folder):
    assert fetch(download(folder.as_uri(), folder)) == SHA256
    assert (folder.parent / "out").read_bytes() == CONTENT


def test_dropped_transfers_resume_where_they_stopped(folder):
    server = Recorder(RangeRequestHandler, drop_after=[300_000, 200_000])
    with serve(folder, server.handler) as url:
        assert fetch(download(url, folder, sha256=SHA256)) == SHA256
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]
    assert (folder.parent / "out").read_bytes() == CONTENT
    assert left_over(folder) == ["out"]


def test_a_later_run_resumes(folder):
    server = Recorder(RangeRequestHandler, drop_after=[300_000, 0])
    with serve(folder, server.handler) as url:
        with pytest.raises(UserError, match=r"the transfer ended after 300000 of 1048576 bytes, 1 attempts"):
            fetch(download(url, folder, attempts=1))
        assert left_over(folder) == ["out.part", "out.part.json"]
        assert fetch(download(url, folder)) == SHA256
    assert server.ranges == [None, "bytes=300000-", "bytes=300000-"]


def test_server_that_ignores_range_starts_over(folder):
    server = Recorder(http.server.SimpleHTTPRequestHandler, drop_after=[300_000])
    with serve(folder, server.handler) as url:
        assert fetch(download(url, folder, sha256=SHA256)) == SHA256
    assert server.ranges == [None, "bytes=300000-"]
    assert (folder.parent / "out").read_bytes() == CONTENT


def test_file_that_changed_meanwhile_starts_over(folder):
    server = Recorder(RangeRequestHandler, drop_after=[300_000, 0])
    with serve(folder, server.handler) as url:
        with pytest.raises(UserError):
            fetch(download(url, folder, attempts=1))
        (folder / "file").write_bytes(CONTENT[::-1])
        os.utime(folder / "file", (1, 1))
        fetch(download(url, folder))
    assert (folder.parent / "out").read_bytes() == CONTENT[::-1]


DATE = "Thu, 01 Jan 1970 00:00:01 GMT"
ELSEWHERE = f'{{"url": "http://elsewhere/", "validator": "{DATE}", "bytes": {len(CONTENT)}}}'


@pytest.mark.parametrize("origin", [None, ELSEWHERE, "[]"])
def test_part_of_unknown_origin_is_not_continued(folder, origin):
    os.utime(folder / "file", (1, 1))  # DATE
    (folder.parent / "out.part").write_bytes(b"something else")
    if origin:
        (folder.parent / "out.part.json").write_text(origin)
    with serve(folder, Recorder(RangeRequestHandler).handler) as url:
        assert fetch(download(url, folder)) == SHA256


def test_part_longer_than_the_file_starts_over(folder):
    server = Recorder(RangeRequestHandler, drop_after=[300_000, 0])
    with serve(folder, server.handler) as url:
        with pytest.raises(UserError):
            fetch(download(url, folder, attempts=1))
        with (folder.parent / "out.part").open("ab") as part:
            part.write(CONTENT)
        assert fetch(download(url, folder)) == SHA256


def test_wrong_hash(folder):
    wanted = "0" * 64
    with serve(folder, Recorder(RangeRequestHandler).handler) as url, pytest.raises(UserError) as caught:
        fetch(download(url, folder, sha256=wanted))
    message = str(caught.value)
    assert f"expected sha256 {wanted}, got {SHA256}" in message and str(folder.parent / "out") in message
    assert "\n" not in message
    assert left_over(folder) == []


def test_wrong_size(folder):
    server = Recorder(RangeRequestHandler)
    message = "offers 1048576 bytes where 2000000 are expected, 3 attempts"
    with serve(folder, server.handler) as url, pytest.raises(UserError, match=message):
        fetch(download(url, folder, size=2_000_000, attempts=3))
    assert len(server.ranges) == 3
    assert left_over(folder) == []


def test_old_file_stands_when_the_new_one_is_wrong(folder):
    (folder.parent / "out").write_bytes(b"old")
    with serve(folder, Recorder(RangeRequestHandler).handler) as url, pytest.raises(UserError):
        fetch(download(url, folder, sha256="0" * 64))
    assert (folder.parent / "out").read_bytes() == b"old"


def test_always_truncated(folder):
    server = Recorder(http.server.SimpleHTTPRequestHandler, drop_after=[1000] * 4)
    with serve(folder, server.handler) as url, pytest.raises(UserError, match="1000 of 1048576 bytes, 3 attempts"):
        fetch(download(url, folder, attempts=3))
    assert not (folder.parent / "out").exists()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(parallel, "BLOCK", 100_000)
    monkeypatch.setattr(parallel, "MIN_PARALLEL", 200_000)


def test_several_connections(folder, small_blocks):
    server = Recorder(RangeRequestHandler)
    with serve(folder, server.handler) as url:
        assert fetch(download(url, folder, sha256=SHA256)) == SHA256
    first = server.ranges.pop(0)
    assert first is None and sorted(server.ranges) == sorted(
        f"bytes={start}-{min(start + 100_000, len(CONTENT)) - 1}" for start in range(0, len(CONTENT), 100_000)
    )
    assert (folder.parent / "out").read_bytes() == CONTENT


def test_several_connections_that_drop(folder, small_blocks):
    server = Recorder(RangeRequestHandler, drop_after=[5000, 30_000, 0, 70_000, 20_000, 0, 0, 1])
    with serve(folder, server.handler) as url:
        assert fetch(download(url, folder)) == SHA256
    assert len(server.ranges) > 12
    assert (folder.parent / "out").read_bytes() == CONTENT


def test_parts_that_were_got_side_by_side_are_resumed(folder, small_blocks):
    server = Recorder(RangeRequestHandler, fail_after=4)
    with serve(folder, server.handler) as url:
        with pytest.raises(UserError, match="HTTP status 404"):
            fetch(download(url, folder))
        held = (folder.parent / "out.part").stat().st_size
        assert held % 100_000 == 0 and (folder.parent / "out.part").read_bytes() == CONTENT[:held]
    with serve(folder, Recorder(RangeRequestHandler).handler) as second:
        origin = folder.parent / "out.part.json"
        origin.write_text(origin.read_text().replace(url, second))
        assert fetch(download(second, folder)) == SHA256


FETCH_INTO_LITTLE_ROOM = """
import pathlib, resource, sys
from neox.data.fetch import Download, fetch
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
fetch(Download(sys.argv[1], pathlib.Path(sys.argv[2])))
"""


def test_no_room_leaves_nothing(folder):
    command = [sys.executable, "-c", FETCH_INTO_LITTLE_ROOM, f"{folder.as_uri()}/file", folder.parent / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert f"UserError: {folder.parent / 'out'}: File too large" in done.stderr
    assert left_over(folder) == []


class Failing(http.server.BaseHTTPRequestHandler):
    status = 503
    seen = 0

    def __init__(self, *args, directory):
        super().__init__(*args)

    def do_GET(self):
        type(self).seen += 1
        self.send_error(self.status)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("status", "tries"), [(503, 3), (429, 3), (404, 1), (403, 1)])
def test_statuses(folder, status, tries):
    handler = type("Handler", (Failing,), {"status": status, "seen": 0})
    with serve(folder, handler) as url, pytest.raises(UserError, match=f"HTTP status {status}"):
        fetch(download(url, folder, attempts=3))
    assert handler.seen == tries
    assert left_over(folder) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9/x", "no answer .* 2 attempts"),
        ("file:///no/such/file", "No such file"),
        ("file:///", "Is a directory"),
        ("http://127.0.0.1:9/two\nlines", r"two lines: write '\\n' as %0A"),
        ("http://127.0.0.1:9/über", "write 'ü' as %C3%BC"),
        ("http://127.0.0.1:port/", "nonnumeric port"),
        ("not a url", "write http://, https://, s3:// or file://"),
        ("ftp://127.0.0.1/x", "unknown url type ftp; write http://"),
    ],
)
def test_wrong_url(tmp_path, url, message):
    with pytest.raises(UserError, match=message):
        fetch(Download(url, tmp_path / "out", attempts=2, backoff_s=0.01))
    assert list(tmp_path.iterdir()) == []

"""Downloads from servers that say one thing and send another: the right file or one clear line, never a wrong file."""

import hashlib
import http.server

import pytest
from data_inputs import serve

from neox.config.errors import UserError
from neox.data import parallel
from neox.data.fetch import Download, fetch

CONTENT = bytes(range(256)) * 400
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def answers(*replies):
    """A server that gives each (status, headers, body) in turn, the last one for ever, then closes the connection."""
    left = list(replies)

    class Handler(http.server.BaseHTTPRequestHandler):
        def __init__(self, *args, directory):
            super().__init__(*args)

        def do_GET(self):
            status, headers, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *_):
            pass

    return Handler


def piece(start, stop, total=SIZE):
    """A 206 answer that holds bytes start to stop, and says so."""
    headers = {"Content-Length": stop - start, "Content-Range": f"bytes {start}-{stop - 1}/{total}", "ETag": '"1"'}
    return 206, headers, CONTENT[start:stop]


CUT = (200, {"Content-Length": SIZE, "ETag": '"1"'}, CONTENT[:1000])
WHOLE = (200, {"Content-Length": SIZE, "ETag": '"1"'}, CONTENT)


def get(tmp_path, *replies, **options):
    with serve(tmp_path, answers(*replies)) as url:
        fetch(Download(f"{url}/file", tmp_path / "out", backoff_s=0.01, **{"attempts": 4} | options))
    return (tmp_path / "out").read_bytes()


@pytest.mark.parametrize(
    "replies",
    [
        (CUT, piece(1000, 50_000), piece(50_000, SIZE)),  # ranges shorter than asked for
        (CUT, piece(1000, 50_000, "*"), piece(50_000, SIZE)),  # ... of a file whose length is not said
        (CUT, piece(0, SIZE), WHOLE),  # a range that was not asked for
        (piece(1000, SIZE), WHOLE),  # a part where the whole was asked for
        (CUT, piece(1000, SIZE, SIZE + 5), WHOLE),  # another length than before
        (CUT, (206, {"Content-Range": "bytes 1000-x/y", "ETag": '"1"'}, b"?"), WHOLE),
        ((200, {"Content-Length": SIZE + 9}, CONTENT), WHOLE),  # more announced than sent
        ((200, {"Transfer-Encoding": "chunked"}, b"fff\r\nabc"), WHOLE),
    ],
)
def test_any_answer_leads_to_the_right_file(tmp_path, replies):
    assert get(tmp_path, *replies) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("length", [{"Content-Length": 1000}, {"Content-Length": "many"}, {"Content-Length": -1}, {}])
@pytest.mark.parametrize("wanted", [{"size": SIZE}, {"sha256": SHA256}])
def test_too_little_is_never_taken_for_the_file(tmp_path, length, wanted):
    with pytest.raises(UserError) as caught:
        get(tmp_path, (200, length, CONTENT[:1000]), **wanted)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_body_that_does_not_end_is_cut_where_the_file_must(tmp_path):
    with pytest.raises(UserError, match=f"more than the {SIZE} bytes expected"):
        get(tmp_path, (200, {}, CONTENT + bytes(50 << 20)), size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_length_that_nobody_knows_is_said(tmp_path, capsys):
    assert get(tmp_path, (200, {}, CONTENT)) == CONTENT
    assert "does not say how long the file is" in capsys.readouterr().err
    assert get(tmp_path, (200, {}, CONTENT), sha256=SHA256) == CONTENT
    assert capsys.readouterr().err == ""


def test_redirects_without_end_are_one_line(tmp_path):
    with pytest.raises(UserError, match="HTTP status 302") as caught:
        get(tmp_path, (302, {"Location": "/file"}, b""))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, {"Content-Encoding": "gzip", "Content-Length": 9}, b"not asked"), "the server sends it as gzip"),
        ((204, {}, b""), "the server sends HTTP status 204"),
    ],
)
def test_what_is_not_the_file_is_refused(tmp_path, reply, message):
    with pytest.raises(UserError, match=message):
        get(tmp_path, reply)
    assert list(tmp_path.iterdir()) == []


def test_compressed_files_may_be_called_encoded(tmp_path):
    with serve(tmp_path, answers((200, WHOLE[1] | {"Content-Encoding": "x-gzip"}, CONTENT))) as url:
        assert fetch(Download(f"{url}/text.jsonl.gz?download=1", tmp_path / "out")) == SHA256


def test_what_is_no_http_is_one_line(tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def __init__(self, *args, directory):
            super().__init__(*args)

        def handle(self):
            self.wfile.write(b"nonsense\n\n")

    with (
        serve(tmp_path, Handler) as url,
        pytest.raises(UserError, match=r"no answer \(nonsense\), 2 attempts") as caught,
    ):
        fetch(Download(url, tmp_path / "out", attempts=2, backoff_s=0.01))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "part",
    [
        (200, {"Content-Length": SIZE, "ETag": '"1"'}, CONTENT),  # the whole file after all
        piece(0, 1000),  # another part
        (206, {"Content-Length": 1000, "Content-Range": f"bytes 0-999/{SIZE}", "ETag": '"2"'}, CONTENT[:1000]),
    ],
)
def test_server_that_only_says_it_gives_parts(tmp_path, monkeypatch, part):
    monkeypatch.setattr(parallel, "BLOCK", 20_000)
    monkeypatch.setattr(parallel, "MIN_PARALLEL", 40_000)
    announced = (200, {"Content-Length": SIZE, "ETag": '"1"', "Accept-Ranges": "bytes"}, CONTENT)

    class Handler(http.server.BaseHTTPRequestHandler):
        def __init__(self, *args, directory):
            super().__init__(*args)

        def do_GET(self):
            status, headers, body = part if self.headers.get("Range") else announced
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with serve(tmp_path, Handler) as url:
        fetch(Download(f"{url}/file", tmp_path / "out", backoff_s=0.01))
    assert (tmp_path / "out").read_bytes() == CONTENT


class Changing(http.server.BaseHTTPRequestHandler):
    """Gives parts whatever If-Range says, of another version of the file from the third request on."""

    versions: list[tuple[dict[str, str], bytes]]
    requests = 0

    def __init__(self, *args, directory):
        super().__init__(*args)

    def do_GET(self):
        type(self).requests += 1
        headers, content = self.versions[self.requests > 2]
        first, _, last = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")
        body = content[int(first or 0) : int(last or len(content)) + 1]
        self.send_response(206 if first else 200)
        self.send_header("Content-Range", f"bytes {first}-{int(first or 0) + len(body) - 1}/{len(content)}")
        for name, value in {**headers, "Content-Length": str(len(body)), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    "versions",
    [
        [({"ETag": '"1"'}, CONTENT), ({"ETag": '"2"'}, CONTENT[::-1])],
        [({}, CONTENT), ({}, CONTENT[::-1] + b"more")],
    ],
)
def test_file_that_changes_between_its_parts_is_of_one_version(tmp_path, monkeypatch, versions):
    monkeypatch.setattr(parallel, "BLOCK", 20_000)
    monkeypatch.setattr(parallel, "MIN_PARALLEL", 40_000)
    with serve(tmp_path, type("Handler", (Changing,), {"versions": versions})) as url:
        fetch(Download(f"{url}/file", tmp_path / "out", backoff_s=0.01))
    assert (tmp_path / "out").read_bytes() == versions[1][1]

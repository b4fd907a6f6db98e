"""Downloads from servers that say one thing and send another: the right file or one clear line, never a wrong file."""

import contextlib
import hashlib
import http.server
import ssl
import subprocess
import time

import pytest
from data_inputs import serve

from neox.config.errors import UserError
from neox.data import connection, parallel
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


def says(first, then=b"", pause_s=0.0):
    """A server that sends `first`, and `then` again and again, until nobody listens; it is never asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def __init__(self, *args, directory):
            super().__init__(*args)

        def handle(self):
            with contextlib.suppress(OSError):
                self.wfile.write(first)
                while then:
                    self.wfile.write(then)
                    time.sleep(pause_s)

    return Handler


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (says(b"nonsense\n\n"), r"no answer \(nonsense\)"),
        (says(HEAD + b"X: ", b"y", 0.01), r"no answer \(\d+ bytes in 1 s\)"),
        (says(HEAD + b"Content-Length: 102400\r\n\r\n", b"y", 0.01), r"the transfer broke \(\d+ bytes in 1 s\)"),
        (says(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), "no answer .more than 1048576 bytes before or behind"),
        (
            says(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"X: y\r\n" * 1000),
            "broke .more than 1048576 bytes",
        ),
        (says(b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", bytes(9999)), "HTTP status 302 .*infinite loop"),
        (says(b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\n\r\n"), "ftp://.*: unknown url type"),
    ],
    ids=["nonsense", "head drips", "body drips", "told to wait", "trailers", "redirect", "redirect to ftp"],
)
def test_what_has_no_end_is_one_line(tmp_path, monkeypatch, server, message):
    monkeypatch.setattr(connection, "TIMEOUT_S", 1.0)
    with serve(tmp_path, server) as url, pytest.raises(UserError, match=message) as caught:
        fetch(Download(url, tmp_path / "out", attempts=2, backoff_s=0.01))
    assert "\n" not in str(caught.value)


def test_what_came_before_a_silence_counts(tmp_path, monkeypatch):
    """A connection that falls silent again and again, long before its block is whole, still comes to the end."""
    monkeypatch.setattr(connection, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(parallel, "PIECE", 10_000)

    class Handler(http.server.BaseHTTPRequestHandler):
        def __init__(self, *args, directory):
            super().__init__(*args)

        def do_GET(self):
            start, stop = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop}/{len(CONTENT)}")
            self.send_header("Content-Length", str(stop + 1 - start))
            self.end_headers()
            self.wfile.write(CONTENT[start : stop + 1][:30_000])
            self.rfile.read(1)  # until the other side closes

    with serve(tmp_path, Handler) as url:
        version = parallel.Version(url, "", len(CONTENT))
        assert parallel.read_part(version, 0, len(CONTENT), attempts=5, backoff_s=0.01) == CONTENT


def test_trailers_are_passed_over(tmp_path):
    body = b"2\r\nab\r\n0\r\nX: y\r\nZ: w\r\n\r\n"
    assert get(tmp_path, (200, {"Transfer-Encoding": "chunked"}, body)) == b"ab"


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("nonsense::proxy", "^http_proxy, by which http://example.invalid/x is to be asked: must be http://HOST:PORT$"),
        ("socks5://127.0.0.1:9", "^http_proxy, by which"),
        ("127.0.0.1:port", "^http_proxy, by which"),
        ("https://127.0.0.1:9", r"no answer \(the proxy 127.0.0.1:9: .*refused"),
        ("http://me:secret@127.0.0.1:9/", r"no answer \(the proxy 127.0.0.1:9: .*refused"),
    ],
)
def test_proxies_that_are_none(tmp_path, monkeypatch, proxy, message):
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(UserError, match=message) as caught:
        fetch(Download("http://example.invalid/x", tmp_path / "out", attempts=2, backoff_s=0.01))
    assert "secret" not in str(caught.value)
    with serve(tmp_path, answers(WHOLE)) as url:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert fetch(Download(url, tmp_path / "out")) == SHA256
        monkeypatch.setenv("http_proxy", url)
        assert fetch(Download("http://example.invalid/x", tmp_path / "other")) == SHA256


def test_redirects_never_lead_down_from_https(tmp_path, monkeypatch):
    """The one server is asked in TLS, leads to the other, and is believed to be who it says."""
    key = tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", tmp_path / "cert.pem"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", key)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))

    def secured(reply):
        class Handler(answers(reply)):
            def setup(self):
                self.request = context.wrap_socket(self.request, server_side=True)
                super().setup()

        return Handler

    with serve(tmp_path, secured(WHOLE)) as url:
        assert fetch(Download(url.replace("http", "https"), tmp_path / "out")) == SHA256
    with (
        serve(tmp_path, answers(WHOLE)) as plain,
        serve(tmp_path, secured((302, {"Location": f"{plain}/file"}, b""))) as url,
        pytest.raises(UserError, match=r"redirects to http://127.0.0.1:.*, which nobody vouches for"),
    ):
        fetch(Download(url.replace("http", "https"), tmp_path / "out"))


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

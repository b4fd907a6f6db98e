"""Texts, JSON-lines files and HTTP servers for the data tests."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SENTENCES = ["The quick brown fox.", "  def f(x):\n    return x\n", "naïve café — 東京 🙂", "\n", "a", "word " * 300]


def make_texts(count):
    return [f"{SENTENCES[i % len(SENTENCES)]}{i if i % 3 else ''}" for i in range(count)]


def write_jsonl(path, texts):
    path.write_bytes(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts))
    return path


@contextmanager
def serve(folder, handler) -> Iterator[str]:
    """A real HTTP server on a free port of this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

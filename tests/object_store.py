"""A real S3 server (moto's) on this machine, and a proxy before it that breaks connections."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from moto.server import ThreadedMotoServer

from neox.data import s3

BUCKET = "models"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """Its host and port; with TEST_S3=HOST:PORT that of another kind, started by hand."""
    if given := os.environ.get("TEST_S3"):
        host, _, port = given.partition(":")
        yield host, int(port)
        return
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch) -> Iterator[s3.Place]:
    """An empty bucket, to which the environment leads."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*s3_server))
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3.client.cache_clear()
    s3.client().create_bucket(Bucket=BUCKET)
    yield s3.Place(BUCKET, "")
    s3.client.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*s3_server))
    for key in s3.keys(s3.Place(BUCKET, "")):
        s3.remove(s3.Place(BUCKET, key))
    s3.client().delete_bucket(Bucket=BUCKET)
    s3.client.cache_clear()


class Proxy:
    """Passes bytes on to a server; each of `cuts` closes one connection after so many bytes from the client."""

    def __init__(self, server: tuple[str, int], cuts: list[int | None]) -> None:
        self._server, self._cuts = server, cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.passed = 0
        """Bytes from clients."""
        self.is_open = threading.Event()
        """Clear: nothing more is passed on, and the clients wait."""
        self.is_open.set()

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                upstream = socket.create_connection(self._server)
                cut = self._cuts.pop(0) if self._cuts else None
                threading.Thread(target=self._pass, args=(client, upstream, cut), daemon=True).start()
                threading.Thread(target=self._pass, args=(upstream, client, None, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, cut: int | None, counts: bool = True) -> None:
        with suppress(OSError):
            while block := source.recv(65536 if cut is None else min(cut, 65536)):
                self.is_open.wait()
                target.sendall(block)
                self.passed += len(block) if counts else 0
                if cut is not None and (cut := cut - len(block)) <= 0:
                    break
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def proxied(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch, cuts: list[int | None]) -> Iterator[Proxy]:
    """The environment leads to the server through a proxy, for as long as the block lasts."""
    proxy = Proxy(server, cuts)
    threading.Thread(target=proxy.serve, daemon=True).start()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3.client.cache_clear()
        yield proxy
    s3.client.cache_clear()
    proxy.is_open.set()
    proxy.close()

"""How an address is opened: through the environment's proxy, never from https down to http, and never byte by byte."""

from __future__ import annotations

import http.client
import io
import math
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, Any

from neox.config.errors import UserError

TIMEOUT_S = 60.0
LEAST_BYTES_S = 1000
"""Of a server that sends less, over TIMEOUT_S of waiting for it, no file comes in any useful time."""
MAX_HEAD = 1 << 20
"""Bytes of what a server says before a file, and behind it."""
PROXY = re.compile(r"(https?://)?([^/@]*@)?(\[[0-9a-fA-F:]+\]|[^/:@\[\]\s]+)(:\d{1,5})?/?")


def open_address(request: urllib.request.Request) -> Any:
    """The response to a request for a http, https or file address.

    Raises:
        UserError: it is another address, or redirected to one, or from https to http; the proxy's variable is wrong.
        OSError, HTTPException, ValueError: as of urllib.
    """
    check_scheme(request.full_url, request.type)
    host = request.host
    try:
        return urllib.request.build_opener(_Web, _Redirects, _Proxies).open(request, timeout=TIMEOUT_S)
    except urllib.error.URLError as error:
        if isinstance(error, urllib.error.HTTPError) or request.host == host:
            raise
        raise OSError(f"the proxy {request.host}: {error.reason}") from error


def check_scheme(url: str, scheme: str) -> None:
    """UserError where it is none that is opened here."""
    if scheme not in ("http", "https", "file"):
        raise UserError(f"{url}: unknown url type {scheme}; write http://, https://, s3:// or file://")


class _Paced(io.RawIOBase):
    """What comes from a socket; TimeoutError where it is less than LEAST_BYTES_S."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._waited_s, self._num_bytes = 0.0, 0
        self.most: float = MAX_HEAD
        """Bytes that may come yet."""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int | None:
        begin = time.monotonic()
        count = self._raw.readinto(target)
        self._waited_s += time.monotonic() - begin
        self._num_bytes += count or 0
        self.most -= count or 0
        if self.most < 0:
            raise OSError(f"more than {MAX_HEAD} bytes before or behind the file's")
        if self._waited_s > TIMEOUT_S:
            if self._num_bytes < LEAST_BYTES_S * self._waited_s:
                raise TimeoutError(f"{self._num_bytes} bytes in {self._waited_s:.0f} s")
            self._waited_s, self._num_bytes = 0.0, 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._paced = _Paced(self.fp.detach())
        self.fp = io.BufferedReader(self._paced)

    def begin(self) -> None:
        super().begin()  # reads on as long as it is told to wait
        self._paced.most = math.inf

    def _read_and_discard_trailer(self) -> None:
        self._paced.most = MAX_HEAD
        super()._read_and_discard_trailer()  # type: ignore[misc]  # reads on as long as lines come


class _Web(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def do_open(self, http_class: Any, req: urllib.request.Request, **kwargs: Any) -> http.client.HTTPResponse:
        def connect(host: str, **options: Any) -> http.client.HTTPConnection:
            connection: http.client.HTTPConnection = http_class(host, **options)
            connection.response_class = _Response
            return connection

        return super().do_open(connect, req, **kwargs)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        fp.close()  # urllib would read the answer's body, which may have no end
        scheme = urllib.parse.urlsplit(newurl).scheme
        check_scheme(newurl, scheme)
        if (req.type, scheme) == ("https", "http"):
            raise UserError(f"{req.full_url}: redirects to {newurl}, which nobody vouches for; ask for that if you do")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Proxies(urllib.request.ProxyHandler):
    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> Any:
        is_passed_by = req.host and urllib.request.proxy_bypass(req.host)
        if not is_passed_by and not PROXY.fullmatch(proxy):
            raise UserError(f"{type}_proxy, by which {req.full_url} is to be asked: must be http://HOST:PORT")
        return super().proxy_open(req, proxy, type)

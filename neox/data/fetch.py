"""Download a file: resumed where it stopped, checked while it streams, in place only when whole and right."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from neox.config.errors import UserError
from neox.data.durable import STORAGE_ERRORS, write_json

CHUNK = 1 << 20
PROGRESS_S = 10.0
TIMEOUT_S = 60.0
RETRIED_STATUSES = {408, 425, 429}  # and every 5xx


class _InterruptedError(Exception):
    """This attempt ended early; another may go on from there."""


@dataclass(frozen=True)
class Download:
    """What to fetch and what it must be."""

    url: str
    """http, https or file."""
    output: Path
    sha256: str | None = None
    size: int | None = None
    """Bytes."""
    attempts: int = 5
    """Attempts that may end early."""
    backoff_s: float = 1.0
    """Wait after the first failed attempt; it doubles with each."""

    @property
    def part(self) -> Path:
        """Where the file grows until it is whole."""
        return self.output.with_name(f"{self.output.name}.part")

    @property
    def origin(self) -> Path:
        """Says which version of which URL the part is a part of."""
        return self.output.with_name(f"{self.output.name}.part.json")


def fetch(download: Download) -> str:
    """Fetch a file and return its sha256. A file that already has the wanted sha256 is left as it is.

    UserError when the server refuses, the hash or size is wrong, or every attempt ended early. A part that may still be
    completed is kept; one that is wrong is removed.
    """
    wanted = download.sha256.lower() if download.sha256 else None
    if wanted and download.output.is_file() and _hash_file(download.output).hexdigest() == wanted:
        return wanted
    try:
        download.output.parent.mkdir(parents=True, exist_ok=True)
        digest = _receive_with_retries(download)
        _check(download, wanted, digest)
        with download.part.open("rb") as file:
            os.fsync(file.fileno())
        download.part.replace(download.output)
        download.origin.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in STORAGE_ERRORS:
            _discard(download)
        raise UserError(f"{download.output}: {error.strerror or error}") from error
    return digest


def _receive_with_retries(download: Download) -> str:
    wait_s = download.backoff_s
    for attempt in range(1, download.attempts + 1):
        try:
            return _Transfer(download).run()
        except _InterruptedError as error:
            if attempt == download.attempts:
                raise UserError(
                    f"{download.url}: {error}, {attempt} attempts; {download.output} not written"
                ) from error
            print(f"{download.url}: {error}; again in {wait_s:g} s", file=sys.stderr, flush=True)
        time.sleep(wait_s)
        wait_s *= 2
    raise AssertionError("attempts must be at least 1")


def _check(download: Download, wanted: str | None, digest: str) -> None:
    held = download.part.stat().st_size
    problem = None
    if download.size is not None and held != download.size:
        problem = f"expected {download.size} bytes, got {held}"
    elif wanted and digest != wanted:
        problem = f"expected sha256 {wanted}, got {digest}"
    if problem:
        _discard(download)
        raise UserError(f"{download.output}: {problem} from {download.url}")


@dataclass(frozen=True)
class _Origin:
    """What a part is a part of."""

    validator: str
    """What the server gives to tell versions of a file apart; empty when it gives nothing."""
    total: int | None
    """Bytes of the whole file, None where the server does not say."""


@dataclass(frozen=True)
class _Extent:
    """What an answer holds: the bytes from `start` on of a file of `total`, None where the server does not say."""

    start: int
    total: int | None


class _Transfer:
    """One attempt: from where the part ends, or from the start where the server or the part's history demands it."""

    def __init__(self, download: Download) -> None:
        self._download = download
        self._origin: _Origin | None = None
        self._have = 0
        if download.part.is_file():
            self._origin = _read_origin(download)
            if self._origin is None:
                _discard(download)
            else:
                self._have = download.part.stat().st_size

    def run(self) -> str:
        """Returns the sha256 of the whole part."""
        try:
            response = self._open()
        except urllib.error.HTTPError as error:
            self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(reason := getattr(error, "reason", None), FileNotFoundError):
                raise UserError(f"{self._download.url}: {reason.strerror}") from error
            raise _InterruptedError(f"no answer ({error})") from error
        except ValueError as error:
            raise UserError(f"{self._download.url}: {error}; write http://, https:// or file://") from error
        with response:
            return self._receive(response)

    def _open(self) -> Any:
        request = urllib.request.Request(self._download.url, headers={"User-Agent": "neox-hpc"})
        if self._have:
            request.add_header("Range", f"bytes={self._have}-")
            if self._origin and self._origin.validator:
                request.add_header("If-Range", self._origin.validator)
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)

    def _refused(self, error: urllib.error.HTTPError) -> None:
        if error.code == 416 and self._have:
            # The part is as long as the file or longer; whether it is the file is not worth a guess.
            _discard(self._download)
            raise _InterruptedError("the part does not belong to the file, starting over") from error
        if error.code >= 500 or error.code in RETRIED_STATUSES:
            raise _InterruptedError(f"HTTP status {error.code}") from error
        reason = " ".join(str(error.reason).split())  # of a redirect without end it is several lines
        raise UserError(f"{self._download.url}: HTTP status {error.code} ({reason})") from error

    def _receive(self, response: Any) -> str:
        download = self._download
        extent, validator = _extent(response), _validator(response)
        is_resumed = self._continues(extent, validator)
        if extent.start and not is_resumed:
            _discard(download)
            raise _InterruptedError("the server sent another part than was asked for, or of a file that has changed")
        if not is_resumed:
            self._have = 0
        total = self._total(extent, is_resumed)
        if total is None and not download.sha256 and not getattr(response, "chunked", False):
            print(f"{download.url}: does not say how long the file is; only a sha256 can tell", file=sys.stderr)
        write_json(download.origin, {"url": download.url, "validator": validator, "bytes": total})
        digest = _hash_file(download.part) if is_resumed else hashlib.sha256()
        with download.part.open("ab" if is_resumed else "wb") as file:
            self._copy(response, file, digest, total)
        if total is not None and self._have < total:
            raise _InterruptedError(f"the transfer ended after {self._have} of {total} bytes")
        return digest.hexdigest()

    def _continues(self, extent: _Extent, validator: str) -> bool:
        """Whether an answer goes on where the part ends, in the same version of the file, to an end that is known."""
        if self._origin is None or not 0 < self._have == extent.start:
            return False
        totals = {extent.total, self._origin.total} - {None}
        return len(totals) == 1 and validator == self._origin.validator

    def _total(self, extent: _Extent, is_resumed: bool) -> int | None:
        """Bytes the file must have, by the server or, where it is silent, by the user."""
        download = self._download
        total = self._origin.total if self._origin and is_resumed and extent.total is None else extent.total
        if total is not None and download.size not in (None, total):
            _discard(download)
            raise _InterruptedError(f"the server offers {total} bytes where {download.size} are expected")
        return download.size if total is None else total

    def _copy(self, response: Any, file: BinaryIO, digest: Any, expected: int | None) -> None:
        last = time.monotonic()
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _InterruptedError(f"the transfer broke after {self._have} bytes ({error})") from error
            if not chunk:
                return
            if expected is not None and self._have + len(chunk) > expected:
                _discard(self._download)
                raise _InterruptedError(f"more than the {expected} bytes expected")
            file.write(chunk)
            digest.update(chunk)
            self._have += len(chunk)
            if time.monotonic() - last >= PROGRESS_S:
                last = time.monotonic()
                print(
                    f"{self._download.output.name}: {self._have} of {expected or '?'} bytes",
                    file=sys.stderr,
                    flush=True,
                )


def _validator(response: Any) -> str:
    """What the server gives to tell versions of a file apart; empty when it gives nothing."""
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _extent(response: Any) -> _Extent:
    if getattr(response, "status", None) != 206:
        length = response.headers.get("Content-Length") or ""
        return _Extent(0, int(length) if length.isdecimal() else None)
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range") or "")
    if not match:
        raise _InterruptedError("the server sent a part without saying which")
    return _Extent(int(match[1]), None if match[2] == "*" else int(match[2]))


def _read_origin(download: Download) -> _Origin | None:
    """None when the origin is unknown or the part is of another URL."""
    try:
        origin = json.loads(download.origin.read_text())
        total = origin.get("bytes")
        found = _Origin(str(origin["validator"]), total if isinstance(total, int) else None)
        return found if origin["url"] == download.url else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _hash_file(path: Path) -> Any:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def _discard(download: Download) -> None:
    download.part.unlink(missing_ok=True)
    download.origin.unlink(missing_ok=True)

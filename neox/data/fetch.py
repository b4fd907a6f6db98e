"""Download a file: resumed where it stopped, checked while it streams, in place only when whole and right."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from neox.config.errors import UserError
from neox.data import parallel
from neox.data.durable import STORAGE_ERRORS, write_json
from neox.data.parallel import OtherPartError, Version, in_order, read_part
from neox.data.progress import Progress
from neox.data.remote import Answer, PastEndError, TransferError, open_part

CHUNK = 1 << 20


@dataclass(frozen=True)
class Download:
    """What to fetch and what it must be."""

    url: str
    """http, https, s3 or file."""
    output: Path
    sha256: str | None = None
    size: int | None = None
    """Bytes."""
    connections: int = 8
    """Parts of a large file that are fetched side by side, where the server gives parts."""
    attempts: int = 5
    """Attempts in a row that may end without a byte more than ever before."""
    backoff_s: float = 1.0
    """Wait after the first such attempt; it doubles with each."""

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

    UserError when the server refuses, the hash or size is wrong, or the attempts are used up. A part that may still be
    completed is kept; one that is wrong is removed.
    """
    wanted = download.sha256.lower() if download.sha256 else None
    if wanted and download.output.is_file() and _hash_file(download.output).hexdigest() == wanted:
        return wanted
    try:
        download.output.parent.mkdir(parents=True, exist_ok=True)
        with Progress(download.output.name) as progress:
            digest = _receive_with_retries(download, progress)
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


def _receive_with_retries(download: Download, progress: Progress) -> str:
    failures, most = 0, 0
    while True:
        transfer = _Transfer(download, progress)
        try:
            return transfer.run()
        except TransferError as error:
            if isinstance(error, OtherPartError):
                download = replace(download, connections=1)
            failures = 0 if transfer.have > most else failures + 1
            most = max(most, transfer.have)
            if failures >= download.attempts:
                raise UserError(
                    f"{download.url}: {error}, {failures} attempts; {download.output} not written"
                ) from error
            wait_s = download.backoff_s * 2 ** max(failures - 1, 0)
            print(f"{download.url}: {error}; again in {wait_s:g} s", file=sys.stderr, flush=True)
        time.sleep(wait_s)


def _check(download: Download, wanted: str | None, digest: str) -> None:
    if wanted and digest != wanted:
        _discard(download)
        raise UserError(f"{download.output}: expected sha256 {wanted}, got {digest} from {download.url}")


@dataclass(frozen=True)
class _Origin:
    """What a part is a part of."""

    validator: str
    """What the server gives to tell versions of a file apart; empty when it gives nothing."""
    total: int | None
    """Bytes of the whole file, None where the server does not say."""


class _Transfer:
    """One attempt: from where the part ends, or from the start where the server or the part's history demands it."""

    def __init__(self, download: Download, progress: Progress) -> None:
        self._download, self._progress = download, progress
        self._origin: _Origin | None = None
        self.have = 0
        """Bytes that are in the part."""
        if download.part.is_file():
            self._origin = _read_origin(download)
            if self._origin is None:
                _discard(download)
            else:
                self.have = download.part.stat().st_size

    def run(self) -> str:
        """Returns the sha256 of the whole part."""
        validator = self._origin.validator if self._origin else ""
        try:
            answer = open_part(self._download.url, self.have, None, validator)
        except PastEndError as error:
            # The part is as long as the file or longer; whether it is the file is not worth a guess.
            _discard(self._download)
            raise TransferError(f"{error}, starting over") from error
        with answer:
            return self._receive(answer)

    def _receive(self, answer: Answer) -> str:
        download = self._download
        is_resumed = self._continues(answer)
        if answer.start and not is_resumed:
            _discard(download)
            raise TransferError("the server sent another part than was asked for, or of a file that has changed")
        if not is_resumed:
            self.have = 0
        total = self._total(answer, is_resumed)
        if total is None and not download.sha256 and not answer.shows_its_end:
            print(f"{download.url}: does not say how long the file is; only a sha256 can tell", file=sys.stderr)
        write_json(download.origin, {"url": download.url, "validator": answer.validator, "bytes": total})
        digest = _hash_file(download.part) if is_resumed else hashlib.sha256()
        with download.part.open("ab" if is_resumed else "wb") as file:
            self._copy(self._blocks(answer, total), file, digest, total)
        if total is not None and self.have < total:
            raise TransferError(f"the transfer ended after {self.have} of {total} bytes")
        return digest.hexdigest()

    def _continues(self, answer: Answer) -> bool:
        """Whether an answer goes on where the part ends, in the same version of the file, to an end that is known."""
        if self._origin is None or not 0 < self.have == answer.start:
            return False
        totals = {answer.total, self._origin.total} - {None}
        return len(totals) == 1 and answer.validator == self._origin.validator

    def _total(self, answer: Answer, is_resumed: bool) -> int | None:
        """Bytes the file must have, by the server or, where it is silent, by the user."""
        download = self._download
        total = self._origin.total if self._origin and is_resumed and answer.total is None else answer.total
        if total is not None and download.size not in (None, total):
            _discard(download)
            raise TransferError(f"the server offers {total} bytes where {download.size} are expected")
        return download.size if total is None else total

    def _blocks(self, answer: Answer, total: int | None) -> Iterator[bytes]:
        """What follows the part, in order: of this answer, or of several connections instead."""
        download = self._download
        is_large = total is not None and total - self.have >= parallel.MIN_PARALLEL
        if total is None or not (is_large and answer.takes_ranges and download.connections > 1):
            return iter(functools.partial(answer.read, CHUNK), b"")
        answer.__exit__()
        version = Version(download.url, answer.validator, total)
        read = functools.partial(read_part, version, attempts=download.attempts, backoff_s=download.backoff_s)
        return in_order(read, self.have, total, download.connections)

    def _copy(self, blocks: Iterator[bytes], file: BinaryIO, digest: Any, expected: int | None) -> None:
        for block in blocks:
            if expected is not None and self.have + len(block) > expected:
                _discard(self._download)
                raise TransferError(f"more than the {expected} bytes expected")
            file.write(block)
            digest.update(block)
            self.have += len(block)
            self._progress.show(self.have, expected)


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

"""A part of a file behind a URL (http, https, file, s3): how it is asked for, and what an answer holds."""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from neox.config.errors import UserError
from neox.data.connection import open_address

RETRIED_STATUSES = {408, 425, 429}  # and every 5xx
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
"""Of such files some servers call the format an encoding."""
HUB = "https://huggingface.co"


class TransferError(Exception):
    """This attempt ended early; another may go on from there."""


class PastEndError(TransferError):
    """The file is not longer than where the part was to start."""


@dataclass(frozen=True)
class Answer:
    """The bytes from `start` on of a file of `total`; a context manager."""

    response: Any
    start: int
    total: int | None
    """None where the server does not say."""
    validator: str
    """What the server gives to tell versions of a file apart; empty when it gives nothing."""

    @property
    def takes_ranges(self) -> bool:
        """Whether the server says that it gives parts."""
        is_part = getattr(self.response, "status", None) == 206
        return is_part or self.response.headers.get("Accept-Ranges", "").lower() == "bytes"

    @property
    def shows_its_end(self) -> bool:
        """Whether a cut can be told from the end: by the length, or because it comes in chunks."""
        return self.total is not None or bool(getattr(self.response, "chunked", False))

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end. TransferError when the connection broke."""
        try:
            block: bytes = self.response.read(size)
        except (OSError, http.client.HTTPException) as error:
            raise TransferError(f"the transfer broke ({_line(error)})") from error
        return block

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()


def open_part(url: str, start: int, stop: int | None, validator: str = "") -> Answer:
    """Asks for the bytes [start, stop) of the version that `validator` names; the answer may hold others.

    The environment's proxies are used (http_proxy, https_proxy, no_proxy), and on the Hugging Face Hub HF_TOKEN.

    Raises:
        TransferError: it may succeed later. UserError: it will not.
    """
    try:
        return _answer(url, open_address(_request(url, start, stop, validator)))
    except urllib.error.HTTPError as error:
        raise _refusal(url, error) from error
    except http.client.InvalidURL as error:
        raise UserError(f"{url}: {_line(error)}") from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(reason := getattr(error, "reason", None), FileNotFoundError | IsADirectoryError):
            raise UserError(f"{url}: {reason.strerror}") from error
        raise TransferError(f"no answer ({_line(error)})") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{url}: {error}; write http://, https://, s3:// or file://") from error


def _request(url: str, start: int, stop: int | None, validator: str) -> urllib.request.Request:
    address = url
    if url.startswith("s3://"):
        from neox.data.s3 import signed_url

        address = signed_url(url)
    if address.startswith("http") and (wrong := re.search("[^!-~]", address)):
        raise UserError(f"{_line(url)}: write {wrong[0]!r} as {urllib.parse.quote(wrong[0])}")
    request = urllib.request.Request(address, headers={"User-Agent": "neox-hpc"})
    token = os.environ.get("HF_TOKEN")
    if token and address.startswith(f"{os.environ.get('HF_ENDPOINT', HUB).rstrip('/')}/"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for the hosts it redirects to
    if start or stop is not None:
        request.add_header("Range", f"bytes={start}-{'' if stop is None else stop - 1}")
        if validator:
            request.add_header("If-Range", validator)
    return request


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code == 416:
        return PastEndError("the part does not belong to the file")
    if error.code >= 500 or error.code in RETRIED_STATUSES:
        return TransferError(f"HTTP status {error.code}")
    hint = "; is HF_TOKEN set?" if error.code in (401, 403) and url.startswith(HUB) else ""
    return UserError(f"{url}: HTTP status {error.code} ({_line(error.reason)}){hint}")


def _line(reason: object) -> str:
    """Of a redirect without end, or of an answer that is no HTTP, the reason is several lines."""
    return " ".join(str(reason).split())


def _answer(url: str, response: Any) -> Answer:
    status, encoding = getattr(response, "status", None), response.headers.get("Content-Encoding", "identity")
    is_encoded = encoding != "identity" and not urllib.parse.urlsplit(url).path.endswith(COMPRESSED)
    if is_encoded or status not in (None, 200, 206):
        response.close()
        raise UserError(f"{url}: the server sends {f'it as {encoding}' if is_encoded else f'HTTP status {status}'}")
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if status != 206:
        length = response.headers.get("Content-Length") or ""
        return Answer(response, 0, int(length) if length.isdecimal() else None, validator)
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range") or "")
    if not match:
        response.close()
        raise TransferError("the server sent a part without saying which")
    return Answer(response, int(match[1]), None if match[2] == "*" else int(match[2]), validator)

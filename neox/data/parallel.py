"""One large file over several connections: parts fetched side by side, handed on in their order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from neox.data.remote import Answer, TransferError, open_part

PIECE = 1 << 16
"""Most bytes that are lost where a connection breaks or falls silent."""
BLOCK = 8 << 20
"""Bytes that one connection fetches at a time; as many are in memory for each connection, twice at most."""
MIN_PARALLEL = 2 * BLOCK
"""Bytes left from which on several connections are worth their set-up."""


@dataclass(frozen=True)
class Version:
    """Which version of which file the parts must be of."""

    url: str
    validator: str
    total: int
    """Bytes."""


def read_part(version: Version, start: int, stop: int, attempts: int, backoff_s: float) -> bytes:
    """The bytes [start, stop), gone on with where a connection breaks.

    Raises:
        TransferError: `attempts` in a row brought nothing, or the server gives other parts than it is asked for.
    """
    found, failures = bytearray(), 0
    while len(found) < stop - start:
        before = len(found)
        try:
            with open_part(version.url, start + before, stop, version.validator) as answer:
                _check(answer, version, start + before)
                while left := stop - start - len(found):
                    block = answer.read(min(left, PIECE))
                    if not block:
                        raise TransferError("a part ended early")
                    found += block
        except OtherPartError:
            raise
        except TransferError:
            failures = 0 if len(found) > before else failures + 1
            if failures >= attempts:
                raise
            time.sleep(backoff_s * 2**failures)
    return bytes(found)


class OtherPartError(TransferError):
    """The server sent what it was not asked for: it takes no ranges after all, or the file has changed."""


def _check(answer: Answer, version: Version, start: int) -> None:
    is_same = answer.validator == version.validator and answer.total in (None, version.total)
    if answer.start != start or not is_same:
        raise OtherPartError("the server sent another part than was asked for, or of a file that has changed")


def in_order(read: Callable[[int, int], bytes], start: int, stop: int, connections: int) -> Iterator[bytes]:
    """The blocks of [start, stop) in their order, as `read(first, last)` gives them in `connections` threads."""
    spans = iter((first, min(first + BLOCK, stop)) for first in range(start, stop, BLOCK))
    pool = ThreadPoolExecutor(connections, thread_name_prefix="fetch")
    try:
        pending: deque[Future[bytes]] = deque(pool.submit(read, *span) for span in islice(spans, connections))
        while pending:
            block = pending.popleft().result()
            pending.extend(pool.submit(read, *span) for span in islice(spans, 1))
            yield block
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
